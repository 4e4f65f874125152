"""What the kernel tells without a tool: a process start each second is what an idle node costs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

_ROUTE, _NETFILTER = 0, 12  # NETLINK_ROUTE, NETLINK_NETFILTER
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_*
_GENERATION_ID = 1  # NFTA_GEN_ID
_GET_ADDRESS, _GET_ROUTE = 22, 26  # RTM_GETADDR, RTM_GETROUTE
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_DESTINATION, _MARK = 1, 16  # RTA_DST, RTA_MARK
_FOR_THIS_HOST = 2  # RTN_LOCAL
_REQUEST, _DUMP, _MULTIPART = 0x1, 0x300, 0x2
_ERROR, _DONE = 2, 3
_HEADER = "=IHHII"


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
            data = kernel.recv(1 << 18)
            while data:
                size, answer, answer_flags = struct.unpack("=IHH", data[:8])
                if answer in (_ERROR, _DONE):
                    return
                yield answer, data[16:size]
                if not answer_flags & _MULTIPART:
                    return
                data = data[(size + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        size, kind = struct.unpack("=HH", data[:4])
        found[kind] = data[4:size]
        data = data[max((size + 3) & ~3, 4) :]
    return found
