"""Tables `ip timonel` and `ip6 timonel` as text: their skeleton, how elements are spelled, and transactions.

No chain belongs to a Service. Everything that varies is an element of a named map or set, so an update costs
what it changes. A table is never deleted in normal work (new connections would be refused for a moment):
repair is flush and refill in place, in one transaction.

How a connection goes: `frontends` (or `nodeports`) gives a mark, kept as ct mark: flags and the group id. Chain
`flagged` does what the flags ask and takes them off. `groups` sends the id to the chain for the group's number of
slots to draw from, lb_N or hash_N, to aff_T_N for a group with ClientIP affinity, to refuse, or drops. lb_N draws an
index, hash_N makes it of the client's address, and `slots` gives the endpoint. aff_T_N asks `affinity` for the slot this
client had in the last T seconds, draws by `pick` when it has none or that endpoint is gone, and hit_T remembers.
meta priority is the scratch register for index and slot because its type (classid) has a name, so plain `type` maps
work in nft 1.0.6; it is set on first packets only, as is bit 0x4000 of the packet mark ("translated by us").
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from ipaddress import AddressValueError, IPv4Network, IPv6Address, IPv6Network

from agents.errors import InvalidResource
from agents.state import Change

READY_CHAINS = 64  # lb_1..lb_64 always exist, so that an ordinary delta holds elements only
MAX_ENDPOINTS = 65536  # drawn in one group; an index must fit the classid's lower half
MAX_TIMEOUT_S = 86400
HASH_SEED = 0x54494D4F
# Flag bits of a frontend's mark; 0x10000000 is laid out for "masquerade"
# (the top bit is none: nft 1.0.6 lists `& 0x80000000` as something it cannot read again).
SOURCE_RANGES, LOCAL_POLICY = 0x20000000, 0x40000000
_FLAGS = 0x70000000
GROUP = 0x0FFFFFFF
_NO_SLOT, _ROOT_SLOT = 0, 0xFFFFFFFF  # classids that nft spells as words; no endpoint has them
MODULUS = 1 << 128

# Deletes and adds go in this order. Elements of `groups` name chains, which are made before.
CONTAINERS = (
    "frontends",
    "nodeports",
    "groups",
    "slots",
    "pick",
    "to_cluster",
    "cluster_ips",
    "local_endpoints",
    "pod_cidrs",
    "source_ranges",
    "without_node_ports",
    "masquerade_all",
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PORT = r"([1-9][0-9]{0,4})"
_PROTOCOL = r"(tcp|udp|sctp)"
_ID = r"0x0[0-9a-f]{7}"
_SLOT = r"(0|[1-9][0-9]{0,9})"


@dataclass(frozen=True)
class Family:
    """An address family's table, and how nft spells what differs in it. ip: "ip" or "ip6"."""

    driver: str
    ip: str
    address: str  # pattern; for IPv6 a coarse one
    node_port_address: str  # a match that leaves out own addresses without node ports
    affinity: str  # the map of remembered clients: its key and data
    client: str  # a client in that key
    name: str = "timonel"

    @property
    def table(self) -> str:
        return f"{self.ip} {self.name}"

    @property
    def derived(self) -> dict[str, tuple[str, str]]:
        """Container -> a set that follows it, and its elements in terms of the container's."""
        return {"local_endpoints": ("hairpin", "{0} . {0}")}

    @property
    def kept(self) -> tuple[str, ...]:
        """The declarations of sets that a refill leaves alone: packets fill them, or somebody else here does."""
        return (f"map affinity {{ {self.affinity}; size 1048576; flags dynamic,timeout; }}",)

    @property
    def containers(self) -> tuple[str, ...]:
        """The names in resources, in the order in which their elements go and come."""
        return CONTAINERS

    @property
    def ready_chains(self) -> tuple[str, ...]:
        """Shared chains that are always there."""
        return tuple(f"lb_{n}" for n in range(1, READY_CHAINS + 1))

    @property
    def fixed_chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain -> (its hook, its rules)."""
        return _fixed_chains(self)

    def chain_rules(self, chain: str) -> tuple[str, ...]:
        """The rules of a shared chain by its name: what `groups` lead to."""
        return _chain_rules(self, chain)

    def chains_of(self, elements: Mapping[str, str]) -> Counter[str]:
        """How many elements of `groups` lead to each shared chain; without those that are always there."""
        return chains_of(elements)

    def chains(self, shared: Iterable[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain -> (its hook, its rules), of all in a table that has these shared chains."""
        names = [*self.ready_chains, *_in_order(shared)]
        return {**{name: ("", self.chain_rules(name)) for name in names}, **self.fixed_chains}

    @property
    def sets(self) -> dict[str, str]:
        """Name -> declaration of every set and map that is emptied by a refill."""
        kind = "ipv4_addr" if self.ip == "ip" else "ipv6_addr"
        return {
            "frontends": f"map frontends {{ type {kind} . inet_proto . inet_service : mark; }}",
            "nodeports": "map nodeports { type inet_proto . inet_service : mark; }",
            "groups": "map groups { type mark : verdict; }",
            "slots": f"map slots {{ type mark . classid : {kind} . inet_service; }}",
            "pick": "map pick { type mark . classid : classid; }",
            "to_cluster": "map to_cluster { type mark : mark; }",
            "cluster_ips": f"set cluster_ips {{ type {kind}; }}",
            "local_endpoints": f"set local_endpoints {{ type {kind}; }}",
            "pod_cidrs": f"set pod_cidrs {{ type {kind}; flags interval; }}",
            "without_node_ports": f"set without_node_ports {{ type {kind}; flags interval; }}",
            "masquerade_all": f"set masquerade_all {{ type {kind}; flags interval; }}",
            "source_ranges": f"set source_ranges {{ type mark . {kind}; flags interval; }}",
            "hairpin": f"set hairpin {{ type {kind} . {kind}; }}",
            "same_link": "set same_link { type ifname . ifname; }",
            "generation": "set generation { type ipv6_addr; }",
        }

    @cached_property
    def skeleton_sum(self) -> int:
        """Another skeleton is another generation: a newer agent refills."""
        return int.from_bytes(hashlib.sha256(skeleton(self).encode()).digest()[:16], "big")

    @cached_property
    def forms(self) -> dict[str, re.Pattern[str]]:
        """Container -> the exact form of its resources, "key\\0value"."""
        address, networks = f"({self.address})", f"({self.address}/[0-9]{{1,3}})"
        texts = {
            "frontends": rf"frontends {address} \. {_PROTOCOL} \. {_PORT}\0(0x[0246][0-9a-f]{{7}})",
            "nodeports": rf"nodeports {_PROTOCOL} \. {_PORT}\0(0x[04][0-9a-f]{{7}})",
            "slots": rf"slots ({_ID}) \. {_SLOT}\0{address} \. {_PORT}",
            "pick": rf"pick ({_ID}) \. {_SLOT}\0{_SLOT}",
            "groups": rf"groups ({_ID})\0(goto (?:lb_|hash_|aff_([1-9][0-9]{{0,4}})_)([1-9][0-9]{{0,4}})|goto refuse|drop)",
            "to_cluster": rf"to_cluster (0x[46][0-9a-f]{{7}})\0({_ID})",
            "source_ranges": rf"source_ranges (0x[26][0-9a-f]{{7}}) \. {networks}\0",
            **{name: rf"{name} {address}\0" for name in ("cluster_ips", "local_endpoints")},
            **{name: rf"{name} {networks}\0" for name in ("pod_cidrs", "without_node_ports", "masquerade_all")},
        }
        return {name: re.compile(text) for name, text in texts.items()}


