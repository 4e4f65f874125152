"""Files that others read while they are written: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from agents.errors import AgentError


def replace(path: Path, text: str) -> bool:
    """Whether the file had another text, or was not there; it has this one now, and everybody may read it.

    Raises AgentError DiskFull; the file is as before then.
    """
    try:
        if path.read_text() == text:
            return False
    except OSError:
        pass
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        new.chmod(0o644)
        os.replace(new, path)
    except OSError as err:
        raise AgentError("DiskFull", f"cannot write {path}: {err.strerror}") from err
    return True
