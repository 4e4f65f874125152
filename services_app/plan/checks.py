"""What must hold at every revision. Pure: hand in everything, get back what does not hold, and how it can be mended.

Reasons are Kubernetes' words where it has them (k8s v1.36 pkg/registry/core/service/{ipallocator,portallocator}/controller).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from services_app.plan import allocation, endpoints, mirroring
from services_app.plan.allocation import PoolRange
from services_app.spec import ipaddress
from services_app.spec.cluster import ClusterSettings
from services_app.spec.selectors import match_labels

Document = dict[str, Any]


class Mend(Enum):
    """What sets a finding right."""

    NOTHING = "a person has to decide"
    CLAIM = "claim the value for its Service"
    RELEASE = "release the claim"
    LIST = "put the value on the list of free ones"
    UNLIST = "take the value off the list of free ones"
    DERIVE = "derive the Service's endpoints anew"
    WRITE = "write the IPAddress anew"
    REMOVE = "remove the IPAddress"
    REFER = "note its owners anew"


# These take something away from what may be about to use it, so they wait for the third sighting, as Kubernetes does.
# The others only restore what the objects say; to wait would let somebody else take the value meanwhile.
MENDED_LATE = frozenset({Mend.RELEASE, Mend.LIST, Mend.REMOVE})
SIGHTINGS_BEFORE_LATE = 3


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold.

    service: "namespace/name" of the one it is about, "" for none; uid: its uid, or that of the claimant.
    value: the address, port or name in question. pool: of a free value, else "".
    """

    reason: str
    message: str
    value: str
    service: str = ""
    uid: str = ""
    mend: Mend = Mend.NOTHING
    pool: str = ""

    def __str__(self) -> str:
        return f"{self.service or self.pool}: {self.message}" if self.service or self.pool else self.message

    def is_due(self, sightings: int) -> bool:
        """Whether it is mended now, when it was seen so often in a row."""
        if self.mend is Mend.NOTHING:
            return False
        return self.mend not in MENDED_LATE or sightings >= SIGHTINGS_BEFORE_LATE


@dataclass(frozen=True)
class FreeList:
    """The values of a pool that are on offer. laid_out: offsets below are claimed or on offer."""

    pool: PoolRange
    laid_out: int
    values: frozenset[str]


def check_claims(
    services: Iterable[Document],
    addresses: Mapping[str, str],
    node_ports: Mapping[int, str],
    cluster: ClusterSettings,
) -> Iterator[Finding]:
    """Every value a Service holds is claimed by it alone and in range, and no claim is without its Service.

    addresses: cluster IP in canonical spelling -> uid of the Service that claims it. node_ports: port -> uid.
    """
    names: dict[str, str] = {}
    held: dict[str, dict[str, str]] = {_ADDRESS: {}, _PORT: {}}  # value -> uid of the Service that holds it rightly
    claims = {_ADDRESS: addresses, _PORT: {str(port): uid for port, uid in node_ports.items()}}
    wanted: list[tuple[str, str, str]] = []
    for service in services:
        uid, name = service["metadata"]["uid"], _key(service)
        names[uid] = name
        for text in allocation.cluster_ips_of(service):
            try:
                wanted.append((_ADDRESS, str(ip_address(text)), uid))
            except ValueError:
                yield Finding("ClusterIPNotValid", f"Cluster IP {text} is not a valid IP", text, name, uid)
        wanted += [(_PORT, str(port), uid) for port in allocation.node_ports_of(service)]
        if allocation.missing_families(service) or allocation.missing_node_ports(service):
            yield Finding("NotAllocated", "it lacks a cluster IP or a node port", "", name, uid)
    # Who has the claim is the rightful holder, whatever the order of Services.
    for what, value, uid in wanted:
        if claims[what].get(value) == uid:
            held[what][value] = uid
    for what, value, uid in wanted:
        noun, prefix = _WORDS[what]
        if not _is_in_range(what, value, cluster):
            message = f"{noun} {value} is in no configured range; it is kept. Recreate the Service, or configure the range again"
            yield Finding(f"{prefix}OutOfRange", message, value, names[uid], uid)
        if held[what].setdefault(value, uid) != uid:
            other = names[held[what][value]]
            message = f"{noun} {value} was assigned to several Services, {other} has it; please recreate this one"
            yield Finding(f"{prefix}AlreadyAllocated", message, value, names[uid], uid)
        elif claims[what].get(value) != uid:
            message = f"{noun} {value} is not allocated; repairing"
            yield Finding(f"{prefix}NotAllocated", message, value, names[uid], uid, Mend.CLAIM)
    for what, of_kind in claims.items():
        noun, prefix = _WORDS[what]
        for value, uid in of_kind.items():
            if value not in held[what]:
                message = (
                    f"{noun} {value} is claimed, but the Service does not hold it; it is released when seen so again"
                )
                yield Finding(f"{prefix}Leaked", message, value, names.get(uid, ""), uid, Mend.RELEASE)


