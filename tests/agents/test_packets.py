"""What is rendered for a Service, on a host of its own with the agent: both families, policies, affinity, protocols."""

import itertools
import json
import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from agents.ruleset import READY_CHAINS
from agents.state import digest
from services_app.lab.namespaces import Place
from services_app.lab.network import Lab, Node
from services_app.render.node import Cluster, OwnerState, network_of, render_base, render_owner
from services_app.render.tracer import NodeTables, Packet
from services_app.spec.kube_proxy import Configuration
from tests.agents.test_node import Agent, eventually, place_agent

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(120),
]

CLUSTER = Cluster((ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")), "cluster.local")
VIRTUAL = {4: "10.96.0.10", 6: "fd00:10:96::a"}
EXTERNAL = {4: "203.0.113.10", 6: "2001:db8:113::10"}
BALANCER = {4: "203.0.113.20", 6: "2001:db8:113::20"}
RANGES = ["192.0.2.0/24", "192.0.2.128/25", "192.0.0.0/16", "192.0.2.7/32", "2001:db8:7::/48", "2001:db8:7::1/128"]
NODE_PORT = 30080
READY = {"ready": True, "serving": True, "terminating": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
# A process on the node is told by the kernel's own words when what it sends is rejected on its way out.
REFUSED = ("refused", "operation not permitted", "permission denied")
Document = dict[str, Any]


class Host:
    """A node with the agent, and the Services it was sent. `elsewhere` is an endpoint that no Node here has."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node: Node = lab.nodes[0]
        self.inside, self.other = self.node.containers
        self.elsewhere: Place = lab.neighbour
        self.agent = Agent(self.node)
        self.held: dict[str, list[list[str]]] = {}
        self.pod_cidrs: list[str] = []
        self.zone = ""
        self._numbers = itertools.count(1)
        self._revision = 0

    def address(self, place: Place, version: int) -> str:
        return place.address if version == 4 else place.address6

    def send(self, service: Document | None = None, slices: tuple[Document, ...] = (), name: str = "web") -> None:
        """Push a Service as a delta, None: without it. Asserts that nothing of it is rejected."""
        owner = f"shop/{name}"
        groups = {(f"{p}/80", policy): n for n, (p, policy) in enumerate(itertools.product(*GROUPS), start=1)}
        rendered = render_owner(OwnerState(owner, service, slices, groups), CLUSTER)
        self.held[owner] = [list(resource) for resource in rendered.on("here", self.zone)]
        self._apply({owner: self.held[owner]}, self._revision)

    def send_all(self, *node_port_addresses: str, masquerade_all: bool = False) -> None:
        configuration = Configuration(node_port_addresses=node_port_addresses, masquerade_all=masquerade_all)
        base = render_base(CLUSTER, network_of(self.document(), ""), configuration)
        self.held[""] = [list(resource) for resource in base]
        self._apply(self.held, None)

    def _apply(self, owners: dict[str, list[list[str]]], since: int | None) -> None:
        revision = next(self._numbers)
        answer = self.agent.ask("apply", cluster="c1", revision=revision, since=since, owners=owners)
        assert answer["ok"], answer
        assert answer["rejected"] == {}
        self._revision = revision

    def document(self) -> Document:
        addresses = [{"type": "InternalIP", "address": a} for a in (self.node.address, self.node.address6)]
        return {"spec": {"podCIDRs": self.pod_cidrs}, "status": {"addresses": addresses}}

    def elements(self) -> dict[tuple[str, str], set[str]]:
        """("ip" or "ip6", name of a set or map) -> what is in it; without what packets left there."""
        found: dict[tuple[str, str], set[str]] = {}
        for ip in ("ip", "ip6"):
            text = self.node.run(["nft", "list", "table", ip, "timonel"]).stdout
            for name, body in re.findall(r"^\t(?:set|map) (\w+) \{$(.*?)^\t\}$", text, re.DOTALL | re.MULTILINE):
                inner = re.search(r"elements = \{(.*)\}", body, re.DOTALL)
                found[ip, name] = {part.strip() for part in inner[1].split(",")} if inner else set()
            found.pop((ip, "affinity"), None)
        return found


GROUPS = (("TCP", "UDP", "SCTP"), ("Cluster", "Local"))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab(nodes=1, containers=2) as lab:
        place_agent(lab.nodes[0])
        host = Host(lab)
        for place in (host.node, host.inside, host.other, host.elsewhere):
            for version, protocol in itertools.product((4, 6), ("tcp", "udp")):
                place.serve(place.name, 8080, protocol=protocol, address=host.address(place, version))
        host.send_all()
        yield host
        host.agent.process.kill()
        host.agent.process.wait()


def a_service(protocol: str = "TCP", **spec: Any) -> Document:
    return {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "NodePort",
            "clusterIPs": [*VIRTUAL.values()],
            "clusterIP": VIRTUAL[4],
            "externalIPs": [*EXTERNAL.values()],
            "ports": [{"name": "http", "port": 80, "protocol": protocol, "nodePort": NODE_PORT}],
            **spec,
        },
    }


def slices(host: Host, *endpoints: tuple[Place, Document], protocol: str = "TCP") -> tuple[Document, ...]:
    """Endpoints in both families; all are on the node but `elsewhere`."""
    return tuple(
        {
            "addressType": f"IPv{version}",
            "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
            "endpoints": [
                {
                    "addresses": [host.address(place, version)],
                    "conditions": conditions,
                    "nodeName": "there" if place is host.elsewhere else "here",
                }
                for place, conditions in endpoints
            ],
        }
        for version in (4, 6)
    )


def ways(host: Host, version: int) -> dict[str, tuple[str, int]]:
    return {
        "cluster ip": (VIRTUAL[version], 80),
        "node port": (host.address(host.node, version), NODE_PORT),
        "external ip": (EXTERNAL[version], 80),
    }


def reached(place: Place, way: tuple[str, int], protocol: str = "tcp", count: int = 20) -> set[str]:
    """The names of who answers, or the reasons why nobody does."""
    answers = place.ask_often(*way, count, protocol=protocol, timeout_s=0.3)
    return {str(answer.get("backend") or answer["error"]) for answer in answers}


both = pytest.mark.parametrize("version", [4, 6])


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_address_leads_to_every_endpoint(host: Host, version: int, protocol: str) -> None:
    everywhere = slices(host, (host.inside, READY), (host.elsewhere, READY), protocol=protocol.upper())
    host.send(a_service(protocol.upper()), everywhere)
    route_external(host, version)
    wanted = {host.inside.name, host.elsewhere.name}
    for name, way in ways(host, version).items():
        assert reached(host.node, way, protocol) == wanted, name
        assert reached(host.other, way, protocol) == wanted, name
        if name != "cluster ip":
            assert reached(host.lab.client, way, protocol) == wanted, name
    for way in list(ways(host, version).values())[1:]:
        seen = {a["backend"]: a["client"] for a in host.lab.client.ask_often(*way, 20, protocol=protocol)}
        assert seen[host.inside.name] == host.address(host.lab.client, version)
        assert seen[host.elsewhere.name] == host.address(host.node, version)


def route_external(host: Host, version: int) -> None:
    """As an operator does who gives an address to the node: the switch sends it there."""
    gateway, whole = host.address(host.node, version), 32 if version == 4 else 128
    host.lab.switch.run(["ip", "route", "replace", f"{EXTERNAL[version]}/{whole}", "via", gateway])


@both
def test_a_container_reaches_itself(host: Host, version: int) -> None:
    host.send(a_service(), slices(host, (host.inside, READY)))
    for way in ways(host, version).values():
        assert reached(host.inside, way, count=3) == {host.inside.name}


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_without_endpoints_every_address_refuses(host: Host, version: int, protocol: str, policy: str) -> None:
    policies = {"internalTrafficPolicy": policy, "externalTrafficPolicy": policy}
    host.send(a_service(protocol.upper(), **policies), slices(host, (host.inside, GONE), protocol=protocol.upper()))
    route_external(host, version)
    for name, way in ways(host, version).items():
        clients = [host.node, host.other, *([host.lab.client] if name != "cluster ip" else [])]
        for client in clients:
            assert client.refusal(*way, protocol=protocol) in REFUSED, (client.name, name)


@both
def test_an_undefined_port_of_a_cluster_ip_is_refused_and_of_an_external_ip_is_not_ours(
    host: Host, version: int
) -> None:
    host.send(a_service(), slices(host, (host.inside, READY)))
    for client in (host.node, host.other):
        assert client.refusal(VIRTUAL[version], 81) in REFUSED
    assert host.elements()["ip" if version == 4 else "ip6", "cluster_ips"] == {VIRTUAL[version]}


@both
def test_node_ports_are_answered_where_the_configuration_says(host: Host, version: int) -> None:
    host.send(a_service(), slices(host, (host.inside, READY)))
    port, primary = NODE_PORT, host.address(host.node, version)
    second = "192.0.2.77" if version == 4 else "2001:db8:77::77"
    whole = 32 if version == 4 else 128
    host.node.run(["ip", "address", "add", f"{second}/{whole}", "dev", "lo"])
    host.lab.switch.run(["ip", "route", "replace", f"{second}/{whole}", "via", primary])
    try:
        for chosen, at_primary, at_second in (
            ([], True, True),
            (["primary"], True, False),
            (["192.0.2.64/26", "2001:db8:77::/64"], False, True),
            (["10.255.0.0/16"], False, False),
            (["0.0.0.0/0", "::/0"], True, True),
        ):
            host.send_all(*chosen)
            for client in (host.lab.client, host.node):
                for address, is_open in ((primary, at_primary), (second, at_second)):
                    wanted = {host.inside.name} if is_open else {"refused"}
                    assert reached(client, (address, port), count=3) == wanted, (chosen, client.name, address)
    finally:
        host.send_all()
        host.node.run(["ip", "address", "delete", f"{second}/{whole}", "dev", "lo"])
        host.lab.switch.run(["ip", "route", "delete", f"{second}/{whole}"])


@both
def test_endpoints_see_no_client_of_a_cluster_ip_where_all_is_masqueraded(host: Host, version: int) -> None:
    host.send(a_service(), slices(host, (host.inside, READY), (host.node, READY)))
    whole, client = 32 if version == 4 else 128, host.lab.client
    route = [f"{VIRTUAL[version]}/{whole}", "via", host.address(host.node, version)]
    host.lab.switch.run(["ip", "route", "replace", *route])

    def seen(way: tuple[str, int]) -> dict[str, bool]:
        """Who answers -> whether it saw the client; and as the tracer says."""
        tables = NodeTables(
            [tuple(r) for resources in host.held.values() for r in resources], [host.address(host.node, version)]
        )
        found = {a["backend"]: a["client"] == host.address(client, version) for a in client.ask_often(*way, 20)}
        said = tables.trace(Packet(host.address(client, version), *way)).targets
        places = {host.address(place, version): place.name for place in (host.inside, host.node)}
        assert {places[target.address]: target.sees_client for target in said} == found
        return found

    try:
        way = ways(host, version)
        assert set(seen(way["cluster ip"]).values()) == {True}
        host.send_all(masquerade_all=True)
        # What ends on the node itself is not sent on, so there is nothing to masquerade.
        assert seen(way["cluster ip"]) == {host.inside.name: False, host.node.name: True}
        assert seen(way["node port"]) == {host.inside.name: True, host.node.name: True}
        assert reached(host.node, way["cluster ip"]) == {host.inside.name, host.node.name}
    finally:
        host.send_all()
        host.lab.switch.run(["ip", "route", "delete", *route])


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_internal_policy_local_stays_on_the_node(host: Host, version: int, protocol: str) -> None:
    service = a_service(protocol.upper(), internalTrafficPolicy="Local")
    host.send(service, slices(host, (host.inside, READY), (host.elsewhere, READY), protocol=protocol.upper()))
    way = ways(host, version)
    assert reached(host.node, way["cluster ip"], protocol) == {host.inside.name}
    assert reached(host.other, way["cluster ip"], protocol) == {host.inside.name}
    assert reached(host.lab.client, way["node port"], protocol) == {host.inside.name, host.elsewhere.name}
    host.send(service, slices(host, (host.elsewhere, READY), protocol=protocol.upper()))
    assert reached(host.other, way["cluster ip"], protocol, count=2) == {"timeout"}
    assert reached(host.lab.client, way["node port"], protocol, count=2) == {host.elsewhere.name}


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_external_policy_local_keeps_the_client_and_drops_without_endpoints(
    host: Host, version: int, protocol: str
) -> None:
    service = a_service(protocol.upper(), externalTrafficPolicy="Local")
    host.send(service, slices(host, (host.inside, READY), (host.elsewhere, READY), protocol=protocol.upper()))
    route_external(host, version)
    way, client = ways(host, version), host.lab.client
    everybody = {host.inside.name, host.elsewhere.name}
    for name in ("node port", "external ip"):
        answers = client.ask_often(*way[name], 20, protocol=protocol, timeout_s=0.3)
        assert {(a["backend"], a["client"]) for a in answers} == {(host.inside.name, host.address(client, version))}
        # The node itself is not "external".
        assert reached(host.node, way[name], protocol) == everybody
    assert reached(host.node, way["cluster ip"], protocol) == everybody
    host.send(service, slices(host, (host.elsewhere, READY), protocol=protocol.upper()))
    for name in ("node port", "external ip"):
        assert reached(client, way[name], protocol, count=2) == {"timeout"}
        assert reached(host.node, way[name], protocol, count=2) == {host.elsewhere.name}


@both
@pytest.mark.parametrize("affinity", [False, True])
def test_a_node_prefers_the_endpoints_that_are_meant_for_it_or_its_zone(
    host: Host, version: int, affinity: bool
) -> None:
    def send(*hints: dict[str, list[str]], **spec: Any) -> None:
        found = slices(host, (host.inside, READY), (host.other, READY), (host.elsewhere, READY))
        for item in found:
            for endpoint, hinted in zip(item["endpoints"], hints, strict=True):
                endpoint["hints"] = {key: [{"name": name} for name in names] for key, names in hinted.items()}
        host.send(with_affinity(1, **spec) if affinity else a_service(**spec), found)

    def found_by_all() -> set[str]:
        """By the node, and by a client outside by each way: they are told apart by nothing."""
        if affinity:
            time.sleep(1.1)
        names = reached(host.node, ways(host, version)["cluster ip"])
        for _, way in list(ways(host, version).items())[1:]:
            names |= reached(host.lab.client, way)
        return names

    inside, other, elsewhere = (place.name for place in (host.inside, host.other, host.elsewhere))
    route_external(host, version)
    a, b, both_zones = {"forZones": ["a"]}, {"forZones": ["b"]}, {"forZones": ["a", "b"]}
    host.zone = "a"
    try:
        send(a, b, both_zones)
        names = found_by_all()
        assert names <= {inside, elsewhere} if affinity else names == {inside, elsewhere}
        send(b, b, b)
        assert affinity or found_by_all() == {inside, other, elsewhere}
        send(b, b, a)
        assert found_by_all() == {elsewhere}
        send({**a, "forNodes": ["there"]}, {**b, "forNodes": ["here"]}, {**a, "forNodes": ["there"]})
        assert found_by_all() == {other}
        # A Local policy asks for no hints, but the node itself is not "outside".
        if not affinity:
            send(b, b, a, externalTrafficPolicy="Local")
            assert reached(host.lab.client, ways(host, version)["node port"]) == {inside, other}
            assert reached(host.node, ways(host, version)["node port"]) == {elsewhere}
            host.zone = ""
            send(b, b, a)
            assert found_by_all() == {inside, other, elsewhere}
    finally:
        host.zone = ""


@both
def test_pods_are_not_external_where_their_networks_are_known(host: Host, version: int) -> None:
    service = a_service(externalTrafficPolicy="Local")
    host.send(service, slices(host, (host.elsewhere, READY)))
    way = ways(host, version)["node port"]
    assert reached(host.other, way, count=2) == {"timeout"}
    host.pod_cidrs = [str(ip_network(f"{host.inside.address}/24", strict=False))]
    host.pod_cidrs.append(str(ip_network(f"{host.inside.address6}/64", strict=False)))
    host.send_all()
    try:
        assert reached(host.other, way, count=2) == {host.elsewhere.name}
        assert reached(host.lab.client, way, count=2) == {"timeout"}
    finally:
        host.pod_cidrs = []
        host.send_all()
    assert reached(host.other, way, count=2) == {"timeout"}


@both
def test_local_endpoints_that_end_serve_while_none_is_ready(host: Host, version: int) -> None:
    """KEP-1669: by policy. All endpoints together have a ready one, those on the node have none."""
    host.send(
        a_service(externalTrafficPolicy="Local"),
        slices(host, (host.inside, DRAINING), (host.other, GONE), (host.elsewhere, READY)),
    )
    way = ways(host, version)
    assert reached(host.lab.client, way["node port"]) == {host.inside.name}
    answer = host.lab.client.ask(*way["node port"])
    assert answer["client"] == host.address(host.lab.client, version)
    assert reached(host.node, way["cluster ip"]) == {host.elsewhere.name}
    host.send(a_service(externalTrafficPolicy="Local"), slices(host, (host.inside, DRAINING), (host.other, READY)))
    assert reached(host.lab.client, way["node port"]) == {host.other.name}


def with_source_ranges(host: Host, ranges: list[str], **spec: Any) -> Document:
    """A load balancer whose addresses are EXTERNAL; the Service has no external IPs."""
    ingress = [{"ip": address, "ipMode": "VIP"} for address in EXTERNAL.values()]
    service = a_service(spec.pop("protocol", "TCP"), type="LoadBalancer", loadBalancerSourceRanges=ranges, **spec)
    return {**service, "status": {"loadBalancer": {"ingress": ingress}}}


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_only_source_ranges_reach_a_load_balancers_address(
    host: Host, version: int, protocol: str, policy: str
) -> None:
    whole = 32 if version == 4 else 128
    endpoints = slices(host, (host.inside, READY), protocol=protocol.upper())

    def allow(*places: Place, also: str = "") -> None:
        ranges = [f"{host.address(place, version)}/{whole}" for place in places] + [also] * bool(also)
        service = with_source_ranges(
            host, ranges, protocol=protocol.upper(), externalTrafficPolicy=policy, externalIPs=[]
        )
        host.send(service, endpoints)
        route_external(host, version)

    way, client = ways(host, version), host.lab.client
    allow(client)
    assert reached(client, way["external ip"], protocol) == {host.inside.name}
    assert reached(host.other, way["external ip"], protocol, count=2) == {"timeout"}
    assert reached(host.node, way["external ip"], protocol, count=2) <= {"timeout", "operation not permitted"}
    # Ranges are for the load balancer's addresses alone.
    for name in ("cluster ip", "node port"):
        assert reached(host.other, way[name], protocol, count=3) == {host.inside.name}, name
    # A range in a range, and one that is about to be in one that was.
    network = str(ip_network(f"{host.address(client, version)}/{whole - 8}", strict=False))
    allow(client, also=network)
    assert reached(client, way["external ip"], protocol) == {host.inside.name}
    allow(client, host.node)
    assert reached(client, way["external ip"], protocol) == {host.inside.name}
    assert reached(host.node, way["external ip"], protocol) == {host.inside.name}
    allow(host.node)
    assert reached(client, way["external ip"], protocol, count=2) == {"timeout"}
    allow(host.node, also="0.0.0.0/0" if version == 4 else "::/0")
    assert reached(client, way["external ip"], protocol) == {host.inside.name}


@both
def test_a_udp_flow_of_a_client_that_is_let_in_no_longer_ends(host: Host, version: int) -> None:
    whole, client = 32 if version == 4 else 128, host.lab.client
    endpoints = slices(host, (host.inside, READY), protocol="UDP")
    mine, others = (f"{host.address(place, version)}/{whole}" for place in (client, host.other))
    host.send(with_source_ranges(host, [mine, others], protocol="UDP", externalIPs=[]), endpoints)
    route_external(host, version)
    for place in (client, host.other):
        place.stream("flow", EXTERNAL[version], 80, protocol="udp", interval_ms=20, timeout_s=0.3, kept=True)
    time.sleep(0.5)
    host.send(with_source_ranges(host, [others], protocol="UDP", externalIPs=[]), endpoints)
    time.sleep(0.1)
    at = time.monotonic()
    time.sleep(1)
    kept, ended = (place.stream_end("flow") for place in (host.other, client))
    assert not kept["failed"], kept
    assert kept["asked"] > 20
    assert sum(failure["at"] > at for failure in ended["failures"]) >= 2, ended
    assert ended["backends"][host.inside.name] > 10


def test_source_ranges_of_one_family_leave_the_other_open(host: Host) -> None:
    host.send(with_source_ranges(host, ["192.0.2.0/24"], externalIPs=[]), slices(host, (host.inside, READY)))
    for version in (4, 6):
        route_external(host, version)
    assert reached(host.lab.client, ways(host, 4)["external ip"], count=2) == {"timeout"}
    assert reached(host.lab.client, ways(host, 6)["external ip"], count=2) == {host.inside.name}


def with_affinity(timeout_s: int, protocol: str = "TCP", **spec: Any) -> Document:
    config = {"clientIP": {"timeoutSeconds": timeout_s}}
    return a_service(protocol, sessionAffinity="ClientIP", sessionAffinityConfig=config, **spec)


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_client_keeps_its_endpoint(host: Host, version: int, protocol: str) -> None:
    places = {place.name: place for place in (host.node, host.inside, host.elsewhere)}
    many = slices(host, *((place, READY) for place in places.values()), protocol=protocol.upper())
    host.send(with_affinity(600, protocol.upper()), many)
    way = ways(host, version)
    first = reached(host.other, way["cluster ip"], protocol)
    assert len(first) == 1
    # By whichever address of the Service, and after everything was written anew.
    assert reached(host.other, way["node port"], protocol) == first
    host.node.run(["nft", "flush", "map", "ip" if version == 4 else "ip6", "timonel", "groups"])
    host.node.run(["nft", "flush", "set", "ip" if version == 4 else "ip6", "timonel", "generation"])
    eventually(lambda: reached(host.other, way["cluster ip"], protocol, 1) == first, "the table is refilled")
    assert reached(host.other, way["cluster ip"], protocol) == first
    # Another endpoint that goes is no reason to move, its own is.
    gone = next(name for name in places if {name} != first)
    rest = [place for name, place in places.items() if name != gone]
    host.send(
        with_affinity(600, protocol.upper()), slices(host, *((p, READY) for p in rest), protocol=protocol.upper())
    )
    assert reached(host.other, way["cluster ip"], protocol) == first
    left = [place for place in rest if {place.name} != first]
    host.send(
        with_affinity(600, protocol.upper()), slices(host, *((p, READY) for p in left), protocol=protocol.upper())
    )
    assert reached(host.other, way["cluster ip"], protocol) == {left[0].name}
    # And who is back is not returned to.
    host.send(with_affinity(600, protocol.upper()), many)
    assert reached(host.other, way["cluster ip"], protocol) == {left[0].name}


@both
def test_a_client_is_remembered_as_long_as_it_comes_again(host: Host, version: int) -> None:
    places = [host.node, host.inside, host.other, host.elsewhere]
    host.send(with_affinity(2), slices(host, *((place, READY) for place in places)))
    way = ways(host, version)["cluster ip"]
    first = reached(host.elsewhere, ways(host, version)["node port"], count=1)
    for _ in range(4):
        time.sleep(1)
        assert reached(host.elsewhere, ways(host, version)["node port"], count=1) == first
    found = set()
    for _ in range(8):
        time.sleep(2.1)
        found |= reached(host.node, way, count=1)
        if len(found) > 1:
            return
    pytest.fail(f"forgotten eight times and always {found} again")


@both
def test_affinity_under_policy_local_stays_on_the_node(host: Host, version: int) -> None:
    service = with_affinity(600, externalTrafficPolicy="Local", internalTrafficPolicy="Local")
    host.send(service, slices(host, (host.inside, READY), (host.other, READY), (host.elsewhere, READY)))
    way = ways(host, version)
    for client, name in ((host.lab.client, "node port"), (host.node, "cluster ip")):
        found = reached(client, way[name])
        assert len(found) == 1
        assert found < {host.inside.name, host.other.name}


@both
@pytest.mark.parametrize("affinity", [False, True])
def test_a_udp_flow_leaves_an_endpoint_that_left(host: Host, version: int, affinity: bool) -> None:
    make = with_affinity(600, "UDP") if affinity else a_service("UDP")
    host.send(make, slices(host, (host.inside, READY), protocol="UDP"))
    way = ways(host, version)["node port"]
    host.lab.client.stream("flow", *way, protocol="udp", interval_ms=10, timeout_s=0.3, kept=True)
    time.sleep(0.3)
    host.send(make, slices(host, (host.inside, READY), (host.other, READY), protocol="UDP"))
    time.sleep(0.3)
    host.send(make, slices(host, (host.other, READY), protocol="UDP"))
    time.sleep(1.2)
    report = host.lab.client.stream_end("flow")
    assert report["backends"].get(host.inside.name, 0) > 10, report
    assert report["backends"].get(host.other.name, 0) > 10, report
    assert report["failed"] <= 1, report  # what was on its way when the endpoint left


def weighing(host: Host, weights: dict[Place, int], protocol: str = "TCP") -> tuple[Document, ...]:
    found = slices(host, *((place, READY) for place in weights), protocol=protocol)
    for item, version in zip(found, (4, 6), strict=True):
        text = ",".join(f"{host.address(place, version)}={weight}" for place, weight in weights.items())
        item["metadata"] = {"annotations": {"timonel.io/weights": text}}
    return found


@both
def test_weights_are_shares_of_new_connections(host: Host, version: int) -> None:
    host.send(a_service(), weighing(host, {host.inside: 60, host.other: 20, host.elsewhere: 0}))
    answers = host.node.ask_often(*ways(host, version)["cluster ip"], 200, timeout_s=0.5)
    found = Counter(answer["backend"] for answer in answers)
    assert found.keys() == {host.inside.name, host.other.name}
    assert 120 <= found[host.inside.name] <= 178  # four and a half standard deviations around 150
    host.send(a_service(), weighing(host, {host.inside: 0, host.other: 0}))
    assert host.node.refusal(*ways(host, version)["cluster ip"]) in REFUSED


@both
@pytest.mark.parametrize("kind", ["random", "affinity", "source-hash"])
def test_an_endpoint_of_weight_0_keeps_what_it_has(host: Host, version: int, kind: str) -> None:
    """A UDP flow stays, and loses nothing when shares change; with affinity its clients stay, too."""
    make = with_affinity(600, "UDP") if kind == "affinity" else a_service("UDP")
    make["metadata"]["annotations"] = {"timonel.io/load-balancing": kind} if kind != "affinity" else {}
    way = ways(host, version)["node port"]
    host.send(make, weighing(host, {host.inside: 100}, "UDP"))
    host.lab.client.stream("flow", *way, protocol="udp", interval_ms=10, timeout_s=0.3, kept=True)
    for weights in (
        {host.inside: 100, host.other: 40},
        {host.inside: 20, host.other: 60},
        {host.inside: 0, host.other: 9},
    ):
        time.sleep(0.2)
        host.send(make, weighing(host, weights, "UDP"))
    time.sleep(0.2)
    reached_by_others = reached(host.node, ways(host, version)["cluster ip"], "udp")
    reached_by_its_client = reached(host.lab.client, way, "udp", 3)
    report = host.lab.client.stream_end("flow")
    assert report["backends"].keys() == {host.inside.name}, report
    assert not report["failed"], report
    assert reached_by_others == {host.other.name}
    assert reached_by_its_client == {host.inside.name if kind == "affinity" else host.other.name}


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_by_source_hash_a_client_moves_only_with_its_endpoint(host: Host, version: int, protocol: str) -> None:
    """And it is the endpoint that the tracer says: it knows the kernel's hash."""
    service = a_service(protocol.upper())
    service["metadata"]["annotations"] = {"timonel.io/load-balancing": "source-hash"}
    places = {place.name: place for place in (host.node, host.inside, host.elsewhere)}
    clients = (host.other, host.lab.client, host.node)

    def where(*names: str) -> dict[str, str]:
        host.send(service, slices(host, *((places[name], READY) for name in names), protocol=protocol.upper()))
        tables = NodeTables(
            [tuple(r) for resources in host.held.values() for r in resources], [host.address(host.node, version)]
        )
        at, found = ways(host, version)["node port"], {}
        for client in clients:
            (name,) = reached(client, at, protocol, 5)
            packet = Packet(host.address(client, version), *at, protocol)
            (target,) = tables.trace(packet).targets
            assert target.address == host.address(places[name], version), client.name
            found[client.name] = name
        return found

    before = where(*places)
    assert where(*places) == before
    for gone in places:
        after = where(*(name for name in places if name != gone))
        assert {client: name for client, name in before.items() if name != gone}.items() <= after.items()
        assert gone not in after.values()
    assert where(*places) == before


SCTP = Path(__file__).with_name("sctp.py").read_text()


@both
def test_an_sctp_init_is_translated(host: Host, version: int) -> None:
    """The kernel may have no SCTP of its own: a raw INIT is sent, and seen where it arrives."""
    host.send(a_service("SCTP"), slices(host, (host.inside, READY), protocol="SCTP"))
    way, own = ways(host, version)["node port"], host.address(host.inside, version)
    command = host.inside.inside(["timeout", "10", "python3", "-c", SCTP, "see", own])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as seer:
        assert seer.stdout is not None
        assert seer.stdout.readline() == "ready\n"
        host.lab.client.run(["python3", "-c", SCTP, "send", *map(str, way)])
        seen = json.loads(seer.stdout.readline())
    assert seen == {"from": host.address(host.lab.client, version), "port": 8080}


def test_deltas_lead_to_the_same_as_everything_at_once(host: Host) -> None:
    """After all of the above: what many small changes left is what one refill makes."""
    host.send(with_affinity(600, externalTrafficPolicy="Local"), slices(host, (host.inside, READY)))
    by_deltas = host.elements()
    assert host.agent.ask("ping")["digest"] == digest(host.held)
    assert by_deltas["ip", "frontends"]
    assert by_deltas["ip6", "pick"]
    for ip in ("ip", "ip6"):
        host.node.run(["nft", "delete", "table", ip, "timonel"])
    eventually(lambda: host.node.run(["nft", "list", "tables"]).stdout.count("timonel") == 2, "both are back")
    assert host.elements() == by_deltas
    assert host.agent.ask("ping")["digest"] == digest(host.held)


@pytest.mark.parametrize("ip", ["ip", "ip6"])
def test_what_nft_lists_nft_loads(host: Host, ip: str) -> None:
    """Whoever saves a host's whole ruleset and loads it at boot must not end without any."""
    ranges = ["192.0.2.0/24", "192.0.2.7/32", "198.51.100.0/25", "2001:db8:7::/48", "2001:db8:8::1/128"]
    service = with_source_ranges(host, ranges, externalTrafficPolicy="Local", externalIPs=[])
    service["spec"] |= with_affinity(600)["spec"] | service["spec"]
    host.send(service, slices(host, (host.inside, READY)))
    host.node.run(["nft", "flush", "map", ip, "timonel", "affinity"])  # remaining seconds are other ones a moment later
    listing = host.node.run(["nft", "list", "table", ip, "timonel"]).stdout
    host.elsewhere.run(["nft", "-f", "-"], input=listing)
    try:
        assert listing == host.elsewhere.run(["nft", "list", "table", ip, "timonel"]).stdout
        assert re.search(r"set source_ranges \{[^}]*elements = \{ 0x6", listing)
    finally:
        host.elsewhere.run(["nft", "delete", "table", ip, "timonel"])


def test_shared_chains_come_and_go_with_the_groups_that_use_them(host: Host) -> None:
    many = [host.node, host.inside, host.other, host.elsewhere]
    for count, timeout_s in ((1, 600), (3, 600), (3, 700), (4, 700)):
        endpoints = slices(host, *((place, READY) for place in many[:count]))
        host.send(with_affinity(timeout_s), endpoints)
        listing = host.node.run(["nft", "list", "chains", "ip6"]).stdout
        chains = {name for name in re.findall(r"chain (\w+)", listing) if name.startswith(("aff_", "hit_"))}
        assert chains == {f"aff_{timeout_s}_{count}", f"hit_{timeout_s}"}
    crowd = a_slice_of(range(1, 71))
    host.send(a_service(), crowd)
    chains = host.node.run(["nft", "list", "chains", "ip"]).stdout
    assert "lb_70" in chains
    assert "aff_" not in chains
    hashed = a_service()
    hashed["metadata"]["annotations"] = {"timonel.io/load-balancing": "source-hash"}
    host.send(hashed, crowd)
    assert "hash_1024" in host.node.run(["nft", "list", "chains", "ip"]).stdout
    host.send(a_service(), slices(host, (host.inside, READY)))
    assert "hash_" not in host.node.run(["nft", "list", "chains", "ip"]).stdout
    assert "lb_70" not in host.node.run(["nft", "list", "chains", "ip"]).stdout
    assert reached(host.node, ways(host, 4)["cluster ip"], count=3) == {host.inside.name}


def a_slice_of(numbers: Iterable[int]) -> tuple[Document, ...]:
    endpoints = [{"addresses": [f"198.51.100.{n}"], "conditions": READY} for n in numbers]
    port = {"name": "http", "port": 8080, "protocol": "TCP"}
    return ({"addressType": "IPv4", "ports": [port], "endpoints": endpoints},)


def test_a_long_walk_of_changes_ends_where_a_refill_does(host: Host) -> None:
    """And every step of it is a delta: none is refused, so that everything would be written anew."""
    choice = random.Random(7)
    logged = host.node.run(["cat", "/var/lib/timonel/agent.log"]).stdout
    for _ in range(80):
        ports = [
            {"name": "http", "port": 80, "protocol": protocol, "nodePort": NODE_PORT}
            for protocol in choice.choice([["TCP"], ["UDP"], ["SCTP"], ["TCP", "UDP"]])
        ]
        service = a_service(
            ports=ports,
            internalTrafficPolicy=choice.choice(["Cluster", "Local"]),
            externalTrafficPolicy=choice.choice(["Cluster", "Local"]),
            externalIPs=choice.sample([*EXTERNAL.values()], choice.randrange(3)),
            clusterIPs=choice.sample([*VIRTUAL.values()], choice.randrange(1, 3)),
        )
        ingress = choice.sample([*BALANCER.values()], choice.randrange(3))
        service["status"] = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"} for address in ingress]}}
        service["spec"]["loadBalancerSourceRanges"] = choice.sample(RANGES, choice.randrange(len(RANGES)))
        if choice.random() < 0.2:
            service["metadata"]["annotations"] = {"timonel.io/load-balancing": "source-hash"}
        elif choice.random() < 0.5:
            service["spec"]["sessionAffinity"] = "ClientIP"
            service["spec"]["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": choice.randrange(1, 4)}}
        found = tuple(
            {
                "addressType": f"IPv{version}",
                "ports": [{"name": "http", "port": 8080, "protocol": port["protocol"]} for port in ports],
                "endpoints": [
                    {
                        "addresses": [prefix + str(number)],
                        "conditions": choice.choice([READY, READY, DRAINING, GONE]),
                        "nodeName": choice.choice(["here", "there"]),
                    }
                    for number in choice.sample(range(1, 90), choice.choice([0, 1, 3, 80]))
                ],
            }
            for version, prefix in ((4, "198.51.100."), (6, "2001:db8::"))
        )
        host.send(service if choice.random() < 0.9 else None, found)
    walked = host.elements()
    said = host.node.run(["cat", "/var/lib/timonel/agent.log"]).stdout.removeprefix(logged)
    assert "refill" not in said, said
    host.send_all()
    host.node.run(["nft", "flush", "ruleset"])
    eventually(lambda: host.node.run(["nft", "list", "tables"]).stdout.count("timonel") >= 1, "it is refilled")
    assert host.agent.ask("ping")["ok"]
    assert {key: found for key, found in host.elements().items() if found} == {k: v for k, v in walked.items() if v}


@pytest.mark.parametrize("seed", range(4))
def test_packets_go_where_the_tracer_says(host: Host, seed: int) -> None:
    """Its answers about generated worlds (tests/render/test_tracer.py) are worth what this shows."""
    choice = random.Random(seed)
    places = (host.node, host.inside, host.other, host.elsewhere)
    names = {host.address(place, version): place.name for place in places for version in (4, 6)}
    seen = set()
    for _ in range(4):
        service = a_service(
            protocol=choice.choice(["TCP", "UDP"]),
            internalTrafficPolicy=choice.choice(["Cluster", "Local"]),
            externalTrafficPolicy=choice.choice(["Cluster", "Local"]),
            loadBalancerSourceRanges=choice.choice([[], [f"{host.lab.client.address}/32"], RANGES]),
            type="LoadBalancer",
        )
        ingress = choice.sample([*EXTERNAL.values()], choice.randrange(3))
        service["status"] = {"loadBalancer": {"ingress": [{"ip": address} for address in ingress]}}
        service["spec"]["externalIPs"] = [address for address in EXTERNAL.values() if address not in ingress]
        protocol = service["spec"]["ports"][0]["protocol"]
        endpoints = [(place, choice.choice([READY, READY, DRAINING, GONE])) for place in choice.sample(places, 2)]
        host.send(service, slices(host, *endpoints, protocol=protocol))
        for version in (4, 6):
            route_external(host, version)
            addresses = [host.address(host.node, version)]
            tables = NodeTables([tuple(r) for resources in host.held.values() for r in resources], addresses)
            for name, (destination, port) in ways(host, version).items():
                for client in (
                    host.node,
                    host.other,
                    host.inside,
                    *([host.lab.client] if name != "cluster ip" else []),
                ):
                    own = host.address(client, version)
                    said = tables.trace(Packet(own, destination, port, protocol.lower()))
                    answers = client.ask_often(destination, port, 2, protocol=protocol.lower(), timeout_s=0.2)
                    if said.action == "delivered":
                        answers += client.ask_often(destination, port, 30, protocol=protocol.lower(), timeout_s=0.2)
                    assert said.action in outcomes_of(answers), (client.name, destination, port, said.steps, answers)
                    seen.add(said.action)
                    found = {a["backend"]: a["client"] == own for a in answers if "backend" in a}
                    assert found.keys() == {names[target.address] for target in said.targets}, said.steps
                    for target in said.targets:
                        # Containers share a link: what the tracer is to be told, it was not told here.
                        if client is host.node or names[target.address] not in (host.inside.name, host.other.name):
                            assert found[names[target.address]] == target.sees_client, (said.steps, target)
    assert "delivered" in seen


def outcomes_of(answers: list[dict[str, Any]]) -> set[str]:
    """What they may mean, in the tracer's words: on the node itself the kernel says the same of a drop and a reject."""
    errors = {answer.get("error") for answer in answers}
    if errors == {None}:
        return {"delivered"}
    return ({"dropped"} if errors <= {"timeout", "operation not permitted"} else set()) | (
        {"refused"} if errors <= set(REFUSED) else set()
    )


def test_a_service_that_goes_leaves_nothing(host: Host) -> None:
    host.send(None)
    left = {name for (_, name), found in host.elements().items() if found}
    assert left == {"same_link", "generation"}
    for ip in ("ip", "ip6"):
        chains = set(re.findall(r"chain (\w+)", host.node.run(["nft", "list", "chains", ip]).stdout))
        assert not {name for name in chains if name.startswith(("aff_", "hit_"))}
        assert len({name for name in chains if name.startswith("lb_")}) == READY_CHAINS
