"""One agent at a time changes a node. A newer one takes over: the older belongs to a connection that nobody reads."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from agents.errors import AgentError


class Lock:
    """Held until the process ends."""

    def __init__(self, path: Path, patience_s: float = 3.0) -> None:
        """Take the lock, ending who has it. Raises AgentError Locked."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited > 2 * patience_s:
                    raise AgentError("Locked", f"another agent (pid {self._holder() or '?'}) keeps {path}") from None
                self._end_holder(signal.SIGTERM if waited < patience_s else signal.SIGKILL)
                time.sleep(0.02)
        # Written over in place: that needs no room on a full disk.
        os.pwrite(self._file, f"{os.getpid():<19}\n".encode(), 0)

    def _holder(self) -> int:
        text = os.pread(self._file, 20, 0).strip()
        return int(text) if text.isdigit() else 0

    def _end_holder(self, sign: signal.Signals) -> None:
        holder = self._holder()
        if holder <= 1 or holder == os.getpid():
            return
        try:
            words = Path(f"/proc/{holder}/cmdline").read_bytes()
            # The number may be somebody else's by now. A cleanup or an adoption comes to its end: never torn, waited for.
            if b"agent" in words and b"serve" in words.split(b"\0"):
                os.kill(holder, sign)
        except (OSError, ProcessLookupError):
            return
