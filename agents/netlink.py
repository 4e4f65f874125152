"""What the kernel tells without a tool: a process start each second is what an idle node costs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple

_ROUTE, _NETFILTER = 0, 12  # NETLINK_ROUTE, NETLINK_NETFILTER
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES; what follows is NFT_MSG_*
_GET_CHAIN, _GET_RULE, _GET_ELEMENT = _NFTABLES | 4, _NFTABLES | 7, _NFTABLES | 13
_NEW_GENERATION, _GET_GENERATION = _NFTABLES | 15, _NFTABLES | 16
_GENERATION_ID = 1  # NFTA_GEN_ID
_CHAIN_TABLE, _CHAIN_NAME = 1, 3  # NFTA_CHAIN_*
_CHAIN_FACTS = (4, 5, 7)  # HOOK, POLICY, TYPE
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4  # NFTA_RULE_*
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10  # NFTA_SET_ELEM_*
_VALUE = 1  # NFTA_DATA_VALUE; the other is NFTA_DATA_VERDICT
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2  # NFTA_VERDICT_*
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}  # NF_* and NFT_*
_IS_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_FAMILIES = {"ip": 2, "ip6": 10}  # NFPROTO_*
_KIND = 0x3FFF  # of an attribute, without NLA_F_NESTED
_GET_ADDRESS, _GET_ROUTE = 22, 26  # RTM_GETADDR, RTM_GETROUTE
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_DESTINATION, _MARK = 1, 16  # RTA_DST, RTA_MARK
_FOR_THIS_HOST = 2  # RTN_LOCAL
_REQUEST, _DUMP, _MULTIPART = 0x1, 0x300, 0x2
_ERROR, _DONE = 2, 3
_HEADER = "=IHHII"
_ATTRIBUTE = struct.Struct("=HH").unpack_from


def ruleset_generation() -> int | None:
    """A number that is another one after every commit of nftables in this network namespace, whoever made it.

    None: not told. Source: linux/netfilter/nf_tables.h, NFT_MSG_GETGEN, since 3.18.
    """
    try:
        return next((_generation(*answer) for answer in _ask(_NETFILTER, _GET_GENERATION, 0, bytes(4))), None)
    except OSError:
        return None


def _generation(kind: int, body: bytes) -> int | None:
    number = _attributes(body[4:]).get(_GENERATION_ID, b"") if kind == _NEW_GENERATION else b""
    return int.from_bytes(number, "big") if len(number) == 4 else None


class SetElement(NamedTuple):
    """An element of a set or map. key: each field padded to four bytes; last: where a range ends, else empty.

    data: a map's value, or the verdict as nft spells it. is_end: the first key after an interval, nothing else.
    """

    key: bytes
    last: bytes
    data: bytes | str
    is_end: bool


def set_elements(ip: str, table: str, name: str) -> Iterator[SetElement]:
    """The elements of a set or map, in no order; none of one that is not there. ip: "ip" or "ip6". Raises OSError."""
    wanted = _text(_LIST_TABLE, table) + _text(_LIST_SET, name)
    for _, body in _ask(_NETFILTER, _GET_ELEMENT, _DUMP, _nfgenmsg(ip) + wanted):
        for _, element in _each(_attributes(body[4:]).get(_LIST_ELEMENTS, b"")):
            parts = _attributes(element)
            is_end = bool(parts[_FLAGS][-1] & _IS_INTERVAL_END) if _FLAGS in parts else False
            data = _data(parts[_DATA]) if _DATA in parts else b""
            yield SetElement(_data(parts[_KEY]), _data(parts[_KEY_END]) if _KEY_END in parts else b"", data, is_end)


def _data(nested: bytes) -> Any:
    """The one value in it, or the verdict."""
    size, kind = _ATTRIBUTE(nested)
    return nested[4:size] if kind & _KIND == _VALUE else _verdict(nested[4:size])


def _verdict(data: bytes) -> str:
    parts = _attributes(data)
    code = int.from_bytes(parts.get(_VERDICT_CODE, b""), "big", signed=True)
    chain = parts.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode()
    return f"{_VERDICTS.get(code, code)} {chain}".rstrip()


def table_chains(ip: str, table: str) -> dict[str, bytes]:
    """Chain -> its hook, type and policy in a form to be compared; none of a table that is not there. Raises OSError."""
    found = {}
    for _, body in _ask(_NETFILTER, _GET_CHAIN, _DUMP, _nfgenmsg(ip)):
        parts = _attributes(body[4:])
        if parts.get(_CHAIN_TABLE, b"").rstrip(b"\0") == table.encode():
            name = parts.get(_CHAIN_NAME, b"").rstrip(b"\0").decode()
            found[name] = b"".join(parts.get(kind, b"") for kind in _CHAIN_FACTS)
    return found


def table_rules(ip: str, table: str) -> dict[str, list[bytes]]:
    """Chain -> its rules, each in a form to be compared with itself as long as nobody writes it anew. Raises OSError."""
    found: dict[str, list[bytes]] = {}
    for _, body in _ask(_NETFILTER, _GET_RULE, _DUMP, _nfgenmsg(ip) + _text(_RULE_TABLE, table)):
        parts = _attributes(body[4:])
        if parts.get(_RULE_TABLE, b"").rstrip(b"\0") == table.encode():
            name = parts.get(_RULE_CHAIN, b"").rstrip(b"\0").decode()
            found.setdefault(name, []).append(parts.get(_RULE_EXPRESSIONS, b""))
    return found


def _nfgenmsg(ip: str) -> bytes:
    return struct.pack("=BBH", _FAMILIES[ip], 0, 0)


def _text(kind: int, text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def own_addresses() -> dict[int, frozenset[str]]:
    """IP version -> the host's addresses, without loopback and link-local ones. Raises OSError."""
    found: dict[int, set[str]] = {4: set(), 6: set()}
    for _, body in _ask(_ROUTE, _GET_ADDRESS, _DUMP, bytes(8)):
        attributes = _attributes(body[8:])
        raw = attributes.get(_LOCAL) or attributes.get(
            _ADDRESS
        )  # its own, if that is another than the one it points to
        if raw and len(raw) in (4, 16):
            address = ip_address(raw)
            if not address.is_loopback and not (address.version == 6 and address.is_link_local):
                found[address.version].add(str(address))
    return {version: frozenset(addresses) for version, addresses in found.items()}


