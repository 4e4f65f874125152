"""DESIGN §5's packet paths on plain hosts: who reaches which backend by which way, and as whom it is seen there.

Everything is real: manifests by the API, rules by SSH and agent, connections between namespaces.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from services_app.lab.client import CORE, pod, service
from services_app.lab.cluster import Cluster, condition
from services_app.lab.namespaces import Place, ProbeFailed, outcome
from services_app.lab.network import Lab

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

NAMESPACE = "packets"
PORT = 8080
# A process on the node is told by the kernel's own word for it when what it sends is rejected on its way out.
REFUSED = "refused|operation not permitted"


@dataclass(frozen=True)
class Target:
    """A Service with a single endpoint, so that the way is known."""

    virtual_ip: str
    node_port: int


def place(lab: Lab, name: str) -> Place:
    """ "node-1", "container-1-2", "client", "neighbour"."""
    kind, *numbers = name.split("-")
    if kind == "node":
        return lab.nodes[int(numbers[0]) - 1]
    if kind == "container":
        return lab.nodes[int(numbers[0]) - 1].containers[int(numbers[1]) - 1]
    return lab.client if kind == "client" else lab.neighbour


BACKENDS = ("node-1", "node-2", "container-1-1", "container-2-1")


@pytest.fixture(scope="module")
def targets(cluster: Cluster) -> Iterator[dict[str, Target]]:
    """Backend's place -> the Service that leads there."""
    api, lab = cluster.api, cluster.lab
    api.ensure_namespace(NAMESPACE)
    made = {}
    ports = [{"name": p, "protocol": p.upper(), "port": 80, "targetPort": PORT} for p in ("tcp", "udp")]
    for name in BACKENDS:
        where = place(lab, name)
        for protocol in ("tcp", "udp"):
            where.serve(name, PORT, protocol=protocol)
        node = name if name.startswith("node") else f"node-{name.split('-')[1]}"
        address = None if name == node else where.address
        record = pod(name, {"at": name}, node, {"tcp": (PORT, "TCP"), "udp": (PORT, "UDP")}, address=address)
        api.create(f"{CORE}/namespaces/{NAMESPACE}/pods", record)
        document = service(f"to-{name}", {"at": name}, ports, kind="NodePort")
        spec = api.create(f"{CORE}/namespaces/{NAMESPACE}/services", document)["spec"]
        made[name] = Target(spec["clusterIP"], spec["ports"][0]["nodePort"])
        assert spec["ports"][0]["nodePort"] == spec["ports"][1]["nodePort"] or made
    for name, target in made.items():
        for node in lab.nodes:
            outcome(node.ask_until(target.virtual_ip, 80, name, deadline_s=30), 40)
    yield made
    api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}")


# client, way ("vip" or the node whose node port is asked), backend, address the backend sees ("" = any: only reached)
PATHS = [
    # A node is seen as itself, wherever the backend is.
    ("node-1", "vip", "node-1", "node-1"),
    ("node-1", "vip", "node-2", "node-1"),
    ("node-1", "vip", "container-1-1", "node-1"),
    ("node-1", "vip", "container-2-1", "node-1"),
    # A container behind a node: as itself by a backend on its own node, as its node elsewhere.
    ("container-1-1", "vip", "node-1", "container-1-1"),
    ("container-1-1", "vip", "node-2", "node-1"),
    ("container-1-1", "vip", "container-2-1", "node-1"),
    # Over the bridge it came from, also to itself: reached, and seen as the bridge.
    ("container-1-2", "vip", "container-1-1", ""),
    ("container-1-1", "vip", "container-1-1", ""),
    # Outside, by node port: as itself by a backend on the node asked, as that node elsewhere.
    ("client", "node-1", "node-1", "client"),
    ("client", "node-1", "container-1-1", "client"),
    ("client", "node-1", "node-2", "node-1"),
    ("client", "node-1", "container-2-1", "node-1"),
    ("client", "node-3", "node-1", "node-3"),
    # On the nodes' own link the reply could go round even more easily.
    ("neighbour", "node-1", "node-1", "neighbour"),
    ("neighbour", "node-1", "container-1-1", "neighbour"),
    ("neighbour", "node-1", "node-2", "node-1"),
    ("neighbour", "node-2", "container-1-1", "node-2"),
    # Nodes and containers by node port, of their own node and of another.
    ("node-1", "node-1", "node-1", "node-1"),
    ("node-1", "node-1", "node-2", "node-1"),
    ("node-1", "node-2", "node-2", "node-1"),
    ("node-1", "node-2", "node-1", "node-2"),
    ("node-1", "node-2", "container-1-1", "node-2"),
    ("container-1-1", "node-1", "node-1", "container-1-1"),
    ("container-1-1", "node-1", "node-2", "node-1"),
    ("container-1-1", "node-2", "container-2-1", "container-1-1"),
]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("client, way, backend, seen", PATHS, ids=[" ".join(p[:3]) for p in PATHS])
def test_a_connection_arrives_and_is_seen_as(
    cluster: Cluster, targets: dict[str, Target], protocol: str, client: str, way: str, backend: str, seen: str
) -> None:
    lab, target = cluster.lab, targets[backend]
    if way == "vip":
        host, port = target.virtual_ip, 80
    else:
        host, port = place(lab, way).address, target_port(cluster, backend, protocol)
    answer = place(lab, client).ask(host, port, protocol=protocol)
    assert answer["backend"] == backend
    if seen:
        assert answer["client"] == place(lab, seen).address


