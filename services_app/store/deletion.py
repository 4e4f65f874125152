"""Deletion: of one object, of what it owned, and of all that a Namespace holds.

What an object owned follows after the commit, each in a transaction of its own. Nothing notes that it is to be done: what
the references say is enough to go on after a crash (`collect`).
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from services_app import audit, models
from services_app.plan import ownership
from services_app.plan.ownership import COLLECTORS, Fate, Owner, Reference, propagation_of
from services_app.spec import kinds
from services_app.spec.errors import ApiError, Conflict, Forbidden, NotFound
from services_app.spec.kinds import Kind
from services_app.spec.meta import ordered, timestamp
from services_app.spec.namespace import FINALIZER, remains
from services_app.store import events, references, servicecidrs
from services_app.store.columns import deletion_deadline, model_of
from services_app.store.objects import TRIES, Actor, DryRun, Stored, answered, asking, get, retried, update
from services_app.store.references import Dependent
from services_app.store.removal import collect_derived, remove
from services_app.store.transaction import Transaction

logger = logging.getLogger(__name__)

Document = dict[str, Any]


AT_ONCE = 500  # objects that go, or lose a reference, before a DELETE answers; the rest follows in the background


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
    """Delete an object, what was derived from it, and what it owned; returns its last state.

    Objects with finalizers, Pods and Namespaces are marked first; while something holds them, `revision` is that of the
    mark. preconditions: uid, resourceVersion. propagation: "Orphan" leaves dependents behind, without their owner;
    "Foreground" removes them first, and what blocks the owner holds it; None follows the object's finalizers.
    Raises NotFound, Conflict, Forbidden for the namespaces every cluster has.
    """
    concerned: set[UUID] = set()
    stored = _delete(
        kind,
        namespace,
        name,
        actor=actor,
        concerned=concerned,
        dry_run=dry_run,
        preconditions=preconditions,
        grace_period_s=grace_period_s,
        propagation=propagation,
    )
    if dry_run:
        return stored
    if concerned:
        follow(concerned, actor=actor, at_most=AT_ONCE)
    if kind is kinds.NAMESPACE:
        finish_namespace(name, actor=actor, at_most=EMPTIED_AT_ONCE)
    if kind is kinds.SERVICE_CIDR:
        servicecidrs.finish_retirement(name, actor=actor)
    return stored


def _delete(
    kind: Kind,
    namespace: str,
    name: str,
    *,
    actor: Actor,
    concerned: set[UUID],
    dry_run: bool = False,
    preconditions: dict[str, str] | None = None,
    grace_period_s: int | None = None,
    propagation: str | None = None,
) -> Stored:
    """As `delete`, but sees to no other object; notes in `concerned` whom `follow` should look at after it."""
    if kind is kinds.NAMESPACE and name in PERMANENT_NAMESPACES:
        raise Forbidden(kind, name, "this namespace may not be deleted")
    return retried(
        lambda: _delete_once(
            kind, namespace, name, actor, dry_run, preconditions, grace_period_s, propagation, concerned
        )
    )


def _delete_once(
    kind: Kind,
    namespace: str,
    name: str,
    actor: Actor,
    dry_run: bool,
    preconditions: dict[str, str] | None,
    grace_period_s: int | None,
    propagation: str | None,
    concerned: set[UUID],
) -> Stored:
    now = timezone.now()
    with transaction.atomic():
        asked = [asking(kind, namespace, name), references.has_dependents(kind, namespace, name)]
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now, asked=asked)
        found, dependents = tx.answers
        current = answered(kind, name, found)
        document = json.loads(current.document)
        metadata = document["metadata"]
        _check_preconditions(kind, name, metadata, preconditions or {})
        if dry_run:
            raise DryRun(current)
        if dependents:
            concerned.add(UUID(metadata["uid"]))
        others = _foreign_marks(metadata)
        propagation = propagation or propagation_of(metadata)
        collector = COLLECTORS.get(propagation or "")
        if not others and not collector and kind not in (kinds.POD, kinds.NAMESPACE):
            concerned.update(_waiting_for(metadata))
            _set_finalizers(document, [])
            return Stored(*remove(tx, kind, document, current.document, propagation))
        grace_s = _grace_period_s(kind, document, grace_period_s)
        is_marked = metadata.get("deletionTimestamp") and grace_s >= metadata.get("deletionGracePeriodSeconds", 0)
        finalizers = [*others, collector] if collector else others
        if is_marked and finalizers == (metadata.get("finalizers") or []):
            return current
        if not is_marked:
            _mark(kind, document, deletion_deadline(now, grace_s), grace_s)
        _set_finalizers(document, finalizers)
        marked = Stored(tx.update(kind, document, current.document), tx.log.revision)
        text = marked.document
        if collector:
            # What a garbage collector would do next; the mark told watchers of it.
            collect_derived(tx, kind, document, propagation)
        goes_on = bool(grace_s) or kind is kinds.NAMESPACE
        if collector and not (dependents and tx.send(references.blockers(metadata["uid"], propagation or ""))[0]):
            finalizers = others
            _set_finalizers(document, finalizers)
            if finalizers or goes_on:
                tx.update(kind, document, text)
        if not finalizers and not goes_on:
            concerned.update(_waiting_for(metadata))
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


def _waiting_for(metadata: Document) -> set[UUID]:
    """The owners that wait for an object to go. One query, if it may hold any."""
    named = (references.uid_of(one.uid) for one in ownership.references(metadata) if one.blocks)
    uids = [uid for uid in named if uid is not None]
    return {*models.WaitingOwner.objects.filter(uid__in=uids).values_list("uid", flat=True)} if uids else set()


def _mark(kind: Kind, document: Document, deadline: datetime, grace_s: int) -> None:
    """Note on an object that it goes."""
    metadata = document["metadata"]
    metadata["deletionTimestamp"] = timestamp(deadline)
    if kind is kinds.NAMESPACE:
        document["status"] = {**(document.get("status") or {}), "phase": "Terminating"}
    else:
        metadata["deletionGracePeriodSeconds"] = grace_s
    document["metadata"] = ordered(metadata)


def _set_finalizers(document: Document, finalizers: list[str]) -> None:
    metadata = {key: value for key, value in document["metadata"].items() if key != "finalizers"}
    document["metadata"] = ordered({**metadata, "finalizers": finalizers}) if finalizers else metadata


def _grace_period_s(kind: Kind, document: Document, asked: int | None) -> int:
    """How long a Pod that is bound to a node may still be seen ending; 0 for all else."""
    if kind is not kinds.POD or not document["spec"].get("nodeName"):
        return 0
    if (document.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    default = document["spec"].get("terminationGracePeriodSeconds")
    return asked if asked is not None else (30 if default is None else default)


# Dependents: what Kubernetes' garbage collector does (k8s v1.36 pkg/controller/garbagecollector)

COMPONENT = "garbage-collector-controller"
_OWNER_ELSEWHERE = (
    "ownerRef [{apiVersion}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}]"
    ' does not exist in namespace "{namespace}"'
)


def collect(*, actor: Actor, at_most: int) -> int:
    """See to every object whose owner is gone, and to owners that wait; how many were written, at most about so many.

    Finds what `delete` left, or could not do before a crash, and references that never led anywhere. Two queries when
    there is nothing to do.
    """
    concerned: set[UUID] = set()
    done = 0
    for dependent in references.of_gone_owners():
        if done >= at_most:
            return done
        done += _see_to(dependent, actor, concerned)
    concerned.update(models.WaitingOwner.objects.values_list("uid", flat=True))
    return done + follow(concerned, actor=actor, at_most=at_most - done)


def follow(owners: Iterable[UUID], *, actor: Actor, at_most: int) -> int:
    """See to the dependents of owners that go or are gone, then to theirs, and remove the owners that waited for them.

    The number of objects written; stops when it reaches at_most, as `collect` comes again. Each object is written in a
    transaction of its own, and looked at anew before.
    """
    actor = replace(actor, manager="")  # nobody becomes the owner of a field by it
    concerned = {*owners}
    done = 0
    while concerned:
        uid = concerned.pop()
        waiting = models.WaitingOwner.objects.filter(uid=uid).first()
        for dependent in references.dependents_of(uid):
            if done >= at_most:
                return done
            if waiting is not None and waiting.policy == "Orphan":
                done += _edit(dependent, partial(ownership.without, uids={str(uid)}), actor, concerned)
            else:
                done += _see_to(dependent, actor, concerned)
        if waiting is not None and not references.is_blocked(uid, waiting.policy):
            done += _release(waiting, actor, concerned)
    return done


def _see_to(dependent: Dependent, actor: Actor, concerned: set[UUID]) -> int:
    """Do with an object what its owners' state asks for; 1 when it was written. concerned: as for `_delete`."""
    kind, namespace, name = dependent.kind, dependent.namespace, dependent.name
    for _ in range(TRIES):
        try:
            metadata = json.loads(get(kind, namespace, name).document)["metadata"]
            if metadata["uid"] != str(dependent.uid) or metadata.get("deletionTimestamp"):
                return 0
            owners = ownership.references(metadata)
            if any(owner.kind is None for owner in owners) or (
                kind is kinds.NAMESPACE and name in PERMANENT_NAMESPACES
            ):
                return 0
            states = [*map(references.state_of, owners)]
            going = [owner for owner, state in zip(owners, states, strict=True) if state is not Owner.THERE]
            fate = ownership.fate(states, has_dependents=references.is_owner(dependent.uid))
            if fate is Fate.STAYS:
                return 0
            _tell_where_owners_are(dependent, metadata, going, actor)
            if fate is Fate.LOSES_REFERENCES:
                freed = partial(ownership.without, uids={owner.uid for owner in going})
                return _edit(dependent, freed, actor, concerned)
            if fate is Fate.GOES_FOREGROUND and references.has_waiting_dependents(dependent.uid):
                # A circle of owners that wait for each other is opened here.
                _edit(dependent, ownership.unblocking, actor, concerned)
                metadata = json.loads(get(kind, namespace, name).document)["metadata"]
            _delete(
                kind,
                namespace,
                name,
                actor=actor,
                concerned=concerned,
                preconditions={key: metadata[key] for key in ("uid", "resourceVersion")},
                propagation="Foreground" if fate is Fate.GOES_FOREGROUND else None,
            )
            return 1
        except NotFound:
            return 0
        except Conflict:
            continue  # written meanwhile, maybe with other owners
        except ApiError as err:
            logger.warning("cannot remove %s %s/%s: %s reason=refused", kind.plural, namespace, name, err)
            return 0
    return 0