IPV4 = Family(
    driver="nft4",
    ip="ip",
    address=rf"(?:{_OCTET}\.){{3}}{_OCTET}",
    node_port_address="ip daddr != 127.0.0.0/8",
    affinity="type ipv4_addr . mark : classid",
    client="ip saddr",
)
# nft 1.0.6 aborts on `update` with a key over 16 bytes, so a client's IPv6 address is remembered by its hash: two
# clients with the same hash share an endpoint. The map's key is declared by numgen because `typeof jhash` crashes.
IPV6 = Family(
    driver="nft6",
    ip="ip6",
    address=r"[0-9a-f:]{2,39}",
    node_port_address="ip6 daddr != { ::1, fe80::/10 }",
    affinity="typeof numgen random mod 2 . ct mark : meta priority",
    client=f"jhash ip6 saddr mod 4294967295 seed 0x{HASH_SEED:08x}",
)
FAMILIES = {family.driver: family for family in (IPV4, IPV6)}


# Chains


def _fixed_chains(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Chain -> (its hook, its rules)."""
    ip, is_local = family.ip, f"ct mark & 0x{LOCAL_POLICY:08x} != 0"
    is_restricted = f"ct mark & 0x{SOURCE_RANGES:08x} != 0"
    return {
        # In a nat hook: first packets only, no filter hook needed.
        "refuse": ("", ("reject with tcp reset", "reject")),
        "flagged": (
            "",
            (
                f"{is_restricted} ct mark . {ip} saddr != @source_ranges drop",
                # From here, or from a pod here, an external address is as good as the cluster IP.
                f"{is_local} {ip} saddr @pod_cidrs ct mark set ct mark map @to_cluster",
                f"{is_local} fib saddr type local ct mark set ct mark map @to_cluster",
                f"ct mark set ct mark & 0x{GROUP:08x}",
                "ct mark vmap @groups",
                "drop",
            ),
        ),
        "dispatch": (
            "",
            (
                "meta mark set meta mark | 0x00004000",
                f"ct mark & 0x{_FLAGS:08x} != 0 goto flagged",
                "ct mark vmap @groups",
                "drop",
            ),
        ),
        "services": (
            "",
            (
                f"ct mark set {ip} daddr . meta l4proto . th dport map @frontends goto dispatch",
                f"fib daddr type local {family.node_port_address} {ip} daddr != @without_node_ports "
                "ct mark set meta l4proto . th dport map @nodeports goto dispatch",
                f"{ip} daddr @cluster_ips goto refuse",
            ),
        ),
        "prerouting": ("type nat hook prerouting priority dstnat; policy accept;", ("goto services",)),
        "output": ("type nat hook output priority -100; policy accept;", ("goto services",)),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            (
                "meta mark & 0x00004000 == 0x00000000 return",
                "meta mark set meta mark ^ 0x00004000",
                "meta priority set none",
                # From the host to itself: nothing to translate, and by that link its own address does not look local.
                'oifname "lo" return',
                f"ct original {ip} daddr @masquerade_all masquerade fully-random",
                # A container that reaches itself. By the link alone this is not seen where bridged packets come here.
                f"{ip} saddr . {ip} daddr @hairpin masquerade fully-random",
                # Out by the link it came in: the reply would take the short way and miss the translation.
                "iifname . oifname @same_link masquerade fully-random",
                f"{ip} daddr @local_endpoints return",
                "fib saddr . oif type != local masquerade fully-random",
            ),
        ),
    }


def policies(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Chain -> (its hook, its rules), of what decides which group a connection belongs to; `groups` says what follows."""
    return {name: chain for name, chain in _fixed_chains(family).items() if name != "postrouting"}


def _to_slot(family: Family) -> tuple[str, ...]:
    return (
        f"meta l4proto {{ tcp, udp, sctp }} dnat {family.ip} to ct mark . meta priority map @slots",
        "drop",  # only if the table changes between the two lookups
    )


def _chain_rules(family: Family, chain: str) -> tuple[str, ...]:
    """The rules of a shared chain by its name: lb_N, hash_N, aff_T_N, hit_T."""
    kind, *numbers = chain.split("_")
    if kind == "lb":
        return (f"meta priority set numgen random mod {numbers[0]}", *_to_slot(family))
    if kind == "hash":
        return (f"meta priority set jhash {family.ip} saddr mod {numbers[0]} seed 0x{HASH_SEED:08x}", *_to_slot(family))
    remembered = f"{family.client} . ct mark"
    if kind == "hit":
        # A key that is there keeps its slot; only its time begins again.
        return (
            f"update @affinity {{ {remembered} timeout {numbers[0]}s : meta priority }}",
            _to_slot(family)[0],
            f"delete @affinity {{ {remembered} : meta priority }}",
        )
    timeout_s, count = numbers
    return (
        "meta priority set none",
        f"meta priority set {remembered} map @affinity",
        # Comes back when that endpoint is gone.
        f"meta priority != none jump hit_{timeout_s}",
        f"meta priority set numgen random mod {count}",
        "meta priority set ct mark . meta priority map @pick",
        f"jump hit_{timeout_s}",
        "drop",
    )


_VERDICT_CHAIN = re.compile(r"goto ((?:lb|hash|aff_([0-9]+))_([0-9]+))")


def chains_of(elements: Mapping[str, str]) -> Counter[str]:
    """How many elements of `groups` lead to each shared chain; without those that always exist."""
    found: Counter[str] = Counter()
    for key, value in elements.items():
        if key.startswith("groups ") and (match := _VERDICT_CHAIN.fullmatch(value)):
            if match[2]:
                found.update((match[1], f"hit_{match[2]}"))
            elif int(match[3]) > READY_CHAINS or match[1].startswith("hash_"):
                found[match[1]] += 1
    return found


def chains_after(family: Family, known: Counter[str], change: Change) -> Counter[str]:
    """The same as `chains_of` for a table that is changed."""
    return known + family.chains_of(change.adds) - family.chains_of(change.deletes)


def _in_order(chains: Iterable[str]) -> list[str]:
    """A chain must exist before a rule that goes to it is made."""
    return sorted(chains, key=lambda name: (name.startswith("aff_"), name))


def skeleton(family: Family, extra_chains: Iterable[str] = (), right: Set[str] = frozenset()) -> str:
    """Everything but elements: sets, chains and rules, loadable over an empty kernel and over an older self.

    right: chains that are there and are left alone.
    """
    chains = {name: chain for name, chain in family.chains(extra_chains).items() if name not in right}
    lines = [f"table {family.table} {{"]
    lines += [f"\t{text}" for text in (*family.sets.values(), *family.kept)]
    lines += [f"\tchain {name} {{ {hook} }}" for name, (hook, _) in chains.items()]
    lines.append("}")
    lines += [f"flush chain {family.table} {name}" for name in chains]
    lines.append(f"table {family.table} {{")
    for name, (_, rules) in chains.items():
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    lines.append("}")
    return "\n".join(lines) + "\n"


# Elements


def check(family: Family, key: str, value: str) -> None:
    """Raises InvalidResource for anything but the exact forms of the contract: no other text reaches nft."""
    container = key.partition(" ")[0]
    form = family.forms.get(container)
    match = form.fullmatch(f"{key}\0{value}") if form else None
    if match is None:
        pass
    elif container == "slots":
        _, slot, address, port = match.groups()
        if _is_address(family, address) and int(slot) < _ROOT_SLOT and _is_port(port):
            return
    elif container == "frontends":
        address, _, port, mark = match.groups()
        if _is_address(family, address) and _is_port(port) and _names_group(mark):
            return
    elif container in ("cluster_ips", "local_endpoints"):
        if _is_address(family, match[1]):
            return
    elif container == "groups":
        group, _, timeout, count = match.groups()
        if _names_group(group) and int(count or 1) <= MAX_ENDPOINTS and int(timeout or 1) <= MAX_TIMEOUT_S:
            return
    elif container == "nodeports":
        _, port, mark = match.groups()
        if _is_port(port) and _names_group(mark):
            return
    elif container == "pick":
        _, index, picked = match.groups()
        if int(index) < MAX_ENDPOINTS and _NO_SLOT < int(picked) < _ROOT_SLOT:
            return
    elif container == "to_cluster":
        if _names_group(match[1]) and _names_group(match[2]):
            return
    elif container == "source_ranges":
        if _names_group(match[1]) and _is_network(family, match[2]):
            return
    elif _is_network(family, match[1]):
        return
    why = f" ({container}): not a canonical address, or a number out of range" if match else ""
    raise InvalidResource(f"cannot read resource {key[:100]!r} -> {value[:100]!r}{why}")


def spell(key: str, value: str) -> tuple[str, str, str]:
    """(container, key, data) as nft reads them, of an element that `check` lets pass or a plane made; data is empty for sets."""
    container, _, element = key.partition(" ")
    if container in ("slots", "pick"):
        mark, _, number = element.partition(" . ")
        return container, f"{mark} . {_classid(number)}", _classid(value) if container == "pick" else value
    if container == "same_link":
        return container, " . ".join(f'"{name}"' for name in element.split(" . ")), value
    return container, element, value


def _is_port(text: str) -> bool:
    return int(text) <= 65535


def group_of(mark: str) -> str:
    """The group's id in a mark that may have flags, as the elements spell it: "0x00000005"."""
    return f"0x{int(mark, 16) & GROUP:08x}"


def _names_group(mark: str) -> bool:
    return int(mark, 16) & GROUP != 0


def _is_address(family: Family, text: str) -> bool:
    """Of one that has the family's pattern. Two spellings of an element would be one element given twice."""
    if family.ip == "ip":
        return True
    try:
        # The C library is twenty times as fast; the few it spells in another way (::1.2.3.4) are looked at again.
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text)) == text or (
            str(IPv6Address(text)) == text
        )
    except (OSError, AddressValueError):
        return False


