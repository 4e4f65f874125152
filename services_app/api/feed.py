"""One reader of the log a process, feeding everybody who listens: watches and live pages.

Woken by Redis, and by the clock when Redis is away; whoever does not keep up is let go and comes again with what he
saw last. Needs no database connection while nothing happens. A change goes to those who listen to its kind alone.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import redis.asyncio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections

from services_app import changes
from services_app.models import Change

logger = logging.getLogger(__name__)

POLL_S = 1.0  # without a word from Redis
REST_S = 5.0  # with Redis: a hint may be lost
KEPT = 20_000  # changes kept in memory for those who come with a recent revision
AT_MOST = 5_000  # changes waiting for one listener


class Slow:
    """Put in a queue in place of changes: the listener did not keep up."""


class Cut:
    """Put in a queue in place of changes: they left the log before this process read them."""


News = Change | Slow | Cut


@dataclass(eq=False)
class Listener:
    """One who listens to a kind ("": to all). What came before `upto` is in the backlog, what comes is in the queue."""

    kind: str
    after: int
    upto: int
    recent: list[Change] | None  # the backlog when it is all in memory
    queue: asyncio.Queue[News] = field(default_factory=asyncio.Queue)


class Feed:
    """The log of this process's event loop."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._recent: deque[Change] = deque(maxlen=KEPT)
        self._head = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._redis_is_there = False
        self._starting = asyncio.Lock()

    @property
    def head(self) -> int:
        """The last revision handed to listeners."""
        return self._head

    async def start(self) -> None:
        """Begin to read, unless it has begun. Listeners that come together must not start two readers."""
        async with self._starting:
            if not self._tasks:
                self._head = await in_database(changes.head)
                self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._listen())]

    def stop(self) -> None:
        """Read no more. Its loop ends afterwards, or forgets it."""
        for task in self._tasks:
            task.cancel()

    async def join(self, after: int, kind: str = "") -> Listener:
        """Listen to a kind from a revision on: nothing between backlog and queue is lost or told twice."""
        await self.start()
        # No await from here until the listener is known: the reader cannot come in between.
        listener = Listener(kind, after, self._head, self._remembered(after, kind))
        self._listeners[kind].add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners[listener.kind].discard(listener)

    def _remembered(self, after: int, kind: str) -> list[Change] | None:
        """The changes of a kind after a revision; None when some are no longer in memory."""
        if after >= self._head:
            return []  # the client may know more than this process has read: it skips what it has
        if not self._recent or self._recent[0].revision > after + 1:
            return None
        found = []
        for change in reversed(self._recent):
            if change.revision <= after:
                break
            if kind in ("", change.kind):
                found.append(change)
        return found[::-1]

    async def backlog(self, listener: Listener) -> AsyncIterator[list[Change]]:
        """What a listener has missed so far, in parts. Raises changes.LogCut when it is no longer there."""
        if listener.recent is not None:
            yield listener.recent
            listener.recent = None
            return
        position, kinds = listener.after, [listener.kind] if listener.kind else None
        while rows := await in_database(partial(changes.read_after, position, kinds=kinds, upto=listener.upto)):
            yield rows
            position = rows[-1].revision

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S if self._redis_is_there else POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._catch_up()
            except Exception as err:  # the database may be away: listeners wait, the log does not run away
                logger.warning("cannot read the log after %s: %s reason=database_away", self._head, err)
                await asyncio.sleep(POLL_S)

    async def _catch_up(self) -> None:
        try:
            while rows := await in_database(changes.read_after, self._head):
                for row in rows:
                    self._hand_out(row)
        except changes.LogCut:
            # This process slept for longer than the log is kept: nobody can be told what he missed.
            logger.warning("changes after %s left the log unread reason=log_cut", self._head)
            self._head = await in_database(changes.oldest)
            self._recent.clear()
            self._end_all(Cut())
            self._wake.set()

    def _hand_out(self, row: Change) -> None:
        self._head = row.revision
        self._recent.append(row)
        for kind in ("", row.kind):
            for listener in [*self._listeners[kind]]:
                if listener.queue.qsize() >= AT_MOST:
                    self.leave(listener)
                    listener.queue.put_nowait(Slow())
                else:
                    listener.queue.put_nowait(row)

    def _end_all(self, news: Cut) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.queue.put_nowait(news)
            listeners.clear()

    async def _listen(self) -> None:
        """Be woken by what is announced; keep trying while Redis is away."""
        while True:
            client = redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2)
            try:
                async with client.pubsub() as channel:
                    await channel.subscribe(changes.CHANNEL)
                    self._redis_is_there = True
                    self._wake.set()
                    async for _ in channel.listen():
                        self._wake.set()
            except (redis.RedisError, OSError) as err:
                if self._redis_is_there:
                    logger.warning("the log is polled every %s s: %s reason=redis_away", POLL_S, err)
                self._redis_is_there = False
                await asyncio.sleep(POLL_S)
            finally:
                with contextlib.suppress(redis.RedisError, OSError):
                    await client.aclose()


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, Feed] = WeakKeyDictionary()


def feed() -> Feed:
    """The feed of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _feeds:
        _feeds[loop] = Feed()
    return _feeds[loop]


@sync_to_async(thread_sensitive=False)
def _in_thread(function, *arguments):  # type: ignore[no-untyped-def]
    try:
        return function(*arguments)
    finally:
        close_old_connections()  # back to the pool


async def in_database(function, *arguments):  # type: ignore[no-untyped-def]
    """Run a function that queries, in a thread, and give its connection back."""
    return await _in_thread(function, *arguments)