def _tell_where_owners_are(dependent: Dependent, metadata: Document, going: list[Reference], actor: Actor) -> None:
    """An owner in another namespace is no owner: said as an Event, as the object is about to suffer for it."""
    for owner in going:
        if not references.is_elsewhere(owner):
            continue
        assert owner.kind is not None
        message = _OWNER_ELSEWHERE.format(
            apiVersion=owner.kind.api_version,
            kind=owner.kind.kind,
            namespace=dependent.namespace,
            name=owner.name,
            uid=owner.uid,
        )
        with transaction.atomic():
            tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
            events.record(
                tx, dependent.kind, {"metadata": metadata}, "OwnerRefInvalidNamespace", message, component=COMPONENT
            )
            tx.finish()


def _edit(dependent: Dependent, change: Callable[[Document], Document], actor: Actor, concerned: set[UUID]) -> int:
    """Change the metadata of an object if it is still the same one; 1 when it was done. concerned: as for `_delete`."""
    waiting: set[UUID] = set()

    def changed(document: Document) -> Document:
        metadata = document["metadata"]
        if metadata["uid"] != str(dependent.uid):
            return document
        waiting.update(_waiting_for(metadata))
        return {**document, "metadata": change(metadata)}

    try:
        update(dependent.kind, dependent.namespace, dependent.name, changed, actor=actor)
    except NotFound:
        return 0
    except ApiError as err:
        place = f"{dependent.kind.plural} {dependent.namespace}/{dependent.name}"
        logger.warning("cannot change the owners or finalizers of %s: %s reason=refused", place, err)
        return 0
    concerned.update(waiting)
    return 1


