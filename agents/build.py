"""The agent as one file that Python runs: the zipapp that enrolment places on a node. The server's side only.

Beside the sources it holds what this Python compiles them to: a node of the same Python (Debian's) starts it in half the time.
Any other passes over that and compiles the sources itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

_MAIN = b"from agents.__main__ import main\n\nmain()\n"
_VERSION_FILE = "agents/version.py"
_RELEASE = re.compile(r'^VERSION = "([0-9.]+)"$', re.MULTILINE)
_TIME = (2020, 1, 1, 0, 0, 0)  # equal sources make equal files


@dataclass(frozen=True)
class Program:
    """The zipapp's bytes, and its version, with the start of its sources' digest: "0.1.0+1a2b3c4d"."""

    version: str
    content: bytes


def build_zipapp(package: Path = Path(__file__).parent) -> Program:
    """The agent of a package's sources; the program knows its version. Raises ValueError when they say none."""
    sources = _sources(package)
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(name.encode() + b"\0" + content)
    release = _RELEASE.search(sources[_VERSION_FILE].decode())
    if release is None:
        raise ValueError(f"cannot build the agent: {package}/version.py gives no VERSION")
    version = f"{release[1]}+{digest.hexdigest()[:8]}"
    sources[_VERSION_FILE] = f'VERSION = "{version}"\n'.encode()
    file = io.BytesIO()
    file.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        compiled = {f"{name}c": _compiled(name, content) for name, content in sources.items()}
        for name, content in {"__main__.py": _MAIN, **sources, **compiled}.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED)
    return Program(version, file.getvalue())


def _compiled(name: str, content: bytes) -> bytes:
    """A .pyc file that holds whatever its source's time is (PEP 552: by a hash that nobody asks for)."""
    flags = (1).to_bytes(4, "little")
    code = marshal.dumps(compile(content, name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(content) + code


def _sources(package: Path) -> dict[str, bytes]:
    return {f"agents/{path.name}": path.read_bytes() for path in sorted(package.glob("*.py"))}
