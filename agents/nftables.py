"""The tables that agents/ruleset.py spells, in the kernel: what is committed, and whether it still is what it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from agents import files, netlink, process, readback, ruleset
from agents.errors import AgentError, NftRefused
from agents.pace import Pace
from agents.ruleset import FAMILIES, Family, elements_sum
from agents.state import Change, Elements


def check_nft(script: str, timeout_s: float) -> None:
    """Asks nft and the kernel whether they would commit a script. Raises as run_nft."""
    run_nft(script, timeout_s, "-c")


def run_nft(script: str, timeout_s: float, *options: str) -> None:
    """Commits a script. Raises NftRefused, or AgentError NftMissing, NftTimeout."""
    if process.find("nft") is None:
        raise AgentError("NftMissing", "cannot program the kernel: nft is not installed. Install the package nftables")
    done = process.run(["nft", *options, "-f", "-"], text=script, timeout_s=timeout_s, reason="NftTimeout")
    if done.returncode:
        raise NftRefused(f"cannot commit to nftables: {_complaint(done.stderr, script)}")


def _complaint(said: str, script: str) -> str:
    """nft's first words, with the text of the script that they mean in the place of its numbers."""
    line = process.first_line(said)
    found = re.fullmatch(r"/dev/stdin:([0-9]+):([0-9]+)-([0-9]+): Error: (.*)", line)
    if not found:
        return line
    text = script.splitlines()[int(found[1]) - 1]
    return f"{found[4]}: {text[int(found[2]) - 1 : int(found[3])][:200]}"


# In the kernel

_FEW = 4  # changes of one part in so many of a table are worth being told from the rest


_Seen = dict[str, list[str]]  # chain -> what stands for its spelling, and for its rules in the kernel


@dataclass
class _Known:
    """What this process knows of a table.

    sums: set or map -> sum of its elements. chains: shared chains that `groups` lead to, with how many do. seen: chain -> sum
    over its rules, as they were right after this process wrote them.
    """

    family: Family
    sums: dict[str, int]
    chains: Counter[str]
    seen: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, family: Family, elements: Mapping[str, str]) -> _Known:
        return cls(family, ruleset.sums_of(family, elements), family.chains_of(elements))

    @property
    def sum(self) -> int:
        """Of all elements, without those that follow from others."""
        derived = {name for name, _ in self.family.derived.values()}
        return sum(part for name, part in self.sums.items() if name not in derived) % ruleset.MODULUS

    def after(self, change: Change) -> _Known:
        """The same of a table that is changed."""
        sums = Counter(self.sums)
        sums.subtract(ruleset.sums_of(self.family, change.deletes))
        sums.update(ruleset.sums_of(self.family, change.adds))
        chains = ruleset.chains_after(self.family, self.chains, change)
        seen = {name: what for name, what in self.seen.items() if name not in self.chains or name in chains}
        return _Known(self.family, {name: part % ruleset.MODULUS for name, part in sums.items()}, chains, seen)

    def remember(self, remembered: _Seen) -> None:
        """Take chains for seen as another process saw them, when it would write them as this one does."""
        spelled = self._spelled(remembered)
        self.seen |= {
            name: bytes.fromhex(what) for name, (text, what) in remembered.items() if spelled.get(name) == text
        }

    def to_remember(self) -> _Seen:
        """The same for another process."""
        spelled = self._spelled(self.seen)
        return {name: [spelled[name], what.hex()] for name, what in sorted(self.seen.items()) if name in spelled}

    def _spelled(self, names: Iterable[str]) -> dict[str, str]:
        """Chain -> what stands for its hook and rules, of those it should have."""
        chains = self.family.chains(self.chains)
        return {name: hashlib.sha256(repr(chains[name]).encode()).hexdigest()[:32] for name in names if name in chains}

    def learn(self) -> None:
        """See how the kernel has chains that were written just now."""
        for name, (_, what) in readback.chains(self.family.ip, self.family.name).items():
            self.seen.setdefault(name, what)

    def differences(self, links: Iterable[str]) -> list[str]:
        """The sets, maps and chains that are not what they should be. O(elements). Raises OSError."""
        ip, table, found = self.family.ip, self.family.name, []
        linked = {f"same_link {name} . {name}": "" for name in links}
        wanted = {**self.sums, "same_link": elements_sum(linked), "generation": elements_sum(self._generation)}
        for name, declaration in self.family.sets.items():
            if readback.elements_sum(ip, table, name) != wanted.get(name, 0):
                found.append(f"{declaration.split()[0]} {name}")
        there, should = readback.chains(ip, table), self.family.chains(self.chains)
        for name in sorted(there.keys() | should.keys()):
            number, what = there.get(name, (-1, b""))
            if name not in should or number != len(should[name][1]) or self.seen.setdefault(name, what) != what:
                found.append(f"chain {name}")
        return found

    def is_of_its_generation(self) -> bool:
        """Whether the table says that it has these elements. Raises OSError."""
        return dict(readback.elements(self.family.ip, self.family.name, "generation")) == self._generation

    @property
    def _generation(self) -> dict[str, str]:
        return {f"generation {ruleset.generation(self.family, self.sum)}": ""}


