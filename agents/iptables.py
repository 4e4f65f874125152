"""Mode iptables' plane: chains TIMONEL-* (see agents/chains.py) in the tables nat and filter, of whichever backend the host has."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents import files, netlink, process
from agents.chains import (
    FAMILIES,
    FILTER,
    GENERATION,
    IPV4,
    IPV6,
    JUMPS,
    LINKS,
    Chains,
    Family,
    fill,
    filter_rules,
    generation_rules,
    sample,
    script_of,
    whole,
)
from agents.errors import AgentError, Refused
from agents.pace import Pace
from agents.state import Change, Element, Elements, Refusal

logger = logging.getLogger(__name__)

_OURS = re.compile(r"-[jg] TIMONEL-\S+")


# Backends


@dataclass(frozen=True)
class Backend:
    """Where rules are kept. kind: "nft" or "legacy"; infix: of the commands' names, "" for what `iptables` is."""

    kind: str
    infix: str
    version: str

    def tool(self, family: Family, what: str = "") -> str:
        return f"{family.ip}tables{self.infix}{what}"

    @property
    def is_there(self) -> bool:
        tools = [self.tool(family, what) for family in FAMILIES.values() for what in ("", "-save", "-restore")]
        return all(process.find(tool) for tool in tools)

    def __str__(self) -> str:
        return f"{self.version} ({'nf_tables' if self.kind == 'nft' else 'legacy'})".lstrip()


def backends() -> list[Backend]:
    """Those this host has: what `iptables` is, then the other one. Raises AgentError IptablesTimeout."""
    if process.find("iptables") is None:
        return []
    said = process.run(["iptables", "--version"], reason="IptablesTimeout").stdout.split()
    version = said[1].lstrip("v") if len(said) > 1 else ""
    own, other = ("nft", "legacy") if "(nf_tables)" in said else ("legacy", "nft")
    found = (Backend(own, "", version), Backend(other, f"-{other}", version))
    return [backend for backend in found if backend.is_there]


def choose() -> Backend | None:
    """The backend that has rules of others when the other one has none, else what `iptables` is; None without any.

    Rules in both are asked one after the other by the kernel: where the host's firewall is, ours are seen with it.
    """
    found = backends()
    used = [backend for backend in found if len(found) > 1 and _has_foreign_rules(backend)]
    return used[0] if len(used) == 1 else next(iter(found), None)


def _has_foreign_rules(backend: Backend) -> bool:
    for family in FAMILIES.values():
        for line in save(backend, family).splitlines():
            if line.startswith("-A ") and "TIMONEL-" not in line:
                return True
    return False


def save(backend: Backend, family: Family) -> str:
    """All tables that are there, as iptables-save prints them. Raises AgentError IptablesTimeout, IptablesFailed."""
    if backend.kind == "legacy":
        # Where there is no table, the tool would make the kernel load them.
        try:
            if not Path(f"/proc/net/{family.ip}_tables_names").read_text().strip():
                return ""
        except OSError:
            return ""
    done = process.run([backend.tool(family, "-save")], timeout_s=60, reason="IptablesTimeout")
    if done.returncode:
        raise AgentError("IptablesFailed", f"cannot read the rules: {process.first_line(done.stderr)}")
    return done.stdout


def lacks() -> str:
    """Why this host cannot serve by iptables, "" when it can. Tries it in a network of its own, for a moment."""
    try:
        backend = choose()
        if backend is None:
            return "iptables, ip6tables, or their -save or -restore is not installed: install package iptables"
        for family in FAMILIES.values():
            if family is IPV6 and not Path("/proc/sys/net/ipv6").exists():
                continue
            chains = Chains(family, sample(family), {"lo"})
            # Affinity needs one extension more: who has none of such Services does not miss it.
            if why := _objection(backend, family, whole(chains), timeout_s=30):
                return f"this kernel or iptables {backend} lacks what Services need: {why}"
    except AgentError as err:
        return err.message
    return ""


