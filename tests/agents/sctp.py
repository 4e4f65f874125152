"""SCTP for tests. Without an SCTP stack: `send ADDRESS PORT` a raw INIT, `see ADDRESS` until one arrives there. With one:
`serve OWN PORT NAME` answers every association with its name, `ask OWN ADDRESS PORT` prints who answers.

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


def stream(own: str, port: int = 0) -> socket.socket:
    """Of one association or a listener, bound to one address: others would be offered to the other side."""
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, SCTP)
    found.settimeout(20)
    found.bind((own, port))
    return found


if sys.argv[1] == "serve":
    with stream(sys.argv[2], int(sys.argv[3])) as listener:
        listener.listen()
        listener.settimeout(None)
        print("ready", flush=True)
        while True:
            association, client = listener.accept()
            with association:
                association.sendall(json.dumps({"backend": sys.argv[4], "client": client[0]}).encode())
elif sys.argv[1] == "ask":
    with stream(sys.argv[2]) as asking:
        asking.connect((sys.argv[3], int(sys.argv[4])))
        print(asking.recv(4096).decode())
elif sys.argv[1] == "send":
    with raw(sys.argv[2]) as sender:
        sender.sendto(init(4711, int(sys.argv[3])), (sys.argv[2], 0))
elif sys.argv[1] == "see":
    with raw(sys.argv[2]) as seer:
        seer.bind((sys.argv[2], 0))
        print("ready", flush=True)
        packet, client = seer.recvfrom(2048)
        body = packet if ":" in sys.argv[2] else packet[(packet[0] & 15) * 4 :]
        print(json.dumps({"from": client[0], "port": struct.unpack_from("!H", body, 2)[0]}), flush=True)
