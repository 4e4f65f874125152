"""Create, get and update API objects: the one way in.

A write: parse and judge first, without any lock; then one transaction with claims, counter row, derivation, log.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from django.db import OperationalError, connection, transaction
from django.utils import timezone

from services_app import models
from services_app.changes import Rows, Statement, encode
from services_app.plan import kubelet
from services_app.plan.ownership import propagation_of
from services_app.spec import ingress, kinds, managed_fields, objects
from services_app.spec.errors import (
    AlreadyExists,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    ServiceUnavailable,
    invalid,
)
from services_app.spec.kinds import Kind
from services_app.spec.meta import timestamp
from services_app.spec.objects import ClusterSettings
from services_app.store import claims, forms, ranges, servicecidrs
from services_app.store.columns import model_of, node_addresses
from services_app.store.removal import is_held, remove
from services_app.store.transaction import Transaction, name_suffix

Document = dict[str, Any]
T = TypeVar("T")

TRIES = 8  # for generated names and refused transactions; each is a new look at the world
RACES = 32  # an update loses before it is a Conflict: somebody else wins each, so few writers lose often
PROGRAMMED = "Programmed"


@dataclass(frozen=True)
class Actor:
    """Who writes, for the log. manager: whose the written fields become, "" for nobody's (the control plane's own)."""

    user: str
    request_id: str = ""
    manager: str = ""


@dataclass(frozen=True)
class Stored:
    """An object as it is handed out. created: it did not exist before."""

    document: str
    revision: int
    created: bool = False


class DryRun(Exception):
    """Rolls a tried write back; carries what it would have returned."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored


class _LostRace(Exception):
    """The object changed between reading and writing it."""


def cluster_settings() -> ClusterSettings:
    """The ranges as they are now, and the domain. One query."""
    return ranges.read()


def get(kind: Kind, namespace: str, name: str) -> Stored:
    """The object. Raises NotFound. One query."""
    with connection.cursor() as cursor:
        cursor.execute(*asking(kind, namespace, name))
        return answered(kind, name, cursor.fetchall())


def asking(kind: Kind, namespace: str, name: str) -> Statement:
    """Asks for an object. Raises NotFound for a name that none can have."""
    if "\0" in namespace + name:  # PostgreSQL refuses to look for it
        raise NotFound(kind, name)
    table = model_of(kind)._meta.db_table
    return f"SELECT document, revision FROM {table} WHERE namespace = %s AND name = %s", (namespace, name)


def answered(kind: Kind, name: str, found: Rows) -> Stored:
    """The object. found: what `asking` gave. Raises NotFound."""
    if not found:
        raise NotFound(kind, name)
    text, revision = found[0]
    return Stored(forms.shown_text(kind, text), revision)


def create(
    kind: Kind, document: Document, *, namespace: str, actor: Actor, dry_run: bool = False, applied: bool = False
) -> Stored:
    """Store a new object: defaulted, judged, with its addresses and ports, its endpoints derived.

    applied: the document comes from an apply and says who owns its fields. Raises Invalid with every error at once,
    AlreadyExists, NotFound for a missing namespace, Forbidden for one that goes. Nothing is kept of a failed create.
    """
    for attempt in range(TRIES):
        cluster = ranges.known()
        now = timezone.now()
        prepared = objects.prepare_create(
            kind,
            document,
            namespace=namespace,
            now=now,
            uid=str(uuid4()),
            cluster=cluster,
            name_suffix=name_suffix(),
        )
        if errors := _validate_create(kind, prepared, cluster):
            if ranges.are_newer_than(cluster):
                continue
            raise Invalid(kind, prepared["metadata"].get("name", ""), errors)
        if applied:
            _own(prepared, document["metadata"].get("managedFields"))
        elif actor.manager:
            author = managed_fields.Author(actor.manager, timestamp(now))
            _own(prepared, managed_fields.created(kind, document, prepared, author))
        if kind is kinds.INGRESS and ingress.wants_class(prepared):
            _set_default_class(prepared)  # like Kubernetes' admission: nobody owns the field
        generated = not document.get("metadata", {}).get("name") and document["metadata"].get("generateName")
        try:
            return retried(partial(_create_once, kind, prepared, cluster, actor, now, dry_run))
        except AlreadyExists:
            if not generated or attempt == TRIES - 1:
                raise
        except Invalid:
            if not ranges.are_newer_than(cluster):
                raise
        except _LostRace:
            continue
    raise ServiceUnavailable("the ranges of cluster IPs are changing; try again")


