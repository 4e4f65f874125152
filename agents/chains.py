"""Chains TIMONEL-* of iptables as text: which there are for a set of elements, their rules, and transactions.

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
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address

from agents.ruleset import MODULUS, elements_sum
from agents.state import Change
from agents.view import Frontend, View

_PROTOCOLS = ("tcp", "udp", "sctp")
_MARK = "0x4000/0x4000"  # of the packet: translated by us
# Of connections that never come to be; no group has such an id, and hardly anybody else such a mark.
_TO_REFUSE, _TO_DROP = "0x54494d52", "0x54494d44"


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
        return f"{(self.sum + _spelling(self.family.driver)) % MODULUS:032x}"

    def follow(self, change: Change) -> dict[str, list[str] | None]:
        """Note a change; chain -> its rules now, None for one that is to go, of all that the change touches. O(those)."""
        touched = self._settle(change)
        self.sum = (self.sum - elements_sum(change.deletes) + elements_sum(change.adds)) % MODULUS
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
        rules = self.rules(LINKS) or []
        self.sizes[LINKS] = len(rules)
        return {LINKS: rules}

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
                chains = chains | {NODE_PORTS if chain.startswith("TIMONEL-PORT-") else SERVICES}
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
            chains.add(NODE_PORTS)
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
        if chain == SERVICES:
            wanted = {c for held in (self._frontends, self._cluster_ips) for c, inside in held.items() if inside}
            asked = sorted(c for c in wanted if c.startswith("TIMONEL-IP-"))
            rules = [f"-d {self.family.last_byte.format(int(c[-2:], 16))} -j {c}" for c in asked]
            return [*rules, f"-m addrtype --dst-type LOCAL -j {NODE_PORTS}"]
        if chain == NODE_PORTS:
            closed = [*self.family.without_node_ports, *sorted(self._view.sets["without_node_ports"])]
            rules = [f"-d {network} -j RETURN" for network in closed]
            for asking in sorted(c for c, inside in self._frontends.items() if inside and "-PORT-" in c):
                _, _, protocol, first = asking.split("-")
                rules.append(f"-p {protocol} -m {protocol} --dport {first}:{int(first) + 255} -j {asking}")
            return rules
        if chain in ("TIMONEL-REFUSE", "TIMONEL-DROP"):
            mark = _TO_REFUSE if chain == "TIMONEL-REFUSE" else _TO_DROP
            return [f"-j CONNMARK --set-xmark {mark}/0xffffffff", "-j ACCEPT"]
        if chain == LINKS:
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
            f"-j {LINKS}",
            f"-j {_LOCAL}",
        ]


SERVICES, NODE_PORTS, LINKS, _LOCAL = "TIMONEL-SERVICES", "TIMONEL-NODEPORTS", "TIMONEL-LINKS", "TIMONEL-LOCAL"
_POSTROUTING, FILTER, GENERATION = "TIMONEL-POSTROUTING", "TIMONEL-FILTER", "TIMONEL-GENERATION"
_FIXED = (SERVICES, NODE_PORTS, "TIMONEL-REFUSE", "TIMONEL-DROP", LINKS, _LOCAL, _POSTROUTING)
# table -> the rules in chains that are not ours
JUMPS = {
    "nat": (f"PREROUTING -j {SERVICES}", f"OUTPUT -j {SERVICES}", f"POSTROUTING -j {_POSTROUTING}"),
    "filter": tuple(f"{c} -m conntrack --ctstate NEW -j {FILTER}" for c in ("INPUT", "FORWARD", "OUTPUT")),
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
    rules = Chains(family, sample(family, "aff_10_2"), {"lo"}).all()
    text = json.dumps([rules, filter_rules(family), JUMPS])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def sample(family: Family, affinity: str = "lb_2") -> dict[str, str]:
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


# Transactions


def filter_rules(family: Family) -> list[str]:
    return [
        f"-m connmark --mark {_TO_DROP} -j DROP",
        f"-p tcp -m connmark --mark {_TO_REFUSE} -j REJECT --reject-with tcp-reset",
        f"-m connmark --mark {_TO_REFUSE} -j REJECT --reject-with {family.unreachable}",
    ]


def fill(chains: Chains) -> dict[str, list[str] | None]:
    return {**chains.all(), GENERATION: generation_rules(chains)}


def generation_rules(chains: Chains) -> list[str]:
    return [f"-m comment --comment {chains.generation}"]


def script_of(table: str, chains: Mapping[str, list[str] | None], commands: Iterable[str] = ()) -> str:
    """One transaction that makes chains exactly these (None: takes them away); commands: before that, in our chains or not."""
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *commands]
    lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules or ()]
    lines += [f"-X {chain}" for chain, rules in chains.items() if rules is None]
    return "\n".join([*lines, "COMMIT", ""])


def whole(chains: Chains) -> str:
    """Everything, for an empty kernel."""
    filters = script_of("filter", {FILTER: filter_rules(chains.family)}, (f"-I {jump}" for jump in JUMPS["filter"]))
    return filters + script_of("nat", fill(chains), (f"-I {jump}" for jump in JUMPS["nat"]))
