"""Everything a node holds: for each Service its resources, and the base that belongs to no Service.

Most of a Service's resources are the same on every node: they are rendered once, and pushed many times.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from agents.state import owner_sum
from services_app.plan.routing import Groups, plan_health_check, plan_records, plan_routes
from services_app.render import dns, nftables
from services_app.spec import kube_proxy
from services_app.spec.kube_proxy import Configuration
from services_app.spec.node import is_leaving

Document = dict[str, Any]
Resource = tuple[str, str, str]

BASE_OWNER = ""
DNS_LISTEN = "169.254.20.10"  # the address NodeLocal DNSCache uses by convention


@dataclass(frozen=True)
class Cluster:
    """What every node's base depends on. pod_cidrs: the networks of all containers; none unless configured."""

    service_cidrs: tuple[IPv4Network | IPv6Network, ...]
    domain: str
    pod_cidrs: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True)
class NodeNetwork:
    """What a node's own base depends on.

    addresses: the node's, at most one of each family. pod_cidrs: the networks of the containers behind it, as its Node
    says; none unless somebody says so, and never the nodes' own network. is_leaving: load balancers should send nothing
    new to it.
    """

    addresses: tuple[IPv4Address | IPv6Address, ...]
    pod_cidrs: tuple[IPv4Network | IPv6Network, ...] = ()
    is_leaving: bool = False


def network_of(node: Document | None, address: str) -> NodeNetwork:
    """From a Node's document; address: what to take when it names none."""
    status, spec = (node or {}).get("status") or {}, (node or {}).get("spec") or {}
    texts = [a["address"] for a in status.get("addresses") or () if a.get("type") == "InternalIP"]
    addresses: dict[int, IPv4Address | IPv6Address] = {}
    for text in texts or [address]:
        try:
            found = ip_address(text)
        except ValueError:
            continue  # an enrolled host may be known by name alone
        addresses.setdefault(found.version, found)
    return NodeNetwork(
        tuple(addresses[version] for version in sorted(addresses)),
        tuple(ip_network(text, strict=False) for text in spec.get("podCIDRs") or ()),
        is_leaving(node),
    )


@dataclass(frozen=True)
class OwnerState:
    """A Service as stored at one revision; service is None once it is deleted.

    groups: an id for each of plan.routing.groups_wanted.
    """

    owner: str
    service: Document | None
    slices: tuple[Document, ...] = ()
    groups: Groups = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """An owner's resources: the same everywhere, and what a Node holds besides: `local` by its name, else `elsewhere`.

    nearby: of each what is chosen by the Node's name and zone. owner: "" for one that is gone.
    """

    shared: tuple[Resource, ...] = ()
    local: Mapping[str, tuple[Resource, ...]] = field(default_factory=dict)
    elsewhere: tuple[Resource, ...] = ()
    nearby: tuple[nftables.Choice, ...] = ()
    owner: str = ""

    def on(self, node: str, zone: str = "") -> list[Resource]:
        """All that the named Node holds of the owner; zone: the one it is in, "" for none."""
        near = (resource for choice in self.nearby for resource in choice.on(node, zone))
        return [*self.shared, *self.local.get(node, self.elsewhere), *near]

    def sum_on(self, node: str, zone: str = "") -> int:
        """What the owner adds to the named Node's digest; worked out once, but for what is chosen by name and zone."""
        if self.nearby:
            return owner_sum(self.owner, self.on(node, zone))
        if node not in self.local:
            return self._sum_elsewhere
        if (found := self._sums_local.get(node)) is None:
            found = self._sums_local[node] = self._sum_with(self.local[node])
        return found

    @cached_property
    def _sums_local(self) -> dict[str, int]:
        return {}

    @cached_property
    def _sum_elsewhere(self) -> int:
        return self._sum_with(self.elsewhere)

    @cached_property
    def _sum_shared(self) -> int:
        return owner_sum(self.owner, self.shared)

    def _sum_with(self, own: tuple[Resource, ...]) -> int:
        """own: what a Node holds besides; of an element that is given twice the first counts."""
        new = [resource for resource in own if not any(shared[:2] == resource[:2] for shared in self.shared)]
        return self._sum_shared + owner_sum(self.owner, new)


