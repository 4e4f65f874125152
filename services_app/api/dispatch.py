"""The outermost ASGI application: watches go to the event loop, all else to Django."""

from typing import Any
from urllib.parse import parse_qs

from django.core.asgi import get_asgi_application

from services_app.api import paths, watch

_django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(("/api/", "/apis/")):
        target = paths.parse(scope["path"])
        if target is not None and not target.subresource and (target.watch or (not target.name and _asks(scope))):
            await watch.serve(scope, receive, send, target)
            return
    if scope["type"] == "http":
        await _django(scope, receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})


def _asks(scope: dict[str, Any]) -> bool:
    query = scope["query_string"]
    if b"watch" not in query:
        return False
    value = parse_qs(query.decode(), keep_blank_values=True).get("watch", ["false"])[-1]
    return value.lower() in ("1", "t", "true", "")
