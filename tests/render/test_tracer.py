"""Generated worlds: what the rendered elements do with a packet is what Kubernetes' rules say of the documents.

The rules stand here once more, in other words than in `plan` and `render`: by the documents alone, client by client.
"""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.node import judge
from agents.state import State, apply
from services_app.plan.routing import groups_wanted
from services_app.render.node import Cluster, NodeNetwork, OwnerState, render_base, render_owner
from services_app.render.tracer import DELIVERED, DROPPED, REFUSED, UNTOUCHED, NodeTables, Outcome, Packet, Target
from services_app.spec.kube_proxy import Configuration

Document = dict[str, Any]

CLUSTER = Cluster((ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")), "cluster.local")
NODES = {"n1": ("192.0.2.11", "2001:db8::11"), "n2": ("192.0.2.12", "2001:db8::12")}
POD_CIDRS = {"n1": ("10.1.1.0/24", "fd00:1:1::/64"), "n2": ("10.1.2.0/24", "fd00:1:2::/64")}
READY = {"ready": True, "serving": True, "terminating": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
UNREADY = {"ready": False, "serving": False, "terminating": False}
RANGES = ["198.51.100.0/25", "198.51.0.0/16", "192.0.2.11/32", "10.1.1.0/24", "2001:db8:9::/64", "fd00:1:1::7/128"]
NODE_PORT_ADDRESSES = [("primary",), ("192.0.2.8/30",), ("192.0.2.0/24", "2001:db8::12/128"), ("10.0.0.0/8",)]
ZONE_A, ZONE_B = ({"forZones": [{"name": zone}]} for zone in ("a", "b"))
HINTS = [ZONE_A, ZONE_B, {**ZONE_A, "forNodes": [{"name": "n1"}]}, {**ZONE_B, "forNodes": [{"name": "n2"}]}]
WEIGHTS = [100, 100, 100, 50, 7, 0]
OUTSIDE = {4: ["198.51.100.7", "198.51.100.200", "203.0.113.77"], 6: ["2001:db8:9::1", "2001:db8:a::1"]}
PORTS = [
    {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080},
    {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
]
NUMBERS = {"http": 8080, "dns": 5353}


@dataclass(frozen=True)
class World:
    """Services with their slices, on nodes whose containers' networks are known or not. zones: Node -> its zone."""

    services: dict[str, tuple[Document, tuple[Document, ...]]]
    has_pod_cidrs: bool
    node_port_addresses: tuple[str, ...] = ()
    zones: tuple[tuple[str, str], ...] = ()
    masquerade_all: bool = False

    def resources(self, node: str) -> dict[str, list[list[str]]]:
        """Owner -> what the node is sent of it."""
        cidrs = tuple(map(ip_network, POD_CIDRS[node])) if self.has_pod_cidrs else ()
        network = NodeNetwork(tuple(map(ip_address, NODES[node])), cidrs)
        configuration = Configuration(node_port_addresses=self.node_port_addresses, masquerade_all=self.masquerade_all)
        found = {"": [list(resource) for resource in render_base(CLUSTER, network, configuration)]}
        for number, (owner, (service, slices)) in enumerate(sorted(self.services.items())):
            wanted = {key: number * 16 + n for n, key in enumerate(sorted(groups_wanted(service)), start=1)}
            rendered = render_owner(OwnerState(owner, service, slices, wanted), CLUSTER)
            found[owner] = [list(resource) for resource in rendered.on(node, dict(self.zones).get(node, ""))]
        return found


def address(version: int, service: int, last: int) -> str:
    return f"10.1.{last % 2 + 1}.{service * 16 + last}" if version == 4 else f"fd00:1:{last % 2 + 1}::{service}:{last}"


@st.composite
def a_service(draw: st.DrawFn, number: int) -> tuple[Document, tuple[Document, ...]]:
    versions = draw(st.sampled_from([(4,), (6,), (4, 6), (6, 4)]))
    cluster_ips = [f"10.96.0.{number}" if version == 4 else f"fd00:10:96::{number}" for version in versions]
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    ports = [{**port, "nodePort": port["nodePort"] + number} for port in draw(st.sampled_from([PORTS, PORTS[:1]]))]
    if kind == "ClusterIP" or (draw(st.booleans()) and kind == "LoadBalancer"):
        ports = [{key: value for key, value in port.items() if key != "nodePort"} for port in ports]
    spec: Document = {"type": kind, "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports}
    spec["internalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    externals = [f"203.0.113.{number}", f"2001:db8:113::{number}", f"203.0.113.{number + 100}"]
    spec["externalIPs"] = draw(st.lists(st.sampled_from(externals), unique=True))
    if draw(st.booleans()):
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}
    status: Document = {}
    if kind == "LoadBalancer":
        spec["loadBalancerSourceRanges"] = draw(st.lists(st.sampled_from(RANGES), unique=True, max_size=4))
        balancers = [f"203.0.113.{number + 100}", f"203.0.113.{number + 200}", f"2001:db8:113::{number + 200}"]
        modes = st.sampled_from(["VIP", "VIP", "Proxy"])
        chosen = draw(st.lists(st.sampled_from(balancers), unique=True))
        status = {"loadBalancer": {"ingress": [{"ip": text, "ipMode": draw(modes)} for text in chosen]}}
    slices = []
    hints = st.sampled_from(draw(st.sampled_from([[{}], HINTS, HINTS[:2], HINTS[2:]])))
    for version in (4, 6):
        endpoints = [
            {
                "addresses": [address(version, number, last)],
                "conditions": draw(st.sampled_from([READY, READY, DRAINING, UNREADY, {}])),
                "nodeName": draw(st.sampled_from(["n1", "n2", "n1", "n2", ""])),
                "hints": draw(hints),
            }
            for last in draw(st.lists(st.integers(1, 7), unique=True, max_size=4))
        ]
        found = [{"name": name, "port": port, "protocol": PROTOCOLS[name]} for name, port in NUMBERS.items()]
        slices.append({"addressType": f"IPv{version}", "ports": found, "endpoints": endpoints})
        weights = {endpoint["addresses"][0]: draw(st.sampled_from(WEIGHTS)) for endpoint in endpoints}
        text = ",".join(f"{address}={weight}" for address, weight in weights.items() if weight != 100)
        slices[-1]["metadata"] = {"annotations": {"timonel.io/weights": text}}
    metadata: Document = {"name": f"s{number}", "namespace": "shop"}
    if "sessionAffinity" not in spec:
        metadata["annotations"] = {"timonel.io/load-balancing": draw(st.sampled_from(["random", "source-hash"]))}
    return {"metadata": metadata, "spec": spec, "status": status}, tuple(slices)


PROTOCOLS = {port["name"]: port["protocol"] for port in PORTS}


@st.composite
def a_world(draw: st.DrawFn) -> World:
    numbers = draw(st.lists(st.sampled_from([1, 2, 3]), unique=True, min_size=1))
    services = {f"shop/s{number}": draw(a_service(number)) for number in numbers}
    zones = tuple((node, zone) for node in NODES if (zone := draw(st.sampled_from(["a", "b", ""]))))
    closed = draw(st.sampled_from([(), *NODE_PORT_ADDRESSES]))
    return World(services, draw(st.booleans()), closed, zones, draw(st.booleans()))


def clients(world: World, version: int, node: str) -> list[str]:
    """From everywhere that matters: outside, the node, its containers, another node and its containers, endpoints."""
    at = 0 if version == 4 else 1
    other = "n2" if node == "n1" else "n1"
    found = [*OUTSIDE[version], NODES[node][at], NODES[other][at]]
    for cidr in (POD_CIDRS[node][at], POD_CIDRS[other][at]):
        found.append(str(ip_network(cidr)[7]))
    for _, slices in world.services.values():
        found += [text for item in slices for endpoint in item["endpoints"] for text in endpoint["addresses"]]
    return [text for text in found if ip_address(text).version == version]


def destinations(world: World, version: int, node: str) -> list[tuple[str, int, str]]:
    found = []
    for service, _ in world.services.values():
        spec = service["spec"]
        external = [*spec["externalIPs"], *(i["ip"] for i in ingress_of(service))]
        for port in spec["ports"]:
            for text in [*spec["clusterIPs"], *external]:
                found += [(text, port["port"], port["protocol"]), (text, 81, port["protocol"])]
            for text in NODES[node]:
                found.append((text, port.get("nodePort") or 30099, port["protocol"]))
    return [(text, port, protocol) for text, port, protocol in found if ip_address(text).version == version]


def ingress_of(service: Document) -> list[Document]:
    return [i for i in service["status"].get("loadBalancer", {}).get("ingress", []) if i["ipMode"] == "VIP"]


def expected(world: World, node: str, packet: Packet, protocol: str) -> Outcome:
    """Kubernetes' rules, by the documents."""
    version = ip_address(packet.destination).version
    for service, slices in world.services.values():
        spec = service["spec"]
        if not any(ip_address(text).version == version for text in spec["clusterIPs"]):
            continue
        balancers = [i["ip"] for i in ingress_of(service)]
        for port in spec["ports"]:
            if port["protocol"] != protocol:
                continue
            is_internal = packet.destination in spec["clusterIPs"] and packet.port == port["port"]
            is_balancer = packet.destination in balancers and packet.port == port["port"]
            is_external = packet.destination in spec["externalIPs"] and packet.port == port["port"]
            is_node_port = has_node_ports(world, node, packet.destination) and packet.port == port.get("nodePort")
            if not (is_internal or is_balancer or is_external or is_node_port):
                continue
            ranges = [text for text in spec.get("loadBalancerSourceRanges", []) if (":" in text) == (version == 6)]
            if is_balancer and ranges and not any(ip_address(packet.source) in ip_network(text) for text in ranges):
                return Outcome(DROPPED)
            return chosen(world, node, packet, spec, slices, port["name"], is_internal)
    if any(packet.destination in service["spec"]["clusterIPs"] for service, _ in world.services.values()):
        return Outcome(REFUSED)
    return Outcome(UNTOUCHED)


def has_node_ports(world: World, node: str, destination: str) -> bool:
    chosen = world.node_port_addresses
    if destination not in NODES[node] or not chosen or chosen == ("primary",):
        return destination in NODES[node]
    return any(ip_address(destination) in ip_network(text) for text in chosen)


def chosen(
    world: World, node: str, packet: Packet, spec: Document, slices: tuple[Document, ...], name: str, is_internal: bool
) -> Outcome:
    version = ip_address(packet.destination).version
    weights = {}
    for item in slices:
        for part in filter(None, item["metadata"]["annotations"]["timonel.io/weights"].split(",")):
            text, _, weight = part.rpartition("=")
            weights[text] = int(weight)
    endpoints = [e for item in slices if item["addressType"] == f"IPv{version}" for e in item["endpoints"]]
    endpoints = [e for e in endpoints if weights.get(e["addresses"][0]) != 0]
    is_inside = packet.source in NODES[node] or (
        world.has_pod_cidrs and any(ip_address(packet.source) in ip_network(cidr) for cidr in POD_CIDRS[node])
    )
    policy = spec["internalTrafficPolicy" if is_internal else "externalTrafficPolicy"]
    stays = policy == "Local" and (is_internal or not is_inside)
    in_reach = [e for e in endpoints if not stays or e["nodeName"] == node]
    ready = [e for e in in_reach if e["conditions"].get("ready", True)]
    if not stays:
        ready = nearest(ready, "forNodes", node) or nearest(ready, "forZones", dict(world.zones).get(node)) or ready
    draining = [e for e in in_reach if e["conditions"].get("terminating") and e["conditions"].get("serving")]
    if not ready and not draining:
        usable = [e for e in endpoints if e["conditions"] != UNREADY]
        return Outcome(DROPPED if usable else REFUSED)
    targets = []
    for endpoint in ready or draining:
        (text,) = endpoint["addresses"]
        is_hidden = is_internal and world.masquerade_all
        is_near = endpoint["nodeName"] == node and text != packet.source and not is_hidden
        is_seen = packet.source in NODES[node] or is_near
        target = Target(text, NUMBERS[name], is_seen and not (packet.turns_back and packet.source not in NODES[node]))
        targets += [target] * weights.get(text, 100)
    affinity = 60 if spec.get("sessionAffinity") == "ClientIP" else None
    return Outcome(DELIVERED, tuple(sorted(targets)), affinity)


def nearest(ready: list[Document], kind: str, name: str | None) -> list[Document]:
    """Hints count when every ready endpoint has one; then those for this node or zone are taken, if there are any."""
    names = [[hint["name"] for hint in endpoint["hints"].get(kind, [])] for endpoint in ready]
    return [e for e, hinted in zip(ready, names, strict=True) if name in hinted] if all(names) else []


@settings(max_examples=100)
@given(a_world(), st.sampled_from(["n1", "n2"]), st.booleans())
def test_every_packet_goes_where_kubernetes_sends_it(world: World, node: str, turns_back: bool) -> None:
    compare(world, node, turns_back)


@pytest.mark.soak
@pytest.mark.timeout(600)
@settings(max_examples=1000)
@given(a_world(), st.sampled_from(["n1", "n2"]), st.booleans())
def test_packets_of_thousands_of_worlds_go_where_kubernetes_sends_them(
    world: World, node: str, turns_back: bool
) -> None:
    compare(world, node, turns_back)


def compare(world: World, node: str, turns_back: bool) -> None:
    """Every client's packet to every destination."""
    owners = world.resources(node)
    assert judge(owners) == {}
    tables = NodeTables([tuple(r) for resources in owners.values() for r in resources], NODES[node])
    for version in (4, 6):
        for destination, port, protocol in destinations(world, version, node):
            for source in clients(world, version, node):
                packet = Packet(source, destination, port, protocol.lower(), turns_back)
                outcome, wanted = tables.trace(packet), expected(world, node, packet, protocol)
                shares, wanted_shares = shares_of(outcome), shares_of(wanted)
                if any(" hash_" in step for step in outcome.steps):
                    assert len(shares) == 1
                    assert shares.keys() <= wanted_shares.keys()
                else:
                    assert shares == wanted_shares, (packet, outcome.steps)
                same = outcome.action == wanted.action and outcome.affinity_s == wanted.affinity_s
                assert same, (packet, outcome.steps)


def shares_of(outcome: Outcome) -> dict[Target, Fraction]:
    found = Counter(outcome.targets)
    return {target: Fraction(count, found.total()) for target, count in found.items()}


@settings(max_examples=50)
@given(st.lists(a_world(), min_size=2, max_size=5), st.sampled_from(["n1", "n2"]))
def test_deltas_end_where_everything_at_once_does(worlds: list[World], node: str) -> None:
    state, kernel = State("c"), dict[tuple[str, str], str]()
    held: dict[str, list[list[str]]] = {}
    for revision, world in enumerate(worlds, start=1):
        now = world.resources(node)
        changed = {owner: now.get(owner, []) for owner in {*held, *now} if held.get(owner) != now.get(owner)}
        state, delta = apply(state, revision, revision - 1, changed)
        assert delta.refused == {}
        held = now
        for driver, change in delta.changes.items():
            for key in change.deletes:
                del kernel[driver, key]
            kernel |= {(driver, key): value for key, value in change.adds.items()}
    assert kernel == {(driver, key): value for resources in held.values() for driver, key, value in resources}


def test_the_steps_say_why() -> None:
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    service = {
        "metadata": {"name": "s1", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [port]},
        "status": {},
    }
    item = {
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.1.17"], "conditions": READY, "nodeName": "n1"}],
    }
    owners = World({"shop/s1": (service, (item,))}, False).resources("n1")
    tables = NodeTables([tuple(r) for resources in owners.values() for r in resources], NODES["n1"])
    assert tables.trace(Packet("192.0.2.11", "10.96.0.1", 80)).steps == (
        "frontends 10.96.0.1 . tcp . 80 -> 0x00000001",
        "groups 0x00000001 -> goto lb_1",
        "one of 1 endpoints of group 0x00000001",
    )
    assert tables.trace(Packet("192.0.2.11", "10.96.0.1", 81)).steps == ("cluster_ips 10.96.0.1",)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1"])
def test_node_ports_are_not_at_addresses_that_every_host_has(address: str) -> None:
    driver = "nft6" if ":" in address else "nft4"
    tables = NodeTables([(driver, "nodeports tcp . 30080", "0x00000001")], [address, *NODES["n1"]])
    assert tables.trace(Packet(address, address, 30080)).action == UNTOUCHED
