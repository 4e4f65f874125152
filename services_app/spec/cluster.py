"""The settings of a cluster that rules depend on."""

from dataclasses import dataclass

from services_app.spec.names import Network


@dataclass(frozen=True)
class ClusterSettings:
    """service_cidrs: the default family first; several of a family are used in this order."""

    service_cidrs: tuple[Network, ...]
    node_port_range: range
    cluster_domain: str = "cluster.local"

    @property
    def families(self) -> tuple[str, ...]:
        """ "IPv4" and "IPv6", as configured, the default one first."""
        return tuple(dict.fromkeys(f"IPv{network.version}" for network in self.service_cidrs))