def is_for_this_host(address: str, mark: int) -> bool:
    """Whether the kernel would deliver a packet to an address that carries a mark here. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    body = struct.pack("=BBBBBBBBI", family, len(raw) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += struct.pack("=HH", 4 + len(raw), _DESTINATION) + raw + struct.pack("=HHI", 8, _MARK, mark)
    return any(found[7] == _FOR_THIS_HOST for _, found in _ask(_ROUTE, _GET_ROUTE, 0, body))


def _ask(protocol: int, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, body) of each message the kernel answers with; none where it refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as kernel:
        kernel.settimeout(10)
        kernel.sendto(struct.pack(_HEADER, 16 + len(body), kind, _REQUEST | flags, 1, 0) + body, (0, 0))
        while True:
            data, at = kernel.recv(1 << 18), 0
            while at < len(data):
                size, answer, answer_flags = struct.unpack_from("=IHH", data, at)
                if answer in (_ERROR, _DONE):
                    return
                yield answer, data[at + 16 : at + size]
                if not answer_flags & _MULTIPART:
                    return
                at += (size + 3) & ~3


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute."""
    at, end = 0, len(data)
    while end - at >= 4:
        size, kind = _ATTRIBUTE(data, at)
        yield kind & _KIND, data[at + 4 : at + size]
        at += max((size + 3) & ~3, 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_each(data))
