"""What a node said, or that it said nothing: into NodeSync, and its Ready condition when that fact changed."""

import json
import logging
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from django.db import close_old_connections, connection, transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone

from services_app import store
from services_app.changes import Pace
from services_app.models import NodeSync
from services_app.push import wake
from services_app.push.errors import HostKeyChanged, NodeError
from services_app.spec import kinds
from services_app.spec.errors import ApiError

logger = logging.getLogger(__name__)

Document = dict[str, Any]
ACTOR = store.Actor("timonel:push")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
MAX_MESSAGE = 1000  # characters of what an agent says unasked
_GOOD_NEWS = {"ModeChanged"}
SETTLE_S = 0.03  # reports of several nodes about one change come within this
State = NodeSync.State


class _Settling:
    """Writes Programmed conditions in a thread of its own: at once, but once for the reports that come together."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._wanted = 0  # so often since it was done last
        self._thread: threading.Thread | None = None
        self._pace = Pace()

    def request(self) -> None:
        """Look soon whether Services became programmed. The sweep looks too: nothing is lost with this process."""
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
                self._thread.start()
            self._wanted += 1
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted)
            time.sleep(max(SETTLE_S, self._pace.wait_s()))
            with self._condition:
                self._pace.note(wanted=self._wanted)
                self._wanted = 0
            try:
                store.settle_programmed(actor=ACTOR)
            except Exception as err:  # the database may be away; the sweep comes again
                logger.warning("cannot settle conditions: %s", err)
            finally:
                close_old_connections()


settling = _Settling()
_events = ThreadPoolExecutor(1, "events")


def note_greeting(node: str, answer: Document) -> None:
    """The agent answered: who it is, and what it holds."""
    NodeSync.objects.filter(node_id=node).update(
        applied_revision=answer.get("revision") or 0,
        digest=answer.get("digest") or "",
        agent_version=answer.get("agent") or "",
        facts=answer.get("facts") or {},
        last_report_at=timezone.now(),
    )


# A report may come late: then the newer one stays. Gives the state before. By hand, because it is written for every push
# and every question: to build the statement from a QuerySet takes a worker as long as the rest of a push. Nobody waits for
# the disk: after a crash of the database the node is merely asked again, and what is written later is never kept without it.
_REPORT = """
WITH before AS (SELECT node, state, set_config('synchronous_commit', 'off', true) FROM services_app_nodesync
                 WHERE node = %(node)s AND applied_revision <= %(revision)s FOR UPDATE)
UPDATE services_app_nodesync AS sync
   SET state = 'Live', reason = '', message = '', failures = 0, next_attempt_at = %(now)s, last_report_at = %(now)s,
       applied_revision = %(revision)s, digest = %(digest)s,
       last_apply_ms = coalesce(%(apply_ms)s::float8, last_apply_ms),
       rejected = coalesce(%(rejected)s::jsonb, rejected),
       full_wanted = CASE WHEN %(full_of)s::bigint IS NULL THEN full_wanted ELSE EXISTS (
           SELECT FROM services_app_node WHERE name = %(node)s AND revision > %(full_of)s::bigint) END
  FROM before WHERE sync.node = before.node RETURNING before.state
"""


def note_success(node: str, answer: Document, *, full_of: int | None = None, was_failing: bool = False) -> None:
    """The node applied, or answered a ping: it is live. full_of: the Node's revision that a full push was made from."""
    has_applied = "apply_ms" in answer
    values = {
        "node": node,
        "now": timezone.now(),
        "revision": answer["revision"],
        "digest": answer.get("digest") or "",
        "apply_ms": answer.get("apply_ms"),
        "rejected": json.dumps(answer.get("rejected") or {}) if has_applied else None,
        "full_of": full_of,
    }
    with nullcontext() if full_of is None else transaction.atomic(), connection.cursor() as cursor:
        if full_of is not None:
            # A change of the Node that is being committed holds this row. Only a statement begun after it sees both; one
            # that waited for the row itself would compare with the Node as it was before.
            cursor.execute("SELECT FROM services_app_nodesync WHERE node = %s FOR UPDATE", [node])
        cursor.execute(_REPORT, values)
        before = cursor.fetchone()
    if before is not None and before[0] != State.LIVE:
        logger.info("node %s is live at revision %s", node, answer["revision"])
        set_node_ready(node, True, "AgentReports", "The node's agent applies what it is sent.")
    if has_applied or was_failing:
        settling.request()
    wake.announce_node(node)


