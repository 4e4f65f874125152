"""A raw SCTP INIT, sent and seen without an SCTP stack: `send ADDRESS PORT`, or `see ADDRESS` until one arrives there.

Standard library only: its text is run inside a place of the lab.
"""

import json
import socket
import struct
import sys

SCTP = 132


def crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def init(source_port: int, port: int) -> bytes:
    """A packet with an INIT chunk (RFC 9260, 3.3.2)."""
    chunk = struct.pack("!BBH", 1, 0, 20) + struct.pack("!IIHHI", 0x1234, 65536, 1, 1, 7)
    head = struct.pack("!HHI", source_port, port, 0)
    return head + struct.pack("<I", crc32c(head + b"\0\0\0\0" + chunk)) + chunk


def raw(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_RAW, SCTP)


if sys.argv[1] == "send":
    with raw(sys.argv[2]) as sender:
        sender.sendto(init(4711, int(sys.argv[3])), (sys.argv[2], 0))
elif sys.argv[1] == "see":
    with raw(sys.argv[2]) as seer:
        seer.bind((sys.argv[2], 0))
        print("ready", flush=True)
        packet, client = seer.recvfrom(2048)
        body = packet if ":" in sys.argv[2] else packet[(packet[0] & 15) * 4 :]
        print(json.dumps({"from": client[0], "port": struct.unpack_from("!H", body, 2)[0]}), flush=True)