def _release(waiting: models.WaitingOwner, actor: Actor, concerned: set[UUID]) -> int:
    """Take its mark from an owner that has nothing to wait for any more; it goes, if nothing else holds it."""

    def freed(metadata: Document) -> Document:
        left = [mark for mark in metadata.get("finalizers") or () if mark != COLLECTORS[waiting.policy]]
        return {**metadata, "finalizers": left}

    kind = references.BY_PLURAL[waiting.kind]
    written = _edit(Dependent(waiting.uid, kind, waiting.namespace, waiting.name), freed, actor, concerned)
    if written:
        concerned.add(waiting.uid)  # for dependents that did not block it
    return written


# Namespaces: emptied, then gone

PERMANENT_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
EMPTIED_AT_ONCE = 500  # objects a DELETE of a Namespace removes before it answers; the rest follows in the background
# Causes before what is derived from them, so that nothing is derived again on the way out.
_FIRST = (kinds.SERVICE, kinds.POD)
_CONTENT = (*_FIRST, *(k for k in kinds.STORED if k.namespaced and k not in (*_FIRST, kinds.EVENTS_EVENT)))


def finish_namespace(name: str, *, actor: Actor, at_most: int) -> bool:
    """Remove what a Namespace that goes still holds, then itself. Whether it is gone; False after `at_most` objects.

    What has finalizers of others waits for them, marked; the Namespace's conditions say what that is.
    """
    left = at_most
    waiting: Counter[Kind] = Counter()
    marks: Counter[str] = Counter()
    for kind in _CONTENT:
        after = ""
        while found := [*_content(kind, name, after)]:
            after = found[-1][0]
            for item, text in found:
                if left <= 0:
                    return False
                metadata = json.loads(text)["metadata"]
                if not (metadata.get("deletionTimestamp") and _foreign_marks(metadata)):
                    left -= 1
                    try:
                        # As in Kubernetes nothing waits for its dependents here: they go as well.
                        stored = _delete(
                            kind, name, item, actor=actor, concerned=set(), grace_period_s=0, propagation="Background"
                        )
                    except NotFound:
                        continue
                    metadata = json.loads(stored.document)["metadata"]
                if metadata.get("finalizers"):
                    waiting[kind] += 1
                    marks.update(metadata["finalizers"])
    if waiting:
        _tell_what_remains(name, waiting, marks, actor)
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


