"""What a node said, or that it said nothing: into NodeSync, and its Ready condition when that fact changed."""

import logging
import random
from datetime import timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone

from services_app import store
from services_app.models import NodeSync
from services_app.push import wake
from services_app.push.errors import HostKeyChanged, NodeError
from services_app.spec import kinds
from services_app.spec.errors import ApiError

logger = logging.getLogger(__name__)

Document = dict[str, Any]
ACTOR = store.Actor("timonel:push")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
State = NodeSync.State


def note_greeting(node: str, answer: Document) -> None:
    """The agent answered: who it is, what it holds, what its host lacks."""
    NodeSync.objects.filter(node_id=node).update(
        applied_revision=answer.get("revision") or 0,
        digest=answer.get("digest") or "",
        agent_version=answer.get("agent") or "",
        problems=answer.get("problems") or [],
        facts=answer.get("facts") or {},
        last_report_at=timezone.now(),
    )


def note_success(node: str, answer: Document, *, was_full: bool = False) -> None:
    """The node applied, or answered a ping: it is live."""
    before = NodeSync.objects.filter(node_id=node).values_list("state", flat=True).first()
    values: Document = {
        "state": State.LIVE,
        "reason": "",
        "message": "",
        "failures": 0,
        "next_attempt_at": timezone.now(),
        "last_report_at": timezone.now(),
        "applied_revision": answer["revision"],
        "digest": answer.get("digest") or "",
    }
    if "apply_ms" in answer:
        values["last_apply_ms"] = answer["apply_ms"]
        values["rejected"] = answer.get("rejected") or {}
    if was_full:
        values["full_wanted"] = False
    # A report may come late: the newer one stays.
    NodeSync.objects.filter(node_id=node, applied_revision__lte=answer["revision"]).update(**values)
    if before != State.LIVE:
        logger.info("node %s is live at revision %s", node, answer["revision"])
        set_node_ready(node, True, "AgentReports", "The node's agent applies what it is sent.")
    if "apply_ms" in answer or before != State.LIVE:
        store.settle_programmed(actor=ACTOR)
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
        next_attempt_at=timezone.now() + timedelta(seconds=pause),
    )
    if (sync.state, sync.reason) != (state, error.reason):
        logger.warning("node %s: %s reason=%s", node, error.message, error.reason)
        set_node_ready(node, False, error.reason, error.message)
        # Services no longer wait for a node that cannot be reached.
        store.settle_programmed(actor=ACTOR)
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
    now = timezone.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    wanted = {"type": "Ready", "status": "True" if ready else "False", "reason": reason, "message": message}

    def change(document: Document) -> Document:
        status = document.setdefault("status", {})
        conditions = status.setdefault("conditions", [])
        old = next((c for c in conditions if c["type"] == "Ready"), None)
        if old is not None and all(old.get(key) == value for key, value in wanted.items()):
            return document
        same = old is not None and old["status"] == wanted["status"]
        moved = old["lastTransitionTime"] if old is not None and same and "lastTransitionTime" in old else now
        fresh = {**wanted, "lastHeartbeatTime": now, "lastTransitionTime": moved}
        status["conditions"] = [c for c in conditions if c["type"] != "Ready"] + [fresh]
        return document

    try:
        store.update(kinds.NODE, "", node, change, subresource="status", actor=ACTOR)
    except ApiError as err:
        logger.warning("cannot note that node %s is ready=%s: %s", node, ready, err.message)
