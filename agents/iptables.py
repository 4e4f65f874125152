"""Chains TIMONEL-* in the tables nat and filter of iptables: the data plane of hosts whose rules are iptables'.

How a connection goes (table nat, once per connection): TIMONEL-SERVICES asks for the last byte of the address,
TIMONEL-IP-xx for address, protocol and port; node ports are asked by 256 in TIMONEL-NODEPORTS and one by one in
TIMONEL-PORT-*. What is found leads to TIMONEL-R-* (source ranges), TIMONEL-L-* (the Local policy) or to the chain of a
group, TIMONEL-G-*, which marks the connection with the group's id and draws one of its endpoints.
Table nat can neither refuse nor drop: TIMONEL-REFUSE and TIMONEL-DROP leave a mark of their own on the connection, and
TIMONEL-FILTER, the same on every node, acts on it before there is a connection. So a change is one transaction of table nat.

A change writes whole chains: those it touches, each a few rules. What is in the kernel is known by TIMONEL-GENERATION, a rule
that says nothing but a sum over the elements: a change takes it away first, and so is refused where it is another one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path

from agents import files, netlink, process
from agents.errors import AgentError, Refused
from agents.pace import Pace
from agents.ruleset import elements_sum
from agents.state import Change, Element, Elements, Refusal
from agents.view import Frontend, View

logger = logging.getLogger(__name__)

_MODULUS = 1 << 128
_PROTOCOLS = ("tcp", "udp", "sctp")
_MARK = "0x4000/0x4000"  # of the packet: translated by us
# Of connections that never come to be; no group has such an id, and hardly anybody else such a mark.
_TO_REFUSE, _TO_DROP = "0x54494d52", "0x54494d44"
_OURS = re.compile(r"-[jg] TIMONEL-\S+")


@dataclass(frozen=True)
class Family:
    """An address family, and how iptables spells what differs in it. ip: "ip" or "ip6"."""

    driver: str
    ip: str
    last_byte: str  # mask of an address
    without_node_ports: tuple[str, ...]  # own addresses that never have any
    unreachable: str
    recent: str  # how lists of clients begin


IPV4 = Family("nft4", "ip", "0.0.0.{}/0.0.0.255", ("127.0.0.0/8",), "icmp-port-unreachable", "timonel4")
IPV6 = Family("nft6", "ip6", "::{:x}/::ff", ("::1", "fe80::/10"), "icmp6-port-unreachable", "timonel6")
FAMILIES = {family.driver: family for family in (IPV4, IPV6)}


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
            chains = Chains(family, _sample(family), {"lo"})
            # Affinity needs one extension more: who has none of such Services does not miss it.
            if why := _objection(backend, family, _whole(chains), timeout_s=30):
                return f"this kernel or iptables {backend} lacks what Services need: {why}"
    except AgentError as err:
        return err.message
    return ""


def _sample(family: Family, affinity: str = "lb_2") -> dict[str, str]:
    """Elements that have every kind of rule."""
    address, network = ("192.0.2.1", "192.0.2.0/24") if family is IPV4 else ("2001:db8::1", "2001:db8::/32")
    return {
        f"frontends {address} . tcp . 80": "0x60000001",
        "nodeports udp . 30000": "0x00000002",
        "groups 0x00000001": f"goto {affinity}",
        "slots 0x00000001 . 0": f"{address} . 80",
        "slots 0x00000001 . 1": f"{address} . 81",
        "pick 0x00000001 . 0": "0",
        "pick 0x00000001 . 1": "1",
        "groups 0x00000002": "goto refuse",
        f"source_ranges 0x60000001 . {network}": "",
        "to_cluster 0x60000001": "0x00000001",
        f"local_endpoints {address}": "",
        f"pod_cidrs {network}": "",
        f"cluster_ips {address}": "",
        f"without_node_ports {network}": "",
        f"masquerade_all {network}": "",
    }


def judge(resources: Mapping[Element, str]) -> Refusal | None:
    """Why an owner cannot be served by rules: nothing of iptables makes an endpoint's number of a client's address."""
    if any(key.startswith("groups ") and value.startswith("goto hash_") for (_, key), value in resources.items()):
        return Refusal(
            "SourceHashUnsupported", "mode iptables cannot choose by the client's address: use sessionAffinity"
        )
    return None


# Chains


class Chains:
    """The chains of an address family's table nat for a set of elements and links; follows changes."""

    def __init__(self, family: Family, elements: Mapping[str, str], links: Iterable[str]) -> None:
        self.family, self.links = family, frozenset(links)
        self.sum = 0
        self.sizes: dict[str, int] = {}  # chain -> number of its rules
        self._view = View()
        self._frontends: dict[str, dict[str, Frontend]] = {}  # chain that asks for them -> key -> frontend
        self._cluster_ips: dict[str, set[str]] = {}  # the same for what is refused
        self._users: Counter[tuple[str, str]] = Counter()  # (mark, protocol) -> its frontends
        self._led: dict[tuple[str, str], frozenset[str]] = {}  # (mark, protocol) -> the groups it may lead to
        self._leaders: Counter[tuple[str, str]] = Counter()  # (group, protocol) -> marks that may lead there
        self.follow(Change(adds=dict(elements)))
        for chain in _FIXED:
            self.sizes[chain] = len(self.rules(chain) or ())

    @property
    def generation(self) -> str:
        """What the rule in TIMONEL-GENERATION says."""
        return f"{(self.sum + _spelling(self.family.driver)) % _MODULUS:032x}"

    def follow(self, change: Change) -> dict[str, list[str] | None]:
        """Note a change; chain -> its rules now, None for one that is to go, of all that the change touches. O(those)."""
        touched = self._settle(change)
        self.sum = (self.sum - elements_sum(change.deletes) + elements_sum(change.adds)) % _MODULUS
        found: dict[str, list[str] | None] = {}
        for chain in sorted(touched):
            rules = self.rules(chain)
            if rules is not None:
                self.sizes[chain] = len(rules)
            elif self.sizes.pop(chain, None) is None:
                continue
            found[chain] = rules
        return found

    def follow_links(self, links: Iterable[str]) -> dict[str, list[str] | None]:
        """The same for the host's interfaces."""
        self.links = frozenset(links)
        rules = self.rules(_LINKS) or []
        self.sizes[_LINKS] = len(rules)
        return {_LINKS: rules}

    def all(self) -> dict[str, list[str]]:
        """Chain -> rules, of all."""
        return {chain: rules for chain in sorted(self.sizes) if (rules := self.rules(chain)) is not None}

    def _settle(self, change: Change) -> set[str]:
        """Bring the indexes up to date; the chains that are touched."""
        keys = {key for part in (change.deletes, change.adds) for key in part}
        before = {key: self._view.frontends.get(key) for key in keys if key.startswith(("frontends ", "nodeports "))}
        touched = self._view.follow(change)
        chains: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        for key, old in before.items():
            new = self._view.frontends.get(key)
            for frontend, step in ((old, -1), (new, 1)):
                if frontend is not None:
                    chain = _asking(frontend)
                    chains.add(chain)
                    pairs.add((frontend.mark, frontend.protocol))
                    self._users[frontend.mark, frontend.protocol] += step
                    held = self._frontends.setdefault(chain, {})
                    held.pop(key, None)
                    if step > 0:
                        held[key] = frontend
        for part, is_new in ((change.deletes, False), (change.adds, True)):
            for key in part:
                if key.startswith("cluster_ips "):
                    address = key.split()[1]
                    chain = _of_address(address)
                    chains.add(chain)
                    held_here = self._cluster_ips.setdefault(chain, set())
                    held_here.add(address) if is_new else held_here.discard(address)
        for chain in chains:
            is_wanted = bool(self._frontends.get(chain) or self._cluster_ips.get(chain))
            if is_wanted != (chain in self.sizes):
                chains = chains | {_NODE_PORTS if chain.startswith("TIMONEL-PORT-") else _SERVICES}
        pairs |= {(mark, protocol) for mark in touched.marks for protocol in _PROTOCOLS}
        if "pod_cidrs" in touched.sets:
            pairs |= {pair for pair in self._led if Frontend(None, "", 0, pair[0]).is_local}
        for pair in pairs:
            chains |= self._lead(pair)
        chains |= {
            f"TIMONEL-G-{group[2:]}-{protocol}"
            for group in touched.groups
            for protocol in _PROTOCOLS
            if self._leaders[group, protocol] > 0
        }
        if "local_endpoints" in touched.sets:
            chains.add(_LOCAL)
        if "without_node_ports" in touched.sets:
            chains.add(_NODE_PORTS)
        if "masquerade_all" in touched.sets:
            chains.add(_POSTROUTING)
        return chains

    def _lead(self, pair: tuple[str, str]) -> set[str]:
        """Note which groups a mark leads to now; the chains that may be others."""
        mark, protocol = pair
        frontend = Frontend(None, protocol, 0, mark)
        groups = {frontend.group}
        if frontend.is_local and mark in self._view.to_cluster:
            groups.add(self._view.to_cluster[mark])
        if self._users[pair] <= 0:
            groups = set()
            del self._users[pair]
        before = self._led.pop(pair, frozenset())
        if groups:
            self._led[pair] = frozenset(groups)
        for group in groups ^ before:
            self._leaders[group, protocol] += 1 if group in groups else -1
            if self._leaders[group, protocol] <= 0:
                del self._leaders[group, protocol]
        return {f"TIMONEL-{kind}-{mark[2:]}-{protocol}" for kind in "RL"} | {
            f"TIMONEL-G-{group[2:]}-{protocol}" for group in groups ^ before
        }

    # What stands in a chain

    def rules(self, chain: str) -> list[str] | None:
        """The rules of a chain by its name, without it; None when there is no need of it."""
        if chain in _FIXED:
            return self._fixed_rules(chain)
        _, kind, *rest = chain.split("-")
        if kind in ("IP", "PORT"):
            held = self._frontends.get(chain) or {}
            rules = [f"{_match(frontend)} -j {_entry(frontend)}" for _, frontend in sorted(held.items())]
            rules += [f"-d {address} -j TIMONEL-REFUSE" for address in sorted(self._cluster_ips.get(chain, ()))]
            return rules or None
        number, protocol = f"0x{rest[0]}", rest[1]
        if kind == "G":
            return self._group_rules(number, protocol) if self._leaders[number, protocol] > 0 else None
        frontend = Frontend(None, protocol, 0, number)
        if self._users[number, protocol] <= 0:
            return None
        if kind == "R":
            return self._range_rules(frontend) if frontend.is_restricted else None
        return self._local_rules(frontend) if frontend.is_local else None

    def _range_rules(self, frontend: Frontend) -> list[str]:
        next_chain = _chain_of_local(frontend) if frontend.is_local else _chain_of_group(frontend)
        networks = sorted(self._view.source_ranges.get(frontend.mark, ()))
        return [*(f"-s {network} -j {next_chain}" for network in networks), "-j TIMONEL-DROP"]

    def _local_rules(self, frontend: Frontend) -> list[str]:
        rules = []
        if inner := self._view.to_cluster.get(frontend.mark):
            # From here, or from a container here, an external address is as good as the cluster IP.
            chain = f"TIMONEL-G-{inner[2:]}-{frontend.protocol}"
            rules = [f"-s {network} -j {chain}" for network in sorted(self._view.sets["pod_cidrs"])]
            rules.append(f"-m addrtype --src-type LOCAL -j {chain}")
        return [*rules, f"-j {_chain_of_group(frontend)}"]

    def _group_rules(self, number: str, protocol: str) -> list[str]:
        group = self._view.group(number)
        if not group.endpoints:
            return ["-j TIMONEL-REFUSE" if group.verdict == "refuse" else "-j TIMONEL-DROP"]
        rules = [f"-j MARK --set-xmark {_MARK}", f"-j CONNMARK --set-xmark {number}/0xffffffff"]
        drawn = []
        weights = Counter(group.endpoints)
        left = sum(weights.values())
        for endpoint in dict.fromkeys((*weights, *(group.kept if group.affinity_s is not None else ()))):
            address, port = endpoint
            target = f"{address}:{port}" if self.family is IPV4 else f"[{address}]:{port}"
            remember = ""
            if group.affinity_s is not None:
                clients = f"--name {self.family.recent}-{number[2:]}-{address}-{port} --rsource"
                remember = f"-m recent --set {clients} "
                again = f"-m recent --update --seconds {group.affinity_s} --reap {clients}"
                rules.append(f"-p {protocol} {again} -j DNAT --to-destination {target}")
            if weight := weights[endpoint]:
                share = f"-m statistic --mode random --probability {weight / left:.11f} " if weight < left else ""
                drawn.append(f"-p {protocol} {share}{remember}-j DNAT --to-destination {target}")
                left -= weight
        return rules + drawn

    def _fixed_rules(self, chain: str) -> list[str]:
        if chain == _SERVICES:
            wanted = {c for held in (self._frontends, self._cluster_ips) for c, inside in held.items() if inside}
            asked = sorted(c for c in wanted if c.startswith("TIMONEL-IP-"))
            rules = [f"-d {self.family.last_byte.format(int(c[-2:], 16))} -j {c}" for c in asked]
            return [*rules, f"-m addrtype --dst-type LOCAL -j {_NODE_PORTS}"]
        if chain == _NODE_PORTS:
            closed = [*self.family.without_node_ports, *sorted(self._view.sets["without_node_ports"])]
            rules = [f"-d {network} -j RETURN" for network in closed]
            for asking in sorted(c for c, inside in self._frontends.items() if inside and "-PORT-" in c):
                _, _, protocol, first = asking.split("-")
                rules.append(f"-p {protocol} -m {protocol} --dport {first}:{int(first) + 255} -j {asking}")
            return rules
        if chain in ("TIMONEL-REFUSE", "TIMONEL-DROP"):
            mark = _TO_REFUSE if chain == "TIMONEL-REFUSE" else _TO_DROP
            return [f"-j CONNMARK --set-xmark {mark}/0xffffffff", "-j ACCEPT"]
        if chain == _LINKS:
            # Out by the link it came in: the reply would take the short way and miss the translation.
            return [f'-i "{link}" -o "{link}" -j MASQUERADE --random-fully' for link in sorted(self.links)]
        if chain == _LOCAL:
            rules = []
            for address in sorted(self._view.sets["local_endpoints"]):
                # A container that reaches itself; by the link alone this is not seen where bridged packets come here.
                rules.append(f"-s {address} -d {address} -j MASQUERADE --random-fully")
                rules.append(f"-d {address} -j RETURN")
            return [*rules, "-m addrtype ! --src-type LOCAL --limit-iface-out -j MASQUERADE --random-fully"]
        hidden = sorted(self._view.sets["masquerade_all"])
        return [
            f"-m mark ! --mark {_MARK} -j RETURN",
            "-j MARK --set-xmark 0x4000/0x0",
            # From the host to itself: nothing to translate, and by that link its own address does not look local.
            "-o lo -j RETURN",
            *(f"-m conntrack --ctorigdst {network} -j MASQUERADE --random-fully" for network in hidden),
            f"-j {_LINKS}",
            f"-j {_LOCAL}",
        ]


