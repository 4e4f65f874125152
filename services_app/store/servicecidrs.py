"""What a controller does for ServiceCIDRs: made ready with their creation, held as long as addresses need them, removed."""

import json
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.utils import timezone

from services_app import models
from services_app.spec import kinds, servicecidr
from services_app.spec.meta import ordered, timestamp
from services_app.store import claims, ranges
from services_app.store.transaction import Transaction

if TYPE_CHECKING:
    from services_app.store.objects import Actor

Document = dict[str, Any]

IS_READY = "The ranges are ready to give out addresses."
IS_HELD = "Addresses of its ranges are still in use: remove their Services, or add a ServiceCIDR that has them as well."


def make_ready(tx: Transaction, document: Document, text: str) -> None:
    """Protect a new one and say that it is ready: a second write, so that watchers see what they see in Kubernetes."""
    metadata = document["metadata"]
    finalizers = metadata.get("finalizers") or []
    if servicecidr.FINALIZER not in finalizers:
        finalizers = [*finalizers, servicecidr.FINALIZER]
    document["metadata"] = ordered({**metadata, "finalizers": finalizers})
    _put_condition(document, is_ready=True, message=IS_READY, now=timestamp(tx.now))
    tx.update(kinds.SERVICE_CIDR, document, text)


def _put_condition(document: Document, *, is_ready: bool, message: str, now: str) -> bool:
    """Whether the Ready condition was another one before."""
    made = servicecidr.condition(is_ready=is_ready, message=message, now=now)
    conditions = (document.get("status") or {}).get("conditions") or []
    had = next((one for one in conditions if one["type"] == servicecidr.READY), None)
    if had is not None and all(had.get(key) == made[key] for key in ("status", "reason", "message")):
        return False
    others = [one for one in conditions if one["type"] != servicecidr.READY]
    document["status"] = {**(document.get("status") or {}), "conditions": [*others, made]}
    return True


def finish_retirement(name: str, *, actor: "Actor") -> bool:
    """Remove a ServiceCIDR that goes when nothing needs its ranges any more, else say that they are; whether it is gone.

    Under the counter row nobody can be about to take an address: who judged by older ranges is turned away there.
    """
    with transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        text = models.ServiceCIDR.objects.filter(name=name).values_list("document", flat=True).first()
        if text is None:
            return True
        document = json.loads(text)
        metadata = document["metadata"]
        finalizers = metadata.get("finalizers") or []
        if not metadata.get("deletionTimestamp") or servicecidr.FINALIZER not in finalizers:
            return False
        if _is_held(document):
            if _put_condition(document, is_ready=False, message=IS_HELD, now=timestamp(tx.now)):
                tx.update(kinds.SERVICE_CIDR, document, text)
                tx.finish()
            return False
        left = [mark for mark in finalizers if mark != servicecidr.FINALIZER]
        metadata.pop("finalizers")
        if left:
            document["metadata"] = ordered({**metadata, "finalizers": left})
            tx.update(kinds.SERVICE_CIDR, document, text)
        else:
            tx.delete(kinds.SERVICE_CIDR, document, text)
        tx.finish()
    return not left


def _says_so(document: Document) -> bool:
    """Whether its condition tells already that it is held."""
    conditions = (document.get("status") or {}).get("conditions") or ()
    return any(one["type"] == servicecidr.READY and one.get("reason") == servicecidr.TERMINATING for one in conditions)


def _is_held(document: Document) -> bool:
    """Whether an address in use would be in no range without this one. Two queries, one over all claims."""
    others = models.ServiceCIDR.objects.exclude(name=document["metadata"]["name"]).values_list("cidrs", flat=True)
    return ranges.held_address(document["spec"]["cidrs"], [text for cidrs in others for text in cidrs]) is not None


def finish_retirements(*, actor: "Actor") -> int:
    """Remove what can go by now, and the lists of free addresses it leaves; the number of ServiceCIDRs removed.

    Costs three queries when there is nothing to do, and no writer waits for what has to wait itself.
    """
    going = models.ServiceCIDR.objects.filter(document__contains='"deletionTimestamp":').values_list(
        "document", flat=True
    )
    removed = 0
    for document in [json.loads(text) for text in going]:
        if not (_says_so(document) and _is_held(document)):
            removed += finish_retirement(document["metadata"]["name"], actor=actor)
    with transaction.atomic():
        claims.forget_pools(ranges.read())
    return removed