_ADDRESS, _PORT = "address", "port"
_WORDS = {_ADDRESS: ("Cluster IP", "ClusterIP"), _PORT: ("Port", "Port")}


def _is_in_range(what: str, value: str, cluster: ClusterSettings) -> bool:
    if what == _PORT:
        return int(value) in cluster.node_port_range
    address = ip_address(value)
    return any(address.version == cidr.version and address in cidr for cidr in cluster.virtual_cidrs)


def check_addresses(
    services: Iterable[Document], objects: Mapping[str, Document], claims: Mapping[str, str], by_hand: Set[str]
) -> Iterator[Finding]:
    """Every cluster IP has an IPAddress that names its Service; one made by hand has a claim of its own.

    objects: address -> its IPAddress. claims: address -> uid of the Service that claims it. by_hand: addresses claimed
    for no Service. A Service that holds an address without the claim is no matter of these.
    """
    held: set[str] = set()
    for service in services:
        uid, name = service["metadata"]["uid"], _key(service)
        for address in allocation.cluster_ips_of(service):
            held.add(address)
            found = objects.get(address)
            if claims.get(address) != uid:
                continue
            if found is None:
                message = f"Cluster IP {address} has no IPAddress; writing it anew"
                yield Finding("IPAddressMissing", message, address, name, uid, Mend.WRITE)
            elif ipaddress.parent_of(found) != (service["metadata"]["namespace"], service["metadata"]["name"]):
                message = f"IPAddress {address} does not name the Service that has it; writing it anew"
                yield Finding("IPAddressWrongReference", message, address, name, uid, Mend.WRITE)
    for address, found in objects.items():
        if address in held:
            continue
        if ipaddress.is_allocators(found):
            message = f"IPAddress {address} is no Service's; it is removed when seen so again"
            yield Finding("IPAddressNotAllocated", message, address, mend=Mend.REMOVE)
        elif address not in by_hand:
            message = f"IPAddress {address} has no claim; claiming it"
            yield Finding("ClusterIPNotAllocated", message, address, mend=Mend.CLAIM)
    for address in sorted(by_hand - objects.keys()):
        message = (
            f"Cluster IP {address} is claimed for an IPAddress that is not there; it is released when seen so again"
        )
        yield Finding("ClusterIPLeaked", message, address, mend=Mend.RELEASE)


def check_free_lists(lists: Iterable[FreeList], taken: Set[str]) -> Iterator[Finding]:
    """Every value of a pool, as far as it is laid out, is either taken or on offer, and nothing else is.

    taken: addresses and ports, as text, that are claimed or held.
    """
    for free in lists:
        pool = free.pool
        laid_out = {_text(pool, offset) for offset in range(free.laid_out)}
        for value in sorted(laid_out - taken - free.values):
            message = f"{value} is neither taken nor on offer; it is offered again when seen so again"
            yield Finding("FreeValueLost", message, value, mend=Mend.LIST, pool=pool.name)
        for value in sorted(free.values & taken):
            message = f"{value} is on offer although it is taken; taking it off"
            yield Finding("FreeValueTaken", message, value, mend=Mend.UNLIST, pool=pool.name)
        for value in sorted(v for v in free.values if _offset(pool, v) is None):
            message = f"{value} is on offer although it is not of this range; taking it off"
            yield Finding("FreeValueForeign", message, value, mend=Mend.UNLIST, pool=pool.name)


def _offset(pool: PoolRange, value: str) -> int | None:
    return pool.offset_of(int(value) if pool.version == 0 else int(ip_address(value)))


def _text(pool: PoolRange, offset: int) -> str:
    number = pool.value_at(offset)
    if pool.version == 0:
        return str(number)
    return str(IPv4Address(number) if pool.version == 4 else IPv6Address(number))