def _is_network(family: Family, text: str) -> bool:
    try:
        return str(IPv4Network(text) if family.ip == "ip" else IPv6Network(text)) == text
    except ValueError:
        return False


def _classid(number: str) -> str:
    value = int(number)
    return f"{value >> 16:x}:{value & 0xFFFF:x}" if value else "none"


def elements_sum(elements: Mapping[str, str]) -> int:
    """An order independent number for key -> value; sums may be added and subtracted (mod 2**128)."""
    return sum_of(elements.items())


def sum_of(elements: Iterable[tuple[str, str]]) -> int:
    """The same for (key, value), none of them twice."""
    sha256, from_bytes = hashlib.sha256, int.from_bytes
    total = 0
    for key, value in elements:
        total += from_bytes(sha256(f"{key}\0{value}".encode()).digest()[:16], "big")
    return total % MODULUS


def sums_of(family: Family, elements: Mapping[str, str]) -> dict[str, int]:
    """Set or map -> `elements_sum` of what it holds, of derived sets too."""
    parts: dict[str, dict[str, str]] = {}
    for key, value in contents(family, elements, ()).items():
        parts.setdefault(key.partition(" ")[0], {})[key] = value
    return {name: elements_sum(part) for name, part in parts.items()}


def generation(family: Family, elements: int) -> str:
    """The one element of set `generation` for a sum of elements."""
    return str(IPv6Address((elements + family.skeleton_sum) % MODULUS))


