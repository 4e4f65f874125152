"""The ranges that cluster IPs come from, as the ServiceCIDRs say; those of the settings as long as there are none.

Each process keeps what it read last. `Writer.ranges_revision` tells, under the counter row, whether that is still true:
a write that was judged by older ranges is judged again, so that nothing comes from a range that goes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from django.conf import settings
from django.db import connection

from services_app import models
from services_app.plan import allocation
from services_app.spec import servicecidr
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, invalid
from services_app.spec.ipaddress import ALLOCATOR, MANAGED_BY_LABEL
from services_app.spec.names import Network

Document = dict[str, Any]

# (ranges in use, ranges that go, revision), as last read; the rest of ClusterSettings is at hand
_kept: tuple[tuple[Network, ...], tuple[Network, ...], int] | None = None

# The default's ranges first, then in the order in which they were added; one row, also when there are none.
_READ = (
    "SELECT plane.ranges_revision, cidr.cidrs, cidr.is_ready FROM services_app_controlplane plane"
    " LEFT JOIN services_app_servicecidr cidr ON TRUE WHERE plane.id = 1"
    " ORDER BY cidr.name <> %s, cidr.created_at, cidr.name"
)
_HELD = (
    "SELECT host(claim.address) FROM services_app_clusteripclaim claim WHERE claim.address <<= ANY(%s::inet[])"
    " AND NOT claim.address <<= ANY(%s::inet[]) AND (claim.service_id IS NOT NULL OR EXISTS (SELECT 1 FROM"
    " services_app_ipaddress made WHERE made.name = host(claim.address) AND made.labels @> %s)) LIMIT 1"
)


def read() -> ClusterSettings:
    """The ranges now, with the other settings of the cluster. One query."""
    global _kept
    with connection.cursor() as cursor:
        cursor.execute(_READ, [servicecidr.DEFAULT])
        rows = [(revision, json.loads(cidrs or "[]"), is_ready) for revision, cidrs, is_ready in cursor.fetchall()]
    ready = [text for _, cidrs, is_ready in rows for text in cidrs if is_ready]
    going = [text for _, cidrs, is_ready in rows for text in cidrs if not is_ready]
    if not ready and not going:
        _kept = None
        return _with(tuple(settings.TIMONEL_SERVICE_CIDRS), (), rows[0][0] if rows else 0)
    _kept = tuple(map(ip_network, ready)), tuple(map(ip_network, going)), rows[0][0]
    return _with(*_kept)


def _with(ready: tuple[Network, ...], going: tuple[Network, ...], revision: int) -> ClusterSettings:
    return ClusterSettings(
        service_cidrs=ready,
        retiring=going,
        given_families=tuple(dict.fromkeys(f"IPv{network.version}" for network in settings.TIMONEL_SERVICE_CIDRS)),
        revision=revision,
        node_port_range=settings.TIMONEL_NODE_PORT_RANGE,
        cluster_domain=settings.TIMONEL_CLUSTER_DOMAIN,
    )


def known() -> ClusterSettings:
    """The ranges as last read here: good enough to judge by when it is checked by revision afterwards."""
    kept = _kept
    return _with(*kept) if kept is not None else read()


def at(revision: int) -> ClusterSettings:
    """The ranges of that revision, which must be the newest: the caller holds the counter row."""
    found = known()
    return found if found.revision == revision else read()


def are_newer_than(cluster: ClusterSettings) -> bool:
    """Whether other ranges hold now than those something was judged by. One query."""
    return read().revision != cluster.revision


def forget() -> None:
    """Read again before the next use."""
    global _kept
    _kept = None


def held_address(own: Iterable[str], others: Iterable[str]) -> str | None:
    """An address in use in a range's networks that no other range has; None when there is none. One query."""
    labels = json.dumps({MANAGED_BY_LABEL: ALLOCATOR})
    with connection.cursor() as cursor:
        cursor.execute(_HELD, [[*own], [*others], labels])
        found = cursor.fetchone()
    return found[0] if found else None


@dataclass(frozen=True)
class Use:
    """How many of a range's addresses can be given out, and how many are in use, by Services or by hand."""

    cidr: str
    size: int
    used: int


def uses(cidrs: Iterable[str]) -> list[Use]:
    """The use of each range. One query each, by index."""
    found = []
    with connection.cursor() as cursor:
        for text in cidrs:
            cursor.execute("SELECT count(*) FROM services_app_clusteripclaim WHERE address <<= %s::inet", [text])
            found.append(Use(text, allocation.address_pool(ip_network(text)).size, cursor.fetchone()[0]))
    return found


def validate_apart(document: Document) -> list[FieldError]:
    """What lies in a new range and must not: nodes get a route for it, and would not reach what really is there."""
    errors = []
    for index, network in enumerate(servicecidr.networks(document)):
        path, text = f"spec.cidrs[{index}]", str(network)
        for cidr in settings.TIMONEL_POD_CIDRS:
            if cidr.overlaps(network):
                errors.append(invalid(path, text, f"must not overlap the network of containers {cidr}"))
        if found := _real_address(network):
            errors.append(invalid(path, text, f"must not hold real addresses: {found}"))
    return errors


def _real_address(network: Network) -> str:
    """A Node, an enrolled host or a Pod with an address in a network, in words; "" when there is none."""
    with connection.cursor() as cursor:
        for table, what, column in (("node", "Node", "address"), ("pod", "Pod", "pod_ip")):
            sql = (
                f"SELECT namespace, name, host({column}) FROM services_app_{table} WHERE {column} <<= %s::inet LIMIT 1"
            )
            cursor.execute(sql, [str(network)])
            for namespace, name, address in cursor.fetchall():
                return f"{address} is {what} {namespace + '/' if namespace else ''}{name}"
    for name, text in models.Node.objects.values_list("name", "document"):
        node = json.loads(text)
        for cidr in node["spec"].get("podCIDRs") or ():
            if ip_network(cidr, strict=False).overlaps(network):
                return f"the containers of Node {name} are in {cidr}"
        for entry in (node.get("status") or {}).get("addresses") or ():
            if entry.get("type") == "InternalIP" and _is_in(entry.get("address", ""), network):
                return f"{entry['address']} is Node {name}"
    for name, address in models.NodeAccess.objects.values_list("node", "address"):
        if _is_in(address, network):
            return f"{address} is where Node {name} is reached"
    return ""


def _is_in(text: str, network: Network) -> bool:
    try:
        return ip_network(text).subnet_of(network)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False  # a host name, or of the other family