def render_owner(state: OwnerState, cluster: Cluster) -> Rendered:
    """An owner's resources; none once its Service is deleted."""
    if state.service is None:
        return Rendered()
    elements = nftables.render_routes(plan_routes(state.service, state.slices, state.groups))
    names = dns.render_records(plan_records(state.service, state.slices, cluster.domain, cluster.pod_cidrs))
    shared, local, elsewhere = (*elements.shared, *names, *_scheduler(state)), elements.local, elements.elsewhere
    check = plan_health_check(state.service, state.slices)
    if check is None:
        return Rendered(shared, local, elsewhere, elements.nearby, state.owner)

    def answer(node: str) -> Resource:
        return "health", f"port {check.port}", f"{state.owner} {check.endpoints.get(node, 0)}"

    nodes = sorted({*local, *check.endpoints})
    return Rendered(
        shared,
        {node: (*local.get(node, elsewhere), answer(node)) for node in nodes},
        (*elsewhere, answer("")),
        elements.nearby,
        state.owner,
    )


def _scheduler(state: OwnerState) -> Iterable[Resource]:
    """How IPVS draws the endpoints of each group, if the Service chooses."""
    chosen = kube_proxy.ipvs_scheduler(state.service or {"metadata": {}})
    return [("ipvs", f"scheduler 0x{group:08x}", chosen) for group in sorted(state.groups.values()) if chosen]


def render_base(
    cluster: Cluster, network: NodeNetwork, configuration: Configuration = Configuration()
) -> list[Resource]:
    """What a node holds besides Services."""
    host: list[tuple[str, str]] = [
        *(("node-address" if address.version == 4 else "node-address6", str(address)) for address in network.addresses),
        ("zone", cluster.domain),
        ("dns-listen", DNS_LISTEN),
        *([("mode", configuration.mode)] if configuration.mode != kube_proxy.MODES[0] else []),
        *((f"route {cidr}", "") for cidr in cluster.service_cidrs),
        *((f"reverse {zone}", "") for zone in reverse_zones([*cluster.service_cidrs, *cluster.pod_cidrs])),
        *((f"conntrack {name}", value) for name, value in configuration.conntrack),
    ]
    pods = [(nftables.DRIVERS[cidr.version], f"pod_cidrs {cidr}", "") for cidr in network.pod_cidrs]
    closed = [
        (nftables.DRIVERS[part.version], f"without_node_ports {part}", "")
        for part in configuration.without_node_ports(network.addresses)
    ]
    ranges = cluster.service_cidrs if configuration.masquerade_all else ()
    hidden = [(nftables.DRIVERS[cidr.version], f"masquerade_all {cidr}", "") for cidr in ranges]
    fitness = "leaving" if network.is_leaving else "eligible"
    healthz = [("health", f"healthz {configuration.healthz}", fitness)] if configuration.healthz else []
    scheduler = [("ipvs", "scheduler", configuration.ipvs_scheduler)] if configuration.ipvs_scheduler else []
    return [*(("host", key, value) for key, value in host), *pods, *closed, *hidden, *healthz, *scheduler]


def reverse_zones(cidrs: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    """The reverse zones that hold the PTR records of the ranges: cut at the octet (IPv4) or nibble (IPv6)."""
    zones = set()
    for cidr in cidrs:
        bits, total = (8, 4) if cidr.version == 4 else (4, 32)
        labels = cidr.network_address.reverse_pointer.split(".")
        whole = max(cidr.prefixlen // bits, 1)
        zones.add(".".join(labels[total - whole :]) + ".")
    return sorted(zones)
