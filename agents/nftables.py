"""Table `ip timonel`: its skeleton, the text of transactions, and the table in the kernel.

No chain belongs to a Service. Everything that varies is an element of a named map or set, so an update costs
what it changes. The table is never deleted in normal work (new connections would be refused for a moment):
repair is flush and refill in place, in one transaction.

How a connection goes: `frontends` (or `nodeports`) gives its group id, kept as ct mark; `groups` sends it to the
chain for the group's number of endpoints, lb_N, or to refuse; lb_N draws an index and `slots` gives the endpoint.
meta priority is the scratch register for the index because its type (classid) has a name, so plain `type` maps
work in nft 1.0.6; it is set on first packets only, as is bit 0x4000 of the packet mark ("translated by us").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv6Address

from agents import process
from agents.errors import AgentError, InvalidResource, NftRefused
from agents.state import Change

TABLE = "ip timonel"
READY_CHAINS = 64  # lb_1..lb_64 always exist, so that an ordinary delta holds elements only
MAX_ENDPOINTS = 65536  # of one group; an index must fit the classid's lower half
MARK_MASK = 0x0FFFFFFF
_MODULUS = 1 << 128

_SETS = {
    "frontends": "map frontends { type ipv4_addr . inet_proto . inet_service : mark; }",
    "nodeports": "map nodeports { type inet_proto . inet_service : mark; }",
    "groups": "map groups { type mark : verdict; }",
    "slots": "map slots { type mark . classid : ipv4_addr . inet_service; }",
    "cluster_ips": "set cluster_ips { type ipv4_addr; }",
    "local_endpoints": "set local_endpoints { type ipv4_addr; }",
    "hairpin": "set hairpin { type ipv4_addr . ipv4_addr; }",
    "same_link": "set same_link { type ifname . ifname; }",
    "generation": "set generation { type ipv6_addr; }",
}
# Deletes and adds go in this order. Elements of `groups` name chains, which are made before.
CONTAINERS = ("frontends", "nodeports", "groups", "slots", "cluster_ips", "local_endpoints")

# chain -> (its hook, its rules)
_CHAINS: dict[str, tuple[str, tuple[str, ...]]] = {
    # In a nat hook: first packets only, no filter hook needed.
    "refuse": ("", ("reject with tcp reset", "reject")),
    "dispatch": (
        "",
        (
            "meta mark set meta mark | 0x00004000",
            "ct mark vmap @groups",
            "drop",
        ),
    ),
    "services": (
        "",
        (
            "ct mark set ip daddr . meta l4proto . th dport map @frontends goto dispatch",
            "fib daddr type local ip daddr != 127.0.0.0/8 "
            "ct mark set meta l4proto . th dport map @nodeports goto dispatch",
            "ip daddr @cluster_ips goto refuse",
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
            # A container that reaches itself. By the link alone this is not seen where bridged packets come here.
            "ip saddr . ip daddr @hairpin masquerade fully-random",
            # Out by the link it came in: the reply would take the short way and miss the translation.
            "iifname . oifname @same_link masquerade fully-random",
            "ip daddr @local_endpoints return",
            "fib saddr . oif type != local masquerade fully-random",
        ),
    ),
}


def _lb_rules(count: int) -> tuple[str, ...]:
    return (
        f"meta priority set numgen random mod {count}",
        "meta l4proto { tcp, udp, sctp } dnat ip to ct mark . meta priority map @slots",
        "drop",  # only if the table changes between the two lookups
    )


def skeleton(extra_counts: Iterable[int] = ()) -> str:
    """Everything but elements: sets, chains and rules, loadable over an empty kernel and over an older self."""
    chains = {
        **{f"lb_{n}": ("", _lb_rules(n)) for n in sorted({*range(1, READY_CHAINS + 1), *extra_counts})},
        **_CHAINS,
    }
    lines = [f"table {TABLE} {{"]
    lines += [f"\t{text}" for text in _SETS.values()]
    lines += [f"\tchain {name} {{ {hook} }}" for name, (hook, _) in chains.items()]
    lines.append("}")
    lines += [f"flush chain {TABLE} {name}" for name in chains]
    lines.append(f"table {TABLE} {{")
    for name, (_, rules) in chains.items():
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    lines.append("}")
    return "\n".join(lines) + "\n"


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_PORT = r"(?:[1-9][0-9]{0,4})"
_PROTOCOL = r"(?:tcp|udp|sctp)"
_MARK = r"0x0[0-9a-f]{7}"
_RESOURCE = re.compile(
    rf"""(?:
    (?P<frontends>frontends[ ](?P<fkey>{_IP}[ ]\.[ ]{_PROTOCOL}[ ]\.[ ](?P<fport>{_PORT}))\0(?P<fmark>{_MARK}))
    |(?P<nodeports>nodeports[ ](?P<nkey>{_PROTOCOL}[ ]\.[ ](?P<nport>{_PORT}))\0(?P<nmark>{_MARK}))
    |(?P<slots>slots[ ](?P<smark>{_MARK})[ ]\.[ ](?P<index>0|[1-9][0-9]{{0,4}})\0(?P<endpoint>{_IP}[ ]\.[ ](?P<sport>{_PORT})))
    |(?P<groups>groups[ ](?P<gmark>{_MARK})\0(?P<verdict>goto[ ]lb_(?P<count>[1-9][0-9]{{0,4}})|goto[ ]refuse|drop))
    |(?P<address>(?P<container>cluster_ips|local_endpoints)[ ](?P<akey>{_IP})\0)
    )""",
    re.VERBOSE,
)
_VERDICT_COUNT = re.compile(r"goto lb_([1-9][0-9]{0,4})")


def spell(key: str, value: str) -> tuple[str, str, str]:
    """(container, key, data) as nft reads them; data is empty for sets.

    Raises InvalidResource for anything but the exact forms of the contract: no other text reaches nft.
    """
    match = _RESOURCE.fullmatch(f"{key}\0{value}")
    if match is None:
        raise InvalidResource(f"cannot read resource {key[:100]!r} -> {value[:100]!r}")
    kind = match.lastgroup
    if match["slots"]:
        index = int(match["index"])
        if index < MAX_ENDPOINTS and int(match["sport"]) <= 65535:
            classid = f"0:{index:x}" if index else "none"
            return "slots", f"{match['smark']} . {classid}", match["endpoint"]
    elif match["frontends"]:
        if int(match["fport"]) <= 65535 and match["fmark"] != "0x00000000":
            return "frontends", match["fkey"], match["fmark"]
    elif match["address"]:
        return match["container"], match["akey"], ""
    elif match["groups"]:
        if match["gmark"] != "0x00000000" and int(match["count"] or 1) <= MAX_ENDPOINTS:
            return "groups", match["gmark"], match["verdict"]
    elif match["nodeports"] and int(match["nport"]) <= 65535 and match["nmark"] != "0x00000000":
        return "nodeports", match["nkey"], match["nmark"]
    raise InvalidResource(f"cannot read resource {key[:100]!r} -> {value[:100]!r} ({kind}): number out of range")


def endpoint_count(verdict: str) -> int:
    """N of "goto lb_N", 0 for every other verdict."""
    match = _VERDICT_COUNT.fullmatch(verdict)
    return int(match[1]) if match else 0


def elements_sum(elements: Mapping[str, str]) -> int:
    """An order independent number for key -> value; sums may be added and subtracted (mod 2**128)."""
    sha256, from_bytes = hashlib.sha256, int.from_bytes
    total = 0
    for key, value in elements.items():
        total += from_bytes(sha256(f"{key}\0{value}".encode()).digest()[:16], "big")
    return total % _MODULUS


# Another skeleton is another generation: a newer agent refills.
_SKELETON_SUM = int.from_bytes(hashlib.sha256(skeleton().encode()).digest()[:16], "big")


def generation(elements: int) -> str:
    """The one element of set `generation` for a sum of elements."""
    return str(IPv6Address((elements + _SKELETON_SUM) % _MODULUS))


def _element_commands(verb: str, elements: Mapping[str, str]) -> list[str]:
    texts: dict[str, list[str]] = {}
    for key, value in elements.items():
        container, element, data = spell(key, value)
        texts.setdefault(container, []).append(f"{element} : {data}" if data and verb == "add" else element)
        if container == "local_endpoints":
            texts.setdefault("hairpin", []).append(f"{element} . {element}")
    return [
        f"{verb} element {TABLE} {container} {{ {', '.join(texts[container])} }}"
        for container in (*CONTAINERS, "hairpin")
        if container in texts
    ]


def delta_script(change: Change, old_sum: int, new_sum: int, known_counts: Iterable[int] = ()) -> str:
    """One transaction that is refused unless the table is of the expected generation."""
    lines = [f"delete element {TABLE} generation {{ {generation(old_sum)} }}"]
    for count in sorted(_counts(change.adds) - set(known_counts)):
        lines += _chain_commands(count)
    lines += _element_commands("delete", change.deletes)
    lines += _element_commands("add", change.adds)
    lines.append(f"add element {TABLE} generation {{ {generation(new_sum)} }}")
    return "\n".join(lines) + "\n"


def refill_script(elements: Mapping[str, str], links: Iterable[str]) -> str:
    """One transaction that makes the table exactly this, whatever it was; links: names of the node's interfaces."""
    lines = [skeleton(_counts(elements))]
    lines += [f"flush {text.split()[0]} {TABLE} {name}" for name, text in _SETS.items()]
    lines += _element_commands("add", elements)
    lines += _link_commands("add", links)
    lines.append(f"add element {TABLE} generation {{ {generation(elements_sum(elements))} }}")
    return "\n".join(lines) + "\n"


