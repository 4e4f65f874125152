"""What the node holds, on disk: the last full state and the pushes since, each line with its checksum.

A push is written before it is applied, so that an agent killed in between finds it and goes on. A torn last line is
passed over: the control plane sends again what the node says it lacks.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from agents import messages
from agents.messages import Message
from agents.state import Refusal, State, apply
from agents.version import VERSION


class Journal:
    """One file; at most one process writes it (see agents.lock).

    is_own: all that is in it was judged by this very agent; another one may have taken what this one cannot read.
    """

    def __init__(self, path: Path, least_size: int = 1 << 20) -> None:
        """least_size: in bytes; a shorter file is not rewritten."""
        self.path = path
        self._least_size = least_size
        self._base_size = 0
        self._size = 0
        self.is_own = True

    def load(self) -> State:
        """The state as of the last whole line; an empty one when there is no file. Changes nothing on the disk."""
        state = State()
        whole = 0
        self.is_own = True
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        for line in content.splitlines(keepends=True):
            message = _read(line)
            if message is None:
                break
            whole += len(line)
            self.is_own &= message.get("agent") == VERSION or not message["owners"]
            if "cluster" in message:
                state = State(message["cluster"])
                self._base_size = len(line)
            barred = {owner: Refusal(*why) for owner, why in message.get("barred", {}).items()}
            # At revision 0 is what another control plane pushed, see Node.adopt.
            if message["revision"] or message["owners"]:
                state, _ = apply(state, message["revision"], message["since"], message["owners"], barred)
        # A torn line is cut off by who writes next: who only looks may see another's write half done.
        self._size = whole
        return state

    def append(self, revision: int, since: int | None, owners: Message, barred: dict[str, Refusal]) -> None:
        """Note a push that is about to be applied. Raises OSError; the file is as before then."""
        line = _line({"agent": VERSION, "revision": revision, "since": since, "owners": owners, **_barred(barred)})
        try:
            with open(self.path, "ab") as file:
                if file.tell() != self._size:
                    file.truncate(self._size)
                file.write(line)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, self._size)
            raise
        self._size += len(line)

    @property
    def is_long(self) -> bool:
        """Whether rewriting it is worth while."""
        return self._size > max(self._least_size, 2 * self._base_size)

    def begin(self, cluster: str | None, revision: int, owners: Message, barred: dict[str, Refusal]) -> None:
        """Note a full push that is about to be applied: nothing before it matters. Raises OSError as `append`."""
        self._begin({"agent": VERSION, "cluster": cluster, "revision": revision, "owners": owners, **_barred(barred)})
        self.is_own = True

    def _begin(self, message: Message) -> None:
        line = _line({"since": None, **message})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".new")
        try:
            with open(new, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        self._base_size = self._size = len(line)

    def rewrite(self, state: State) -> None:
        """Replace the file by the state alone, whole or not at all."""
        barred = {owner: why for owner, why in state.refused.items() if owner in state.barred}
        message = {"cluster": state.cluster, "revision": state.revision, "owners": state.resources(), **_barred(barred)}
        self._begin({**message, **({"agent": VERSION} if self.is_own else {})})


def _barred(refusals: dict[str, Refusal]) -> Message:
    """As a message has it; nothing when there are none."""
    return {"barred": {owner: [why.reason, why.message] for owner, why in refusals.items()}} if refusals else {}


def _line(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _read(line: bytes) -> Message | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return messages.read(body.decode())
