"""One reader of the log a process, feeding everybody who listens: watches and live pages.

Woken by Redis, and by the clock when Redis is away; whoever does not keep up is let go and comes again with what he
saw last. Needs no database connection while nothing happens.
"""

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Slow:
    """Put in a queue in place of changes: the listener did not keep up."""


class Feed:
    """The log of this process's event loop."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Change | Slow]] = set()
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

    async def join(self, after: int) -> tuple[list[Change], asyncio.Queue[Change | Slow]]:
        """The changes after a revision so far, and a queue with those to come: nothing between is lost or told twice.

        `after` must lie within the log.
        """
        await self.start()
        queue: asyncio.Queue[Change | Slow] = asyncio.Queue(AT_MOST + 1)
        # No await from here until the queue is known: the reader cannot come in between.
        upto = self._head
        self._listeners.add(queue)
        if after >= upto:
            # The client knows more than this process has read: skip what it has.
            return [], queue
        if self._recent and self._recent[0].revision <= after + 1:
            return [change for change in self._recent if change.revision > after], queue
        backlog: list[Change] = []
        position = after
        while position < upto:
            rows = await in_database(changes.read_after, position)
            if not rows:
                break
            backlog += [row for row in rows if row.revision <= upto]
            position = rows[-1].revision
        return backlog, queue

    def leave(self, queue: asyncio.Queue[Change | Slow]) -> None:
        self._listeners.discard(queue)

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S if self._redis_is_there else POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                while rows := await in_database(changes.read_after, self._head):
                    for row in rows:
                        self._hand_out(row)
            except Exception as err:  # the database may be away: listeners wait, the log does not run away
                logger.warning("cannot read the log after %s: %s reason=database_away", self._head, err)
                await asyncio.sleep(POLL_S)

    def _hand_out(self, row: Change) -> None:
        self._head = row.revision
        self._recent.append(row)
        for queue in [*self._listeners]:
            if queue.qsize() >= AT_MOST:
                self._listeners.discard(queue)
                queue.put_nowait(Slow())
            else:
                queue.put_nowait(row)

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
