"""The agent as one file that Python runs: the zipapp that enrolment places on a node. The server's side only."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from agents.version import VERSION

_MAIN = b"from agents.__main__ import main\n\nmain()\n"
_TIME = (2020, 1, 1, 0, 0, 0)  # equal sources make equal files


def build_zipapp(path: Path) -> str:
    """Write the zipapp; its version, with the start of its digest: "0.1.0+1a2b3c4d"."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in [("__main__.py", _MAIN), *_sources(package)]:
                digest.update(name.encode() + b"\0" + content)
                archive.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED)
    path.chmod(0o755)
    return f"{VERSION}+{digest.hexdigest()[:8]}"


def _sources(package: Path) -> list[tuple[str, bytes]]:
    return [(f"agents/{path.name}", path.read_bytes()) for path in sorted(package.glob("*.py"))]
