"""Servers that outlive the agent: started apart from it, found again by their pid file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from agents import process
from agents.errors import AgentError


class Daemon:
    """A server that puts itself into the background and writes a pid file."""

    def __init__(self, command: Sequence[str], pid_file: Path, log: Path, part: str = "Dns") -> None:
        """command: makes the server and ends once it runs. part: what failures are called, DnsMissing and DnsFailed."""
        self.command, self.pid_file, self.log = list(command), pid_file, log
        self.name = command[0]
        self._missing, self._failed = f"{part}Missing", f"{part}Failed"

    @property
    def pid(self) -> int | None:
        """The running server's, None when it does not run."""
        try:
            number = int(self.pid_file.read_text().strip() or 0)
            name = Path(f"/proc/{number}/comm").read_text().strip()
            # Of one that has ended and nobody has waited for, nothing is left but its name.
            is_alive = bool(Path(f"/proc/{number}/cmdline").read_bytes())
        except (OSError, ValueError):
            return None
        # The pid may be somebody else's by now.
        return number if name == self.name and is_alive else None

    def start(self, timeout_s: float = 10.0) -> None:
        """Start it unless it runs. Raises AgentError DnsMissing, DnsFailed."""
        if self.pid is None:
            self.replace(timeout_s=timeout_s)

    def replace(self, *options: str, timeout_s: float = 10.0) -> None:
        """Start another beside the one that runs, if any; options: how it takes over from that. Raises as `start`."""
        path = process.find(self.name)
        if path is None:
            raise AgentError(self._missing, f"cannot run {self.name}: it is not installed. Install its package")
        before = self.pid
        if before is None:
            self.pid_file.unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            started = subprocess.Popen(
                [path, *self.command[1:], *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
            try:
                code = started.wait(timeout_s)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
                raise AgentError(self._failed, f"{self.name} does not start within {timeout_s:g} s") from None
        if code:
            raise AgentError(self._failed, f"{self.name} does not start (exit code {code}): {self._last_words()}")
        deadline = time.monotonic() + timeout_s
        while self.pid in (None, before):
            if time.monotonic() > deadline:
                raise AgentError(self._failed, f"{self.name} ended right after its start: {self._last_words()}")
            time.sleep(0.01)

    def reload(self) -> None:
        """Have it read its set-up again, as servers do on SIGHUP; nothing when it does not run."""
        if (number := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGHUP)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it, kindly and then not; returns when it is gone."""
        number = self.pid
        deadline = time.monotonic() + timeout_s
        while number is not None and self.pid == number:
            try:
                os.kill(number, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            except ProcessLookupError:
                return
            time.sleep(0.02)

    def _last_words(self) -> str:
        try:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return "no log"
        return lines[-1][:300] if lines else "nothing in its log"
