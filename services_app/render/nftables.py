"""Routes as elements of the node's named maps and sets (table `ip timonel`); the skeleton is agents/nftables.py's.

An update changes elements only, whatever the number of Services (measured in docs/decisions).
"""

from collections.abc import Iterable

from services_app.plan.routing import Route

Resource = tuple[str, str, str]
DRIVER = "nft4"


def render_routes(routes: Iterable[Route]) -> list[Resource]:
    """The elements that are the same on every node: (driver, "container element", value)."""
    resources: dict[str, str] = {}
    for route in routes:
        if route.protocol not in ("tcp", "udp", "sctp"):
            continue
        mark = f"0x{route.group:08x}"
        addresses = [ip for ip in route.cluster_ips if ":" not in ip]
        backends = [b for b in route.backends if ":" not in b.address]
        if not addresses and not route.node_port:
            continue
        for address in addresses:
            resources[f"frontends {address} . {route.protocol} . {route.port}"] = mark
            resources[f"cluster_ips {address}"] = ""
        if route.node_port:
            resources[f"nodeports {route.protocol} . {route.node_port}"] = mark
        resources[f"groups {mark}"] = f"goto lb_{len(backends)}" if backends else "goto refuse"
        for index, backend in enumerate(backends):
            resources[f"slots {mark} . {index}"] = f"{backend.address} . {backend.port}"
    return [(DRIVER, key, value) for key, value in resources.items()]


def render_local(routes: Iterable[Route]) -> dict[str, tuple[Resource, ...]]:
    """Node -> the elements that only it holds: endpoints on it, which see the client's own address."""
    addresses: dict[str, set[str]] = {}
    for route in routes:
        for backend in route.backends:
            if backend.node and ":" not in backend.address:
                addresses.setdefault(backend.node, set()).add(backend.address)
    return {
        node: tuple((DRIVER, f"local_endpoints {address}", "") for address in sorted(found))
        for node, found in addresses.items()
    }
