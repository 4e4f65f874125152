"""Tells open pages that what they show has changed: one reader per process feeds every connection.

The reader compares a small fingerprint of the tables. Redis only wakes it early: with Redis away the page is
late by at most POLL_S, never wrong.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass

import redis.asyncio
import redis.exceptions
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DatabaseError, connection

log = logging.getLogger(__name__)

CHANNELS = ("timonel:changes", "timonel:nodes")
POLL_S = 2.0
SPACING_S = 0.2  # between two readings of the tables, however fast the changes come
QUIET_S = 1.0  # between two events on one connection: a burst is one event at its start and one a second
ALIVE_S = 5.0  # a page that hears nothing for longer shows the connection as lost
CONNECTION_S = 600.0  # then the browser connects again, and the login is checked again
REDIS_RETRY_S = 5.0


@dataclass(frozen=True)
class Sight:
    """What the tables looked like: equal sights show the same page."""

    revision: int
    nodes: str  # fingerprint of what nodes are and hold
    beat: int  # moves every ten seconds while nodes report, so that "last report" stays true
    operations: str = ""  # fingerprint of what people do to nodes


def read_sight() -> Sight:
    """The tables' fingerprint. One query over the nodes, none over the objects; raises DatabaseError."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT (SELECT revision FROM services_app_controlplane),
                       (SELECT md5(string_agg(concat_ws('|', access.node, access.address, sync.state, sync.reason,
                                   sync.message, sync.applied_revision, sync.rejected, sync.problems,
                                   sync.agent_version), ';'
                                   ORDER BY access.node))
                          FROM services_app_nodeaccess access
                          LEFT JOIN services_app_nodesync sync ON sync.node = access.node),
                       (SELECT md5(string_agg(concat_ws('|', id, state, jsonb_array_length(steps)), ';' ORDER BY id))
                          FROM services_app_nodeoperation
                         WHERE state = 'Running' OR ended_at > now() - interval '1 minute'),
                       (SELECT floor(extract(epoch FROM max(last_report_at)) / 10) FROM services_app_nodesync)
                """
            )
            revision, nodes, operations, beat = cursor.fetchone()
    finally:
        # This runs in a thread of its own, outside any request: nobody else would give the connection back.
        connection.close()
    return Sight(revision=revision or 0, nodes=nodes or "", operations=operations or "", beat=int(beat or 0))


class Pulse:
    """The newest sight of the tables, for any number of listeners on one event loop. Reads while someone listens."""

    def __init__(self) -> None:
        self.sight: Sight | None = None
        self._read_at = 0.0
        self._listeners = 0
        self._moved = asyncio.Event()
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_fresh(self) -> bool:
        """Whether the tables could be read lately; false while the database is away."""
        return time.monotonic() - self._read_at < POLL_S + ALIVE_S

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keeps the reader running inside the block."""
        self._listeners += 1
        if not self._tasks:
            # An empty context: the reader outlives the request that starts it, and must not use that request's thread.
            self._tasks = [
                asyncio.create_task(run(), context=contextvars.Context()) for run in (self._read, self._listen_to_redis)
            ]
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                for task in self._tasks:
                    task.cancel()
                self._tasks = []
                self.sight = None

    async def after(self, seen: Sight | None, timeout_s: float) -> Sight | None:
        """The newest sight as soon as it differs from `seen`; None when nothing moved for that long."""
        moved = self._moved
        if self.sight is not None and self.sight != seen:
            return self.sight
        try:
            async with asyncio.timeout(timeout_s):
                await moved.wait()
        except TimeoutError:
            return None
        return self.sight

    async def _read(self) -> None:
        away = False
        while True:
            self._woken.clear()
            try:
                sight = await sync_to_async(read_sight, thread_sensitive=False)()
            except DatabaseError as err:
                if not away:
                    log.warning("cannot read what the page shows: %s reason=database_away", err)
                away = True
            else:
                away = False
                self._read_at = time.monotonic()
                if sight != self.sight:
                    self.sight = sight
                    moved, self._moved = self._moved, asyncio.Event()
                    moved.set()
            await asyncio.sleep(SPACING_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()

    async def _listen_to_redis(self) -> None:
        away = False
        while True:
            client = redis.asyncio.Redis.from_url(settings.REDIS_URL, health_check_interval=15)
            try:
                async with client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(*CHANNELS)
                    away = False
                    async for _ in pubsub.listen():
                        self._woken.set()
            except (redis.exceptions.RedisError, OSError) as err:
                if not away:
                    log.warning("cannot listen to Redis, polling every %s s: %s reason=redis_away", POLL_S, err)
                away = True
            await asyncio.sleep(REDIS_RETRY_S)


_pulses: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Pulse]" = weakref.WeakKeyDictionary()


def pulse() -> Pulse:
    """The running event loop's Pulse."""
    loop = asyncio.get_running_loop()
    if loop not in _pulses:
        _pulses[loop] = Pulse()
    return _pulses[loop]


async def event_stream() -> AsyncIterator[bytes]:
    """Server-sent events for one page: `hello` once, then `services`, `nodes` and `operations` when those changed, and
    `alive` between."""
    source = pulse()
    ends_at = time.monotonic() + CONNECTION_S
    async with source.listening():
        yield b"retry: 1000\n\n"
        seen: Sight | None = None
        sent_at = 0.0
        while time.monotonic() < ends_at:
            now = await source.after(seen, ALIVE_S)
            if now is None:
                if source.is_fresh:
                    yield b"event: alive\ndata:\n\n"
                continue
            # Steps of an operation come one by one, and somebody waits for them: they are not held back.
            in_burst = seen is not None and seen.operations == now.operations
            if in_burst and (wait_s := sent_at + QUIET_S - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
                now = source.sight or now
            yield _events(seen, now)
            seen, sent_at = now, time.monotonic()


def _events(seen: Sight | None, now: Sight) -> bytes:
    if seen is None:
        return f"event: hello\ndata: {now.revision}\n\n".encode()
    names = ["nodes"]
    if seen.operations != now.operations:
        names.append("operations")
    if (seen.revision, seen.nodes) != (now.revision, now.nodes):
        names.append("services")
    return "".join(f"event: {name}\ndata: {now.revision}\n\n" for name in names).encode()
