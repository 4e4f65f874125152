"""What people do to nodes, recorded step by step in NodeOperation: one at a time for a node, for pages and the command.

An operation from a page runs in a thread of its web process, because what opens the first login must not leave that
process. It is told in the table, so that any process shows it, and goes on when the browser leaves. When its process
dies it is Interrupted, and may be repeated: every step of enrolment and removal may be done twice.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, IntegrityError, close_old_connections, transaction
from django.utils import timezone

from services_app import store
from services_app.models import NodeOperation
from services_app.push import enroll, wake
from services_app.push.enroll import Host, Step
from services_app.push.errors import NodeError
from services_app.spec import kinds
from services_app.spec.errors import ApiError, NotFound

logger = logging.getLogger(__name__)

ALIVE_S = 2.0
DEAD_AFTER = timedelta(seconds=10)
Verb, State = NodeOperation.Verb, NodeOperation.State

# verb -> (reason of the Event on the Node, its words)
_EVENTS = {
    Verb.ENROL: ("Enrolled", "{by} enrolled the node as {user}@{address} port {port}"),
    Verb.REMOVE: ("Removed", "{by} removed the node; its host was cleaned up"),
    Verb.FORGET: ("Forgotten", "{by} dropped the node's records; its host was not cleaned up"),
    Verb.CONFIRM_KEY: ("HostKeyConfirmed", "{by} confirmed the host key {host_key}"),
    Verb.PUSH_AGAIN: ("PushedAgain", "{by} asked for a push of everything"),
}


def enrolment(host: Host, *, by: str, host_key: str = "") -> NodeOperation:
    """The record to begin with for an enrolment."""
    return NodeOperation(
        node=host.name,
        verb=Verb.ENROL,
        by=by,
        address=host.address,
        port=host.port,
        user=host.user,
        node_ip=host.node_ip,
        labels=host.labels,
        host_key=host_key,
        doing=f"reach {host.address} port {host.port}",
    )


def start_enrolment(host: Host, host_key: str, *, by: str) -> NodeOperation:
    """Enrol in a thread of this process. host_key: the fingerprint a person confirmed.

    Raises NodeError OperationRunning.
    """
    operation = enrolment(host, by=by, host_key=host_key)
    return _start(operation, lambda: enroll.enroll(host, lambda shown: shown == host_key, by=by))


def start_removal(name: str, *, by: str) -> NodeOperation:
    """Clean a node up and forget it, in a thread of this process. Raises NodeError OperationRunning."""
    return _start(_removal(name, by), lambda: enroll.remove(name, by=by))


def removal(name: str, *, by: str) -> Iterator[Step]:
    """Clean a node up and forget it; yields a Step for each thing done. Raises NodeError, NotFound."""
    return recorded(_removal(name, by), lambda: enroll.remove(name, by=by))


def _removal(name: str, by: str) -> NodeOperation:
    return NodeOperation(node=name, verb=Verb.REMOVE, by=by, doing=f"reach {name}")


def forget(name: str, *, by: str) -> None:
    """Drop a node's records, whatever its host holds. Raises NodeError OperationRunning, NotFound."""
    _at_once(
        NodeOperation(node=name, verb=Verb.FORGET, by=by, doing="drop the records"), lambda: enroll.forget(name, by=by)
    )


def confirm_key(name: str, wanted: str, *, by: str) -> None:
    """Accept the host key a node shows now, when its fingerprint is the wanted one. Raises NodeError, NotFound."""
    operation = NodeOperation(node=name, verb=Verb.CONFIRM_KEY, by=by, host_key=wanted, doing=f"reach {name}")
    _at_once(operation, lambda: enroll.confirm_key(name, wanted))


def push_again(name: str, *, by: str) -> None:
    """Send a node everything with the next push. Raises NodeError OperationRunning, NotFound."""
    operation = NodeOperation(node=name, verb=Verb.PUSH_AGAIN, by=by, doing="ask for the push")
    _at_once(operation, lambda: enroll.push_again(name))


