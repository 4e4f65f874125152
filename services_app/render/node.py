"""Everything a node holds: for each Service its resources, and the base that belongs to no Service.

Most of a Service's resources are the same on every node: they are rendered once, and pushed many times.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from services_app.plan.routing import plan_records, plan_routes
from services_app.render import dns, nftables

Document = dict[str, Any]
Resource = tuple[str, str, str]

BASE_OWNER = ""
DNS_LISTEN = "169.254.20.10"  # the address NodeLocal DNSCache uses by convention


@dataclass(frozen=True)
class Cluster:
    """What every node's base depends on."""

    service_cidrs: tuple[IPv4Network | IPv6Network, ...]
    domain: str


@dataclass(frozen=True)
class OwnerState:
    """A Service as stored at one revision; service is None once it is deleted.

    groups: plan.routing.group_key -> group id.
    """

    owner: str
    service: Document | None
    slices: tuple[Document, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """An owner's resources: the same everywhere, and those that only the Node of that name holds."""

    shared: tuple[Resource, ...] = ()
    local: Mapping[str, tuple[Resource, ...]] = field(default_factory=dict)

    def on(self, node: str) -> list[Resource]:
        """All that the named Node holds of the owner."""
        return [*self.shared, *self.local.get(node, ())]


def render_owner(state: OwnerState, cluster: Cluster) -> Rendered:
    """An owner's resources; none once its Service is deleted."""
    if state.service is None:
        return Rendered()
    routes = plan_routes(state.service, state.slices, state.groups)
    shared = [
        *nftables.render_routes(routes),
        *dns.render_records(plan_records(state.service, state.slices, cluster.domain)),
    ]
    return Rendered(tuple(shared), nftables.render_local(routes))


def render_base(cluster: Cluster, address: str) -> list[Resource]:
    """What a node holds besides Services. address: the node's own."""
    host: list[tuple[str, str]] = [
        ("node-address", address),
        ("zone", cluster.domain),
        ("dns-listen", DNS_LISTEN),
        *((f"route {cidr}", "") for cidr in cluster.service_cidrs if cidr.version == 4),
        *((f"reverse {zone}", "") for zone in reverse_zones(cluster.service_cidrs)),
    ]
    return [("host", key, value) for key, value in host]


def reverse_zones(cidrs: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    """The reverse zones that hold the PTR records of the ranges: cut at the octet (IPv4) or nibble (IPv6)."""
    zones = []
    for cidr in cidrs:
        bits, total = (8, 4) if cidr.version == 4 else (4, 32)
        labels = cidr.network_address.reverse_pointer.split(".")
        whole = max(cidr.prefixlen // bits, 1)
        zones.append(".".join(labels[total - whole :]) + ".")
    return sorted(zones)
