"""The data planes: ways to make a node's kernel do what the elements say. One of them is in force at a time.

All take the same elements (drivers "nft4" and "nft6", see docs/data-plane.md, and "ipvs" for schedulers): a node's mode
changes none of its Services' resources. Which is wanted stands in the base as ("host", "mode", NAME); where a host cannot,
the next one in FALLBACKS serves instead, and the control plane is told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from agents import files, iptables, ipvs, nftables, userspace
from agents.state import Change, Element, Elements, Refusal

_Owner = TypeVar("_Owner")

DEFAULT = "nftables"
FALLBACKS = {"ipvs": "iptables", "iptables": DEFAULT, "userspace": DEFAULT}


class Plane(Protocol):
    """What is in the kernel (and in servers), as far as this process knows. Never anything that is not ours.

    Every call may raise AgentError; Refused when kernel or tool refused a transaction, so that nothing happened.
    """

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Apply a change (driver -> Change; other drivers than DRIVERS are none of a plane's) to what is in force."""

    def refill(self, elements: Elements, links: Iterable[str]) -> None:
        """Make it exactly this, whatever it was; established connections go on. links: the host's interfaces."""

    def take_over(self, elements: Elements, links: Iterable[str]) -> None:
        """Go on with what another process left for these elements (`difference` said none)."""

    def difference(self, elements: Elements | None) -> str:
        """What is other than this process left it, in a few words for who did it, "" for nothing; found within half a minute.

        Given elements: other than they would make it, as far as that is seen at once.
        """

    def objection(self, elements: Elements, links: Iterable[str]) -> str:
        """Why kernel or tool would not take exactly these, "" when they would; nothing is changed."""

    def set_links(self, links: Iterable[str]) -> bool:
        """Follow the host's interfaces; whether they have changed."""

    def delete(self) -> str:
        """Take everything off the host, also what another process left; what that costs who is connected, "" for nothing."""

    def leftovers(self) -> list[str]:
        """What `delete` should have taken off and is still there, each in a few words."""


@dataclass(frozen=True)
class Kind:
    """A plane before it is there. lacks: why this host cannot have it, "" when it can; judge: why not this owner."""

    make: Callable[[Path, Path], Plane]
    lacks: Callable[[], str] = lambda: ""
    judge: Callable[[Mapping[Element, str]], Refusal | None] | None = None


KINDS: dict[str, Kind] = {
    "nftables": Kind(lambda directory, run_directory: nftables.Tables(memory=directory / "chains.json")),
    "iptables": Kind(lambda directory, run_directory: iptables.Rules(directory), iptables.lacks, iptables.judge),
    "ipvs": Kind(lambda directory, run_directory: ipvs.Servers(directory), ipvs.lacks),
    "userspace": Kind(userspace.Userspace, userspace.lacks, userspace.judge),
}


class Planes:
    """The plane in force, and those that may have left something: their names stand in a file before they do."""

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self._file = directory / "planes"
        self._made = {name: kind.make(directory, run_directory) for name, kind in KINDS.items()}
        self.mode = DEFAULT  # in force or about to be
        self.why = ""  # why it is another than the wanted one

    @property
    def now(self) -> Plane:
        return self._made[self.mode]

    def choose(self, wanted: str) -> bool:
        """Settle on the wanted mode or what serves instead; whether that is another than before."""
        before, mode, why = self.mode, wanted, ""
        while mode != DEFAULT and (lack := KINDS[mode].lacks() if mode in KINDS else "this agent does not know it"):
            why = why or lack
            mode = FALLBACKS.get(mode, DEFAULT)
        self.mode, self.why = mode, f"{wanted}: {why}" if why else ""
        return self.mode != before

    def judge(
        self, owners: Mapping[str, _Owner], held_by: Callable[[_Owner], Mapping[Element, str]]
    ) -> dict[str, Refusal]:
        """Owner -> why the plane in force cannot do it. held_by: an owner's elements."""
        judge = KINDS[self.mode].judge
        if judge is None:
            return {}
        found = {owner: judge(held_by(given)) for owner, given in owners.items()}
        return {owner: why for owner, why in found.items() if why is not None}

    def refill(self, elements: Elements, links: Iterable[str]) -> str:
        """Bring the plane in force to exactly this, then take the others off; what that was, "" when there were none."""
        used = self._used()
        if self.mode not in used:
            self._note({*used, self.mode})
        began = time.monotonic()
        self.now.refill(elements, links)
        others = sorted(used - {self.mode})
        left = [name for name in others if self._made[name].leftovers()]
        costs = [cost for name in others if (cost := self._made[name].delete())]
        if others:
            self._note({self.mode})
        took_ms = (time.monotonic() - began) * 1000
        said = "; ".join(costs) or "no connection was ended"
        return (
            f"mode {self.mode} serves instead of {' and '.join(left)}, after {took_ms:.0f} ms; {said}" if left else ""
        )

    def difference(self, elements: Elements | None) -> str:
        """That of the plane in force, or which other may have left something."""
        if others := self._used() - {self.mode}:
            return f"mode {' and '.join(sorted(others))} may have left something"
        return self.now.difference(elements)

    def delete(self) -> None:
        """Take all of them off the host."""
        for name in sorted({*self._used(), self.mode, DEFAULT}):
            self._made[name].delete()
        self._file.unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """What `delete` should have taken off and is still there."""
        return [text for plane in self._made.values() for text in plane.leftovers()]

    def _used(self) -> set[str]:
        try:
            return {name for name in json.loads(self._file.read_text()) if name in self._made}
        except (OSError, ValueError):
            return {DEFAULT}  # agents before modes had no such file

    def _note(self, names: set[str]) -> None:
        files.replace(self._file, json.dumps(sorted(names)))
