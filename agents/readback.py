"""What tables in the kernel hold, read back as the elements that made them: what somebody changed by hand is found so.

Spelled as resources are (see docs/data-plane.md), sets that planes add as nft spells them. The kernel's own form is read, not
nft's words: it is the same for every version, and a sixth of the work.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv6Address

from agents import netlink
from agents.netlink import SetElement
from agents.ruleset import sum_of

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def _address(data: bytes) -> str:
    if len(data) == 4:
        return socket.inet_ntop(socket.AF_INET, data)
    text = socket.inet_ntop(socket.AF_INET6, data)
    return str(IPv6Address(data)) if "." in text else text


def _mark(data: bytes) -> str:
    return f"0x{int.from_bytes(data, sys.byteorder):08x}"


def _number(data: bytes) -> str:
    return str(int.from_bytes(data, sys.byteorder))


def _port(data: bytes) -> str:
    return str(int.from_bytes(data[:2], "big"))


def _protocol(data: bytes) -> str:
    return _PROTOCOLS.get(data[0], str(data[0])) if data else ""


def _interface(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _digest(data: bytes) -> str:
    return str(IPv6Address(data))


_Field = Callable[[bytes], str]
_SIZES = dict[_Field, int]({_mark: 4, _number: 4, _port: 4, _protocol: 4, _interface: 16, _digest: 16})
_FRONTEND = (_address, _protocol, _port)
# Container -> the fields of a key, and of its value.
_FORMS: dict[str, tuple[tuple[_Field, ...], tuple[_Field, ...]]] = {
    "frontends": (_FRONTEND, (_mark,)),
    "served": (_FRONTEND, ()),
    "nodeports": ((_protocol, _port), (_mark,)),
    "groups": ((_mark,), ()),
    "slots": ((_mark, _number), (_address, _port)),
    "pick": ((_mark, _number), (_number,)),
    "to_cluster": ((_mark,), (_mark,)),
    "listeners": ((_mark,), (_port,)),
    "cluster_ips": ((_address,), ()),
    "local_endpoints": ((_address,), ()),
    "hairpin": ((_address, _address), ()),
    "same_link": ((_interface, _interface), ()),
    "guarded": ((_protocol, _port), ()),
    "peer": ((_port,), ()),
    "generation": ((_digest,), ()),
}
_NETWORKS = ("pod_cidrs", "without_node_ports", "masquerade_all")


def elements(ip: str, table: str, container: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each element of a set or map; none of one that is not there. Raises OSError."""
    held = netlink.set_elements(ip, table, container)
    if container in _NETWORKS:
        for network in _networks(held, 4 if ip == "ip" else 16):
            yield f"{container} {network}", ""
    elif container == "source_ranges":
        for element in held:
            # Where there are ranges, nft has the mark in the order of the network too.
            mark, first, last = element.key[:4], element.key[4:], (element.last or element.key)[4:]
            yield (
                f"{container} 0x{mark.hex()} . {_network(int.from_bytes(first), int.from_bytes(last), len(first))}",
                "",
            )
    else:
        keys, values = (_joined(fields, 4 if ip == "ip" else 16) for fields in _FORMS[container])
        for element in held:
            value = element.data if isinstance(element.data, str) else values(element.data)
            yield f"{container} {keys(element.key)}", value


def elements_sum(ip: str, table: str, container: str) -> int:
    """The number that `ruleset.elements_sum` makes of elements that are like these. Raises OSError."""
    return sum_of(elements(ip, table, container))


def chains(ip: str, table: str) -> dict[str, tuple[int, bytes]]:
    """Chain -> how many rules it has, and a sum over all it says, the same until somebody writes it. Raises OSError."""
    rules = netlink.table_rules(ip, table)
    return {
        name: (len(rules.get(name, ())), hashlib.sha256(b"\0".join([facts, *rules.get(name, ())])).digest())
        for name, facts in netlink.table_chains(ip, table).items()
    }


def _joined(fields: tuple[_Field, ...], address_size: int) -> Callable[[bytes], str]:
    """What reads fields that stand one after the other; an address is as long as its family has it."""
    spans, at = [], 0
    for text in fields:
        end = at + _SIZES.get(text, address_size)
        spans.append((text, at, end))
        at = end
    return lambda data: " . ".join([text(data[start:end]) for text, start, end in spans])


def _networks(held: Iterable[SetElement], size: int) -> list[str]:
    """Of single addresses the kernel keeps where intervals begin, and, marked, what comes first after each."""
    starts: list[int] = []
    others: list[int] = []
    for element in held:
        (others if element.is_end else starts).append(int.from_bytes(element.key, "big"))
    starts.sort()
    borders, found, at = sorted({*starts, *others, 1 << 8 * size}), [], 0
    for start in starts:
        while borders[at] <= start:
            at += 1
        found.append(_network(start, borders[at] - 1, size))
    return found


def _network(first: int, last: int, size: int) -> str:
    """As a CIDR, or what is none as a range."""
    bits = (last - first).bit_length()
    start = _address(first.to_bytes(size, "big"))
    if last - first + 1 == 1 << bits and not first & (last - first):
        return f"{start}/{8 * size - bits}"
    return f"{start}-{_address(last.to_bytes(size, 'big'))}"