def _commands(family: Family, verb: str, elements: Mapping[str, str], *, is_contents: bool = False) -> list[str]:
    """A command for each set or map. is_contents: the elements that follow from others are among them."""
    texts: dict[str, list[str]] = {}
    derived = {} if is_contents else family.derived
    for key, value in elements.items():
        container, element, data = spell(key, value)
        texts.setdefault(container, []).append(f"{element} : {data}" if data and verb == "add" else element)
        if container in derived:
            name, spelled = derived[container]
            texts.setdefault(name, []).append(spelled.format(element))
    order = (*family.containers, *(name for name, _ in family.derived.values()), "same_link")
    return [f"{verb} element {family.table} {name} {{ {', '.join(texts[name])} }}" for name in order if name in texts]


# Transactions


def delta_script(family: Family, change: Change, old_sum: int, new_sum: int, known_chains: Counter[str]) -> str:
    """One transaction that is refused unless the table is of the expected generation."""
    chains = chains_after(family, known_chains, change)
    lines = [f"delete element {family.table} generation {{ {generation(family, old_sum)} }}"]
    for chain in _in_order(chains.keys() - known_chains.keys()):
        lines += _chain_commands(family, chain)
    lines += _commands(family, "delete", change.deletes)
    lines += _commands(family, "add", change.adds)
    lines += [f"delete chain {family.table} {name}" for name in _in_order(known_chains.keys() - chains.keys())[::-1]]
    lines.append(f"add element {family.table} generation {{ {generation(family, new_sum)} }}")
    return "\n".join(lines) + "\n"


def refill_script(family: Family, elements: Mapping[str, str], links: Iterable[str], there: Iterable[str] = ()) -> str:
    """One transaction that makes the table exactly this, whatever it was; links: names of the node's interfaces.

    there: the chains it has; those that are not wanted go. Which client had which endpoint stays: the slots of groups
    with affinity are the same afterwards.
    """
    shared = family.chains_of(elements)
    lines = [skeleton(family, shared)]
    lines += [f"flush {text.split()[0]} {family.table} {name}" for name, text in family.sets.items()]
    lines += _without_others(family, shared, there)
    lines += _commands(family, "add", elements)
    lines += link_commands(family, "add", links)
    lines.append(f"add element {family.table} generation {{ {generation(family, elements_sum(elements))} }}")
    return "\n".join(lines) + "\n"


def contents(family: Family, elements: Mapping[str, str], links: Iterable[str]) -> dict[str, str]:
    """What all sets and maps hold for these elements, but for the generation, as agents/readback.py reads it."""
    found = dict(elements)
    for key in elements:
        container, _, element = key.partition(" ")
        if container in family.derived:
            name, spelled = family.derived[container]
            found[f"{name} {spelled.format(element)}"] = ""
    return found | ({f"same_link {name} . {name}": "" for name in links} if "same_link" in family.sets else {})


