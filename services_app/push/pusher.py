"""Bringing one node up to date: open its session when there is none, send what changed, note what it answers."""

import base64
import logging
import threading
from dataclasses import dataclass
from typing import Any

from django.db import close_old_connections
from django.db.models import OuterRef, QuerySet, Subquery

from services_app import changes
from services_app.models import ControlPlane, Node, NodeAccess, NodeSync
from services_app.push import program, reports, snapshot, ssh
from services_app.push.errors import NodeError
from services_app.push.keys import from_line, own_key, private_key
from services_app.push.session import FULL_TIMEOUT_S, GREETING_TIMEOUT_S, REPLY_TIMEOUT_S, AgentSession, SessionPool

logger = logging.getLogger(__name__)

Document = dict[str, Any]

pool = SessionPool()
# Nodes that failed last time wait for a place here, so that a hundred dead ones leave threads for the living.
_doubtful = threading.BoundedSemaphore(8)


def push(node: str, wanted: "Wanted | None" = None) -> None:
    """Bring a node up to date; if somebody does already, he is told to look once more. Never raises NodeError.

    wanted: what the tables said of it a moment ago; None: they are asked.
    """
    if not pool.begin(node):
        return
    try:
        while True:
            wanted = wanted or wanted_of(NodeSync.objects.filter(node_id=node)).get(node)
            if wanted is None or not _push_patiently(node, wanted):
                break
            if not pool.end(node):
                return  # from here on the turn may be somebody else's
            wanted = None
    except BaseException:
        pool.abandon(node)
        raise
    pool.abandon(node)


@dataclass(frozen=True)
class Wanted:
    """What the tables say about a node before a push. address: of its Node object, "" when it has none.

    newest: a revision for nodes that it must get at least; None: the last one there is.
    """

    address: str
    is_full: bool
    failures: int
    newest: int | None = None


def wanted_of(rows: QuerySet[NodeSync], newest: int | None = None) -> dict[str, Wanted]:
    """By node; those that are not enrolled any more are missing. One query."""
    address = Node.objects.filter(name=OuterRef("node_id")).values("address")[:1]
    found = rows.values_list("node_id", Subquery(address), "full_wanted", "failures")
    return {node: Wanted(at or "", is_full, failures, newest) for node, at, is_full, failures in found}


def _push_patiently(node: str, wanted: Wanted) -> bool:
    """Whether the node is as new as the log was when we looked."""
    if not wanted.failures:
        return _push_once(node, wanted)
    if not _doubtful.acquire(blocking=False):
        return False  # the sweep comes again
    try:
        return _push_once(node, wanted)
    finally:
        _doubtful.release()


def _push_once(node: str, wanted: Wanted) -> bool:
    try:
        _bring_up_to_date(node, wanted)
    except NodeError as err:
        pool.drop(node)
        reports.note_failure(node, err)
        return False
    return True


def _bring_up_to_date(node: str, wanted: Wanted) -> None:
    session = pool.get(node) or _open(node)
    if session.is_fresh:
        session, greeting = _greet(node, session)
        session.problems = greeting.get("problems") or []
        session.serving = greeting.get("serving") or {}
        reports.note_greeting(node, greeting)
        session.held = greeting["revision"] if greeting.get("cluster") == session.cluster else None
        if wanted.is_full and session.held and _holds_everything(node, session, greeting, wanted):
            return
    since = None if wanted.is_full or not session.held else session.held
    address = wanted.address or session.address
    delta = snapshot.read_delta(node, address, since, with_base=session.is_fresh, at_least=wanted.newest)
    if delta.since is not None and not delta.owners:
        _report(node, session, session.ask({"op": "ping"}), wanted)
        return
    close_old_connections()  # back to the pool while the node works
    answer = _send(session, delta, address)
    session.is_fresh = False
    session.held = answer["revision"]
    _report(node, session, answer, wanted, full_of=delta.node_revision if delta.since is None else None)


def _holds_everything(node: str, session: AgentSession, greeting: Document, wanted: Wanted) -> bool:
    """Whether an agent that has just begun holds already what a push of everything would send; then it is reported so."""
    expected = snapshot.expected(node, wanted.address or session.address)
    if greeting.get("digest") != expected.digest or greeting.get("rejected") != {}:
        return False  # with what is rejected comes why
    answer = session.ask({"op": "ping"})  # raises what keeps it from being in force
    _report(node, session, answer, wanted, full_of=expected.node_revision)
    return True