def note_mode(node: str, mode: str) -> None:
    """The data plane that serves on the node became another."""
    sync = NodeSync.objects.filter(node_id=node).only("facts").first()
    if sync is not None and sync.facts.get("mode") != mode:
        logger.info("node %s serves in mode %s", node, mode)
        NodeSync.objects.filter(node_id=node).update(facts={**sync.facts, "mode": mode})


def note_event(node: str, event: Document) -> None:
    """What an agent said unasked, soon as an Event on its Node. Never waits: it is called by who reads the node's answers."""
    reason, message = str(event.get("reason")), str(event.get("message"))
    logger.log(
        logging.INFO if reason in _GOOD_NEWS else logging.WARNING, "node %s: %s reason=%s", node, message, reason
    )
    if re.fullmatch(r"[A-Z][A-Za-z0-9]{0,127}", reason):
        _events.submit(_tell, node, reason, message[:MAX_MESSAGE])


def _tell(node: str, reason: str, message: str) -> None:
    try:
        type = "Normal" if reason in _GOOD_NEWS else "Warning"
        store.tell_of_node(node, reason, message, type=type, actor=ACTOR)
    except Exception as err:  # the database may be away; the log has it
        logger.warning("cannot note the event %s of %s: %s", reason, node, err)
    finally:
        close_old_connections()


def note_problems(node: str, problems: list[Document]) -> None:
    """What is amiss on a node that works all the same: into NodeSync, and its HostProblems condition. One query if nothing is new.

    Numbers in messages move all the time; it is news when the reasons are others.
    """
    before = NodeSync.objects.filter(node_id=node).values_list("problems", flat=True).first()
    if before is None or [p.get("reason") for p in before] == [p.get("reason") for p in problems]:
        return
    NodeSync.objects.filter(node_id=node).update(problems=problems)
    if problems:
        logger.warning("node %s: %s", node, "; ".join(f"{p['message']} reason={p['reason']}" for p in problems))
        _put_condition(node, "HostProblems", "True", problems[0]["reason"], "; ".join(p["message"] for p in problems))
    else:
        _put_condition(node, "HostProblems", "False", "NoProblems", "Nothing is amiss on the node or on the way to it.")
    wake.announce_node(node)


def note_failure(node: str, error: NodeError) -> None:
    """The node could not be reached or could not apply; when to try again is set here."""
    sync = NodeSync.objects.filter(node_id=node).first()
    if sync is None:
        return
    if isinstance(error, HostKeyChanged):
        state = State.QUARANTINED
    elif error.reason in UNREACHABLE:
        state = State.UNREACHABLE
    else:
        state = State.FAILED
    pause = min(FIRST_PAUSE_S * 2 ** min(sync.failures, 10), LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)
    NodeSync.objects.filter(node_id=node).update(
        state=state,
        reason=error.reason,
        message=error.message,
        failures=F("failures") + 1,
        # Never earlier than somebody else asked for: a node being removed is left alone.
        next_attempt_at=Greatest(F("next_attempt_at"), timezone.now() + timedelta(seconds=pause)),
    )
    if (sync.state, sync.reason) != (state, error.reason):
        logger.warning("node %s: %s reason=%s", node, error.message, error.reason)
        set_node_ready(node, False, error.reason, error.message)
        # Services no longer wait for a node that cannot be reached.
        settling.request()
    wake.announce_node(node)


UNREACHABLE = frozenset(
    {
        "AuthenticationFailed",
        "ConnectionLost",
        "ConnectionRefused",
        "Timeout",
        "UnknownHost",
        "Unreachable",
    }
)


def set_node_ready(node: str, ready: bool, reason: str, message: str) -> None:
    """Write the Node's Ready condition when it is another than stored."""
    _put_condition(node, "Ready", "True" if ready else "False", reason, message)


def _put_condition(node: str, kind: str, status: str, reason: str, message: str) -> None:
    now = timezone.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    wanted = {"type": kind, "status": status, "reason": reason, "message": message}

    def change(document: Document) -> Document:
        conditions = document.setdefault("status", {}).setdefault("conditions", [])
        old = next((c for c in conditions if c["type"] == kind), None)
        if old is not None and all(old.get(key) == value for key, value in wanted.items()):
            return document
        same = old is not None and old["status"] == wanted["status"]
        moved = old["lastTransitionTime"] if old is not None and same and "lastTransitionTime" in old else now
        fresh = {**wanted, "lastHeartbeatTime": now, "lastTransitionTime": moved}
        document["status"]["conditions"] = [c for c in conditions if c["type"] != kind] + [fresh]
        return document

    try:
        store.update(kinds.NODE, "", node, change, subresource="status", actor=ACTOR)
    except ApiError as err:
        logger.warning("cannot note that node %s is %s=%s: %s", node, kind, status, err.message)