def mend_script(
    family: Family,
    elements: Mapping[str, str],
    deletes: Mapping[str, str],
    adds: Mapping[str, str],
    there: Iterable[str],
    right: Set[str],
) -> str:
    """The same as `refill_script` for a table that holds nearly these elements: deletes and adds are of its `contents`.

    right: chains to be left alone. For every rule that asks a map the kernel goes through all of it: 15 ms for 100,000 elements.
    """
    shared = family.chains_of(elements)
    lines = [skeleton(family, shared, right), *_commands(family, "delete", deletes, is_contents=True)]
    lines += _without_others(family, shared, there)
    lines += _commands(family, "add", adds, is_contents=True)
    lines.append(f"flush set {family.table} generation")
    lines.append(f"add element {family.table} generation {{ {generation(family, elements_sum(elements))} }}")
    return "\n".join(lines) + "\n"


def _without_others(family: Family, shared: Iterable[str], there: Iterable[str]) -> list[str]:
    stale = sorted(set(there) - family.chains(shared).keys())
    return [f"{verb} chain {family.table} {name}" for verb in ("flush", "delete") for name in stale]


def _chain_commands(family: Family, name: str) -> list[str]:
    chain = f"{family.table} {name}"
    rules = family.chain_rules(name)
    return [f"add chain {chain}", f"flush chain {chain}", *(f"add rule {chain} {rule}" for rule in rules)]


def link_commands(family: Family, verb: str, links: Iterable[str]) -> list[str]:
    """Those that add or delete the host's interfaces, where a table asks for them."""
    pairs = [f'"{name}" . "{name}"' for name in sorted(links)] if "same_link" in family.sets else []
    return [f"{verb} element {family.table} same_link {{ {', '.join(pairs)} }}"] if pairs else []


def refill_parts(family: Family, elements: Mapping[str, str], links: Iterable[str], size: int = 2000) -> Iterable[str]:
    """A refill as several transactions, the generation last."""
    mark = f"element {family.table} generation"
    yield refill_script(family, {}, links) + f"delete {mark} {{ {generation(family, 0)} }}\n"
    items = list(elements.items())
    for chain in _in_order(family.chains_of(elements)):
        yield "\n".join(_chain_commands(family, chain)) + "\n"
    for start in range(0, len(items), size):
        yield "\n".join(_commands(family, "add", dict(items[start : start + size]))) + "\n"
    yield f"add {mark} {{ {generation(family, elements_sum(elements))} }}\n"