_SERVICES, _NODE_PORTS, _LINKS, _LOCAL = "TIMONEL-SERVICES", "TIMONEL-NODEPORTS", "TIMONEL-LINKS", "TIMONEL-LOCAL"
_POSTROUTING, _FILTER, _GENERATION = "TIMONEL-POSTROUTING", "TIMONEL-FILTER", "TIMONEL-GENERATION"
_FIXED = (_SERVICES, _NODE_PORTS, "TIMONEL-REFUSE", "TIMONEL-DROP", _LINKS, _LOCAL, _POSTROUTING)
# table -> the rules in chains that are not ours
_JUMPS = {
    "nat": (f"PREROUTING -j {_SERVICES}", f"OUTPUT -j {_SERVICES}", f"POSTROUTING -j {_POSTROUTING}"),
    "filter": tuple(f"{c} -m conntrack --ctstate NEW -j {_FILTER}" for c in ("INPUT", "FORWARD", "OUTPUT")),
}


def _of_address(address: str) -> str:
    last = int(address.rpartition(".")[2]) if "." in address and ":" not in address else int(IPv6Address(address)) & 255
    return f"TIMONEL-IP-{last:02x}"


def _asking(frontend: Frontend) -> str:
    """The chain that asks for a frontend: by the last byte of its address, or the 256 ports around it."""
    if frontend.address is None:
        return f"TIMONEL-PORT-{frontend.protocol}-{frontend.port & ~255}"
    return _of_address(frontend.address)