def recorded(operation: NodeOperation, steps: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    """The steps, each noted as it happens, and how it ended. Raises what they raise, and NodeError OperationRunning."""
    _begin(operation)
    yield from _told(operation, steps)


def is_interrupted(operation: NodeOperation) -> bool:
    """Whether its process died before it ended."""
    return operation.state == State.RUNNING and operation.seen_at < timezone.now() - DEAD_AFTER


def _begin(operation: NodeOperation) -> None:
    """Store the record. Raises NodeError OperationRunning while another one of the node is under way."""
    end_interrupted(operation.node)
    try:
        with transaction.atomic():
            operation.save(force_insert=True)
    except IntegrityError as err:
        other = NodeOperation.objects.filter(node=operation.node, state=State.RUNNING).first()
        what = f"{other.by} began the {other.get_verb_display()}" if other else "another operation began"
        raise NodeError("OperationRunning", f"{what} of {operation.node} already, and it is not done yet") from err
    wake.announce_node(operation.node)


def end_interrupted(node: str) -> None:
    """Note that a node's operation whose process died has failed."""
    rows = NodeOperation.objects.filter(node=node, state=State.RUNNING, seen_at__lt=timezone.now() - DEAD_AFTER)
    rows.update(
        state=State.FAILED,
        reason="Interrupted",
        message="the process that did this ended before it was done",
        ended_at=timezone.now(),
    )


def drop_old(*, keep: timedelta) -> int:
    """Drop the records of what ended longer ago than `keep`; how many went."""
    return NodeOperation.objects.filter(ended_at__lt=timezone.now() - keep).delete()[0]


def _at_once(operation: NodeOperation, work: Callable[[], Any]) -> None:
    """Do what is one step. Raises what `work` raises."""

    def steps() -> Iterator[Step]:
        work()
        yield Step("done")

    for _ in recorded(operation, steps):
        pass


def _start(operation: NodeOperation, steps: Callable[[], Iterator[Step]]) -> NodeOperation:
    _begin(operation)

    def run() -> None:
        try:
            for _ in _told(operation, steps):
                close_old_connections()  # the next step may take a while over the network
        except (NodeError, ApiError):
            pass  # told in the table
        except Exception:  # top of a thread
            logger.exception("%s of %s failed", operation.get_verb_display(), operation.node)
        finally:
            close_old_connections()

    threading.Thread(target=run, name=f"{operation.verb} {operation.node}", daemon=True).start()
    return operation


def _told(operation: NodeOperation, steps: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    ended = threading.Event()
    alive = threading.Thread(target=_stay_alive, args=(operation, ended), name="operation alive", daemon=True)
    alive.start()
    uid = _node_uid(operation.node)
    try:
        for step in steps():
            operation.steps.append({"text": step.text, "at": timezone.now().isoformat()})
            _note(operation, steps=operation.steps, doing=step.then)
            yield step
    except NodeError as err:
        _end(operation, State.FAILED, err.reason, err.message)
        raise
    except ApiError as err:
        _end(operation, State.FAILED, err.reason or "InternalError", err.message)
        raise
    except (GeneratorExit, KeyboardInterrupt):
        _end(operation, State.FAILED, "Interrupted", "it was broken off")
        raise
    except Exception:
        _end(operation, State.FAILED, "InternalError", "something unforeseen happened")
        raise
    else:
        _tell_event(operation, uid or _node_uid(operation.node))
        _end(operation, State.DONE)
    finally:
        ended.set()
        alive.join()


def _note(operation: NodeOperation, **values: Any) -> None:
    NodeOperation.objects.filter(pk=operation.pk).update(seen_at=timezone.now(), **values)
    wake.announce_node(operation.node)


def _end(operation: NodeOperation, state: NodeOperation.State, reason: str = "", message: str = "") -> None:
    logger.info("%s of %s by %s: %s reason=%s", operation.verb, operation.node, operation.by, state, reason or "done")
    values: dict[str, Any] = {"state": state, "reason": reason, "message": message, "ended_at": timezone.now()}
    if state is State.DONE:
        values["doing"] = ""
    try:
        _note(operation, **values)
    except DatabaseError as err:  # then it looks interrupted, which is what it is
        logger.warning("cannot note how the %s of %s ended: %s", operation.verb, operation.node, err)


def _stay_alive(operation: NodeOperation, ended: threading.Event) -> None:
    while not ended.wait(ALIVE_S):
        try:
            NodeOperation.objects.filter(pk=operation.pk).update(seen_at=timezone.now())
        except DatabaseError as err:
            logger.warning("cannot note that the %s of %s goes on: %s", operation.verb, operation.node, err)
        finally:
            close_old_connections()


def _node_uid(name: str) -> str:
    """Of the Node object; "" when there is none."""
    try:
        return str(json.loads(store.get(kinds.NODE, "", name).document)["metadata"]["uid"])
    except NotFound:
        return ""


def _tell_event(operation: NodeOperation, uid: str) -> None:
    """An Event on the Node with the person's name; its absence is no failure."""
    reason, words = _EVENTS[Verb(operation.verb)]
    message = words.format(
        by=operation.by,
        user=operation.user,
        address=operation.address,
        port=operation.port,
        host_key=operation.host_key,
    )
    now = timezone.now()
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {
        "metadata": {"name": f"{operation.node}.{operation.pk.hex[:16]}"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": operation.node, "uid": uid},
        "reason": reason,
        "message": message,
        "type": "Normal",
        "source": {"component": "timonel"},
        "reportingComponent": "timonel",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    try:
        store.create(kinds.EVENT, document, namespace="default", actor=store.Actor(operation.by))
    except ApiError as err:
        logger.warning("cannot note the event %s of %s: %s", reason, operation.node, err.message)
