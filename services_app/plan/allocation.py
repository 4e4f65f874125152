"""Which addresses and ports a Service needs, gives back, and from which bands they come.

Pure: the unique indexes behind `store.claims` decide who gets what. Rules: k8s v1.36
pkg/registry/core/service/storage/alloc.go; bands: KEP-3070 (addresses) and KEP-3668 (node ports).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

Document = dict[str, Any]
Network = IPv4Network | IPv6Network

DYNAMIC_BAND, STATIC_BAND = 0, 1


@dataclass(frozen=True)
class PoolRange:
    """A range of numbers or addresses in the order in which it is given out: dynamic band first, then static."""

    name: str
    first: int
    size: int
    static_size: int
    version: int  # 4 or 6 for addresses, 0 for ports

    def offset_of(self, value: int) -> int | None:
        """The place of a value in the order of giving out; None when it is outside."""
        if not self.first <= value < self.first + self.size:
            return None
        index = value - self.first
        dynamic = self.size - self.static_size
        return index - self.static_size if index >= self.static_size else dynamic + index

    def value_at(self, offset: int) -> int:
        """The value at a place in the order of giving out."""
        dynamic = self.size - self.static_size
        return self.first + (offset + self.static_size if offset < dynamic else offset - dynamic)

    def band_at(self, offset: int) -> int:
        return DYNAMIC_BAND if offset < self.size - self.static_size else STATIC_BAND


def address_pool(cidr: Network) -> PoolRange:
    """The usable addresses of a service range: not the first, and with IPv4 not the last."""
    size = cidr.num_addresses - (2 if cidr.version == 4 else 1)
    static = min(max(16, size // 16), 256)
    return PoolRange(str(cidr), int(cidr.network_address) + 1, max(size, 0), min(static, max(size, 0)), cidr.version)


def port_pool(ports: range) -> PoolRange:
    """The node port range; the last 2,682 of the default 2,768 ports are the dynamic band."""
    static = min(max(16, len(ports) // 32), 128)
    return PoolRange(f"node-ports {ports.start}-{ports.stop - 1}", ports.start, len(ports), min(static, len(ports)), 0)


def cluster_ips_of(service: Document | None) -> list[str]:
    """The cluster IPs a stored Service holds, in canonical spelling; none for headless and ExternalName."""
    spec = (service or {}).get("spec") or {}
    if spec.get("type") == "ExternalName":
        return []
    return [_canonical(ip) for ip in spec.get("clusterIPs") or () if ip and ip != "None"]


def _canonical(address: str) -> str:
    """As PostgreSQL spells it, too; what is no address stays as it is."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def node_ports_of(service: Document | None) -> list[int]:
    """The node ports a stored Service holds, its health check port among them, each once."""
    spec = (service or {}).get("spec") or {}
    ports = [port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")]
    if spec.get("healthCheckNodePort"):
        ports.append(spec["healthCheckNodePort"])
    return list(dict.fromkeys(ports))


def missing_families(service: Document) -> list[tuple[int, str]]:
    """(index in clusterIPs, family) of every cluster IP still to be given out."""
    spec = service["spec"]
    if (
        spec.get("type") == "ExternalName"
        or spec.get("clusterIP") == "None"
        or "None" in (spec.get("clusterIPs") or ())
    ):
        return []
    have = spec.get("clusterIPs") or []
    return [
        (index, family)
        for index, family in enumerate(spec.get("ipFamilies") or ())
        if index >= len(have) or not have[index]
    ]


def wants_node_ports(service: Document) -> bool:
    spec = service["spec"]
    if spec.get("type") == "NodePort":
        return True
    return spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False


def missing_node_ports(service: Document) -> list[tuple[int, int | None]]:
    """(index in ports, index of an earlier or later port to share with) of every node port still to be given out.

    Ports with the same number and another protocol get the same node port, as in Kubernetes.
    """
    if not wants_node_ports(service):
        return []
    ports = service["spec"].get("ports") or []
    missing: list[tuple[int, int | None]] = []
    for index, port in enumerate(ports):
        if port.get("nodePort"):
            continue
        twin = next(
            (
                other
                for other, candidate in enumerate(ports)
                if candidate["port"] == port["port"] and other != index and (candidate.get("nodePort") or other < index)
            ),
            None,
        )
        missing.append((index, twin))
    return missing


def wants_health_check_port(service: Document) -> bool:
    """Whether load balancers must be able to ask each node for its own endpoints (externalTrafficPolicy Local)."""
    spec = service["spec"]
    return (
        spec.get("type") == "LoadBalancer"
        and spec.get("externalTrafficPolicy") == "Local"
        and not spec.get("healthCheckNodePort")
    )


def pools_of(address: str, cidrs: Iterable[Network]) -> list[tuple[PoolRange, int]]:
    """The pools an address belongs to and its place in each one's order of giving out: ranges may overlap."""
    number, version = int(ip_address(address)), ip_address(address).version
    found: list[tuple[PoolRange, int]] = []
    for cidr in dict.fromkeys(cidrs):
        pool = address_pool(cidr)
        offset = pool.offset_of(number) if pool.version == version else None
        if offset is not None:
            found.append((pool, offset))
    return found