def target_port(cluster: Cluster, backend: str, protocol: str) -> int:
    document = cluster.api.request("GET", f"{CORE}/namespaces/{NAMESPACE}/services/to-{backend}")
    return next(int(p["nodePort"]) for p in document["spec"]["ports"] if p["name"] == protocol)


@pytest.mark.parametrize("client", ["client", "neighbour"])
def test_cluster_ips_are_not_for_the_outside(cluster: Cluster, targets: dict[str, Target], client: str) -> None:
    with pytest.raises(ProbeFailed):
        place(cluster.lab, client).ask(targets["node-1"].virtual_ip, 80, timeout_s=0.3)


def test_a_client_whose_operator_routes_the_range_is_served(cluster: Cluster, targets: dict[str, Target]) -> None:
    lab = cluster.lab
    lab.neighbour.run(["ip", "route", "add", "10.96.0.0/16", "via", lab.nodes[0].address])
    try:
        assert lab.neighbour.ask(targets["node-1"].virtual_ip, 80)["client"] == lab.neighbour.address
        assert lab.neighbour.ask(targets["node-2"].virtual_ip, 80)["client"] == lab.nodes[0].address
    finally:
        lab.neighbour.run(["ip", "route", "delete", "10.96.0.0/16"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("client", ["node-1", "node-3", "container-1-1"])
def test_an_undefined_port_of_a_virtual_ip_is_refused(
    cluster: Cluster, targets: dict[str, Target], client: str, protocol: str
) -> None:
    with pytest.raises(ProbeFailed, match=REFUSED):
        place(cluster.lab, client).ask(targets["node-1"].virtual_ip, 81, protocol=protocol, timeout_s=1)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_service_without_endpoints_refuses_until_it_has_one(cluster: Cluster, protocol: str) -> None:
    api, lab = cluster.api, cluster.lab
    name = f"empty-{protocol}"
    api.ensure_namespace(name)
    ports = [{"protocol": protocol.upper(), "port": 80, "targetPort": PORT + 1}]
    document = service(name, {"app": name}, ports, kind="NodePort")
    spec = api.create(f"{CORE}/namespaces/{name}/services", document)["spec"]
    virtual_ip, node_port = spec["clusterIP"], spec["ports"][0]["nodePort"]
    done = cluster.kubectl("wait", "--for=condition=Programmed", f"service/{name}", "-n", name, "--timeout=20s")
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProbeFailed, match=REFUSED):
        lab.nodes[0].ask(virtual_ip, 80, protocol=protocol, timeout_s=1)
    with pytest.raises(ProbeFailed, match="refused"):
        lab.client.ask(lab.nodes[1].address, node_port, protocol=protocol, timeout_s=1)
    lab.nodes[2].serve(name, PORT + 1, protocol=protocol)
    record = pod(name, {"app": name}, "node-3", {"app": (PORT + 1, protocol.upper())})
    api.create(f"{CORE}/namespaces/{name}/pods", record)
    outcome(lab.nodes[0].ask_until(virtual_ip, 80, name, protocol=protocol))
    outcome(lab.client.ask_until(lab.nodes[1].address, node_port, name, protocol=protocol))
    api.request("DELETE", f"{CORE}/namespaces/{name}/services/{name}")
    lab.nodes[2].stop_serving(PORT + 1, protocol=protocol)


def test_a_udp_flow_moves_when_its_endpoint_leaves(cluster: Cluster) -> None:
    """The oldest bug of the field: the flow's conntrack entry would hold on to the endpoint that is gone."""
    api, lab = cluster.api, cluster.lab
    api.ensure_namespace("flow")
    for number, node in enumerate(lab.nodes[1:], start=1):
        node.serve(f"flow-{number}", PORT + 2, protocol="udp")
    ports = [{"protocol": "UDP", "port": 53, "targetPort": PORT + 2}]
    pods = f"{CORE}/namespaces/flow/pods"
    api.create(pods, pod("flow-1", {"app": "flow"}, "node-2", {"app": (PORT + 2, "UDP")}))
    virtual_ip = api.create(f"{CORE}/namespaces/flow/services", service("flow", {"app": "flow"}, ports))["spec"][
        "clusterIP"
    ]
    outcome(lab.nodes[0].ask_until(virtual_ip, 53, "flow-1", protocol="udp"))
    lab.nodes[0].stream("flow", virtual_ip, 53, protocol="udp", interval_ms=10, kept=True, timeout_s=1)
    api.create(pods, pod("flow-2", {"app": "flow"}, "node-3", {"app": (PORT + 2, "UDP")}))
    outcome(lab.nodes[0].ask_until(virtual_ip, 53, "flow-2", protocol="udp"))
    api.request("DELETE", f"{pods}/flow-1")
    outcome(lab.nodes[1].ask_until(virtual_ip, 53, "flow-2", protocol="udp"))
    import time

    time.sleep(1)
    report = lab.nodes[0].stream_end("flow")
    assert report["backends"].get("flow-2"), report
    for node in lab.nodes[1:]:
        node.stop_serving(PORT + 2, protocol="udp")
    api.request("DELETE", f"{CORE}/namespaces/flow/services/flow")


def test_programmed_is_said_of_every_service_that_is(cluster: Cluster, targets: dict[str, Target]) -> None:
    for item in cluster.api.request("GET", f"{CORE}/namespaces/{NAMESPACE}/services")["items"]:
        assert condition(item, "Programmed")["status"] == "True", item["metadata"]["name"]
