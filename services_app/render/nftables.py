"""Routes as elements of a node's named maps and sets (tables `ip timonel` and `ip6 timonel`).

An update changes elements only, whatever the number of Services; the skeleton is agents/nftables.py's. What is decided
here: the spelling of a mark, and the number of each endpoint's slot.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services_app.plan.routing import Backend, Group, Route, by_node

Resource = tuple[str, str, str]
DRIVERS = {4: "nft4", 6: "nft6"}
PROTOCOLS = ("tcp", "udp", "sctp")

# Flags of a frontend's mark beside the group id (28 bits); bit 0x10000000 is kept for "masquerade".
SOURCE_RANGES, LOCAL_POLICY = 0x20000000, 0x40000000


@dataclass(frozen=True)
class Choice:
    """One of several for each node: by its name in `nodes`, else by its zone in `zones`, else `otherwise`."""

    nodes: Mapping[str, tuple[Resource, ...]]
    zones: Mapping[str, tuple[Resource, ...]]
    otherwise: tuple[Resource, ...]

    def on(self, node: str, zone: str) -> tuple[Resource, ...]:
        found = self.nodes.get(node) or self.zones.get(zone)
        return self.otherwise if found is None else found


@dataclass(frozen=True)
class Elements:
    """A Service's elements: on every node, on the Node of that name, on nodes not named in `local`, and by `nearby`."""

    shared: tuple[Resource, ...] = ()
    local: dict[str, tuple[Resource, ...]] = field(default_factory=dict)
    elsewhere: tuple[Resource, ...] = ()
    nearby: tuple[Choice, ...] = ()


def render_routes(routes: Iterable[Route]) -> Elements:
    """The elements of a Service's routes; each (driver, "container element", value)."""
    shared: dict[tuple[str, str], str] = {}
    here: dict[str, dict[tuple[str, str], str]] = {}
    elsewhere: dict[tuple[str, str], str] = {}
    nearby: list[Choice] = []
    for route in routes:
        if route.protocol not in PROTOCOLS:
            continue
        driver = DRIVERS[route.version]
        shared.update(((driver, key), value) for key, value in _shared(route))
        if route.cluster:
            choice = _cluster_group(driver, route.cluster, route)
            if choice.nodes or choice.zones:
                nearby.append(choice)
            else:
                shared.update(((driver, key), value) for _, key, value in choice.otherwise)
        if route.local:
            # Also for a Node with endpoints: they may be another port's.
            for key, value in _group(route.local.id, (), route):
                elsewhere[driver, key] = value
        for node, backends in _nodes(route).items():
            for backend in backends:
                here.setdefault(node, {})[driver, f"local_endpoints {backend.address}"] = ""
        if route.local:
            for node, backends in route.local.nodes.items():
                for key, value in _group(route.local.id, backends, route):
                    here[node][driver, key] = value
    local = {node: _resources({**elsewhere, **elements}) for node, elements in sorted(here.items())}
    return Elements(_resources(shared), local, _resources(elsewhere), tuple(nearby))


def _cluster_group(driver: str, group: Group, route: Route) -> Choice:
    def elements(backends: Sequence[Backend]) -> tuple[Resource, ...]:
        return tuple((driver, key, value) for key, value in _group(group.id, backends, route))

    return Choice(
        {node: elements(backends) for node, backends in group.nodes.items()},
        {zone: elements(backends) for zone, backends in group.zones.items()},
        elements(group.backends),
    )


def _resources(elements: Mapping[tuple[str, str], str]) -> tuple[Resource, ...]:
    return tuple((driver, key, value) for (driver, key), value in elements.items())


def _shared(route: Route) -> Iterable[tuple[str, str]]:
    cluster, local = route.cluster, route.local
    internal = local.id if local and route.is_internal_local else cluster.id if cluster else 0
    yield f"frontends {route.cluster_ip} . {route.protocol} . {route.port}", _mark(internal)
    yield f"cluster_ips {route.cluster_ip}", ""
    if not route.is_external or not cluster:
        return
    is_local = bool(local and route.is_external_local)
    external = LOCAL_POLICY | local.id if local and is_local else cluster.id
    restricted = SOURCE_RANGES | external
    if is_local:
        yield f"to_cluster {_mark(external)}", _mark(cluster.id)
    for address in route.external_ips:
        yield f"frontends {address} . {route.protocol} . {route.port}", _mark(external)
    if route.node_port:
        yield f"nodeports {route.protocol} . {route.node_port}", _mark(external)
    if not route.restricted_ips:
        return
    if is_local:
        yield f"to_cluster {_mark(restricted)}", _mark(cluster.id)
    for address in route.restricted_ips:
        yield f"frontends {address} . {route.protocol} . {route.port}", _mark(restricted)
    for network in route.source_ranges:
        yield f"source_ranges {_mark(restricted)} . {network}", ""


def _nodes(route: Route) -> dict[str, tuple[Backend, ...]]:
    """Node -> the endpoints on it that traffic may reach. They see the client's own address."""
    found = by_node(route.cluster.backends) if route.cluster else {}
    for node, backends in route.local.nodes.items() if route.local else ():
        found[node] = (*found.get(node, ()), *backends)
    return found


def _group(number: int, backends: Sequence[Backend], route: Route) -> Iterable[tuple[str, str]]:
    """A group's verdict and slots. With affinity a slot's number is the endpoint's own, and `pick` draws it."""
    mark = _mark(number)
    if not backends:
        # There are endpoints, only not for this traffic: as in Kubernetes it vanishes.
        yield f"groups {mark}", "drop" if route.has_endpoints else "goto refuse"
        return
    if route.affinity_s is None:
        yield f"groups {mark}", f"goto lb_{len(backends)}"
        for index, backend in enumerate(backends):
            yield f"slots {mark} . {index}", f"{backend.address} . {backend.port}"
        return
    yield f"groups {mark}", f"goto aff_{route.affinity_s}_{len(backends)}"
    for index, (backend, slot) in enumerate(zip(backends, lasting_slots(backends), strict=True)):
        yield f"pick {mark} . {index}", str(slot)
        yield f"slots {mark} . {slot}", f"{backend.address} . {backend.port}"


def lasting_slots(backends: Iterable[Backend]) -> list[int]:
    """A number from 1 to 2**32 - 2 for each, the same as long as the endpoint is there: clients are remembered by it."""
    taken: set[int] = set()
    slots = []
    for backend in backends:
        digest = hashlib.sha256(f"{backend.address} {backend.port}".encode()).digest()
        slot = int.from_bytes(digest[:4], "big")
        while slot in taken or not 0 < slot < 0xFFFFFFFF:
            slot = (slot + 1) % 0xFFFFFFFF
        taken.add(slot)
        slots.append(slot)
    return slots


def _mark(number: int) -> str:
    return f"0x{number:08x}"
