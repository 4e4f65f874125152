"""What a node does with the first packet of a connection, by its rendered elements alone: no kernel, no node.

Follows the chains of agents/ruleset.py step by step, so that it can be asked why. What it says is held against real
packets in tests/agents/test_packets.py, and against the rules of Kubernetes in tests/render/test_tracer.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from services_app.render.nftables import DRIVERS, LOCAL_POLICY, SOURCE_RANGES, Resource

GROUP = 0x0FFFFFFF
HASH_SEED = 0x54494D4F  # of chains hash_N
DELIVERED, REFUSED, DROPPED, UNTOUCHED = "delivered", "refused", "dropped", "untouched"


@dataclass(frozen=True)
class Packet:
    """protocol: "tcp", "udp" or "sctp". turns_back: it would leave the node by the link it came in by."""

    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    turns_back: bool = False


@dataclass(frozen=True, order=True)
class Target:
    """Where a connection may go. sees_client: the endpoint sees the client's own address, not the node's."""

    address: str
    port: int
    sees_client: bool


@dataclass(frozen=True)
class Outcome:
    """action: DELIVERED to one of the targets, each as likely as the others (one of a greater weight stands there more
    often; by the client's address there is one); REFUSED, the client is told at once; DROPPED, nobody answers;
    UNTOUCHED, the packet is none of a Service's. affinity_s: how long a client keeps its
    target, None for no longer than the connection. steps: the way there, in words.
    """

    action: str
    targets: tuple[Target, ...] = ()
    affinity_s: int | None = None
    steps: tuple[str, ...] = field(default=(), compare=False)


class NodeTables:
    """What one node holds. addresses: the node's own."""

    def __init__(self, resources: Iterable[Resource], addresses: Iterable[str]) -> None:
        self._elements: dict[str, dict[str, str]] = {driver: {} for driver in DRIVERS.values()}
        for driver, key, value in resources:
            if driver in self._elements:
                self._elements[driver][key] = value
        self._addresses = {ip_address(text) for text in addresses}

    def trace(self, packet: Packet) -> Outcome:
        """What becomes of a packet that reaches this node, or is sent by a process on it."""
        version = ip_address(packet.destination).version
        return _Trace(self._elements[DRIVERS[version]], self._addresses, packet).run()


class _Trace:
    def __init__(self, elements: Mapping[str, str], addresses: set[IPv4Address | IPv6Address], packet: Packet) -> None:
        self._elements, self._packet, self._steps = elements, packet, list[str]()
        self._own = addresses
        self._source, self._destination = ip_address(packet.source), ip_address(packet.destination)
        self._is_from_here, self._is_to_here = self._source in addresses, self._destination in addresses

    def run(self) -> Outcome:
        """Chain services."""
        packet = self._packet
        port = f"{packet.protocol} . {packet.port}"
        mark = self._find(f"frontends {self._destination} . {port}")
        if mark is None and self._has_node_ports():
            mark = self._find(f"nodeports {port}")
        if mark is not None:
            return self._dispatch(int(mark, 16))
        if self._find(f"cluster_ips {self._destination}") is not None:
            return self._end(REFUSED)
        self._say("no element of frontends, nodeports or cluster_ips")
        return self._end(UNTOUCHED)

    def _has_node_ports(self) -> bool:
        closed = self._is_in("without_node_ports ", self._destination)
        return self._is_to_here and not _is_loopback(self._destination) and not closed

    def _dispatch(self, mark: int) -> Outcome:
        """Chains dispatch and flagged."""
        if mark & SOURCE_RANGES and not self._is_in(f"source_ranges 0x{mark:08x} . ", self._source):
            self._say(f"{self._source} is in none of its source ranges")
            return self._end(DROPPED)
        if mark & LOCAL_POLICY and (self._is_from_here or self._is_in("pod_cidrs ", self._source)):
            self._say(f"{self._source} is not outside")
            found = self._find(f"to_cluster 0x{mark:08x}")
            mark = int(found, 16) if found is not None else mark
        group = f"0x{mark & GROUP:08x}"
        verdict = self._find(f"groups {group}")
        if verdict is None or verdict == "drop":
            return self._end(DROPPED)
        if verdict == "goto refuse":
            return self._end(REFUSED)
        return self._balance(group, verdict.removeprefix("goto ").split("_"))

    def _balance(self, group: str, chain: list[str]) -> Outcome:
        """Chains lb_N, hash_N and aff_T_N."""
        affinity_s = int(chain[1]) if chain[0] == "aff" else None
        targets = []
        count = int(chain[-1])
        indices: Iterable[int] = range(count)
        if chain[0] == "hash":
            indices = (jhash(self._source.packed, HASH_SEED) * count >> 32,)
            self._say(f"{self._source} has slot {indices[0]} of {count}")
        for index in indices:
            slot = self._elements.get(f"pick {group} . {index}") if affinity_s is not None else str(index)
            endpoint = self._elements.get(f"slots {group} . {slot}")
            if endpoint is None:
                self._say(f"no slot {slot} in group {group}")
                return self._end(DROPPED)
            address, port = endpoint.split(" . ")
            targets.append(Target(address, int(port), self._sees_client(address)))
        self._say(f"one of {len({*targets})} endpoints of group {group}")
        return Outcome(DELIVERED, tuple(sorted(targets)), affinity_s, tuple(self._steps))

    def _sees_client(self, address: str) -> bool:
        """Chain postrouting."""
        if self._is_from_here:
            return True
        if self._is_in("masquerade_all ", self._destination) and ip_address(address) not in self._own:
            return False
        if ip_address(address) == self._source or self._packet.turns_back:
            return False
        return f"local_endpoints {address}" in self._elements

    def _is_in(self, prefix: str, address: IPv4Address | IPv6Address) -> bool:
        networks = [ip_network(key.removeprefix(prefix)) for key in self._elements if key.startswith(prefix)]
        return any(address in network for network in networks)

    def _find(self, key: str) -> str | None:
        value = self._elements.get(key)
        if value is not None:
            self._say(f"{key}{' -> ' if value else ''}{value}")
        return value

    def _say(self, step: str) -> None:
        self._steps.append(step)

    def _end(self, action: str) -> Outcome:
        return Outcome(action, steps=tuple(self._steps))


def _is_loopback(address: IPv4Address | IPv6Address) -> bool:
    """Own addresses that have no node ports; see `node_port_address` in agents/ruleset.py."""
    return address.is_loopback or (address.version == 6 and address.is_link_local)


def jhash(key: bytes, seed: int) -> int:
    """The kernel's hash of an address, as nftables' jhash computes it (Jenkins' lookup3; Linux include/linux/jhash.h)."""
    words = [int.from_bytes(key[at : at + 4], "little") for at in range(0, len(key), 4)]
    state = [(0xDEADBEEF + len(key) + seed) & 0xFFFFFFFF] * 3
    while len(words) > 3:
        state = [(old + word) & 0xFFFFFFFF for old, word in zip(state, words, strict=False)]
        words = words[3:]
        a, b, c = state
        for turn in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & 0xFFFFFFFF) ^ _turned(c, turn)
            c = (c + b) & 0xFFFFFFFF
            a, b, c = b, c, a  # each round has them in other places
        state = [a, b, c]
    a, b, c = ((old + word) & 0xFFFFFFFF for old, word in zip(state, [*words, 0, 0, 0], strict=False))
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _turned(b, turn)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF
