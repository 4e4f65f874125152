"""The outermost ASGI application: watches go to the event loop, API requests to a thread, all else to Django.

Django's own ASGI handler would run each of its middlewares in a thread of its own, one after the other: some twenty
changes of thread a request, more work than the request itself. Here the whole of an API request is one.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from django.conf import settings
from django.core import signals
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.db import connections
from django.http import HttpResponse
from django.urls import set_script_prefix
from django.utils.cache import patch_vary_headers

from services_app.api import compression, paths, warning_headers, watch
from services_app.api.views import MAX_BODY_BYTES, error_response
from services_app.spec import options
from services_app.spec.errors import RequestTooLarge

_django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    is_api = scope["type"] == "http" and scope["path"].startswith(("/api/", "/apis/"))
    if is_api and scope["method"] == "GET":
        target = paths.parse(scope["path"])
        if target is not None and _is_watched(target, scope):
            await watch.serve(scope, receive, send, target)
            return
    if is_api:
        await _requests.serve(scope, receive, send)
    elif scope["type"] == "http":
        await _django(scope, receive, send)
    elif scope["type"] == "websocket":
        await _refuse_socket(scope, receive, send)


async def _refuse_socket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer a wish for a WebSocket as the same request without one: no path here becomes one, and clients are told why."""
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1000})
        return
    request = {**scope, "type": "http", "method": "GET", "scheme": scope["scheme"].replace("ws", "http")}

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def denied(message: dict[str, Any]) -> None:
        await send({**message, "type": message["type"].replace("http.", "websocket.http.", 1)})

    await application(request, nothing, denied)


def _is_watched(target: paths.Target, scope: dict[str, Any]) -> bool:
    if target.subresource or "watch" not in target.kind.verbs:
        return False
    return target.watch or (not target.name and _asks(scope))


def _asks(scope: dict[str, Any]) -> bool:
    query = scope["query_string"]
    if b"watch" not in query:
        return False
    return options.flag(parse_qs(query.decode("utf-8", "replace"), keep_blank_values=True), "watch")


class _Requests(BaseHandler):
    """Django's middlewares and views, all of a request in one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.load_middleware()
        self._threads = ThreadPoolExecutor(settings.DATABASE_POOL_SIZE, thread_name_prefix="api")

    async def serve(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await _read(receive)
        if body is None:
            return  # the client is gone
        response, content = await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, scope, body)
        response["Content-Length"] = str(len(content))  # or it would be sent in chunks, which HTTP/1.0 does not know
        lines: list[str] = getattr(response, "warning_lines", [])
        headers = [
            (name.encode("ascii"), value.encode("latin1"))
            for name, value in response.items()
            if not (lines and name == "Warning")
        ]
        headers += [(b"Warning", line.encode()) for line in warning_headers.packed(lines)]
        headers += [(b"Set-Cookie", cookie.output(header="").strip().encode()) for cookie in response.cookies.values()]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, scope: dict[str, Any], body: bytes) -> tuple[HttpResponse, bytes]:
        """The response and its content, everything released that the request took."""
        set_script_prefix(scope.get("root_path", ""))
        signals.request_started.send(sender=self.__class__, scope=scope)
        if len(body) > MAX_BODY_BYTES:
            response = error_response(RequestTooLarge(f"Request entity too large: limit is {MAX_BODY_BYTES}"))
        else:
            response = self.get_response(ASGIRequest(scope, BytesIO(body)))  # type: ignore[assignment]
        try:
            return response, _content(response, scope)
        finally:
            response.close()
            connections.close_all()  # back to the pool: this thread may rest for long


def _content(response: HttpResponse, scope: dict[str, Any]) -> bytes:
    """What is sent of a response, compressed where the client asks for it."""
    content: bytes = response.content
    if scope["method"] != "GET" or len(content) <= compression.THRESHOLD_BYTES:
        return content
    asked = b", ".join(value for name, value in scope["headers"] if name == b"accept-encoding")
    packed = compression.compress(content, asked.decode("latin1"))
    if packed is None:
        return content
    response["Content-Encoding"] = "gzip"
    patch_vary_headers(response, ["Accept-Encoding"])
    return packed


async def _read(receive: Any) -> bytes | None:
    """The request's body, cut off just above the limit; None when the client left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if size <= MAX_BODY_BYTES:
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if not message.get("more_body"):
            return b"".join(parts)


_requests = _Requests()
