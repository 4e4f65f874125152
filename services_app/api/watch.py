"""Watches: the present state when asked for, then every change in commit order, none lost and none twice.

Runs on the event loop outside Django's request handling, so that a thousand idle watches cost memory only.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from services_app import changes, store
from services_app.api import auth, feed, media
from services_app.api.paths import Target
from services_app.models import Change
from services_app.spec import tables
from services_app.spec.errors import ApiError, BadRequest, Expired, FieldError, Invalid, Unauthorized
from services_app.spec.kinds import Kind
from services_app.spec.selectors import FieldSelector, Selector, parse_field_selector, parse_label_selector

Document = dict[str, Any]
Send = Callable[[Document], Any]

BOOKMARK_S = 30.0
LONGEST_S = 3600.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


@dataclass(frozen=True)
class Request:
    """What a client asks to watch. revision None: the present state first."""

    kind: Kind
    namespace: str | None
    name: str
    labels: Selector | None
    fields: FieldSelector | None
    revision: int | None
    sends_initial: bool
    bookmarks: bool
    timeout_s: float
    accepted: media.Accepted

    def selects(self, document: Document) -> bool:
        metadata = document["metadata"]
        if self.namespace is not None and metadata.get("namespace", "") != self.namespace:
            return False
        if self.name and metadata["name"] != self.name:
            return False
        if self.labels is not None and not self.labels.matches(metadata.get("labels") or {}):
            return False
        return self.fields is None or self.fields.matches(document)


def parse(target: Target, query: str, accept: str) -> Request:
    """The request of a query string. Raises ApiError."""
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    revision_text = options.get("resourceVersion", "")
    initial_text = options.get("sendInitialEvents", "")
    match = options.get("resourceVersionMatch", "")
    if initial_text:
        if match != "NotOlderThan":
            raise _invalid_options(
                "resourceVersionMatch", match, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        if options.get("allowWatchBookmarks", "") not in ("true", "1"):
            raise _invalid_options("allowWatchBookmarks", False, "sendInitialEvents requires allowWatchBookmarks")
    elif match:
        raise _invalid_options(
            "resourceVersionMatch",
            match,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )
    if revision_text and not revision_text.isdigit():
        raise BadRequest(f'Invalid value: "{revision_text}": strconv.ParseUint: invalid syntax')
    sends_initial = initial_text in ("true", "1")
    revision = int(revision_text) if revision_text and revision_text != "0" else None
    if sends_initial:
        revision = None
    labels, fields = options.get("labelSelector", ""), options.get("fieldSelector", "")
    return Request(
        kind=target.kind,
        namespace=target.namespace,
        name=target.name,
        labels=parse_label_selector(labels) if labels else None,
        fields=parse_field_selector(target.kind, fields) if fields else None,
        revision=revision,
        sends_initial=sends_initial,
        bookmarks=options.get("allowWatchBookmarks", "") in ("true", "1"),
        timeout_s=_timeout(options.get("timeoutSeconds", "")),
        accepted=media.accept(accept),
    )


def _invalid_options(field: str, value: Any, detail: str) -> ApiError:
    return Invalid(Kind(media.META, "v1", *3 * ("ListOptions",)), "", [FieldError("Forbidden", field, value, detail)])


def _timeout(text: str) -> float:
    if not text:
        return LONGEST_S
    try:
        seconds = int(text)
    except ValueError as err:
        raise BadRequest(f'Invalid value: "{text}": timeoutSeconds must be a whole number') from err
    return min(float(seconds), LONGEST_S) if seconds > 0 else LONGEST_S


async def serve(scope: Document, receive: Callable[[], Any], send: Send, target: Target) -> None:
    """Answer a watch request on ASGI."""
    headers = {key.decode().lower(): value.decode("latin-1") for key, value in scope["headers"]}
    try:
        await feed.in_database(_authorize, headers, target)
        request = parse(target, scope["query_string"].decode(), headers.get("accept", ""))
        events = _events(request)
        first = await anext(events, None)
    except ApiError as err:
        await _answer(send, err)
        return
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"cache-control", b"no-cache, private")],
        }
    )
    stream = asyncio.create_task(_stream(send, events, first))
    gone = asyncio.create_task(_until_disconnect(receive))
    await asyncio.wait({stream, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stream, gone):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task
    await events.aclose()
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "http.response.body", "body": b""})


async def _stream(send: Send, events: AsyncIterator[bytes], first: bytes | None) -> None:
    # An empty piece at once: clients wait for the headers, and a proxy may hold them back until something follows.
    await send({"type": "http.response.body", "body": first or b"", "more_body": True})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def _until_disconnect(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, error: ApiError) -> None:
    body = json.dumps(error.status()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _authorize(headers: dict[str, str], target: Target) -> None:
    user = None
    if header := headers.get("authorization"):
        user = auth.user_of(header)
    elif cookies := headers.get("cookie"):
        pairs = dict(part.strip().partition("=")[::2] for part in cookies.split(";"))
        user = auth.session_user(pairs.get("sessionid"))
    if user is None:
        raise Unauthorized
    if not auth.may(user, "watch", target.kind, target.namespace):
        raise auth.refusal(user, "watch", target)


async def _events(request: Request) -> AsyncGenerator[bytes, None]:
    """The lines of the stream; ends when time is up, or the listener was too slow.

    The first item is always there at once: b"" when nothing is to be told yet, so that errors come before headers.
    """
    ends_at = asyncio.get_running_loop().time() + request.timeout_s
    spell = _Speller(request)
    initial: list[bytes] = []
    after = request.revision
    if after is None:
        # The list, then the log from its revision: what the list holds already is told again by neither.
        page = await feed.in_database(_list, request)
        initial = [spell.event("ADDED", json.loads(text)) for text in page.documents]
        after = page.revision
        if request.sends_initial:
            initial.append(spell.bookmark(after, initial_end=True))
    elif after < await feed.in_database(changes.oldest):
        raise Expired(f"too old resource version: {after}")
    elif after == 0:
        raise Expired("too old resource version")
    backlog, queue = await feed.feed().join(after)
    try:
        yield b"".join(initial)
        for change in backlog:
            if line := spell.change(change):
                yield line
        position = max(after, backlog[-1].revision if backlog else 0)
        bookmark_at = asyncio.get_running_loop().time() + BOOKMARK_S
        while True:
            now = asyncio.get_running_loop().time()
            if now >= ends_at:
                return
            try:
                async with asyncio.timeout(max(min(ends_at, bookmark_at) - now, 0.001)):
                    news = await queue.get()
            except TimeoutError:
                now = asyncio.get_running_loop().time()
                if now >= bookmark_at:
                    bookmark_at = now + BOOKMARK_S
                    if request.bookmarks:
                        yield spell.bookmark(position)
                continue
            if isinstance(news, feed.Slow):
                return
            if news.revision <= position:
                continue
            position = news.revision
            if line := spell.change(news):
                yield line
    finally:
        feed.feed().leave(queue)


def _list(request: Request) -> store.Page:
    page = store.list(request.kind, request.namespace, labels=request.labels, fields=request.fields)
    if request.name:
        documents = [text for text in page.documents if json.loads(text)["metadata"]["name"] == request.name]
        return store.Page(documents, page.revision)
    return page


class _Speller:
    """Changes as lines of the stream, in the form the client accepts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._told_columns = False

    def change(self, change: Change) -> bytes | None:
        """The event a change is for this client; None when it is none of his."""
        request = self.request
        if change.kind != request.kind.plural:
            return None
        if request.namespace is not None and change.namespace != request.namespace:
            return None
        if request.labels is None and request.fields is None and not request.accepted.as_kind:
            if request.name and change.name != request.name:
                return None
            return f'{{"type":"{change.verb}","object":{change.document}}}\n'.encode()
        document = json.loads(change.document)
        now = change.verb != "DELETED" and request.selects(document)
        before = change.previous is not None and request.selects(json.loads(change.previous))
        if now:
            return self.event("MODIFIED" if before else "ADDED", document)
        if before:
            # It left the selection: for this client it is gone, in the state and version of this write.
            if change.verb != "DELETED":
                version = document["metadata"]["resourceVersion"]
                document = json.loads(change.previous or "{}")
                document["metadata"]["resourceVersion"] = version
            return self.event("DELETED", document)
        return None

    def event(self, kind: str, document: Document) -> bytes:
        return json.dumps({"type": kind, "object": self._shape(document)}, separators=(",", ":")).encode() + b"\n"

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        metadata: Document = {"resourceVersion": str(revision)}
        if initial_end:
            metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
        kind = self.request.kind
        document = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
        if self.request.accepted.as_kind == "Table":
            columns, self._told_columns = not self._told_columns, True
            document = tables.bookmark(kind, document, version=self.request.accepted.version, with_columns=columns)
        elif self.request.accepted.as_kind:
            document = tables.partial(document, version=self.request.accepted.version)
        line = json.dumps({"type": "BOOKMARK", "object": document}, separators=(",", ":"))
        return line.encode() + b"\n"

    def _shape(self, document: Document) -> Document:
        accepted = self.request.accepted
        if accepted.as_kind == "Table":
            table = tables.table(
                self.request.kind,
                [document],
                now=datetime.now(UTC),
                version=accepted.version,
                with_columns=not self._told_columns,
                metadata={"resourceVersion": document["metadata"]["resourceVersion"]},
            )
            self._told_columns = True
            return table
        if accepted.as_kind:
            return tables.partial(document, version=accepted.version)
        return document