def _match(frontend: Frontend) -> str:
    address = f"-d {frontend.address} " if frontend.address is not None else ""
    return f"{address}-p {frontend.protocol} -m {frontend.protocol} --dport {frontend.port}"


def _chain_of_group(frontend: Frontend) -> str:
    return f"TIMONEL-G-{frontend.group[2:]}-{frontend.protocol}"


def _chain_of_local(frontend: Frontend) -> str:
    return f"TIMONEL-L-{frontend.mark[2:]}-{frontend.protocol}"


def _entry(frontend: Frontend) -> str:
    """Where a frontend leads."""
    if frontend.is_restricted:
        return f"TIMONEL-R-{frontend.mark[2:]}-{frontend.protocol}"
    return _chain_of_local(frontend) if frontend.is_local else _chain_of_group(frontend)


@cache
def _spelling(driver: str) -> int:
    """Other rules for the same elements are another generation: a newer agent refills."""
    family = FAMILIES[driver]
    rules = Chains(family, _sample(family, "aff_10_2"), {"lo"}).all()
    text = json.dumps([rules, _filter_rules(family), _JUMPS])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


# Transactions


def _filter_rules(family: Family) -> list[str]:
    return [
        f"-m connmark --mark {_TO_DROP} -j DROP",
        f"-p tcp -m connmark --mark {_TO_REFUSE} -j REJECT --reject-with tcp-reset",
        f"-m connmark --mark {_TO_REFUSE} -j REJECT --reject-with {family.unreachable}",
    ]


