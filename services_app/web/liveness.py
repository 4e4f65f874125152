"""Per Service and node: does the node hold the Service's last change? Values in, values out; no database here."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

LIVE, BEHIND, REJECTED = "Live", "Behind", "Rejected"
FAILED, QUARANTINED, UNREACHABLE, PENDING = "Failed", "Quarantined", "Unreachable", "Pending"
NOT_ENROLLED = "NotEnrolled"

# What asks for a person first.
SEVERITY = (REJECTED, FAILED, QUARANTINED, UNREACHABLE, BEHIND, PENDING, NOT_ENROLLED, LIVE)


@dataclass(frozen=True)
class Lag:
    """The newest revisions that concern nodes, so that "behind by N" counts changes and not revision numbers."""

    revisions: Sequence[int] = ()  # ascending; the newest ones only
    truncated: bool = False  # older ones exist

    def between(self, applied: int, wanted: int) -> str:
        """How many changes lie after `applied` up to `wanted`: "0", "3", "1,000+" where the list ends before."""
        start = bisect_right(self.revisions, applied)
        count = max(bisect_right(self.revisions, wanted) - start, 0)
        if self.truncated and start == 0:
            return f"{max(count, 1):,}+"
        if count == 0 and applied < wanted:
            return "1+"  # the log no longer holds the change that is missing
        return f"{count:,}"

    @property
    def newest(self) -> int:
        return self.revisions[-1] if self.revisions else 0


@dataclass(frozen=True)
class NodeReport:
    """What is known of one node."""

    name: str
    address: str
    state: str
    reason: str = ""
    message: str = ""
    applied_revision: int = 0
    rejected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # "namespace/name" -> reason, message
    problems: Sequence[Mapping[str, str]] = ()
    agent_version: str = ""
    last_report_at: datetime | None = None
    last_apply_ms: float | None = None
    behind: str = "0"

    @property
    def status(self) -> str:
        """The state a person should see: a connected node that lacks changes or refused some is not plainly live."""
        if self.state != LIVE:
            return self.state
        if self.rejected:
            return REJECTED
        return LIVE if self.behind == "0" else BEHIND

    @property
    def refusals(self) -> Sequence[Mapping[str, str]]:
        """What the node refused: service, reason, message; by name of the Service."""
        return [
            {"service": key, "reason": "", "message": "", **refusal} for key, refusal in sorted(self.rejected.items())
        ]

    @property
    def enrolled(self) -> bool:
        return self.state != NOT_ENROLLED


@dataclass(frozen=True)
class Holding:
    """Whether one node holds one Service's last change, and why not."""

    node: NodeReport
    status: str
    holds: bool
    behind: str = "0"
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Liveness:
    """One Service over all nodes."""

    counts: Sequence[tuple[str, int]]  # status -> nodes, the most severe first
    nodes: int
    listed: Sequence[Holding]  # every node when there are few, otherwise the troubled ones, at most `limit`
    unlisted: int  # troubled nodes that `listed` had no room for

    @property
    def all_live(self) -> bool:
        return self.nodes > 0 and self.counts == ((LIVE, self.nodes),)


def status_of(key: str, changed_revision: int, node: NodeReport) -> tuple[str, bool]:
    """The status of a Service ("namespace/name") on a node, and whether the node holds its last change."""
    rejected = key in node.rejected
    holds = node.applied_revision >= changed_revision and not rejected
    if rejected:
        return REJECTED, False
    if node.state != LIVE:
        return node.state, holds
    return (LIVE if holds else BEHIND), holds


def holding_of(key: str, changed_revision: int, node: NodeReport, lag: Lag) -> Holding:
    """One Service on one node, in full."""
    status, holds = status_of(key, changed_revision, node)
    refusal = node.rejected.get(key)
    return Holding(
        node=node,
        status=status,
        holds=holds,
        behind="0"
        if node.applied_revision >= changed_revision
        else lag.between(node.applied_revision, changed_revision),
        reason=refusal.get("reason", "") if refusal else node.reason,
        message=refusal.get("message", "") if refusal else node.message,
    )


def liveness_of(
    key: str, changed_revision: int, nodes: Iterable[NodeReport], lag: Lag, *, few: int = 6, limit: int = 6
) -> Liveness:
    """One Service over the enrolled nodes. O(nodes); only the listed ones are worked out in full."""
    counts: dict[str, int] = {}
    by_status: dict[str, list[NodeReport]] = {}
    total = 0
    for node in nodes:
        total += 1
        status, _ = status_of(key, changed_revision, node)
        counts[status] = counts.get(status, 0) + 1
        if status != LIVE or total <= few:
            by_status.setdefault(status, []).append(node)
    ordered = [node for status in SEVERITY for node in by_status.get(status, ())]
    if total <= few:
        # The live ones first: they share a line, each of the others needs one for its reason.
        live = sorted(by_status.get(LIVE, ()), key=lambda node: node.name)
        shown = [*live, *(node for node in ordered if node not in live)]
        hidden = 0
    else:
        troubled = [node for status in SEVERITY if status != LIVE for node in by_status.get(status, ())]
        shown, hidden = troubled[:limit], max(len(troubled) - limit, 0)
    return Liveness(
        counts=tuple((status, counts[status]) for status in SEVERITY if status in counts),
        nodes=total,
        listed=tuple(holding_of(key, changed_revision, node, lag) for node in shown),
        unlisted=hidden,
    )


def sort_nodes(nodes: Iterable[NodeReport]) -> list[NodeReport]:
    """The nodes that ask for a person first, then by name."""
    return sorted(nodes, key=lambda node: (SEVERITY.index(node.status), node.name))
