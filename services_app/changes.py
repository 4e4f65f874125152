"""The log of changes: who may write now, what was written, who must hear of it.

`Writer` takes the one counter row, so that from there to the commit there is one writer at a time, and gives every
written object a revision of its own, without holes and in commit order. Readers ask for what came after a revision.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from services_app.models import Change, ControlPlane

logger = logging.getLogger(__name__)

CHANNEL = "timonel:changes"
BASE_OWNER = "*"  # a change of what every node holds besides Services
KEPT_FOR = timedelta(hours=1)
WAKE_PAUSE_S = 0.03  # between two wakes of the pushers by one process: the first change goes at once, a burst together
LONGEST_PAUSE_S = 0.24  # when changes come without end: each round of pushes takes time from the writers

# Called after every commit that touched what nodes hold; set once by the layer that pushes.
wake_pushers: list[Callable[[], None]] = []


# Rows as arrays: the statement is the same for any number of them, and so prepared.
_INSERT = (
    'INSERT INTO services_app_change (revision, kind, namespace, name, verb, document, previous, owner, "user", request_id, at)'
    " SELECT row.*, %s, %s, %s FROM unnest(%s::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],"
    " %b::text[], %b::text[]) AS row"  # %b: in binary, where texts need no escaping
)
# revision, kind, namespace, name, verb, document, previous, owner
Row = tuple[int, str, str, str, str, str, str | None, str | None]


class LogCut(LookupError):
    """The log no longer reaches back to a revision: changes after it are gone."""


Statement = tuple[str, tuple[Any, ...]]
Rows = list[tuple[Any, ...]]

# Waits for the writer before us; nobody else can commit a change until we do.
_TAKE_COUNTER: Statement = (
    "SELECT revision, ranges_revision FROM services_app_controlplane WHERE id = 1 FOR UPDATE",
    (),
)
_MAKE_COUNTER: Statement = (
    "INSERT INTO services_app_controlplane (id, uid, revision, compacted_revision, compacted_for_nodes)"
    " VALUES (1, gen_random_uuid(), 0, 0, 0) ON CONFLICT DO NOTHING RETURNING 0",
    (),
)


def together(questions: Sequence[Statement], before: Sequence[Statement] = (), *, commits: bool = False) -> list[Rows]:
    """Send statements in one round trip; the rows of each question.

    before: statements without an answer, which go first. commits: the transaction ends with them, and nothing may
    follow in its block. JSON columns come as text (Django turns psycopg's own loader off).
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, ExitStack() as stack:
        cursors = [stack.enter_context(connection.cursor()) for _ in questions]
        with connection.connection.pipeline():
            if before:
                silent = stack.enter_context(connection.cursor())
                for sql, values in before:
                    silent.execute(sql, values)
            for cursor, (sql, values) in zip(cursors, questions, strict=True):
                cursor.execute(sql, values)
            if commits:
                # Django commits at the end of its block as ever, and finds it done.
                connection.connection.execute("COMMIT", prepare=False)
        return [cursor.fetchall() for cursor in cursors]


class Writer:
    """One transaction's writes to the log. Create it inside `transaction.atomic`, after claims, before reading.

    asked: what to read in the same round trip, under the counter row; `answers` has the rows of each.
    """

    def __init__(self, *, user: str, request_id: str, now: datetime, asked: Sequence[Statement] = ()) -> None:
        self.user, self.request_id, self.now = user, request_id, now
        self.rows: list[Row] = []
        self.concerns_nodes = False  # also when no row has an owner
        found, *self.answers = together((_TAKE_COUNTER, *asked))
        if not found:
            _, found, *self.answers = together((_MAKE_COUNTER, _TAKE_COUNTER, *asked))
        self.revision: int = found[0][0]
        self.ranges_revision: int = found[0][1]  # of the last change of a ServiceCIDR, before this transaction

    def next_revision(self) -> int:
        self.revision += 1
        return self.revision

    def record(
        self,
        kind: str,
        document: dict[str, Any],
        text: str,
        verb: str,
        *,
        previous: str | None,
        owner: str | None,
    ) -> None:
        """Note one write; the document's resourceVersion must come from `next_revision`."""
        metadata = document["metadata"]
        place = metadata.get("namespace", ""), metadata["name"]
        self.rows.append((int(metadata["resourceVersion"]), kind, *place, verb, text, previous, owner))

    def finish(self) -> list[Statement]:
        """The statements that store the log rows and the counter; readers hear of them after the commit."""
        if not self.rows:
            return []
        head, for_nodes = self.revision, self.concerns_nodes or any(row[-1] for row in self.rows)
        transaction.on_commit(lambda: announce(head, for_nodes=for_nodes))
        return [
            (_INSERT, (self.user, self.request_id, self.now, *map(list, zip(*self.rows, strict=True)))),
            ("UPDATE services_app_controlplane SET revision = %s WHERE id = 1", (self.revision,)),
        ]


class Pace:
    """When something may be done again: soon, as long as it is wanted now and then; less often while it is wanted without
    end, which is more often than once in the shortest pause.
    """

    def __init__(
        self,
        shortest_s: float = WAKE_PAUSE_S,
        longest_s: float = LONGEST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shortest_s, self._longest_s, self._clock = shortest_s, longest_s, clock
        self._pause_s = shortest_s
        self._free_at = 0.0

    def wait_s(self) -> float:
        """The seconds until it may be done; 0 for now."""
        return max(self._free_at - self._clock(), 0.0)

    def note(self, *, wanted: int) -> None:
        """It is done now. wanted: how often it was asked for since it was done last."""
        # Compared with the pause that is over: what comes every 100 ms does not keep a pause of 240 ms alive.
        is_endless = wanted > self._pause_s / self._shortest_s
        self._pause_s = min(2 * self._pause_s, self._longest_s) if is_endless else self._shortest_s
        self._free_at = self._clock() + self._pause_s


class _Announcer:
    """Tells of commits from a thread of its own: the client's answer does not wait for it, and a burst is told once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._head = 0
        self._for_nodes = 0  # so many changes since the last wake
        self._pace = Pace()

    def tell(self, head: int, *, for_nodes: bool) -> None:
        with self._condition:
            self._head = max(self._head, head)
            self._for_nodes += for_nodes
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="announcing", daemon=True)
                self._thread.start()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._head and not self._wakes_now():
                    self._condition.wait(self._pace.wait_s() if self._for_nodes else None)
                head, self._head = self._head, 0
                wakes = self._wakes_now()
                if wakes:
                    self._pace.note(wanted=self._for_nodes)
                    self._for_nodes = 0
            if head:
                _publish(head)
            if wakes:
                for wake in wake_pushers:
                    wake()

    def _wakes_now(self) -> bool:
        return self._for_nodes > 0 and not self._pace.wait_s()


_announcer = _Announcer()


def announce(head: int, *, for_nodes: bool) -> None:
    """Wake watchers soon, and pushers when nodes are concerned. A hint only: without Redis, or when this process ends
    at once, they poll.
    """
    _announcer.tell(head, for_nodes=for_nodes)


def _publish(head: int) -> None:
    try:
        _redis().publish(CHANNEL, str(head))
    except redis.RedisError as err:
        logger.warning("cannot announce revision %s: %s reason=redis_away", head, err)


_client: redis.Redis | None = None


def _redis() -> redis.Redis:
    global _client
    if _client is None:
        _client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=0.5, socket_connect_timeout=0.5)
    return _client


def head() -> int:
    """The newest revision; 0 when nothing was ever written. One query."""
    return ControlPlane.objects.filter(id=1).values_list("revision", flat=True).first() or 0


def oldest() -> int:
    """The revision after which the log still holds every change. One query."""
    return ControlPlane.objects.filter(id=1).values_list("compacted_revision", flat=True).first() or 0


def read_after(
    revision: int, *, kinds: Iterable[str] | None = None, upto: int | None = None, limit: int = 1000
) -> list[Change]:
    """The changes after a revision, oldest first; empty when there are none. One query, two with `kinds`.

    Raises LogCut when some of them have left the log.
    """
    rows = Change.objects.filter(revision__gt=revision)
    if upto is not None:
        rows = rows.filter(revision__lte=upto)
    if kinds is not None:
        rows = rows.filter(kind__in=list(kinds))
    found = list(rows.order_by("revision")[:limit])
    # Revisions have no holes. Of one kind they have: then what was cut before now may have been cut before the query.
    is_cut = oldest() > revision if kinds is not None else bool(found) and found[0].revision != revision + 1
    if is_cut:
        raise LogCut(f"the log no longer reaches back to revision {revision}")
    return found


def owners_changed(revision: int) -> set[str]:
    """The owners whose rendering may have changed after a revision. One query by index."""
    rows = Change.objects.filter(revision__gt=revision, owner__isnull=False).order_by()
    return {owner for owner in rows.values_list("owner", flat=True).distinct() if owner is not None}


def newest_for_nodes(rows: QuerySet[Change]) -> int | None:
    """The last of these changes that concerns nodes; None when none does. One query by index."""
    concerning = rows.filter(owner__isnull=False).order_by("-revision")
    return concerning.values_list("revision", flat=True).first()


@dataclass(frozen=True)
class Compaction:
    """How far the log was cut, and how many rows went."""

    revision: int
    removed: int


_MOVE = """
WITH gone AS (DELETE FROM services_app_change WHERE revision <= %s RETURNING *)
INSERT INTO services_app_auditrecord
       (id, revision, at, verb, kind, namespace, name, "user", request_id, document, previous, message)
SELECT revision, revision, at, verb, kind, namespace, name, "user", request_id, document, previous, '' FROM gone
"""


def compact(*, keep: timedelta = KEPT_FOR) -> Compaction:
    """Drop changes older than `keep` from the log; watchers from before start again from everything, nodes if one
    concerned them. They are moved to the audit records by the database itself: a write pays nothing for being kept.
    """
    limit = timezone.now() - keep
    with transaction.atomic():
        newest = Change.objects.filter(at__lt=limit).order_by("-revision").values_list("revision", flat=True).first()
        if newest is None:
            return Compaction(oldest(), 0)
        old = Change.objects.filter(revision__lte=newest)
        for_nodes = newest_for_nodes(old) or F("compacted_for_nodes")
        with connection.cursor() as cursor:
            cursor.execute(_MOVE, [newest])
            removed = cursor.rowcount
        ControlPlane.objects.filter(id=1).update(compacted_revision=newest, compacted_for_nodes=for_nodes)
    return Compaction(newest, removed)


def encode(document: dict[str, Any]) -> str:
    """The JSON text of a document as it is stored and handed out."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)
