"""The sample Services that the demo and the compose stack show: the mission's own manifests, and Pods behind them.

Where their workloads run is the ground's business: a Pod's place is its node itself or something beside it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services_app.lab.client import CORE, ApiClient, condition, pod

Document = dict[str, Any]
Say = Callable[[str], None]

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class SamplePod:
    """A Pod of a sample. node: its number, from 0. is_on_node: whether it has the node's address."""

    name: str
    node: int
    is_on_node: bool = False


@dataclass(frozen=True)
class Sample:
    """A Service and its Pods. ports: name of the Service's port, "" without -> (port, target port)."""

    namespace: str
    manifest: Path
    labels: dict[str, str]
    ports: dict[str, tuple[int, int]]
    pods: tuple[SamplePod, ...]

    @property
    def service(self) -> Document:
        return yaml.safe_load(self.manifest.read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return self.service["metadata"]["name"]

    def pod_records(self, nodes: list[str], addresses: Mapping[str, str]) -> list[Document]:
        """Its Pods' documents. nodes: names by number. addresses: Pod name -> address, for those not on a node."""
        ports = {name or "app": (target_port, "TCP") for name, (_, target_port) in self.ports.items()}
        return [
            pod(p.name, self.labels, nodes[p.node], ports, address=None if p.is_on_node else addresses[p.name])
            for p in self.pods
        ]


SAMPLES = (
    Sample(
        "selector",
        MANIFESTS / "service-with-selector.yaml",
        {"app.kubernetes.io/name": "MyApp"},
        {"": (80, 9376)},
        (SamplePod("myapp-1", 0, is_on_node=True), SamplePod("myapp-2", 1), SamplePod("myapp-3", 2)),
    ),
    Sample(
        "two-ports",
        MANIFESTS / "service-with-two-ports.yaml",
        {"app": "MiApp"},
        {"http": (80, 9376), "https": (443, 9377)},
        (SamplePod("web-1", 0), SamplePod("web-2", 1), SamplePod("web-3", 2)),
    ),
    Sample(
        "node-port",
        MANIFESTS / "service-with-node-port.yaml",
        {"app": "MiApp"},
        {"": (80, 80)},
        (SamplePod("front-1", 0), SamplePod("front-2", 1, is_on_node=True), SamplePod("front-3", 2, is_on_node=True)),
    ),
)


def publish(api: ApiClient, nodes: list[str], addresses: Mapping[str, str], say: Say, *, timeout_s: float) -> None:
    """Apply every sample, and wait until each node is ready and each Service programmed. May be repeated.

    nodes: names by number. addresses: Pod name -> address, for those not on a node. Raises TimeoutError with what is
    missing; ApiRefused.
    """
    for sample in SAMPLES:
        api.ensure_namespace(sample.namespace)
        collection = f"{CORE}/namespaces/{sample.namespace}"
        api.apply(f"{collection}/services", sample.service)
        for record in sample.pod_records(nodes, addresses):
            api.apply(f"{collection}/pods", record)
    deadline = time.monotonic() + timeout_s
    for node in nodes:
        _wait(api, f"{CORE}/nodes/{node}", "Ready", deadline)
        say(f"{node} is ready")
    for sample in SAMPLES:
        path = f"{CORE}/namespaces/{sample.namespace}/services/{sample.name}"
        found = _wait(api, path, "Programmed", deadline)
        ports = ", ".join(_spell(port) for port in found["spec"]["ports"])
        say(f"{sample.name}.{sample.namespace} is live on every node: {found['spec']['clusterIP']}, port {ports}")


def _wait(api: ApiClient, path: str, kind: str, deadline: float) -> Document:
    while True:
        found = api.request("GET", path)
        state = condition(found, kind)
        if state.get("status") == "True":
            return found
        if time.monotonic() > deadline:
            why = f"{state.get('reason', 'no such condition')}: {state.get('message', '')}"
            raise TimeoutError(f"{path.removeprefix(CORE)} is not {kind}: {why}")
        time.sleep(0.2)


def _spell(port: Document) -> str:
    return f"{port['port']} (node port {port['nodePort']})" if "nodePort" in port else str(port["port"])


def beside_nodes() -> list[str]:
    """The names of the Pods with an address of their own."""
    return [p.name for sample in SAMPLES for p in sample.pods if not p.is_on_node]