def _fill(chains: Chains) -> dict[str, list[str] | None]:
    return {**chains.all(), _GENERATION: _generation_rules(chains)}


def _generation_rules(chains: Chains) -> list[str]:
    return [f"-m comment --comment {chains.generation}"]


def _script(table: str, chains: Mapping[str, list[str] | None], commands: Iterable[str] = ()) -> str:
    """One transaction that makes chains exactly these (None: takes them away); commands: before that, in our chains or not."""
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *commands]
    lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules or ()]
    lines += [f"-X {chain}" for chain, rules in chains.items() if rules is None]
    return "\n".join([*lines, "COMMIT", ""])


def _whole(chains: Chains) -> str:
    """Everything, for an empty kernel."""
    filters = _script("filter", {_FILTER: _filter_rules(chains.family)}, (f"-I {jump}" for jump in _JUMPS["filter"]))
    return filters + _script("nat", _fill(chains), (f"-I {jump}" for jump in _JUMPS["nat"]))


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
            old = _generation_rules(chains)[0]
            rewritten = chains.follow(change)
            new = _generation_rules(chains)[0]
            # From here on what is known is true only if the transaction is done.
            del self._known[driver]
            commands = (f"-D {_GENERATION} {old}", f"-A {_GENERATION} {new}")
            self._send(family, _script("nat", rewritten, commands))
            self._known[driver] = chains
            self._forget([(driver, "nat", chain) for chain in (*rewritten, _GENERATION)])

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
        for table, wanted in (("filter", {_FILTER: _filter_rules(family)}), ("nat", _fill(chains))):
            stale = {chain: None for of, chain in there.chains if of == table and chain not in wanted}
            commands = _jump_commands(there.jumps.get(table, []), _JUMPS[table])
            self._send(family, _script(table, {**stale, **wanted}, commands))
        self._known[family.driver] = chains
        self._forget([key for key in self._seen if key[0] == family.driver])

    def set_links(self, links: Iterable[str]) -> bool:
        """Follow the host's interfaces; whether they have changed."""
        links = frozenset(links)
        if links == self._links:
            return False
        for driver, chains in self._known.items():
            self._send(chains.family, _script("nat", chains.follow_links(links)))
            self._forget([(driver, "nat", _LINKS)])
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
                script = _whole(Chains(family, held, links))
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
                    return _said(chains.family, [_GENERATION])
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
        command = [self._backend.tool(chains.family), "-w", "-t", "nat", "-S", _GENERATION]
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
                    _script(table, gone, _jump_commands(there.jumps.get(table, []), ())),
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
        new = {f"{family.ip} {table}" for table in _JUMPS if table not in there.tables}
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
        for table in (f"{family.ip} {name}" for name in _JUMPS) if process.find("nft") else ():
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
    sizes |= {("nat", _GENERATION): 1, ("filter", _FILTER): len(_filter_rules(chains.family))}
    found = {key: len(rules) for key, rules in there.chains.items()}
    if not has_links and ("nat", _LINKS) in found:
        found["nat", _LINKS] = sizes["nat", _LINKS]
    different = [
        chain for table, chain in sizes.keys() | found.keys() if sizes.get((table, chain)) != found.get((table, chain))
    ]
    if chains.generation not in "".join(there.chains.get(("nat", _GENERATION), [])):
        different.append(_GENERATION)
    different += [table for table, jumps in _JUMPS.items() if not _are_jumps(there.jumps.get(table, []), jumps)]
    return different


def _said(family: Family, differences: Iterable[str]) -> str:
    return f"somebody changed {', '.join(sorted(set(differences))[:5])} of {family.ip}tables"


def _expected(elements: Elements) -> list[str]:
    """The drivers that must have chains for these elements."""
    return [driver for driver, family in FAMILIES.items() if elements.get(driver) or family is IPV4]
