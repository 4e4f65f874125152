"""Where a new connection goes on a node, by what the node should hold now: for the command and the page. Nothing is sent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from services_app.render.node import BASE_OWNER, Resource
from services_app.render.tracer import DELIVERED, NodeTables, Outcome, Packet

PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True)
class Question:
    """destination: "" for the node's own address, as of a node port; source: the client's address, "" for the node itself."""

    destination: str
    port: int
    protocol: str = "tcp"
    source: str = ""
    version: int = 4  # of the node's own addresses that are meant


@dataclass(frozen=True, order=True)
class Share:
    """An endpoint, how many of new connections it gets (0 to 1), and whom it sees as the client."""

    address: str
    port: int
    sees_client: bool
    part: float


@dataclass(frozen=True)
class Answer:
    """What a node does. packet: None when the node has no address of the family. steps: (words, owner of the element or "")."""

    node: str
    packet: Packet | None
    action: str = ""
    shares: tuple[Share, ...] = ()
    affinity_s: int | None = None
    steps: tuple[tuple[str, str], ...] = ()

    @property
    def is_even(self) -> bool:
        """Whether every endpoint gets as many as the others."""
        return len({share.part for share in self.shares}) < 2

    @property
    def words(self) -> str:
        """What becomes of the connection."""
        if self.packet is None:
            return "has no address of this family"
        if self.action != DELIVERED:
            return self.action
        kept = f", kept for {self.affinity_s} s" if self.affinity_s is not None else ""
        return f"delivered to one of {len(self.shares)}{kept}" if len(self.shares) > 1 else f"delivered{kept}"


def explain(node: str, own: Sequence[str], owners: Mapping[str, Sequence[Resource]], question: Question) -> Answer:
    """own: the node's addresses. owners: what it should hold; its base among them."""
    version = ip_address(question.destination).version if question.destination else question.version
    here = next((address for address in own if ip_address(address).version == version), "")
    source, destination = question.source or here, question.destination or here
    if not source or not destination:
        return Answer(node, None)
    packet = Packet(source, destination, question.port, question.protocol)
    outcome = NodeTables((r for resources in owners.values() for r in resources), own).trace(packet)
    of_element = {key: owner for owner, resources in owners.items() for _, key, _ in resources}
    steps = tuple((step, of_element.get(step.partition(" -> ")[0], BASE_OWNER)) for step in outcome.steps)
    is_proxied = ("host", "mode", "userspace") in owners.get(BASE_OWNER, ())
    return Answer(node, packet, outcome.action, _shares(outcome, is_proxied), outcome.affinity_s, steps)


def _shares(outcome: Outcome, is_proxied: bool) -> tuple[Share, ...]:
    """is_proxied: connections end at a proxy of the node, which opens others."""
    counts = Counter((target.address, target.port, target.sees_client and not is_proxied) for target in outcome.targets)
    return tuple(sorted(Share(*target, count / len(outcome.targets)) for target, count in counts.items()))
