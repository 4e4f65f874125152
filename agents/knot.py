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
_CODES = {name: bytes([_FIRST_ITEM + number]) for number, name in enumerate(_ITEMS)}
_DATA_CODE = bytes([_DATA])
_AT_ONCE = 500  # commands sent before the answers to the ones before are read: both must fit a socket's buffers


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
        waiting = 0
        for block in _blocks(commands):
            self._send(block)  # Knot works on it while the next one is made
            waiting += 1
            if waiting == 2:
                found += (answers := self._answers())
                waiting = 1
                if _refusal(answers):
                    break
        for _ in range(waiting):
            found += self._answers()
        if refusal := _refusal(found):
            raise AgentError("DnsFailed", refusal)
        return found

    def _send(self, block: bytes) -> None:
        try:
            self._socket.sendall(block)
        except OSError as err:
            raise AgentError("DnsFailed", f"the connection to knotd broke: {err}") from err

    def _answers(self) -> list[Item]:
        """Those to one block."""
        try:
            return list(self._units())
        except (OSError, ValueError, IndexError) as err:
            raise AgentError("DnsFailed", f"the connection to knotd broke: {err}") from err

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


def _refusal(answers: Iterable[Item]) -> str:
    """Knot's words of the first command that it did not take, "" when it took all."""
    for answer in answers:
        if answer.get("error"):
            about = " ".join(answer[key] for key in ("zone", "owner", "type", "data") if key in answer)
            return f"knotd refuses {answer.get('cmd', '')} {about}: {answer['error']}"
    return ""


def _blocks(commands: Iterable[Item]) -> Iterator[bytes]:
    """The commands as Knot reads them: units before a block are taken for the first one's command, whatever they say themselves."""
    units: list[bytes] = []
    verb = ""
    for command in commands:
        if units and (command["cmd"] != verb or len(units) == _AT_ONCE):
            yield b"".join(units) + bytes([_BLOCK])
            units = []
        verb = command["cmd"]
        units.append(_unit(command))
    if units:
        yield b"".join(units) + bytes([_BLOCK])


def _unit(items: Item) -> bytes:
    parts = [_DATA_CODE]
    for name, text in items.items():
        content = text.encode()
        parts += (_CODES[name], len(content).to_bytes(2, "big"), content)
    return b"".join(parts)
