"""Events: what the control plane tells about an object, in Kubernetes' words, kept for an hour."""

import json
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from services_app import models
from services_app.spec import kinds, objects
from services_app.spec.kinds import Kind
from services_app.spec.meta import timestamp

if TYPE_CHECKING:
    from services_app.store.transaction import Transaction

Document = dict[str, Any]

KEPT_FOR = timedelta(hours=1)  # as kube-apiserver's --event-ttl
AT_ONCE = 200


def record(
    tx: "Transaction", kind: Kind, about: Document, reason: str, message: str, *, component: str, type: str = "Warning"
) -> None:
    """Tell something about an object; said before in the same words, the Event counts on.

    reason: one word as Kubernetes has it. component: who tells. Two queries.
    """
    metadata = about["metadata"]
    now = timestamp(tx.now)
    rows = models.Event.objects.filter(
        namespace=metadata.get("namespace") or "default",
        involved_kind=kind.kind,
        involved_name=metadata["name"],
        reason=reason,
    )
    for text in rows.values_list("document", flat=True):
        event = json.loads(text)
        same_object = event["involvedObject"].get("uid") == metadata["uid"]
        if same_object and event.get("message") == message and event.get("reportingComponent") == component:
            event["count"] = event.get("count", 1) + 1
            event["lastTimestamp"] = now
            tx.update(kinds.EVENT, event, text)
            return
    uid = uuid4()
    document, _ = objects.shaped(
        kinds.EVENT,
        {
            "metadata": {
                "name": f"{metadata['name']}.{uid.hex[:16]}",
                "namespace": metadata.get("namespace") or "default",
                "uid": str(uid),
                "creationTimestamp": now,
            },
            "involvedObject": {
                "kind": kind.kind,
                "namespace": metadata.get("namespace"),
                "name": metadata["name"],
                "uid": metadata["uid"],
                "apiVersion": kind.api_version,
                "resourceVersion": metadata.get("resourceVersion"),
            },
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": type,
            "reportingComponent": component,
        },
    )
    tx.insert(kinds.EVENT, document)


def expired(before: datetime) -> list[UUID]:
    """Some of the Events that were last heard of before a moment; empty when there are none left."""
    rows = models.Event.objects.filter(created_at__lt=before).order_by("created_at").values_list("uid", "document")
    old = (uid for uid, text in rows.iterator() if is_expired(json.loads(text), before))
    return [*islice(old, AT_ONCE)]


def is_expired(event: Document, before: datetime) -> bool:
    return _last_seen(event) < timestamp(before)


def _last_seen(event: Document) -> str:
    """RFC 3339 in UTC, so that texts compare as times do."""
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return max((text for text in times if text), default=event["metadata"]["creationTimestamp"])