def judge(resources: Mapping[Element, str]) -> Refusal | None:
    """Why an owner cannot be served by rules: nothing of iptables makes an endpoint's number of a client's address."""
    if any(key.startswith("groups ") and value.startswith("goto hash_") for (_, key), value in resources.items()):
        return Refusal(
            "SourceHashUnsupported", "mode iptables cannot choose by the client's address: use sessionAffinity"
        )
    return None


@dataclass(frozen=True)
class Listing:
    """What iptables-save says. chains: (table, chain of ours) -> its rules; jumps: table -> rules of others that lead to ours.

    tables: all that are there; those in `busy` hold something that is not ours.
    """

    chains: dict[tuple[str, str], list[str]]
    jumps: dict[str, list[str]]
    tables: frozenset[str]
    busy: frozenset[str]

    @classmethod
    def read(cls, text: str) -> Listing:
        chains: dict[tuple[str, str], list[str]] = {}
        jumps: dict[str, list[str]] = {}
        tables, busy, table = set[str](), set[str](), ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
                tables.add(table)
            elif line.startswith(":TIMONEL-"):
                chains[table, line[1:].split()[0]] = []
            elif line.startswith("-A TIMONEL-"):
                chain, _, rule = line[3:].partition(" ")
                chains[table, chain].append(rule)
            elif line.startswith("-A ") and _OURS.search(line):
                jumps.setdefault(table, []).append(line[3:])
            elif line.startswith("-A ") or (line.startswith(":") and " ACCEPT " not in line):
                busy.add(table)
        return cls(chains, jumps, frozenset(tables), frozenset(busy))

    @property
    def has_ours(self) -> bool:
        return bool(self.chains or self.jumps)


def _run(backend: Backend, family: Family, script: str, *options: str, timeout_s: float) -> None:
    """Raises Refused IptablesFailed, AgentError IptablesTimeout, ToolMissing."""
    command = [backend.tool(family, "-restore"), "--noflush", "-w", *options]
    done = process.run(command, text=script, timeout_s=timeout_s, reason="IptablesTimeout")
    if done.returncode:
        raise Refused("IptablesFailed", f"cannot commit to {command[0]}: {_complaint(done.stderr, script)}")


