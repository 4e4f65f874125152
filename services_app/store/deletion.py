"""Deletion: of one object, and of all that a Namespace holds."""

import json
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from services_app import audit, models
from services_app.spec import kinds
from services_app.spec.errors import Conflict, Forbidden, NotFound
from services_app.spec.kinds import Kind
from services_app.spec.meta import ordered, timestamp
from services_app.spec.namespace import FINALIZER
from services_app.store import servicecidrs
from services_app.store.columns import deletion_deadline, model_of
from services_app.store.objects import Actor, DryRun, Stored, get, retried
from services_app.store.removal import COLLECTORS, collect_derived, propagation_of, remove
from services_app.store.transaction import Transaction

Document = dict[str, Any]


def delete(
    kind: Kind,
    namespace: str,
    name: str,
    *,
    actor: Actor,
    dry_run: bool = False,
    preconditions: dict[str, str] | None = None,
    grace_period_s: int | None = None,
    propagation: str | None = None,
) -> Stored:
    """Delete an object and what was derived from it; returns its last state.

    Objects with finalizers, Pods and Namespaces are marked first; while something holds them, `revision` is that of the
    mark. preconditions: uid, resourceVersion. propagation: "Orphan" leaves derived objects behind, without their owner;
    "Foreground" removes them and tells by a mark that they go first; None follows the object's finalizers.
    Raises NotFound, Conflict, Forbidden for the namespaces every cluster has.
    """
    if kind is kinds.NAMESPACE and name in PERMANENT_NAMESPACES:
        raise Forbidden(kind, name, "this namespace may not be deleted")
    stored = retried(
        lambda: _delete_once(kind, namespace, name, actor, dry_run, preconditions, grace_period_s, propagation)
    )
    if kind is kinds.NAMESPACE and not dry_run:
        finish_namespace(name, actor=actor, at_most=EMPTIED_AT_ONCE)
    if kind is kinds.SERVICE_CIDR and not dry_run:
        servicecidrs.finish_retirement(name, actor=actor)
    return stored


def _delete_once(
    kind: Kind,
    namespace: str,
    name: str,
    actor: Actor,
    dry_run: bool,
    preconditions: dict[str, str] | None,
    grace_period_s: int | None,
    propagation: str | None,
) -> Stored:
    now = timezone.now()
    with transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now)
        current = get(kind, namespace, name)
        document = json.loads(current.document)
        metadata = document["metadata"]
        _check_preconditions(kind, name, metadata, preconditions or {})
        if dry_run:
            raise DryRun(current)
        others = [mark for mark in metadata.get("finalizers") or () if mark not in COLLECTORS.values()]
        propagation = propagation or propagation_of(metadata)
        collector = COLLECTORS.get(propagation or "") if kind is not kinds.NAMESPACE else None
        if not others and not collector and kind not in (kinds.POD, kinds.NAMESPACE):
            return Stored(*remove(tx, kind, document, current.document, propagation))
        grace_s = _grace_period_s(kind, document, grace_period_s)
        if metadata.get("deletionTimestamp") and grace_s >= metadata.get("deletionGracePeriodSeconds", 0):
            return current
        _mark(kind, document, [*others, collector] if collector else others, deletion_deadline(now, grace_s), grace_s)
        marked = Stored(tx.update(kind, document, current.document), tx.log.revision)
        text = marked.document
        if collector:
            # What a garbage collector would do next; the mark told watchers of it.
            collect_derived(tx, kind, document, propagation)
            document["metadata"]["finalizers"] = others
            if others:
                tx.update(kind, document, text)
            else:
                del document["metadata"]["finalizers"]
        if not others and kind is not kinds.NAMESPACE and not grace_s:
            removed = Stored(*remove(tx, kind, document, text, propagation))
            return marked if collector else removed
        tx.finish()
    return marked


def _check_preconditions(kind: Kind, name: str, metadata: Document, wanted: dict[str, str]) -> None:
    for key, word in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        if wanted.get(key) and wanted[key] != metadata[key]:
            message = (
                f"the {word} in the precondition ({wanted[key]}) does not match the {word} in record ({metadata[key]})"
            )
            raise Conflict(kind, name, message, named=kind.kind)


def _mark(kind: Kind, document: Document, finalizers: list[str], deadline: datetime, grace_s: int) -> None:
    """Note on an object that it goes, and what holds it until then."""
    metadata = document["metadata"]
    metadata["deletionTimestamp"] = timestamp(deadline)
    if kind is kinds.NAMESPACE:
        document["status"] = {**(document.get("status") or {}), "phase": "Terminating"}
    else:
        metadata["deletionGracePeriodSeconds"] = grace_s
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    document["metadata"] = ordered(metadata)


def _grace_period_s(kind: Kind, document: Document, asked: int | None) -> int:
    """How long a Pod that is bound to a node may still be seen ending; 0 for all else."""
    if kind is not kinds.POD or not document["spec"].get("nodeName"):
        return 0
    if (document.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    default = document["spec"].get("terminationGracePeriodSeconds")
    return asked if asked is not None else (30 if default is None else default)


# Namespaces: emptied, then gone

PERMANENT_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
EMPTIED_AT_ONCE = 500  # objects a DELETE of a Namespace removes before it answers; the rest follows in the background
# Causes before what is derived from them, so that nothing is derived again on the way out.
_FIRST = (kinds.SERVICE, kinds.POD)
_CONTENT = (*_FIRST, *(k for k in kinds.STORED if k.namespaced and k not in (*_FIRST, kinds.EVENTS_EVENT)))


def finish_namespace(name: str, *, actor: Actor, at_most: int) -> bool:
    """Remove what a Namespace that goes still holds, then itself. Whether it is gone; False after `at_most` objects."""
    left = at_most
    for kind in _CONTENT:
        while names := [*model_of(kind).objects.filter(namespace=name).values_list("name", flat=True)[:100]]:
            if left <= 0:
                return False
            left -= len(names)
            for item in names:
                with suppress(NotFound):
                    stored = delete(kind, name, item, actor=actor, grace_period_s=0)
                    if json.loads(stored.document)["metadata"].get("finalizers"):
                        return False
    with suppress(NotFound), transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        current = get(kinds.NAMESPACE, "", name)
        document = json.loads(current.document)
        if document["status"].get("phase") != "Terminating" or document["metadata"].get("finalizers"):
            return False
        if any(finalizer != FINALIZER for finalizer in document["spec"].get("finalizers") or ()):
            return False
        if any(model_of(kind).objects.filter(namespace=name).exists() for kind in _CONTENT):
            return False
        _take_back_grants(name, actor)
        tx.delete(kinds.NAMESPACE, document, current.document)
        tx.finish()
    return True


def _take_back_grants(namespace: str, actor: Actor) -> None:
    """Grants go with their Namespace, as role bindings do: who makes one of that name anew starts without them."""
    for grant in models.Grant.objects.select_related("user", "group").filter(namespace=namespace):
        audit.record(
            audit.DELETED, "grants", str(grant), namespace=namespace, user=actor.user, request_id=actor.request_id,
            after={"role": grant.role, "subject": grant.subject, "namespace": namespace},
        )  # fmt: skip
        grant.delete()
