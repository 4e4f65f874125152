"""Facts that nodes report, written to API objects when they change: Pods of enrolled nodes, the Programmed condition.

What merely moves (applied revisions, timings) stays in NodeSync.
"""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Min, Q
from django.utils import timezone

from services_app import models
from services_app.plan import kubelet
from services_app.spec import kinds
from services_app.spec.errors import NotFound
from services_app.spec.meta import timestamp
from services_app.store import events
from services_app.store.deletion import delete
from services_app.store.objects import PROGRAMMED, Actor, addresses_of_node, get, update
from services_app.store.transaction import Transaction

Document = dict[str, Any]

COMPONENT = "timonel-agent"  # who tells what nodes say
AT_ONCE = 100  # Services settled under one hold of the counter row: some 20 ms


def adopt_pods(node: str, *, actor: Actor) -> int:
    """Give every Pod of a node that was just enrolled its status; the number of Pods written."""
    addresses = addresses_of_node(node)
    if not addresses:
        return 0
    written = 0
    for namespace, name in models.Pod.objects.filter(node_name=node).values_list("namespace", "name"):
        now = timestamp(timezone.now())

        def observed(pod: Document, now: str = now) -> Document:
            return kubelet.observe(pod, addresses, now)

        try:
            update(kinds.POD, namespace, name, observed, subresource="status", actor=actor)
        except NotFound:
            continue
        written += 1
    return written


def reap_pods(*, actor: Actor) -> int:
    """Remove the Pods of enrolled nodes whose grace period is over; the number removed."""
    enrolled = models.NodeAccess.objects.values("node")
    rows = models.Pod.objects.filter(gone_at__lte=timezone.now(), node_name__in=enrolled)
    reaped = 0
    for namespace, name in [*rows.values_list("namespace", "name")]:
        try:
            delete(kinds.POD, namespace, name, actor=actor, grace_period_s=0)
        except NotFound:
            continue
        reaped += 1
    return reaped


def tell_of_node(node: str, reason: str, message: str, *, type: str, actor: Actor) -> None:
    """Tell something that a node said, as an Event on its Node; nothing when there is no such Node any more.

    reason: one word. type: "Normal" or "Warning". The same words again count on.
    """
    try:
        document = json.loads(get(kinds.NODE, "", node).document)
    except NotFound:
        return
    with transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        events.record(tx, kinds.NODE, document, reason, message, component=COMPONENT, type=type)
        tx.finish()


def expire_events(*, actor: Actor) -> int:
    """Remove the Events last heard of more than an hour ago; the number removed."""
    before = timezone.now() - events.KEPT_FOR
    removed = 0
    while uids := events.expired(before):
        with transaction.atomic():
            tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
            for text in models.Event.objects.filter(uid__in=uids).values_list("document", flat=True):
                event = json.loads(text)
                # Again under the counter row: it may just have counted on.
                if events.is_expired(event, before):
                    tx.delete(kinds.EVENT, event, text)
                    removed += 1
            tx.finish()
    return removed


def settle_programmed(*, actor: Actor | None = None) -> int:
    """Write the Programmed condition of every Service that all reachable nodes hold now; how many were written.

    Nodes that cannot be reached do not hold a Service back: their own Ready condition tells. Costs one query when
    there is nothing to do.
    """
    actor = actor or Actor("timonel:push")
    live = models.NodeSync.objects.filter(state=models.NodeSync.State.LIVE)
    floor = live.aggregate(floor=Min("applied_revision"))["floor"]
    if floor is None:
        return 0
    waiting = models.Service.objects.filter(~Q(programmed=True), changed_revision__lte=floor)
    written = 0
    while True:
        rejected = _rejections()
        # So many more that they cannot be all of what is looked at.
        rows = waiting.order_by("changed_revision").values_list("uid", "namespace", "name")[: AT_ONCE + len(rejected)]
        uids = [uid for uid, namespace, name in rows if f"{namespace}/{name}" not in rejected]
        if not uids:
            break
        count = _settle(uids, floor, actor)
        written += count
        if not count:
            break
    return written + _settle_rejected(actor)


def _rejections() -> dict[str, tuple[str, dict[str, str]]]:
    """Owner -> (node, {reason, message}) for every Service a live node refuses."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    rows = models.NodeSync.objects.filter(state=models.NodeSync.State.LIVE).exclude(rejected={})
    for node, rejected in rows.order_by("node_id").values_list("node_id", "rejected"):
        for owner, why in rejected.items():
            found.setdefault(owner, (node, why))
    return found


def _settle(uids: list[UUID], floor: int, actor: Actor) -> int:
    now = timezone.now()
    condition = _condition("True", "AllNodes", "Every reachable node holds the newest spec.", now)
    written = 0
    with transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now)
        # Again under the counter row: what was true a moment ago may not be.
        rows = models.Service.objects.filter(uid__in=uids, changed_revision__lte=floor).order_by("changed_revision")
        for text in [*rows.values_list("document", flat=True)]:
            document = json.loads(text)
            if _put_condition(document, condition):
                tx.update(kinds.SERVICE, document, text)
                written += 1
        tx.finish()
    return written


def _settle_rejected(actor: Actor) -> int:
    written = 0
    for owner, (node, why) in _rejections().items():
        namespace, _, name = owner.partition("/")
        if not name:
            continue
        message = f"node {node} refuses it: {why.get('message', '')}"
        condition = _condition("False", why.get("reason") or "Rejected", message, timezone.now())
        with transaction.atomic():
            tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
            try:
                current = get(kinds.SERVICE, namespace, name)
            except NotFound:
                continue
            document = json.loads(current.document)
            if _put_condition(document, condition):
                tx.update(kinds.SERVICE, document, current.document)
                written += 1
            tx.finish()
    return written


def _condition(status: str, reason: str, message: str, now: datetime) -> Document:
    return {
        "type": PROGRAMMED,
        "status": status,
        "lastTransitionTime": timestamp(now),
        "reason": reason,
        "message": message,
    }


def _put_condition(document: Document, condition: Document) -> bool:
    """Whether the condition was new to the object; a time alone is no news."""
    status = document.setdefault("status", {})
    conditions = status.setdefault("conditions", [])
    for index, present in enumerate(conditions):
        if present["type"] == condition["type"]:
            if all(present.get(key) == condition[key] for key in ("status", "reason", "message")):
                return False
            if present["status"] == condition["status"]:
                condition = {**condition, "lastTransitionTime": present["lastTransitionTime"]}
            conditions[index] = condition
            return True
    conditions.append(condition)
    return True