def _report(node: str, session: AgentSession, answer: Document, wanted: Wanted, *, full_of: int | None = None) -> None:
    """Note what the agent answered. full_of: as for `reports.note_success`."""
    reports.note_success(node, answer, full_of=full_of, was_failing=bool(wanted.failures))
    _tell_state(node, session, answer)


def _tell_state(node: str, session: AgentSession, answer: Document) -> None:
    """Report the mode and what is amiss when they are others than this session told last."""
    before, session.serving = session.serving.get("mode"), answer.get("serving") or {}
    if (mode := session.serving.get("mode")) and mode != before:
        reports.note_mode(node, mode)
    problems = [*session.problems, *session.serving.get("problems", ()), *session.link.problems()]
    reasons = [problem["reason"] for problem in problems]
    if reasons != session.told:
        reports.note_problems(node, problems)
        session.told = reasons


def _greet(node: str, session: AgentSession) -> tuple[AgentSession, Document]:
    """The session to use and what its agent says of itself. An agent of another version is replaced first."""
    hello = {"op": "hello", "cluster": session.cluster}
    greeting = session.ask(hello, timeout_s=GREETING_TIMEOUT_S)
    shipped = program.current()
    if greeting.get("agent") == shipped.version or greeting.get("cluster") != session.cluster:
        return session, greeting
    signature = program.sign(shipped, private_key(own_key()))
    try:
        session.ask(
            {"op": "upgrade", "program": base64.b64encode(shipped.content).decode(), "signature": signature},
            timeout_s=FULL_TIMEOUT_S,
        )
    except NodeError as err:
        if err.reason in reports.UNREACHABLE:
            raise
        # It goes on with what it has, and the page says why.
        logger.warning("node %s keeps agent %s: %s reason=%s", node, greeting.get("agent"), err.message, err.reason)
        kept = {"reason": err.reason, "message": f"the agent stays at {greeting.get('agent')}: {err.message}"}
        return session, {**greeting, "problems": [*(greeting.get("problems") or ()), kept]}
    logger.info("node %s: agent %s replaced by %s", node, greeting.get("agent"), shipped.version)
    session = _open(node)
    return session, session.ask(hello, timeout_s=GREETING_TIMEOUT_S)


def _send(session: AgentSession, delta: snapshot.Delta, address: str) -> dict:
    """The agent's answer. An agent that holds something else than we thought gets everything."""
    timeout_s = FULL_TIMEOUT_S if delta.since is None else REPLY_TIMEOUT_S
    try:
        return session.ask(delta.message(session.cluster), timeout_s=timeout_s)
    except NodeError as err:
        if err.reason == "StaleRevision":
            # Another worker was faster; what it sent is at least as new.
            return session.ask({"op": "ping"})
        if err.reason not in ("BaseMismatch", "OtherCluster", "DigestMismatch") or delta.since is None:
            raise
        logger.warning("node %s needs everything: %s reason=%s", session.name, err.message, err.reason)
    full = snapshot.read_delta(session.name, address, None, with_base=True)
    return session.ask(full.message(session.cluster), timeout_s=FULL_TIMEOUT_S)


def _open(node: str) -> AgentSession:
    access = NodeAccess.objects.select_related("ssh_key").get(node=node)
    cluster = str(ControlPlane.objects.values_list("uid", flat=True).get(id=1))
    connection = ssh.connect(
        access.node,
        access.address,
        access.port,
        access.user,
        expected=from_line(access.host_key),
        key=private_key(access.ssh_key),
    )
    try:
        session = AgentSession(
            connection,
            access.user,
            cluster=cluster,
            address=access.address,
            on_event=lambda event: reports.note_event(access.node, event),
        )
    except BaseException:
        connection.close()
        raise
    pool.put(access.node, session)
    return session


def audit(node: str) -> bool:
    """Whether the node's digest is what its revision renders to; if not, everything is sent with the next push."""
    sync = NodeSync.objects.filter(node_id=node, state=NodeSync.State.LIVE).first()
    if sync is None or sync.full_wanted or sync.rejected:
        return True
    address = Node.objects.filter(name=node).values_list("address", flat=True).first()
    if address is None:
        return True
    revision, digest, _ = snapshot.expected(node, address)
    sync.refresh_from_db()
    if sync.digest == digest or sync.applied_revision > revision:
        return True
    if sync.applied_revision < snapshot.newest_owner_revision() or changes.head() != revision:
        return True  # it is behind or was overtaken while we looked: nothing to judge
    logger.warning("node %s holds digest %s, not %s reason=digest_differs", node, sync.digest, digest)
    NodeSync.objects.filter(node_id=node).update(full_wanted=True)
    return False
