"""Watches: the present state when asked for, then every change in commit order, none lost and none twice.

Runs on the event loop outside Django's request handling, so that a thousand idle watches cost memory only. What many
watchers are told in the same form is decoded and encoded once.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qs

from django.utils.datastructures import CaseInsensitiveMapping as Headers

from services_app import changes, store
from services_app.api import auth, feed, media, paths
from services_app.api.paths import Target
from services_app.models import Change
from services_app.spec import kinds, options, tables
from services_app.spec.errors import ApiError, Expired, Forbidden, NotAcceptable, Unauthorized
from services_app.spec.kinds import Kind
from services_app.spec.selectors import FieldSelector

Document = dict[str, Any]
Send = Callable[[Document], Any]

BOOKMARK_S = 30.0
BOOKMARK_BEFORE_END_S = 2.0
JUDGED_S = 30.0  # between two looks whether the client still may watch: tokens end, grants are taken back
SHORTEST_S = 1800.0  # of a watch whose client names no time; up to twice that, so that not all come again at once
STALLED_S = 30.0  # how long after its time a stream that nobody reads is ended
AT_ONCE = 500  # events sent as one piece
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


@dataclass(frozen=True)
class Request:
    """What a client asks to watch, and the form it accepts."""

    target: Target
    options: options.ListOptions
    accepted: media.Accepted

    @property
    def kind(self) -> Kind:
        return self.target.kind

    @property
    def sends_present(self) -> bool:
        """Whether the present state comes first."""
        if self.options.sends_initial is not None:
            return self.options.sends_initial
        return not self.options.version

    def selects(self, document: Document) -> bool:
        """Whether an object of the kind is asked for."""
        metadata = document["metadata"]
        labels, fields = self.options.labels, self.options.fields
        if labels is not None and not labels.matches(metadata.get("labels") or {}):
            return False
        return fields is None or fields.matches(document)


def parse(target: Target, query: str, accept: str) -> Request:
    """The request of a query string. Raises ApiError."""
    accepted = media.accept(accept, streamed=True)
    if accepted.as_kind == "PartialObjectMetadataList":
        raise NotAcceptable("you requested PartialObjectMetadataList, but the requested object is not a list")
    asked = options.read(target.kind, parse_qs(query, keep_blank_values=True), is_watch=True)
    if target.name:
        terms = asked.fields.terms if asked.fields is not None else ()
        asked = replace(asked, fields=FieldSelector(target.kind, (*terms, ("metadata.name", "=", target.name))))
    return Request(target, asked, accepted)


async def serve(scope: Document, receive: Callable[[], Any], send: Send, target: Target) -> None:
    """Answer a watch request on ASGI."""
    headers = {key.decode().lower(): value.decode("latin-1") for key, value in scope["headers"]}
    try:
        asked = paths.read(scope["path"])
        assert asked is not None  # the path was parsed
        authorize = partial(_authorize, headers, asked)
        await feed.in_database(authorize)
        request = parse(target, scope["query_string"].decode("utf-8", "replace"), headers.get("accept", ""))
        limit_s = float(request.options.timeout_s) or random.uniform(SHORTEST_S, 2 * SHORTEST_S)
        events = _events(request, limit_s, authorize)
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
    # A client that stalls holds back its own stream alone, and not for ever.
    await asyncio.wait({stream, gone}, timeout=limit_s + STALLED_S, return_when=asyncio.FIRST_COMPLETED)
    for task in (stream, gone):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task
    await events.aclose()
    with contextlib.suppress(OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(1):
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


def _authorize(headers: dict[str, str], asked: paths.Asked) -> None:
    """Raise Unauthorized or Forbidden unless the one who asks may watch this."""
    user = None
    if header := headers.get("authorization"):
        user = auth.user_of(header)
    elif cookies := headers.get("cookie"):
        pairs = dict(part.strip().partition("=")[::2] for part in cookies.split(";"))
        user = auth.session_user(pairs.get("sessionid"))
    if user is None:
        raise Unauthorized
    user = auth.acting(user, Headers(headers))
    kind = kinds.by_group_resource(asked.group, asked.resource)
    if not auth.may(user, "watch", kind, asked.namespace, name=asked.name):
        raise auth.refusal(user, "watch", asked)


async def _events(
    request: Request, limit_s: float, authorize: Callable[[], None] = lambda: None
) -> AsyncGenerator[bytes, None]:
    """The lines of the stream; ends when time is up, the listener was too slow, or may no longer watch.

    The first item is always there at once: b"" when nothing is to be told yet, so that errors come before headers.
    A version the log no longer reaches back to is no such error: as in Kubernetes it is told inside the stream.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + limit_s
    spell = _Speller(request)
    initial: list[bytes] = []
    marks_end = False  # whether the end of the present state is still to be told
    if request.sends_present:
        # The list, then the log from its revision: what the list holds already is told again by neither.
        position, initial = await feed.in_database(_present, request, spell)
        marks_end = request.options.bookmarks
    else:
        position = request.options.version or await feed.in_database(changes.head)
        if position < await feed.in_database(changes.oldest):
            yield spell.error(Expired(f"too old resource version: {position}"))
            return
    source = feed.feed()
    listener = await source.join(position, request.kind.plural)
    try:
        if marks_end and position >= (request.options.version or 0):
            initial.append(spell.bookmark(position, initial_end=True))
            marks_end = False
        yield b"".join(initial)
        initial.clear()
        async for part in source.backlog(listener):
            if lines := spell.lines(part):
                yield lines
        position = max(position, listener.upto)
        bookmark_at = _next_bookmark(clock(), ends_at)
        judge_at = clock() + JUDGED_S
        while (now := clock()) < ends_at:
            if now >= judge_at:
                await feed.in_database(authorize)
                judge_at = now + JUDGED_S
            wake_at = min(ends_at, bookmark_at, judge_at, now + 1.0 if marks_end else ends_at)
            news = await _news(listener.queue, wake_at - now)
            fresh = [change for change in news if isinstance(change, Change) and change.revision > position]
            if fresh:
                position = fresh[-1].revision
                if lines := spell.lines(fresh):
                    yield lines
            if any(isinstance(item, feed.Slow) for item in news):
                return
            if any(isinstance(item, feed.Cut) for item in news):
                yield spell.error(Expired(f"too old resource version: {position}"))
                return
            if listener.queue.empty():
                position = max(position, source.head)  # nothing of this kind came in between
            if marks_end and position >= (request.options.version or 0):
                yield spell.bookmark(position, initial_end=True)
                marks_end = False
            elif request.options.bookmarks and clock() >= bookmark_at:
                yield spell.bookmark(position)
            if clock() >= bookmark_at:
                bookmark_at = _next_bookmark(clock(), ends_at)
    except changes.LogCut:
        yield spell.error(Expired(f"too old resource version: {position}"))
    except (Unauthorized, Forbidden):
        return  # as when time is up: the client asks again, and is told why
    except ApiError as err:  # a Secret that cannot be opened
        yield spell.error(err)
    finally:
        source.leave(listener)