def check_endpoints(
    services: Iterable[Document],
    pods: Iterable[Document],
    slices: Iterable[Document],
    endpoints_objects: Iterable[Document],
    nodes: Iterable[Document],
    cluster: ClusterSettings,
) -> Iterator[Finding]:
    """Derived slices and Endpoints are what their Services, Pods and Endpoints say, and lead to no virtual address."""
    known = {_key(service): service for service in services}
    by_controller: dict[str, dict[str, list[Document]]] = defaultdict(lambda: defaultdict(list))
    for item in slices:
        labels = item["metadata"].get("labels") or {}
        name = f"{item['metadata']['namespace']}/{labels.get(endpoints.SERVICE_NAME)}"
        by_controller[labels.get(endpoints.MANAGED_BY, "")][name].append(item)
        for address in _virtual_addresses(item, cluster):
            message = f"{address} of EndpointSlice {item['metadata']['name']} is a cluster IP and no valid destination"
            uid = known[name]["metadata"]["uid"] if name in known else ""
            yield Finding("EndpointIsClusterIP", message, address, name if name in known else "", uid)
    derived, mirrors = by_controller[endpoints.SLICE_CONTROLLER], by_controller[mirroring.MIRROR_CONTROLLER]
    objects = {_key(item): item for item in endpoints_objects}
    yield from _check_selecting(known, pods, derived, objects, nodes)
    for name in derived.keys() - known.keys():
        # Without an owner they were left behind on purpose: the policy Orphan.
        if any(item["metadata"].get("ownerReferences") for item in derived[name]):
            yield Finding("EndpointSliceLeaked", f"slices of {name} are left without their Service", name)
    for name in sorted(mirrors.keys() | objects.keys()):
        if name in known and _is_going(known[name]):
            continue
        mirror = mirroring.plan_mirror(known.get(name), objects.get(name), mirrors.get(name, []), new_name=_unchanged)
        if mirror != endpoints.SliceChanges():
            message = f"the mirrored slices of {name} are not what its Endpoints say; deriving them anew"
            yield _differing("EndpointSlicesDiffer", name, known, message)


def _check_selecting(
    services: Mapping[str, Document],
    pods: Iterable[Document],
    derived: Mapping[str, list[Document]],
    objects: Mapping[str, Document],
    nodes: Iterable[Document],
) -> Iterator[Finding]:
    zones = {node["metadata"]["name"]: endpoints.zone_of(node) for node in nodes}
    by_namespace: dict[str, list[tuple[dict[str, str], Document]]] = defaultdict(list)
    for pod in pods:
        traits = endpoints.traits(pod)
        if traits is not None:
            by_namespace[traits["namespace"]].append((pod["metadata"].get("labels") or {}, traits))
    for name, service in services.items():
        if not endpoints.has_endpoints(service) or _is_going(service):
            continue
        selected = [
            traits
            for labels, traits in by_namespace.get(service["metadata"]["namespace"], ())
            if match_labels(service["spec"]["selector"], labels)
        ]
        plan = endpoints.plan_slices(service, selected, derived.get(name, []), zones=zones, now="", new_name=_unchanged)
        if plan != endpoints.SliceChanges():
            message = f"the slices of {name} are not what its Pods say; deriving them anew"
            yield _differing("EndpointSlicesDiffer", name, services, message)
        if endpoints.plan_endpoints(service, selected, objects.get(name), now="") is not None:
            message = f"the Endpoints of {name} are not what its Pods say; deriving them anew"
            yield _differing("EndpointsDiffer", name, services, message)


def _differing(reason: str, name: str, services: Mapping[str, Document], message: str) -> Finding:
    service = services.get(name)
    uid = service["metadata"]["uid"] if service else ""
    return Finding(reason, message, name, name if service else "", uid, Mend.DERIVE)


def _virtual_addresses(item: Document, cluster: ClusterSettings) -> Iterator[str]:
    if item.get("addressType") == "FQDN":
        return
    for endpoint in item.get("endpoints") or ():
        for text in endpoint["addresses"]:
            if _is_in_range(_ADDRESS, text, cluster):
                yield text


def _is_going(service: Document) -> bool:
    """Nothing is derived any more for a Service that only its finalizers keep."""
    return bool(service["metadata"].get("deletionTimestamp"))


def _unchanged(prefix: str) -> str:
    return prefix


def _key(document: Document) -> str:
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"
