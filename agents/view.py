"""The elements of one address family as what they mean: frontends that lead to groups, and groups of endpoints.

For planes that spell rules instead of elements (see agents/planes.py). What an element may look like is judged by
agents/ruleset.py before it gets here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agents.ruleset import LOCAL_POLICY, SOURCE_RANGES, group_of
from agents.state import Change

K = TypeVar("K")
V = TypeVar("V")

SETS = ("cluster_ips", "local_endpoints", "pod_cidrs", "without_node_ports", "masquerade_all")


@dataclass(frozen=True, order=True)
class Frontend:
    """Where connections come in. address: None for a node port, on every address of the node that has node ports.

    mark: the group with flags, as the elements spell it; it is the key of source ranges and of `to_cluster`.
    """

    address: str | None
    protocol: str
    port: int
    mark: str

    @property
    def group(self) -> str:
        """The group's id as its key, "0x00000005"."""
        return group_of(self.mark)

    @property
    def is_local(self) -> bool:
        """Whether clients that are not outside (the node, its containers) go to `View.to_cluster[mark]` instead."""
        return bool(int(self.mark, 16) & LOCAL_POLICY)

    @property
    def is_restricted(self) -> bool:
        """Whether only clients in `View.source_ranges[mark]` are let in; the others are dropped."""
        return bool(int(self.mark, 16) & SOURCE_RANGES)


@dataclass(frozen=True)
class Group:
    """What becomes of a connection. verdict: "balance", "refuse" (tell the client at once) or "drop".

    endpoints: (address, port), each as likely as the others, and several times where one has a greater weight.
    affinity_s: how long a client keeps its endpoint after its last connection, None for no longer than a connection.
    is_by_source_hash: the client's address chooses the place in `endpoints`. kept: endpoints of weight 0, which get no
    new client; their flows, and with affinity the clients they have, stay.
    """

    verdict: str
    endpoints: tuple[tuple[str, int], ...] = ()
    affinity_s: int | None = None
    is_by_source_hash: bool = False
    kept: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Touched:
    """What a change has changed: keys of frontends, ids of groups, marks of source ranges and `to_cluster`, sets by name."""

    frontends: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()


@dataclass
class View:
    """All of a family's elements. Keys of `frontends` are the elements' own; groups are looked up by their id."""

    frontends: dict[str, Frontend] = field(default_factory=dict)
    to_cluster: dict[str, str] = field(default_factory=dict)  # mark -> id of the group for who is not outside
    source_ranges: dict[str, set[str]] = field(default_factory=dict)  # mark -> networks
    sets: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SETS})
    _verdicts: dict[str, str] = field(default_factory=dict)
    _slots: dict[str, dict[int, str]] = field(default_factory=dict)
    _picks: dict[str, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, elements: Mapping[str, str]) -> View:
        """From a whole family's elements."""
        view = cls()
        view.follow(Change(adds=dict(elements)))
        return view

    @property
    def groups(self) -> list[str]:
        """The ids of all groups, in order."""
        return sorted(self._verdicts)

    def group(self, number: str) -> Group:
        """A group by its id; one that is not there drops, as long as a change is half made."""
        verdict = self._verdicts.get(number, "drop")
        slots = {slot: _endpoint(text) for slot, text in sorted(self._slots.get(number, {}).items())}
        if verdict in ("drop", "goto refuse"):
            return Group(verdict.removeprefix("goto "), kept=tuple(slots.values()))
        kind, *numbers = verdict.removeprefix("goto ").split("_")
        picks = self._picks.get(number, {})
        drawn = [picks.get(index) if kind == "aff" else index for index in range(int(numbers[-1]))]
        endpoints = tuple(slots[slot] for slot in drawn if slot in slots)
        kept = tuple(endpoint for slot, endpoint in slots.items() if slot not in {*drawn})
        return Group("balance", endpoints, int(numbers[0]) if kind == "aff" else None, kind == "hash", kept)

    def follow(self, change: Change) -> Touched:
        """Note a change of elements, and say what it touched. O(change)."""
        frontends, groups, marks, sets = set[str](), set[str](), set[str](), set[str]()
        for is_new, elements in ((False, change.deletes), (True, change.adds)):
            for key, value in elements.items():
                container, _, rest = key.partition(" ")
                if container in ("frontends", "nodeports"):
                    frontends.add(key)
                    _put(self.frontends, key, _frontend(container, rest, value) if is_new else None)
                elif container == "groups":
                    groups.add(rest)
                    _put(self._verdicts, rest, value if is_new else None)
                elif container == "slots":
                    number, _, slot = rest.partition(" . ")
                    groups.add(number)
                    _put(self._slots.setdefault(number, {}), int(slot), value if is_new else None)
                    if not self._slots[number]:
                        del self._slots[number]
                elif container == "pick":
                    number, _, index = rest.partition(" . ")
                    groups.add(number)
                    _put(self._picks.setdefault(number, {}), int(index), int(value) if is_new else None)
                    if not self._picks[number]:
                        del self._picks[number]
                elif container == "to_cluster":
                    marks.add(rest)
                    _put(self.to_cluster, rest, value if is_new else None)
                elif container == "source_ranges":
                    mark, _, network = rest.partition(" . ")
                    marks.add(mark)
                    held = self.source_ranges.setdefault(mark, set())
                    held.add(network) if is_new else held.discard(network)
                    if not held:
                        del self.source_ranges[mark]
                elif container in SETS:
                    sets.add(container)
                    held = self.sets[container]
                    held.add(rest) if is_new else held.discard(rest)
        return Touched(frozenset(frontends), frozenset(groups), frozenset(marks), frozenset(sets))


def protocols(resources: Iterable[tuple[str, str]]) -> set[str]:
    """The protocols of an owner's frontends: "tcp", "udp", "sctp". resources: (key, value)."""
    return {key.split(" . ")[-2].split()[-1] for key, _ in resources if key.startswith(("frontends ", "nodeports "))}


def _put(held: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        held.pop(key, None)
    else:
        held[key] = value


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.partition(" . ")
    return address, int(port)


def _frontend(container: str, rest: str, mark: str) -> Frontend:
    parts = rest.split(" . ")
    address = parts.pop(0) if container == "frontends" else None
    return Frontend(address, parts[0], int(parts[1]), mark)