def _content(kind: Kind, namespace: str, after: str) -> Iterable[tuple[str, str]]:
    """(name, document) of some objects by name."""
    rows = model_of(kind).objects.filter(namespace=namespace, name__gt=after).order_by("name")
    return rows.values_list("name", "document")[:100]


def _foreign_marks(metadata: Document) -> list[str]:
    return [mark for mark in metadata.get("finalizers") or () if mark not in COLLECTORS.values()]


def _tell_what_remains(name: str, waiting: Counter[Kind], marks: Counter[str], actor: Actor) -> None:
    with suppress(NotFound), transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        current = get(kinds.NAMESPACE, "", name)
        document = json.loads(current.document)
        if document["status"].get("phase") != "Terminating":
            return
        resources = {f"{kind.plural}.{kind.group}": count for kind, count in waiting.items()}
        if remains(document["status"], resources, marks, timestamp(tx.now)):
            tx.update(kinds.NAMESPACE, document, current.document)
            tx.finish()


def _take_back_grants(namespace: str, actor: Actor) -> None:
    """Grants go with their Namespace, as role bindings do: who makes one of that name anew starts without them."""
    for grant in models.Grant.objects.select_related("user", "group").filter(namespace=namespace):
        audit.record(
            audit.DELETED, "grants", str(grant), namespace=namespace, user=actor.user, request_id=actor.request_id,
            after={"role": grant.role, "subject": grant.subject, "namespace": namespace},
        )  # fmt: skip
        grant.delete()