def _counts(elements: Mapping[str, str]) -> set[int]:
    found = {endpoint_count(value) for key, value in elements.items() if key.startswith("groups ")}
    return {count for count in found if count > READY_CHAINS}


def _chain_commands(count: int) -> list[str]:
    chain = f"{TABLE} lb_{count}"
    return [f"add chain {chain}", f"flush chain {chain}", *(f"add rule {chain} {rule}" for rule in _lb_rules(count))]


def _link_commands(verb: str, links: Iterable[str]) -> list[str]:
    pairs = [f'"{name}" . "{name}"' for name in sorted(links)]
    return [f"{verb} element {TABLE} same_link {{ {', '.join(pairs)} }}"] if pairs else []


def run_nft(script: str, timeout_s: float) -> None:
    """Commits a script. Raises NftRefused, or AgentError NftMissing, NftTimeout."""
    if process.find("nft") is None:
        raise AgentError("NftMissing", "cannot program the kernel: nft is not installed. Install the package nftables")
    done = process.run(["nft", "-f", "-"], text=script, timeout_s=timeout_s, reason="NftTimeout")
    if done.returncode:
        raise NftRefused(f"cannot commit to table {TABLE}: nft: {process.first_line(done.stderr)}")


class Table:
    """The table in the kernel, as far as this process knows it.

    `sum`: of the elements in the table, None when unknown (then only `refill` may follow).
    """

    def __init__(self, run: Callable[[str, float], None] = run_nft, timeout_s: float = 10.0) -> None:
        self._run = run
        self.timeout_s = timeout_s
        self.sum: int | None = None
        self.links: frozenset[str] = frozenset()
        self._counts: set[int] = set()

    def commit(self, change: Change) -> None:
        """Apply a change as a compare-and-swap. Raises NftRefused when the table is another, too."""
        if not change:
            return
        if self.sum is None:
            raise NftRefused(f"cannot change table {TABLE}: its content is unknown")
        new_sum = (self.sum - elements_sum(change.deletes) + elements_sum(change.adds)) % _MODULUS
        script = delta_script(change, self.sum, new_sum, self._counts)
        self._send(script, self.timeout_s + len(script) / 1e6)
        self.sum = new_sum
        self._counts |= _counts(change.adds)

    def refill(self, elements: Mapping[str, str], links: Iterable[str]) -> None:
        """Make the table exactly this; established connections go on. O(everything)."""
        links = frozenset(links)
        script = refill_script(elements, links)
        try:
            self._send(script, self.timeout_s + len(script) / 1e6)
        except NftRefused as err:
            if "Message too long" not in err.message:
                raise
            for part in _parts(elements, links):  # a netlink socket of an unprivileged user namespace
                self._send(part, self.timeout_s)
        self.sum = elements_sum(elements)
        self.links = links
        self._counts = _counts(elements)

    def take_over(self, elements: Mapping[str, str], links: Iterable[str]) -> None:
        """Go on with a table that holds these elements, as another process left it (see is_expected)."""
        links = frozenset(links)
        flush = f"flush set {TABLE} same_link"
        self._send("\n".join([flush, *_link_commands("add", links)]) + "\n", self.timeout_s)
        self.sum = elements_sum(elements)
        self.links = links
        self._counts = _counts(elements)

    def delete(self) -> None:
        """Take the table out of the kernel. For good: see the head of this file."""
        if process.find("nft") is not None:
            process.run(["nft", "delete", "table", *TABLE.split()], timeout_s=self.timeout_s, reason="NftTimeout")
        self.sum = None

    def set_links(self, links: Iterable[str]) -> bool:
        """Follow the node's interfaces; whether they have changed."""
        links = frozenset(links)
        gone, new = self.links - links, links - self.links
        if gone or new:
            self._send("\n".join([*_link_commands("delete", gone), *_link_commands("add", new)]) + "\n", self.timeout_s)
            self.links = links
        return bool(gone or new)

    def is_expected(self, elements: int) -> bool:
        """Whether the kernel's table carries the generation of this sum of elements. Raises NftMissing, NftTimeout."""
        if process.find("nft") is None:
            raise AgentError(
                "NftMissing", "cannot read the kernel's table: nft is not installed. Install the package nftables"
            )
        done = process.run(
            ["nft", "list", "set", *TABLE.split(), "generation"], timeout_s=self.timeout_s, reason="NftTimeout"
        )
        return done.returncode == 0 and f"elements = {{ {generation(elements)} }}" in done.stdout

    def _send(self, script: str, timeout_s: float) -> None:
        try:
            self._run(script, timeout_s)
        except NftRefused:
            raise  # nothing happened: what is known stays true
        except AgentError:
            self.sum = None  # a killed nft may have committed or not
            raise


def _parts(elements: Mapping[str, str], links: Iterable[str], size: int = 2000) -> Iterable[str]:
    """A refill as several transactions, the generation last."""
    yield refill_script({}, links) + _element_less_generation()
    items = list(elements.items())
    for count in sorted(_counts(elements)):
        yield "\n".join(_chain_commands(count)) + "\n"
    for start in range(0, len(items), size):
        yield "\n".join(_element_commands("add", dict(items[start : start + size]))) + "\n"
    yield f"add element {TABLE} generation {{ {generation(elements_sum(elements))} }}\n"


def _element_less_generation() -> str:
    return f"delete element {TABLE} generation {{ {generation(0)} }}\n"


def delete_table() -> None:
    """Cleanup only: new connections to Services are no longer translated afterwards."""
    run_nft(f"add table {TABLE}\ndelete table {TABLE}\n", 10.0)
