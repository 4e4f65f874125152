"""Routes as elements of a node's named maps and sets (tables `ip timonel` and `ip6 timonel`).

An update changes elements only, whatever the number of Services; the skeleton is agents/ruleset.py's. What is decided
here: the spelling of a mark, and the number of each endpoint's slot.
"""

import hashlib
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from services_app.plan.routing import Backend, Group, Route, by_node

Resource = tuple[str, str, str]
DRIVERS = {4: "nft4", 6: "nft6"}
PROTOCOLS = ("tcp", "udp", "sctp")

# Flags of a frontend's mark beside the group id (28 bits); bit 0x10000000 is kept for "masquerade".
SOURCE_RANGES, LOCAL_POLICY = 0x20000000, 0x40000000
MAX_SLOTS = 1024  # drawn by weight in one group; smaller shares are rounded up
HASH_SLOTS = 1024  # of a group that is drawn by the client's address: always as many, or clients would move with them


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
            for key, value in _group(route.local.id, (), (), route):
                elsewhere[driver, key] = value
        for node, backends in _nodes(route).items():
            for backend in backends:
                here.setdefault(node, {})[driver, f"local_endpoints {backend.address}"] = ""
        if route.local:
            for node in {*route.local.nodes, *route.local.kept}:
                backends, kept = route.local.nodes.get(node, ()), route.local.kept.get(node, ())
                for key, value in _group(route.local.id, backends, kept, route):
                    here[node][driver, key] = value
    local = {node: _resources({**elsewhere, **elements}) for node, elements in sorted(here.items())}
    return Elements(_resources(shared), local, _resources(elsewhere), tuple(nearby))


def _cluster_group(driver: str, group: Group, route: Route) -> Choice:
    def elements(backends: Sequence[Backend]) -> tuple[Resource, ...]:
        return tuple((driver, key, value) for key, value in _group(group.id, backends, group.kept, route))

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
    found = by_node((*route.cluster.backends, *route.cluster.kept)) if route.cluster else {}
    for on_nodes in (route.local.nodes, route.local.kept) if route.local else ():
        for node, backends in on_nodes.items():
            found[node] = (*found.get(node, ()), *backends)
    return found


def _group(
    number: int, backends: Sequence[Backend], kept: Sequence[Backend], route: Route
) -> Iterable[tuple[str, str]]:
    """A group's verdict and slots. With affinity a slot's number is the endpoint's own, and `pick` draws it.

    kept: endpoints that get no new clients. Their slots are never drawn, and say that their flows and clients may stay.
    """
    mark = _mark(number)
    if route.affinity_s is not None:
        yield from _remembering_group(mark, backends, kept, route.affinity_s, has_endpoints=route.has_endpoints)
        return
    drawn: Sequence[Backend] = ()
    if not backends:
        yield f"groups {mark}", _nobody(has_endpoints=route.has_endpoints)
    elif route.is_by_source_hash:
        drawn = hash_slots(backends)
        yield f"groups {mark}", f"goto hash_{len(drawn)}"
    else:
        drawn = weighted(backends)
        yield f"groups {mark}", f"goto lb_{len(drawn)}"
    for index, backend in enumerate((*drawn, *kept)):
        yield f"slots {mark} . {index}", f"{backend.address} . {backend.port}"


def _remembering_group(
    mark: str, backends: Sequence[Backend], kept: Sequence[Backend], affinity_s: int, *, has_endpoints: bool
) -> Iterable[tuple[str, str]]:
    drawn = weighted(backends)
    everybody = sorted((*backends, *kept))
    slots = dict(zip(everybody, lasting_slots(everybody), strict=True))
    yield f"groups {mark}", f"goto aff_{affinity_s}_{len(drawn)}" if drawn else _nobody(has_endpoints=has_endpoints)
    for index, backend in enumerate(drawn):
        yield f"pick {mark} . {index}", str(slots[backend])
    for backend, slot in slots.items():
        yield f"slots {mark} . {slot}", f"{backend.address} . {backend.port}"


def _nobody(*, has_endpoints: bool) -> str:
    """The verdict where no endpoint is. With endpoints elsewhere, only not for this traffic, it vanishes as in Kubernetes."""
    return "drop" if has_endpoints else "goto refuse"


def weighted(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Each endpoint as often as its weight, in lowest terms; of more than MAX_SLOTS as near as these allow."""
    if len({backend.weight for backend in backends}) < 2:
        return tuple(backends)
    divisor = math.gcd(*(backend.weight for backend in backends))
    counts = [backend.weight // divisor for backend in backends]
    if sum(counts) > max(MAX_SLOTS, len(backends)):
        counts = [max(round(count * MAX_SLOTS / sum(counts)), 1) for count in counts]
    return tuple(backend for backend, count in zip(backends, counts, strict=True) for _ in range(count))


def hash_slots(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Whose each slot is, by rendezvous: an endpoint that comes or goes takes or leaves its own slots only.

    O(endpoints). A share is its weight's within some 1/sqrt(slots of the endpoint).
    """
    # The one with the greatest weight / -ln(u) has the slot: as often as its weight says.
    scores = [_scores(backend.address, backend.port) for backend in backends]
    if len({backend.weight for backend in backends}) > 1:
        scores = [
            array("d", (score * backend.weight for score in found))
            for found, backend in zip(scores, backends, strict=True)
        ]
    return tuple(backends[column.index(max(column))] for column in zip(*scores, strict=True))


@lru_cache(maxsize=1 << 11)  # 8 KB each
def _scores(address: str, port: int) -> "array[float]":
    """1 / -ln(u) for each slot, u drawn from the endpoint."""
    drawn = array("I", hashlib.shake_128(f"{address} {port}".encode()).digest(4 * HASH_SLOTS))
    if sys.byteorder == "big":
        drawn.byteswap()
    return array("d", (-1 / math.log((number + 0.5) / 2**32) for number in drawn))


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
