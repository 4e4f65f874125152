"""Knot's control socket: the few commands the agent needs, spoken without starting a process for each.

A unit is a type byte; units with data go on with items, each a code byte, a length of two bytes and the text.
Source: Knot DNS, src/libknot/control/control.c and src/knot/ctl/process.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

from agents.errors import AgentError

Item = dict[str, str]

_END, _DATA, _EXTRA, _BLOCK = range(4)
_FIRST_ITEM = 16
_ITEMS = ("cmd", "flags", "error", "section", "item", "id", "zone", "owner", "ttl", "type", "data", "filters")
_AT_ONCE = 500  # commands sent before their answers are read


class Control:
    """A connection to a running knotd; a context manager. Every failure is an AgentError DnsFailed."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._buffer, self._at = b"", 0  # what was read, and how much of it was taken
        try:
            self._socket.connect(path)
        except OSError as err:
            self._socket.close()
            raise AgentError("DnsFailed", f"cannot reach knotd at {path}: {err.strerror or err}") from err

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._socket.sendall(bytes([_END]))
        except OSError:
            pass
        self._socket.close()

    def ask(self, command: str, **items: str) -> list[Item]:
        """The answer to one command. Raises AgentError with Knot's words."""
        return self.ask_all([{"cmd": command, **items}])

    def ask_all(self, commands: Iterable[Item]) -> list[Item]:
        """The answers to commands in their order; those after a failed one are done all the same."""
        found: list[Item] = []
        waiting: list[Item] = []
        for command in commands:
            # Units before a block are taken for the first one's command, whatever they say themselves.
            if waiting and (command["cmd"] != waiting[0]["cmd"] or len(waiting) == _AT_ONCE):
                found += self._exchange(waiting)
                waiting = []
            waiting.append(command)
        return found + (self._exchange(waiting) if waiting else [])

    def _exchange(self, commands: list[Item]) -> list[Item]:
        message = b"".join(_unit(command) for command in commands) + bytes([_BLOCK])
        try:
            self._socket.sendall(message)
            answers = list(self._units())
        except (OSError, ValueError, IndexError) as err:
            raise AgentError("DnsFailed", f"the connection to knotd broke: {err}") from err
        for answer in answers:
            if answer.get("error"):
                about = " ".join(answer[key] for key in ("zone", "owner", "type", "data") if key in answer)
                raise AgentError("DnsFailed", f"knotd refuses {answer.get('cmd', '')} {about}: {answer['error']}")
        return answers

    def _units(self) -> Iterator[Item]:
        """The units of an answer up to its end; parts that an extra unit leaves out are those of the unit before."""
        unit: Item = {}
        kind = _BLOCK
        while True:
            code = self._take(1)[0]
            if code >= _FIRST_ITEM:
                (size,) = struct.unpack(">H", self._take(2))
                unit[_ITEMS[code - _FIRST_ITEM]] = self._take(size).decode(errors="replace")
                continue
            if kind in (_DATA, _EXTRA):
                yield unit
            if code in (_BLOCK, _END):
                return
            unit = dict(unit) if code == _EXTRA else {}
            kind = code

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < self._at + size:
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError("knotd closed it")
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        self._at += size
        return self._buffer[self._at - size : self._at]


def _unit(items: Item) -> bytes:
    parts = [bytes([_DATA])]
    for number, name in enumerate(_ITEMS):
        if name in items:
            text = items[name].encode()
            parts.append(bytes([_FIRST_ITEM + number]) + struct.pack(">H", len(text)) + text)
    return b"".join(parts)
