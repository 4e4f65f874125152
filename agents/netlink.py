"""What the kernel tells of its nftables rules without a tool: a process start each second is what an idle node costs."""

from __future__ import annotations

import socket
import struct

_NETFILTER = 12  # NETLINK_NETFILTER
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_*
_REQUEST = 1
_GENERATION_ID = 1  # NFTA_GEN_ID
_HEADER = "=IHHII"


def ruleset_generation() -> int | None:
    """A number that is another one after every commit in this network namespace, whoever made it; None: not told.

    Source: linux/netfilter/nf_tables.h, NFT_MSG_GETGEN, since 3.18.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
            kernel.settimeout(1.0)
            kernel.sendto(struct.pack(_HEADER, 20, _GET_GENERATION, _REQUEST, 1, 0) + bytes(4), (0, 0))
            return _read(kernel.recv(4096))
    except OSError:
        return None


def _read(answer: bytes) -> int | None:
    """The number in a message: its header, four bytes, then attributes, each with its length and kind."""
    size, kind = struct.unpack_from("=IH", answer)
    if kind != _NEW_GENERATION:
        return None
    at = 20
    while at + 4 <= min(size, len(answer)):
        length, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _GENERATION_ID and length == 8:
            (number,) = struct.unpack_from(">I", answer, at + 4)
            return int(number)
        at += max((length + 3) & ~3, 4)
    return None
