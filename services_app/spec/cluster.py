"""The settings of a cluster that rules depend on."""

from dataclasses import dataclass

from services_app.spec.names import Network


@dataclass(frozen=True)
class ClusterSettings:
    """service_cidrs: what cluster IPs are given out from, those of a family in this order.

    retiring: ranges that go and are still in use; nothing new comes from them. given_families: the families Services may
    have, the default one first; empty for those of the ranges. revision: of the last change of a ServiceCIDR when the
    ranges were read.
    """

    service_cidrs: tuple[Network, ...]
    node_port_range: range
    cluster_domain: str = "cluster.local"
    retiring: tuple[Network, ...] = ()
    given_families: tuple[str, ...] = ()
    revision: int = 0

    @property
    def families(self) -> tuple[str, ...]:
        """ "IPv4" and "IPv6", as configured, the default one first."""
        return self.given_families or tuple(dict.fromkeys(f"IPv{network.version}" for network in self.service_cidrs))

    @property
    def virtual_cidrs(self) -> tuple[Network, ...]:
        """Where cluster IPs can be: the ranges in use and those that go."""
        return tuple(dict.fromkeys((*self.service_cidrs, *self.retiring)))