class Tables:
    """The tables in the kernel, as far as this process knows them.

    IPv4's is always there; IPv6's as soon as it has an element, so that a host without IPv6 is left in peace.
    """

    def __init__(
        self,
        run: Callable[[str, float], None] = run_nft,
        check: Callable[[str, float], None] = check_nft,
        timeout_s: float = 10.0,
        families: Mapping[str, Family] = FAMILIES,
        memory: Path | None = None,
    ) -> None:
        """memory: a file where another process finds how this one left the chains."""
        self._memory = memory
        self._run, self._check, self._families = run, check, families
        self.timeout_s = timeout_s
        self.links: frozenset[str] = frozenset()
        self._commits = 0  # of this process, since a refill began
        self._looked_at: int | None = None  # the kernel's generation when the tables were found as left
        self._looks = Pace()
        self._known: dict[str, _Known] = {}  # driver -> what is known; only `refill` may follow when it is missing

    @property
    def drivers(self) -> Set[str]:
        """Those whose tables are known."""
        return self._known.keys()

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Apply a change (driver -> Change) as a compare-and-swap of both tables in one transaction.

        Raises NftRefused when a table is another, too.
        """
        scripts: list[str] = []
        then: dict[str, _Known] = {}
        for driver, family in self._families.items():
            change = changes.get(driver)
            if not change:
                continue
            known = self._known.get(driver)
            if known is None and self._known and not change.deletes:
                # The first element of a family: its table is made now.
                scripts.append(
                    ruleset.refill_script(family, change.adds, self.links, netlink.table_chains(family.ip, family.name))
                )
                then[driver] = _Known.of(family, change.adds)
                continue
            if known is None:
                raise NftRefused(f"cannot change table {family.table}: its content is unknown")
            then[driver] = known.after(change)
            scripts.append(ruleset.delta_script(family, change, known.sum, then[driver].sum, known.chains))
        if scripts:
            self._send("".join(scripts))
            self._known |= then
            self._learn(driver for driver, known in then.items() if known.chains.keys() - known.seen.keys())

    def refill(self, elements: Elements, links: Iterable[str]) -> None:
        """Make the tables exactly this; established connections go on. O(everything)."""
        links = frozenset(links)
        before, self._commits = netlink.ruleset_generation(), 0
        for driver, family in self._families.items():
            held = elements.get(driver) or {}
            if not held and family.ip != "ip":
                self._known.pop(driver, None)
                self._delete(family)
                continue
            self._known[driver] = self._refill(family, held, links)
        self.links = links
        self._learn(self._known)
        if before is not None and netlink.ruleset_generation() == (before + self._commits) % (1 << 32):
            self._looked_at = (before + self._commits) % (1 << 32)  # all of it was written or read just now

    def _refill(self, family: Family, elements: Mapping[str, str], links: Iterable[str]) -> _Known:
        """What is known of the table then: worked out while nft and the kernel do the rest."""
        there: Iterable[str] = ()
        known = cache(lambda: _Known.of(family, elements))
        # Somebody changes it meanwhile, its sets are of other types, or it cannot be read.
        with contextlib.suppress(NftRefused, OSError):
            there = netlink.table_chains(family.ip, family.name)
            if there and (script := self._mending(family, elements, links, there)):
                self._send(script, known)
                return known()
        try:
            self._send(ruleset.refill_script(family, elements, links, there), known)
        except NftRefused as err:
            if "Message too long" in err.message:  # a netlink socket of an unprivileged user namespace
                for part in ruleset.refill_parts(family, elements, links):
                    self._send(part)
                return known()
            # A table of this name with sets of other types. Nothing less than a new one helps.
            script = ruleset.refill_script(family, elements, links)
            self._send(f"add table {family.table}\ndelete table {family.table}\n{script}")
        return known()

    def _mending(self, family: Family, elements: Mapping[str, str], links: Iterable[str], there: Iterable[str]) -> str:
        """A transaction that changes only what is wrong, "" when that is too much: to read it takes less than to write it."""
        missing, wrong = ruleset.contents(family, elements, links), {}
        for name in family.sets.keys() - {"generation"}:
            for key, value in readback.elements(family.ip, family.name, name):
                if missing.get(key) == value:
                    del missing[key]
                else:
                    wrong[key] = value
        if len(missing) + len(wrong) > max(len(elements) // _FEW, _FEW):
            return ""
        known = self._known.get(family.driver) or self._remembered(_Known(family, {}, family.chains_of(elements)))
        seen = known.seen
        chains = readback.chains(family.ip, family.name)
        right = {name for name, (_, what) in chains.items() if seen.get(name) == what}
        return ruleset.mend_script(family, elements, wrong, missing, there, right)

    def objection(self, elements: Elements, links: Iterable[str]) -> str:
        """Why nft or the kernel would not take exactly these, "" when they would; nothing is changed. O(elements)."""
        links = frozenset(links)
        script = "".join(
            ruleset.refill_script(family, held, links)
            for driver, family in self._families.items()
            if (held := elements.get(driver) or {}) or family.ip == "ip"
        )
        try:
            self._check(script, self.timeout_s + len(script) / 1e6)
        except NftRefused as err:
            return err.message
        return ""

    def take_over(self, elements: Elements, links: Iterable[str]) -> None:
        """Go on with tables that hold these elements, as another process left them (`difference` said none)."""
        links = frozenset(links)
        lines: list[str] = []
        then: dict[str, _Known] = {}
        for driver, known in self._expected(elements).items():
            if "same_link" in known.family.sets:
                lines += [
                    f"flush set {known.family.table} same_link",
                    *ruleset.link_commands(known.family, "add", links),
                ]
            then[driver] = self._remembered(known)
        if lines:
            self._send("\n".join(lines) + "\n")
        self._known, self.links = then, links
        self._learn(self._known)

    def delete(self) -> str:
        """Take the tables out of the kernel. For good: new connections would be refused for a moment."""
        for family in self._families.values():
            self._delete(family)
        self._known = {}
        if self._memory is not None:
            self._memory.unlink(missing_ok=True)
        return ""

    def _delete(self, family: Family) -> None:
        if process.find("nft") is not None:
            process.run(
                ["nft", "delete", "table", *family.table.split()], timeout_s=self.timeout_s, reason="NftTimeout"
            )

    def set_links(self, links: Iterable[str]) -> bool:
        """Follow the node's interfaces; whether they have changed."""
        links = frozenset(links)
        gone, new = self.links - links, links - self.links
        if not gone and not new:
            return False
        lines: list[str] = []
        for driver in self._known:
            lines += ruleset.link_commands(self._families[driver], "delete", gone) + ruleset.link_commands(
                self._families[driver], "add", new
            )
        if lines:
            self._send("\n".join(lines) + "\n")
        self.links = links
        return True

    def difference(self, elements: Elements | None) -> str:
        """See Plane. Each element and each rule is looked at when somebody else has committed something, by a pace."""
        if process.find("nft") is None:
            raise AgentError(
                "NftMissing", "cannot repair the kernel's table: nft is not installed. Install the package nftables"
            )
        try:
            if elements is not None:
                return self._other_generation(self._expected(elements).values())
            return self._difference()
        except OSError as err:
            raise AgentError("NftFailed", f"cannot read the kernel's table: {err.strerror}") from err

    def _difference(self) -> str:
        now, began = netlink.ruleset_generation(), time.monotonic()
        if not self._known:
            return "the tables' content is unknown"
        if now is not None and now == self._looked_at:
            return ""  # nobody has committed anything since, this process included
        self._looked_at = None
        if other := self._other_generation(self._known.values()):
            return other
        if not self._looks.is_due():
            return ""
        for _ in range(3):  # what somebody commits meanwhile may make a look wrong
            texts = [
                f"{', '.join(names[:5])} of table {known.family.table}"
                for known in self._known.values()
                if (names := known.differences(self.links))
            ]
            if not texts or now == netlink.ruleset_generation():
                break
            now = netlink.ruleset_generation()
        self._looks.note(began)
        process.give_memory_back()
        if texts:
            return f"somebody changed {' and '.join(texts)}"
        self._looked_at = now
        return ""

    @staticmethod
    def _other_generation(tables: Iterable[_Known]) -> str:
        others = [known.family.table for known in tables if not known.is_of_its_generation()]
        return f"somebody changed table {' and '.join(others)}" if others else ""

    def _learn(self, drivers: Iterable[str]) -> None:
        with contextlib.suppress(OSError):  # then by the next look
            for driver in drivers:
                self._known[driver].learn()
        if self._memory is not None:
            with contextlib.suppress(AgentError):  # then another process writes all chains anew
                files.replace(
                    self._memory, json.dumps({one: known.to_remember() for one, known in self._known.items()})
                )

    def _remembered(self, known: _Known) -> _Known:
        """The same with the chains that another process saw."""
        if self._memory is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # no file, or none of ours
                known.remember(json.loads(self._memory.read_text()).get(known.family.driver, {}))
        return known

    def leftovers(self) -> list[str]:
        """The tables that are there."""
        if process.find("nft") is None:
            return []
        tables = process.run(["nft", "list", "tables"], reason="NftTimeout").stdout.splitlines()
        ours = {family.table for family in self._families.values()}
        return [line for line in tables if line.removeprefix("table ") in ours]

    def _send(self, script: str, meanwhile: Callable[[], object] | None = None) -> None:
        """meanwhile: what this process has to do until nft and the kernel have done theirs."""
        before, timeout_s = netlink.ruleset_generation(), self.timeout_s + len(script) / 1e6
        try:
            if meanwhile is None:
                self._run(script, timeout_s)
            else:
                with ThreadPoolExecutor(1) as beside:
                    running = beside.submit(self._run, script, timeout_s)
                    meanwhile()
                    running.result()
        except NftRefused:
            raise  # nothing happened: what is known stays true
        except AgentError:
            self._known = {}  # a killed nft may have committed or not
            raise
        self._commits += 1
        if (
            before is not None
            and before == self._looked_at
            and netlink.ruleset_generation() == (before + 1) % (1 << 32)
        ):
            self._looked_at = (before + 1) % (1 << 32)  # one commit since the last look, and it was this

    def _expected(self, elements: Elements) -> dict[str, _Known]:
        """Driver -> what a table must be, of every one that must be there for these elements."""
        return {
            driver: _Known.of(family, held)
            for driver, family in self._families.items()
            if (held := elements.get(driver) or {}) or family.ip == "ip"
        }
