"""Style sheets, scripts and icons, served by the pages' own process: read and compressed once, then from memory."""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from django.contrib.staticfiles import finders
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_safe

COMPRESSED = (".css", ".js", ".svg", ".txt")
CACHE_CONTROL = (
    "public, max-age=60, stale-while-revalidate=86400"  # names carry no hash: a new version must get through
)


@dataclass(frozen=True)
class _Asset:
    content: bytes
    compressed: bytes  # gzip; empty where it would not be smaller
    type: str
    etag: str


# Keyed by the file's time as well, so that an edit shows without a restart.
@lru_cache(maxsize=512)
def _read(path: Path, modified_ns: int) -> _Asset:
    content = path.read_bytes()
    kind, _ = mimetypes.guess_type(path.name)
    return _Asset(
        content=content,
        compressed=gzip.compress(content, mtime=0) if path.suffix in COMPRESSED else b"",
        type=kind or "application/octet-stream",
        etag=f'"{hashlib.sha256(content).hexdigest()[:20]}"',
    )


@require_safe
def asset(request: HttpRequest, path: str) -> HttpResponse:
    """One file of the installed apps' static directories, or 404; 304 when the browser holds it."""
    found = finders.find(path)
    if not isinstance(found, str) or not Path(found).is_file():
        raise Http404("There is no such file.")
    file = Path(found)
    held = _read(file, file.stat().st_mtime_ns)
    headers = {"Cache-Control": CACHE_CONTROL, "ETag": held.etag, "Vary": "Accept-Encoding"}
    packed = bool(held.compressed) and "gzip" in request.headers.get("Accept-Encoding", "")
    if packed:
        headers["Content-Encoding"] = "gzip"
        headers["ETag"] = f"W/{held.etag}"
    response = HttpResponse(held.compressed if packed else held.content, content_type=held.type, headers=headers)
    return get_conditional_response(request, etag=headers["ETag"], response=response) or response
