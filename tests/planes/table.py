"""Every routing rule as a row: a Service, a client, the way it takes, and what must happen. The same for every mode.

What another mode cannot do stands in the row as well: `but` says what happens there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.planes.world import Given

REFUSED, DROPPED = "refused", "dropped"
EVERYWHERE = {"inside": "ready", "neighbour": "ready"}
LOCAL = {"externalTrafficPolicy": "Local"}
INTERNAL_LOCAL = {"internalTrafficPolicy": "Local"}


@dataclass(frozen=True)
class Row:
    """outcome: the endpoints that answer, or REFUSED or DROPPED. sees: endpoint -> whose address it sees, "client" or
    "node" (its address on the endpoint's link); endpoints without a word may see either. but: mode -> outcome and what is
    seen, where they differ.
    """

    service: str
    client: str
    way: str
    outcome: frozenset[str] | str
    sees: Mapping[str, str] = field(default_factory=dict)
    but: Mapping[str, tuple[frozenset[str] | str, Mapping[str, str]]] = field(default_factory=dict)

    def expected(self, mode: str) -> tuple[frozenset[str] | str, Mapping[str, str]]:
        """(outcome, sees) in a mode."""
        return self.but.get(mode, (self.outcome, self.sees))

    def __str__(self) -> str:
        return f"{self.client} -> {self.service} by {self.way}"


def _services() -> dict[str, Given]:
    found: dict[str, Given] = {}
    for protocol in ("tcp", "udp"):
        found |= {
            f"everywhere_{protocol}": Given(EVERYWHERE, protocol),
            f"nobody_{protocol}": Given({"inside": "gone"}, protocol),
            f"empty_{protocol}": Given({}, protocol),
            f"local_{protocol}": Given(EVERYWHERE, protocol, LOCAL),
            f"local_elsewhere_{protocol}": Given({"neighbour": "ready"}, protocol, LOCAL),
            f"local_draining_{protocol}": Given(
                {"inside": "draining", "other": "gone", "neighbour": "ready"}, protocol, LOCAL
            ),
            f"inner_{protocol}": Given(EVERYWHERE, protocol, INTERNAL_LOCAL),
            f"inner_elsewhere_{protocol}": Given({"neighbour": "ready"}, protocol, INTERNAL_LOCAL),
            f"draining_{protocol}": Given({"inside": "draining", "other": "draining"}, protocol),
            f"some_draining_{protocol}": Given({"inside": "draining", "other": "ready"}, protocol),
            f"ranged_{protocol}": Given({"inside": "ready"}, protocol, {}, ("outside",)),
            f"ranged_local_{protocol}": Given({"inside": "ready"}, protocol, LOCAL, ("outside", "node")),
        }
    return found


SERVICES = _services()


def _to(*endpoints: str) -> frozenset[str]:
    return frozenset(endpoints)


def _rows() -> list[Row]:
    rows: list[Row] = []
    all_ways, external = ("cluster ip", "node port", "external ip"), ("node port", "external ip")
    for protocol in ("tcp", "udp"):

        def add(service: str, client: str, way: str, outcome: frozenset[str] | str, protocol: str = protocol) -> None:
            sees = {}
            if isinstance(outcome, frozenset) and client == "outside":
                # A client outside is seen by endpoints on this node alone; the others would answer past the node.
                sees = {name: "node" if name == "neighbour" else "client" for name in outcome}
            elif isinstance(outcome, frozenset) and client == "node":
                sees = {name: "client" for name in outcome if name == "neighbour"}
            # A proxy's connection is its own, whoever asked for it.
            by_proxy = dict.fromkeys(outcome, "node") if isinstance(outcome, frozenset) else {}
            rows.append(Row(f"{service}_{protocol}", client, way, outcome, sees, {"userspace": (outcome, by_proxy)}))

        for way in all_ways:
            clients = ("node", "other") if way == "cluster ip" else ("node", "other", "outside")
            for client in clients:
                add("everywhere", client, way, _to("inside", "neighbour"))
                add("nobody", client, way, REFUSED)
                add("empty", client, way, REFUSED)
                add("draining", client, way, _to("inside", "other"))
                add("some_draining", client, way, _to("other"))
            add("everywhere", "inside", way, _to("inside", "neighbour"))  # itself among them
        for way in external:
            add("local", "outside", way, _to("inside"))
            add("local", "node", way, _to("inside", "neighbour"))  # the node itself is not outside
            add("local_elsewhere", "outside", way, DROPPED)
            add("local_elsewhere", "node", way, _to("neighbour"))
            add("local_draining", "outside", way, _to("inside"))  # KEP-1669
            add("local_draining", "node", way, _to("neighbour"))
            add("inner", "outside", way, _to("inside", "neighbour"))
            add("inner_elsewhere", "outside", way, _to("neighbour"))
        add("local", "node", "cluster ip", _to("inside", "neighbour"))
        add("local", "other", "cluster ip", _to("inside", "neighbour"))
        for client in ("node", "other"):
            add("inner", client, "cluster ip", _to("inside"))
            add("inner_elsewhere", client, "cluster ip", DROPPED)
        add("ranged", "outside", "balancer", _to("inside"))
        add("ranged", "other", "balancer", DROPPED)
        add("ranged", "node", "balancer", DROPPED)
        add("ranged", "other", "cluster ip", _to("inside"))  # ranges are for the load balancer's addresses alone
        add("ranged", "other", "node port", _to("inside"))
        add("ranged_local", "outside", "balancer", _to("inside"))
        add("ranged_local", "node", "balancer", _to("inside"))
        add("ranged_local", "neighbour", "balancer", DROPPED)
    return rows


ROWS = _rows()