def _complaint(said: str, script: str) -> str:
    """The tool's words, with the text of the line that they mean beside its number."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("# Warning", "Try `"))]
    text = process.first_line("\n".join(lines))
    found = re.search(r"line:? ([0-9]+)", said)
    number = int(found[1]) if found else 0
    rules = script.splitlines()
    return (
        f"{text}: {rules[number - 1][:200]}" if 0 < number <= len(rules) and "COMMIT" not in rules[number - 1] else text
    )


def _objection(backend: Backend, family: Family, script: str, timeout_s: float) -> str:
    """Why tool or kernel would not take a script, "" when they would. Tried in an empty network of its own."""
    command = ["unshare", "--net", process.find(backend.tool(family, "-restore")) or "", "--noflush", "-w"]
    if process.find("unshare") is not None:
        done = process.run(command, text=script, timeout_s=timeout_s, reason="IptablesTimeout")
        if not done.stderr.startswith("unshare:"):
            return _complaint(done.stderr, script) if done.returncode else ""
    try:  # without the right to make a network: what the tool alone can say
        _run(backend, family, script, "--test", timeout_s=timeout_s)
    except Refused as err:
        return err.message
    return ""


# The plane


class Rules:
    """The chains in the kernel, as far as this process knows."""

    timeout_s = 30.0

    def __init__(self, directory: Path) -> None:
        """directory: keeps which tables were not there before, until the clean-up."""
        self._file = directory / "iptables-tables"
        self._backend: Backend | None = None
        self._known: dict[str, Chains] = {}
        self._links: frozenset[str] = frozenset()
        # (driver, table, chain) -> its rules as the tool lists them; of chains without, only their number is known
        self._seen: dict[tuple[str, str, str], str] = {}
        self._generations, self._comparisons = Pace(), Pace()
        self._ruleset: int | None = None  # its generation when everything was found right

    # Changing it

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Apply a change; each family is a transaction, refused where the kernel's chains are of another generation."""
        for driver, family in FAMILIES.items():
            change = changes.get(driver)
            if not change:
                continue
            chains = self._known.get(driver)
            if chains is None and self._known and not change.deletes:
                self._refill(family, change.adds)  # the first element of a family
                continue
            if chains is None:
                raise Refused("IptablesFailed", f"cannot change the rules of {family.ip}tables: they are unknown")
            old = generation_rules(chains)[0]
            rewritten = chains.follow(change)
            new = generation_rules(chains)[0]
            # From here on what is known is true only if the transaction is done.
            del self._known[driver]
            commands = (f"-D {GENERATION} {old}", f"-A {GENERATION} {new}")
            self._send(family, script_of("nat", rewritten, commands))
            self._known[driver] = chains
            self._forget([(driver, "nat", chain) for chain in (*rewritten, GENERATION)])

    def refill(self, elements: Elements, links: Iterable[str]) -> None:
        """Make the chains exactly these, in one transaction for each family and table. O(everything)."""
        backend = choose()
        if backend is None:
            raise AgentError(
                "IptablesMissing", "cannot program the kernel: iptables is not installed. Install the package iptables"
            )
        if backend != self._backend:
            logger.info("rules go to iptables %s", backend)
        self._backend, self._links = backend, frozenset(links)
        for driver, family in FAMILIES.items():
            if elements.get(driver) or family is IPV4:
                self._refill(family, elements.get(driver) or {})
            else:
                self._known.pop(driver, None)
                self._take_off(backend, family)
        for other in backends():
            if other.kind != backend.kind:
                for family in FAMILIES.values():
                    self._take_off(other, family)
        self._look()

    def _refill(self, family: Family, elements: Mapping[str, str]) -> None:
        assert self._backend is not None
        there = Listing.read(save(self._backend, family))
        self._note_tables(self._backend, family, there)
        chains = Chains(family, elements, self._links)
        self._known.pop(family.driver, None)
        for table, wanted in (("filter", {FILTER: filter_rules(family)}), ("nat", fill(chains))):
            stale = {chain: None for of, chain in there.chains if of == table and chain not in wanted}
            commands = _jump_commands(there.jumps.get(table, []), JUMPS[table])
            self._send(family, script_of(table, {**stale, **wanted}, commands))
        self._known[family.driver] = chains
        self._forget([key for key in self._seen if key[0] == family.driver])

    def set_links(self, links: Iterable[str]) -> bool:
        """Follow the host's interfaces; whether they have changed."""
        links = frozenset(links)
        if links == self._links:
            return False
        for driver, chains in self._known.items():
            self._send(chains.family, script_of("nat", chains.follow_links(links)))
            self._forget([(driver, "nat", LINKS)])
        self._links = links
        return True

    def _send(self, family: Family, script: str) -> None:
        assert self._backend is not None
        _run(self._backend, family, script, timeout_s=self.timeout_s + len(script) / 1e5)

    def objection(self, elements: Elements, links: Iterable[str]) -> str:
        """Why tool or kernel would not take exactly these, "" when they would; nothing is changed. O(elements)."""
        backend = choose()
        for driver, family in FAMILIES.items():
            held = elements.get(driver) or {}
            if backend is not None and (held or family is IPV4):
                script = whole(Chains(family, held, links))
                if why := _objection(backend, family, script, self.timeout_s + len(script) / 1e5):
                    return why
        return ""

    # Looking at it

    def take_over(self, elements: Elements, links: Iterable[str]) -> None:
        """Go on with chains that hold these elements, as another process left them (`difference` said none)."""
        self._backend, self._known, self._seen = choose(), {}, {}
        self._links = frozenset()  # whatever they were
        for driver in _expected(elements):
            self._known[driver] = Chains(FAMILIES[driver], elements.get(driver) or {}, ())
        self.set_links(links)
        self._look()

    def difference(self, elements: Elements | None) -> str:
        """See Plane.

        The generation is looked at, and each chain is compared with what it was, as often as their paces allow: where there are
        few chains, each time. With nf_tables neither is done as long as the kernel says that nobody has changed anything.
        """
        if elements is not None:
            backend = choose()
            if backend is None:
                return "iptables is not installed"
            wanted = {
                driver: Chains(FAMILIES[driver], elements.get(driver) or {}, ()) for driver in _expected(elements)
            }
            return " and ".join(
                _said(chains.family, found)
                for chains in wanted.values()
                if (found := _differences(Listing.read(save(backend, chains.family)), chains, has_links=False))
            )
        if not self._known or self._backend is None:
            return "the chains' content is unknown"
        if self._ruleset is not None and self._ruleset == self._ruleset_now():
            return ""
        if not self._backend.is_there:
            return f"iptables {self._backend} is not installed any more"
        if self._generations.is_due():
            began = time.monotonic()
            for chains in self._known.values():
                if not self._has_generation(chains):
                    return _said(chains.family, [GENERATION])
            self._generations.note(began)
        return self._look() if self._comparisons.is_due() else ""

    def _look(self) -> str:
        """Compare every chain with what it was when last looked at, or with how many rules it has; note what it is."""
        began, ruleset = time.monotonic(), self._ruleset_now()
        self._ruleset = None
        assert self._backend is not None
        for driver, chains in self._known.items():
            there = Listing.read(save(self._backend, chains.family))
            differences = _differences(there, chains)
            jumps = {(table, "jumps"): rules for table, rules in there.jumps.items()}
            for (table, chain), rules in (there.chains | jumps).items():
                sum_now = hashlib.sha256("\n".join(rules).encode()).hexdigest()
                if self._seen.setdefault((driver, table, chain), sum_now) != sum_now:
                    differences.append(chain)
            if differences:
                return _said(chains.family, differences)
        self._ruleset = ruleset
        self._comparisons.note(began)
        return ""

    def _forget(self, keys: Iterable[tuple[str, str, str]]) -> None:
        self._ruleset = None
        for key in keys:
            self._seen.pop(key, None)

    def _ruleset_now(self) -> int | None:
        return netlink.ruleset_generation() if self._backend is not None and self._backend.kind == "nft" else None

    def _has_generation(self, chains: Chains) -> bool:
        assert self._backend is not None
        command = [self._backend.tool(chains.family), "-w", "-t", "nat", "-S", GENERATION]
        done = process.run(command, timeout_s=self.timeout_s, reason="IptablesTimeout")
        return not done.returncode and chains.generation in done.stdout

    # Taking it off

    def delete(self) -> str:
        """Take the chains off, in both backends, and the tables that were not there before them."""
        for backend in backends():
            for family in FAMILIES.values():
                self._take_off(backend, family)
        if process.find("iptables") is None:
            _take_off_by_nft()
        self._known, self._seen, self._ruleset = {}, {}, None
        self._file.unlink(missing_ok=True)
        return ""

    def _take_off(self, backend: Backend, family: Family) -> None:
        there = Listing.read(save(backend, family))
        if not there.has_ours:
            return
        for table in ("nat", "filter"):  # a mark that nobody acts on comes before no mark that somebody acts on
            gone = {chain: None for of, chain in there.chains if of == table}
            if gone or there.jumps.get(table):
                _run(
                    backend,
                    family,
                    script_of(table, gone, _jump_commands(there.jumps.get(table, []), ())),
                    timeout_s=self.timeout_s,
                )
        if backend.kind == "nft" and process.find("nft") is not None:
            for table in sorted(self._made_tables() & {f"{family.ip} {name}" for name in there.tables - there.busy}):
                process.run(["nft", "delete", "table", *table.split()], reason="IptablesTimeout")

    def leftovers(self) -> list[str]:
        """The chains of ours that are there."""
        return [
            f"table {table} of {family.ip}tables {backend.kind} chain {chain}"
            for backend in backends()
            for family in FAMILIES.values()
            for table, chain in Listing.read(save(backend, family)).chains
        ]

    def _note_tables(self, backend: Backend, family: Family, there: Listing) -> None:
        """Note the tables that are about to be made: they go with the chains. The legacy ones stay, the kernel keeps them."""
        new = {f"{family.ip} {table}" for table in JUMPS if table not in there.tables}
        if backend.kind == "legacy" or not new:
            return
        files.replace(self._file, json.dumps(sorted(self._made_tables() | new)))

    def _made_tables(self) -> set[str]:
        try:
            return set(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            return set()


def _take_off_by_nft() -> None:
    """Where iptables has gone: to nft its chains are chains, whatever is in them. Raises AgentError IptablesTimeout."""
    lines: list[str] = []
    for family in FAMILIES.values():
        for table in (f"{family.ip} {name}" for name in JUMPS) if process.find("nft") else ():
            listed = process.run(["nft", "-a", "list", "table", *table.split()], reason="IptablesTimeout").stdout
            chain, chains = "", []
            for line in listed.splitlines():
                if begin := re.match(r"\tchain (\S+) \{", line):
                    chain = begin[1]
                    chains += [chain] if chain.startswith("TIMONEL-") else []
                elif jump := re.search(r"jump TIMONEL-\S+ # handle ([0-9]+)", line):
                    lines += [f"delete rule {table} {chain} handle {jump[1]}"] if chain not in chains else []
            lines += [f"{verb} chain {table} {name}" for verb in ("flush", "delete") for name in chains]
    if lines:
        done = process.run(["nft", "-f", "-"], text="\n".join([*lines, ""]), timeout_s=60, reason="IptablesTimeout")
        if done.returncode:
            logger.warning("chains TIMONEL-* stay: %s reason=IptablesMissing", process.first_line(done.stderr))


def _jump_commands(there: list[str], wanted: Sequence[str]) -> list[str]:
    """Commands after which exactly the wanted rules lead to our chains; those that are there once stay where they are."""
    if _are_jumps(there, wanted):
        return []
    return [*(f"-D {jump}" for jump in there), *(f"-I {jump}" for jump in wanted)]


def _are_jumps(there: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether the same chains lead to the same of ours; the words between may be another version's."""

    def ends(jumps: Iterable[str]) -> Counter[tuple[str, str]]:
        return Counter((jump.split()[0], jump.split()[-1]) for jump in jumps)

    return ends(there) == ends(wanted)


def _differences(there: Listing, chains: Chains, has_links: bool = True) -> list[str]:
    """The chains that have another number of rules than they should, and the generation when it is another one."""
    sizes = {("nat", chain): size for chain, size in chains.sizes.items()}
    sizes |= {("nat", GENERATION): 1, ("filter", FILTER): len(filter_rules(chains.family))}
    found = {key: len(rules) for key, rules in there.chains.items()}
    if not has_links and ("nat", LINKS) in found:
        found["nat", LINKS] = sizes["nat", LINKS]
    different = [
        chain for table, chain in sizes.keys() | found.keys() if sizes.get((table, chain)) != found.get((table, chain))
    ]
    if chains.generation not in "".join(there.chains.get(("nat", GENERATION), [])):
        different.append(GENERATION)
    different += [table for table, jumps in JUMPS.items() if not _are_jumps(there.jumps.get(table, []), jumps)]
    return different


def _said(family: Family, differences: Iterable[str]) -> str:
    return f"somebody changed {', '.join(sorted(set(differences))[:5])} of {family.ip}tables"


def _expected(elements: Elements) -> list[str]:
    """The drivers that must have chains for these elements."""
    return [driver for driver, family in FAMILIES.items() if elements.get(driver) or family is IPV4]
