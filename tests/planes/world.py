"""One node with the agent, two containers behind it, a neighbour on its link and a client outside; Services in both families.

A Service's number n gives its addresses and ports: cluster IP 10.96.0.n, external IP 203.0.113.n, load balancer's
address 203.0.113.(100 + n), node port 30000 + n; in IPv6 with the same last number.
"""

import itertools
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

from agents.state import digest
from services_app.lab.namespaces import Place
from services_app.lab.network import Lab, Node
from services_app.plan.routing import groups_wanted
from services_app.render.node import Cluster, OwnerState, network_of, render_base, render_owner
from services_app.spec.kube_proxy import Configuration
from tests.agents.test_node import AGENT, Agent, place_agent

Document = dict[str, Any]

CLUSTER = Cluster((ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")), "cluster.local")
CONDITIONS = {
    "ready": {"ready": True, "serving": True, "terminating": False},
    "draining": {"ready": False, "serving": True, "terminating": True},
    "gone": {"ready": False, "serving": False, "terminating": True},
}
WHOLE = Path(__file__).with_name("whole.py").read_text()
VERSIONS = (4, 6)
PORT = 8080  # of every endpoint
PATIENCE = float(os.environ.get("TIMONEL_PATIENCE", "1"))  # how many times longer an answer may take than elsewhere


@dataclass(frozen=True)
class Given:
    """A Service and its endpoints: name of a place -> one of CONDITIONS. spec: fields beside the generated ones.

    ranges: places whose addresses are the load balancer's source ranges; it has an address of its own then. weights: place
    -> its share of new connections, where that is not 100.
    """

    endpoints: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "tcp"
    spec: Mapping[str, Any] = field(default_factory=dict)
    ranges: Sequence[str] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)


class World:
    """What the node was sent in a mode. Places: "node", "inside", "other" (its containers), "neighbour", "outside"."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.lab = Lab(nodes=1, containers=2)
        self._looking: subprocess.Popen[str] | None = None

    def __enter__(self) -> "World":
        self.lab.__enter__()
        try:
            self._furnish()
        except BaseException:
            self.lab.close()
            raise
        return self

    def _furnish(self) -> None:
        self.node: Node = self.lab.nodes[0]
        inside, other = self.node.containers
        self.places: dict[str, Place] = {
            "node": self.node,
            "inside": inside,
            "other": other,
            "neighbour": self.lab.neighbour,
            "outside": self.lab.client,
        }
        self.held: dict[str, list[list[str]]] = {}
        self.rejected: dict[str, Document] = {}
        self._revisions = itertools.count(1)
        self._revision = 0
        self._numbers: dict[str, int] = {}
        for name, place in self.places.items():
            for version, protocol in itertools.product(VERSIONS, ("tcp", "udp")):
                place.serve(name, PORT, protocol=protocol, address=self.own(name, version))
        # As an operator does who gives addresses to the node: the switch sends them there.
        for network, version in (("203.0.113.0/24", 4), ("2001:db8:113::/64", 6)):
            self.lab.switch.run(["ip", "route", "replace", network, "via", self.own("node", version)])
        self.enrol()

    def enrol(self) -> None:
        """Give the node an agent and everything that was sent so far."""
        place_agent(self.node)
        self.agent = Agent(self.node)
        self.configure(self.mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self.agent.process, self._looking):
            if process is not None:
                process.kill()
                process.wait()
        self.lab.close()

    def own(self, place: str, version: int) -> str:
        """A place's own address."""
        return self.places[place].address if version == 4 else self.places[place].address6

    def node_towards(self, place: str, version: int) -> str:
        """The node's address on the link where a place is; its containers are behind a bridge."""
        if place in ("inside", "other"):
            return re.sub(r"[0-9]+$", "1", self.own(place, version))
        return self.own("node", version)

    def way(self, service: str, way: str, version: int) -> tuple[str, int]:
        """Where a Service is reached: "cluster ip", "node port", "external ip", "balancer"."""
        number = self._numbers[service]
        if way == "node port":
            return self.own("node", version), 30000 + number
        prefix, plus = {
            "cluster ip": (("10.96.0.", "fd00:10:96::"), 0),
            "external ip": (("203.0.113.", "2001:db8:113::"), 0),
            "balancer": (("203.0.113.", "2001:db8:113::"), 100),
        }[way]
        return (f"{prefix[0]}{number + plus}" if version == 4 else f"{prefix[1]}{number + plus:x}"), 80

    # Sending

    def configure(self, mode: str, **fields: Any) -> None:
        """Push everything, in a mode and with fields of the proxy's configuration."""
        self.mode = mode
        base = render_base(CLUSTER, network_of(self._document(), ""), Configuration(mode=mode, **fields))
        self.held[""] = [list(resource) for resource in base]
        self._apply(self.held, None)

    def send(self, **services: Given | None) -> None:
        """Push Services as a delta; None takes one away."""
        changed = {f"shop/{name}": self._render(name, given) for name, given in services.items()}
        self.held |= changed
        self._apply(changed, self._revision)

    def expected_digest(self) -> str:
        return digest(self.held)

    def unlike_a_refill(self) -> list[str]:
        """What the node holds other than one refill of everything would make."""
        if self._looking is None:
            command = ["env", f"PYTHONPATH={AGENT}", "python3", "-c", WHOLE]
            self._looking = subprocess.Popen(
                self.node.inside(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._looking.stdin is not None
        assert self._looking.stdout is not None
        given = {"mode": self.serving["mode"], "owners": self.held, "rejected": list(self.rejected)}
        print(json.dumps(given), file=self._looking.stdin, flush=True)
        return list(json.loads(self._looking.stdout.readline()))

    def _apply(self, owners: dict[str, list[list[str]]], since: int | None) -> None:
        revision = next(self._revisions)
        answer = self.agent.ask("apply", cluster="c1", revision=revision, since=since, owners=owners)
        assert answer["ok"], answer
        self.rejected, self.serving, self._revision = answer["rejected"], answer["serving"], revision

    def _document(self) -> Document:
        addresses = [{"type": "InternalIP", "address": self.own("node", version)} for version in VERSIONS]
        return {"status": {"addresses": addresses}}

    def _render(self, name: str, given: Given | None) -> list[list[str]]:
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        if given is None:
            return []
        service = self._service(name, number, given)
        groups = {key: number * 16 + n for n, key in enumerate(sorted(groups_wanted(service)), start=1)}
        state = OwnerState(f"shop/{name}", service, self._slices(given), groups)
        return [list(resource) for resource in render_owner(state, CLUSTER).on("here")]

    def _service(self, name: str, number: int, given: Given) -> Document:
        spec: Document = {
            "type": "NodePort",
            "clusterIP": f"10.96.0.{number}",
            "clusterIPs": [f"10.96.0.{number}", f"fd00:10:96::{number:x}"],
            "externalIPs": [f"203.0.113.{number}", f"2001:db8:113::{number:x}"],
            "ports": [
                {"name": "http", "port": 80, "protocol": given.protocol.upper(), "nodePort": 30000 + number},
            ],
            **given.spec,
        }
        status: Document = {}
        if given.ranges:
            spec["type"] = "LoadBalancer"
            spec["loadBalancerSourceRanges"] = [
                f"{self.own(place, version)}/{32 if version == 4 else 128}"
                for place in given.ranges
                for version in VERSIONS
            ]
            addresses = [f"203.0.113.{number + 100}", f"2001:db8:113::{number + 100:x}"]
            status = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"} for address in addresses]}}
        metadata = {"name": name, "namespace": "shop", "annotations": dict(given.annotations)}
        return {"metadata": metadata, "spec": spec, "status": status}

    def _slices(self, given: Given) -> tuple[Document, ...]:
        return tuple(
            {
                "metadata": {"annotations": self._weights(given, version)},
                "addressType": f"IPv{version}",
                "ports": [{"name": "http", "port": PORT, "protocol": given.protocol.upper()}],
                "endpoints": [
                    {
                        "addresses": [self.own(place, version)],
                        "conditions": CONDITIONS[condition],
                        "nodeName": "there" if place == "neighbour" else "here",
                    }
                    for place, condition in given.endpoints.items()
                ],
            }
            for version in VERSIONS
        )

    def _weights(self, given: Given, version: int) -> dict[str, str]:
        text = ",".join(f"{self.own(place, version)}={weight}" for place, weight in given.weights.items())
        return {"timonel.io/weights": text} if text else {}
