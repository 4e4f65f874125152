"""Running the tools of the host: always with a time limit, never through a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import BinaryIO

from agents.errors import AgentError

SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_found: dict[str, str] = {}


def find(tool: str) -> str | None:
    """The tool's path, None when the host has none."""
    path = _found.get(tool)
    if path is None or not os.access(path, os.X_OK):
        path = shutil.which(tool, path=SEARCH_PATH)
        if path is None:
            return None
        _found[tool] = path
    return path


def run(
    command: Sequence[str], *, text: str = "", timeout_s: float = 10.0, reason: str = "ToolFailed"
) -> subprocess.CompletedProcess[str]:
    """The finished process, whatever its exit code.

    Raises AgentError ToolMissing when there is no such tool, and with `reason` when it takes longer than
    timeout_s (it is killed).
    """
    path = find(command[0])
    if path is None:
        raise AgentError("ToolMissing", f"cannot run {command[0]!r}: not installed")
    try:
        with _input(text) as source:
            return subprocess.run(
                [path, *command[1:]], stdin=source, capture_output=True, text=True, timeout=timeout_s, check=False
            )
    except subprocess.TimeoutExpired as err:
        raise AgentError(reason, f"cannot run {command[0]!r}: no end after {timeout_s:g} s") from err
    except OSError as err:
        raise AgentError(reason, f"cannot run {command[0]!r}: {err.strerror}") from err


def _input(text: str) -> BinaryIO:
    """A text as a file in memory: a tool reads it at once, and does not wait for this process to write more into a pipe."""
    file = os.fdopen(os.memfd_create("input"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


def give_memory_back() -> None:
    """Return what is free to the system: after a big push glibc keeps a fifth of all that it ever gave out."""
    try:
        import ctypes  # missing in some small builds of Python

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        return


def first_line(text: str, limit: int = 300) -> str:
    """The first line that says something, cut short: whole rulesets never go to a log."""
    return next((line.strip()[:limit] for line in text.splitlines() if line.strip()), "no message")