def _next_bookmark(now: float, ends_at: float) -> float:
    """When to tell how far the stream is: now and then, and shortly before it ends."""
    last = ends_at - BOOKMARK_BEFORE_END_S
    return min(now + BOOKMARK_S, last) if last > now else now + BOOKMARK_S


async def _news(queue: asyncio.Queue[feed.News], timeout_s: float) -> list[feed.News]:
    """What is in the queue, waiting for the first of it; empty when nothing came."""
    if queue.empty():
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                news = [await queue.get()]
        except TimeoutError:
            return []
    else:
        news = [queue.get_nowait()]
    while not queue.empty() and len(news) < AT_ONCE:
        news.append(queue.get_nowait())
    return news


def _present(request: Request, spell: "_Speller") -> tuple[int, list[bytes]]:
    """The newest revision and the lines about the objects there are. Away from the event loop: there may be many."""
    asked = request.options
    page = store.list(request.kind, request.target.namespace, labels=asked.labels, fields=asked.fields)
    return page.revision, [spell.event("ADDED", text) for text in page.documents]


class _Speller:
    """Changes as lines of the stream, in the form the client accepts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._told_columns = False
        asked = request.options
        self._takes_all = asked.labels is None and asked.fields is None

    def lines(self, found: Iterable[Change]) -> bytes:
        """The events that changes are for this client; b"" when none of them is his."""
        return b"".join(line for change in found if (line := self._change(change)))

    def _change(self, change: Change) -> bytes | None:
        namespace = self.request.target.namespace
        if namespace is not None and change.namespace != namespace:
            return None
        text = _shown(self.request.kind, change.document)
        if self._takes_all:
            return self.event(change.verb, text)
        previous = _shown(self.request.kind, change.previous) if change.previous is not None else None
        now = change.verb != "DELETED" and self.request.selects(_decoded(text))
        before = previous is not None and self.request.selects(_decoded(previous))
        if now:
            return self.event("MODIFIED" if before else "ADDED", text)
        if before and change.verb == "DELETED":
            return self.event("DELETED", text)
        if before and previous is not None:
            # It left the selection: for this client it is gone, in the state before and the version of this write.
            return self.event("DELETED", _with_version(previous, change.revision))
        return None

    def event(self, verb: str, text: str) -> bytes:
        """One line about an object. text: the object as it is handed out."""
        accepted = self.request.accepted
        if accepted.as_kind != "Table":
            return _line(verb, text, accepted)
        tell_columns, self._told_columns = not self._told_columns, True
        second = datetime.now(UTC).replace(microsecond=0)
        return _row(verb, text, accepted, self.request.kind, tell_columns, second)

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """A line that says up to where everything was told."""
        metadata: Document = {"resourceVersion": str(revision)}
        if initial_end:
            metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
        kind, accepted = self.request.kind, self.request.accepted
        document = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
        if accepted.as_kind == "Table":
            columns, self._told_columns = not self._told_columns, True
            document = tables.bookmark(kind, document, version=accepted.version, with_columns=columns)
        elif accepted.as_kind:
            document = tables.partial(document, version=accepted.version)
        return _encoded("BOOKMARK", document)

    def error(self, error: ApiError) -> bytes:
        """The last line of a stream that cannot go on."""
        return _encoded("ERROR", error.status())


# Shared by all watchers: the texts of one change are the same objects for each of them. Results are not to be changed.


@lru_cache(maxsize=512)
def _shown(kind: Kind, text: str) -> str:
    return store.shown_text(kind, text)


@lru_cache(maxsize=512)
def _decoded(text: str) -> Document:
    document: Document = json.loads(text)
    return document


@lru_cache(maxsize=512)
def _with_version(text: str, revision: int) -> str:
    document = json.loads(text)
    document["metadata"]["resourceVersion"] = str(revision)
    return changes.encode(document)


@lru_cache(maxsize=1024)
def _line(verb: str, text: str, accepted: media.Accepted) -> bytes:
    if accepted.as_kind:
        return _encoded(verb, tables.partial(_decoded(text), version=accepted.version))
    return f'{{"type":"{verb}","object":{text}}}\n'.encode()


@lru_cache(maxsize=512)
def _row(verb: str, text: str, accepted: media.Accepted, kind: Kind, with_columns: bool, now: datetime) -> bytes:
    document = _decoded(text)
    metadata = {"resourceVersion": document["metadata"]["resourceVersion"]}
    table = tables.table(
        kind, [document], now=now, version=accepted.version, with_columns=with_columns, metadata=metadata
    )
    return _encoded(verb, table)


def _encoded(verb: str, document: Document) -> bytes:
    return json.dumps({"type": verb, "object": document}, separators=(",", ":")).encode() + b"\n"