def _validate_create(kind: Kind, prepared: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = objects.validate_create(kind, prepared, cluster)
    return errors or (ranges.validate_apart(prepared) if kind is kinds.SERVICE_CIDR else [])


def _set_default_class(prepared: Document) -> None:
    """Give a new Ingress the class that is marked as default, when there is one. One query."""
    marked = models.IngressClass.objects.filter(document__contains=ingress.DEFAULT_ANNOTATION)
    if name := ingress.default_class([json.loads(text) for text in marked.values_list("document", flat=True)]):
        prepared["spec"] = {"ingressClassName": name, **prepared["spec"]}


def _own(document: Document, entries: list[Document] | None) -> None:
    """Note who owns which fields of a prepared document."""
    document["metadata"].pop("managedFields", None)
    if entries:
        document["metadata"]["managedFields"] = entries


def _create_once(
    kind: Kind, prepared: Document, cluster: ClusterSettings, actor: Actor, now: datetime, dry_run: bool
) -> Stored:
    document = objects.copied(prepared)
    metadata = document["metadata"]
    with transaction.atomic():
        if kind is kinds.SERVICE and not dry_run:
            claims.claim(UUID(metadata["uid"]), None, document, cluster)
        elif kind is kinds.IP_ADDRESS and not dry_run and not claims.claim_by_hand(metadata["name"], cluster):
            raise AlreadyExists(kind, metadata["name"])
        tx = Transaction(
            user=actor.user,
            request_id=actor.request_id,
            now=now,
            asked=[(_NAMESPACE_SQL, ("", metadata["namespace"]))] if kind.namespaced else [],
            deriving=document if kind is kinds.SERVICE else None,
        )
        _check_ranges(tx, cluster)
        if kind.namespaced:
            _require_namespace(kind, metadata, tx.answers[0])
        if kind is kinds.POD:
            document = _as_kubelet(document, now)
        text = tx.insert(kind, document)
        if dry_run:
            tx.send()
            del metadata["resourceVersion"]
            raise DryRun(Stored(encode(document), 0, created=True))
        revision = tx.log.revision
        if kind is kinds.SERVICE_CIDR:
            servicecidrs.make_ready(tx, document, text)
        tx.finish()
    return Stored(text, revision, created=True)


def _check_ranges(tx: Transaction, cluster: ClusterSettings) -> None:
    """Raise _LostRace when something was judged, or given out, by ranges that are no more those that hold."""
    if tx.log.ranges_revision != cluster.revision:
        ranges.forget()
        raise _LostRace


_NAMESPACE_SQL = "SELECT document FROM services_app_namespace WHERE namespace = %s AND name = %s"


def _require_namespace(kind: Kind, metadata: Document, found: Rows) -> None:
    """metadata: of what is to be made. found: what `_NAMESPACE_SQL` gave."""
    namespace = metadata["namespace"]
    if not found:
        raise NotFound(kinds.NAMESPACE, namespace)
    text = found[0][0]
    # The word is looked for before the text is parsed: this runs under the counter row.
    if "Terminating" in text and json.loads(text)["status"].get("phase") == "Terminating":
        message = f"unable to create new content in namespace {namespace} because it is being terminated"
        raise Forbidden(kind, metadata["name"], message)


def _as_kubelet(pod: Document, now: datetime) -> Document:
    """A Pod on an enrolled node, with the status its kubelet would report; any other Pod as it is."""
    node_name = pod["spec"].get("nodeName")
    if not node_name or not models.NodeAccess.objects.filter(node=node_name).exists():
        return pod
    addresses = addresses_of_node(node_name)
    return kubelet.observe(pod, addresses, timestamp(now)) if addresses else pod


def addresses_of_node(name: str) -> list[str]:
    """The InternalIPs of a Node; empty when it has none or does not exist. One query."""
    text = models.Node.objects.filter(name=name).values_list("document", flat=True).first()
    return node_addresses(json.loads(text)) if text else []


def update(
    kind: Kind,
    namespace: str,
    name: str,
    change: Callable[[Document], Document],
    *,
    subresource: str = "",
    actor: Actor,
    dry_run: bool = False,
    applied: bool = False,
) -> Stored:
    """Replace an object by what `change` makes of it, or of its status when that is the subresource.

    change: gets the object as it is now and returns the wanted one; called again after a lost race. A resourceVersion
    it leaves in must be the current one. applied: it says who owns the fields as well. Raises NotFound, Conflict,
    Invalid and whatever `change` raises. A change that changes nothing is not written.
    """
    for _ in range(RACES):
        cluster = ranges.known()
        current = get(kind, namespace, name)
        old = json.loads(current.document)
        wanted = change(objects.copied(old))
        _check_version(kind, name, old, wanted)
        prepared = objects.prepare_update(kind, old, wanted, subresource=subresource, cluster=cluster)
        errors = objects.validate_update(kind, old, prepared, subresource=subresource, cluster=cluster)
        if not errors and kind is kinds.SERVICE_CIDR and old["spec"] != prepared["spec"]:
            errors = ranges.validate_apart(prepared)
        if errors:
            if ranges.are_newer_than(cluster):
                continue
            raise Invalid(kind, name, errors)
        prepared["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        _own(prepared, _owners(kind, old, wanted, prepared, subresource, actor, applied))
        if managed_fields.is_same(old, prepared):
            return current
        try:
            return retried(partial(_update_once, kind, current, old, prepared, cluster, actor, dry_run, subresource))
        except _LostRace:
            continue
        except Invalid:
            if not ranges.are_newer_than(cluster):
                raise
    raise Conflict(
        kind, name, "the object has been modified; please apply your changes to the latest version and try again"
    )


def _check_version(kind: Kind, name: str, old: Document, wanted: Document) -> None:
    """Raise Conflict when `wanted` was made from another version. None, or 0 where that is allowed, is any version."""
    version = (wanted.get("metadata") or {}).get("resourceVersion")
    if version in (None, "", "0"):
        if not kind.unconditional_update:
            raise Invalid(kind, name, [invalid("metadata.resourceVersion", 0, "must be specified for an update")])
        wanted["metadata"].pop("resourceVersion", None)
    elif version != old["metadata"]["resourceVersion"]:
        raise Conflict(
            kind, name, "the object has been modified; please apply your changes to the latest version and try again"
        )


def _update_once(
    kind: Kind,
    current: Stored,
    old: Document,
    prepared: Document,
    cluster: ClusterSettings,
    actor: Actor,
    dry_run: bool,
    subresource: str,
) -> Stored:
    document = objects.copied(prepared)
    uid = UUID(old["metadata"]["uid"])
    now = timezone.now()
    with transaction.atomic():
        if kind is kinds.SERVICE and not subresource:
            if not dry_run:
                claims.claim(uid, old, document, cluster)
            _reset_programmed(old, document, now)
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now)
        _check_ranges(tx, cluster)
        if not model_of(kind).objects.filter(uid=uid, revision=current.revision).exists():
            raise _LostRace
        if kind is kinds.POD and subresource != "status":
            document = _as_kubelet(document, now)
        if dry_run:
            raise DryRun(Stored(encode(document), current.revision))
        if document["metadata"].get("deletionTimestamp") and not is_held(kind, document):
            _, revision = remove(tx, kind, document, current.document, propagation_of(old["metadata"]))
            # The answer carries the version that was changed, as in Kubernetes; watchers get that of the removal.
            document["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            return Stored(encode(document), revision)
        text = tx.update(kind, document, current.document)
        revision = tx.log.revision
        if kind is kinds.SERVICE and not subresource:
            claims.release(uid, old, document, cluster)
        tx.finish()
    return Stored(text, revision)


def _reset_programmed(old: Document, new: Document, now: datetime) -> None:
    """Take the Programmed condition back when nodes have something new to hold."""
    if old["spec"] == new["spec"]:
        return
    for condition in (new.get("status") or {}).get("conditions") or ():
        if condition["type"] == PROGRAMMED and condition["status"] == "True":
            condition.update(
                status="False",
                reason="Pending",
                message="The newest spec is on its way to the nodes.",
                lastTransitionTime=timestamp(now),
            )


def _owners(
    kind: Kind,
    old: Document,
    wanted: Document,
    prepared: Document,
    subresource: str,
    actor: Actor,
    applied: bool,
) -> list[Document] | None:
    if applied:
        return wanted["metadata"].get("managedFields")
    if not actor.manager:
        return old["metadata"].get("managedFields")
    author = managed_fields.Author(actor.manager, timestamp(timezone.now()), subresource)
    return managed_fields.updated(kind, old, wanted, prepared, author)


def apply(
    kind: Kind,
    namespace: str,
    name: str,
    config: Document,
    *,
    creating: Callable[[], None],
    check: Callable[[Document | None, Document], None],
    subresource: str = "",
    force: bool = False,
    actor: Actor,
    dry_run: bool = False,
) -> Stored:
    """Apply a configuration in the name of the actor's manager; the object is made when it is not there.

    creating: called before it is made; check: called with the object as it is, None for none, and as it is wanted. Both
    may raise. force: fields that others own are taken over. Raises ApplyConflict, else as create and update.
    """
    author = managed_fields.Author(actor.manager, timestamp(timezone.now()), subresource)

    def merged(live: Document | None) -> Document:
        document = managed_fields.applied(kind, live, config, author, force=force)
        check(live, document)
        return document

    for attempt in range(TRIES):
        try:
            return update(
                kind, namespace, name, merged, subresource=subresource, actor=actor, dry_run=dry_run, applied=True
            )
        except NotFound:
            if subresource:
                raise
        creating()
        document = merged(None)
        if uid := document["metadata"].get("uid"):
            text = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise Conflict(kind, name, text)
        try:
            return create(kind, document, namespace=namespace, actor=actor, dry_run=dry_run, applied=True)
        except AlreadyExists:
            if attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")


# Transactions


def retried(work: Callable[[], T]) -> T:
    """Run a transaction again after a deadlock or a serialisation failure; both mean that nothing was done."""
    for attempt in range(TRIES):
        try:
            return work()
        except DryRun as tried:
            return tried.stored  # type: ignore[return-value]
        except OperationalError as err:
            code = getattr(err.__cause__, "sqlstate", None)
            if code not in ("40001", "40P01") or attempt == TRIES - 1:
                raise
            time.sleep(0.01 * (attempt + 1))
    raise AssertionError("unreachable")
