"""Create, get, list, update and delete API objects: the one way in.

A write: parse and judge first, without any lock; then one transaction with claims, counter row, derivation, log.
"""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from services_app import changes, models
from services_app.changes import encode
from services_app.plan import kubelet
from services_app.spec import kinds, objects
from services_app.spec.errors import AlreadyExists, BadRequest, Conflict, Expired, Forbidden, Invalid, NotFound
from services_app.spec.kinds import Kind
from services_app.spec.meta import timestamp
from services_app.spec.objects import ClusterSettings
from services_app.spec.selectors import FieldSelector, Selector
from services_app.store import claims
from services_app.store.columns import deletion_deadline, model_of, node_addresses
from services_app.store.transaction import Transaction, name_suffix

Document = dict[str, Any]
T = TypeVar("T")

TRIES = 8  # for generated names and refused transactions; each is a new look at the world
RACES = 32  # an update loses before it is a Conflict: somebody else wins each, so few writers lose often
PROGRAMMED = "Programmed"


@dataclass(frozen=True)
class Actor:
    """Who writes, for the log."""

    user: str
    request_id: str = ""


@dataclass(frozen=True)
class Stored:
    """An object as it is handed out. created: it did not exist before."""

    document: str
    revision: int
    created: bool = False


@dataclass(frozen=True)
class Page:
    """Part of a list, all of it as of `revision`. remaining: how many are left, None when unknown."""

    documents: list[str]
    revision: int
    continue_token: str = ""
    remaining: int | None = None


class _DryRun(Exception):
    """Rolls a tried write back; carries what it would have returned."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored


class _LostRace(Exception):
    """The object changed between reading and writing it."""


def cluster_settings() -> ClusterSettings:
    """The ranges and the domain, as configured."""
    return ClusterSettings(
        service_cidrs=tuple(settings.TIMONEL_SERVICE_CIDRS),
        node_port_range=settings.TIMONEL_NODE_PORT_RANGE,
        cluster_domain=settings.TIMONEL_CLUSTER_DOMAIN,
    )


def get(kind: Kind, namespace: str, name: str) -> Stored:
    """The object. Raises NotFound. One query."""
    table = model_of(kind)._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT document, revision FROM {table} WHERE namespace = %s AND name = %s", [namespace, name])
        found = cursor.fetchone()
    if found is None:
        raise NotFound(kind, name)
    return Stored(*found)


def list_objects(
    kind: Kind,
    namespace: str | None,
    *,
    labels: Selector | None = None,
    fields: FieldSelector | None = None,
    limit: int = 0,
    continue_token: str = "",
) -> Page:
    """The objects of a kind, in byte order of namespace and name. namespace None: of all. Two or three queries.

    limit 0: all of them. Raises BadRequest for a continue token this server did not give out, Expired when the log no
    longer reaches back to the token's revision.
    """
    rows = model_of(kind).objects.order_by("namespace", "name")
    if namespace is not None:
        rows = rows.filter(namespace=namespace)
    if labels is not None and (equal := _equalities(labels)):
        rows = rows.filter(labels__contains=equal)
    revision, after = _read_token(continue_token) if continue_token else (0, None)
    # The counter first: an object read afterwards can only be newer than what is promised, and a watch from there
    # tells it again.
    head = changes.head()
    if revision and revision < changes.oldest():
        raise Expired("The provided continue parameter is too old to display a consistent list result.")
    documents: list[str] = []
    last: tuple[str, str] | None = None
    more = False
    rows_left = _behind(rows, after)
    for item_namespace, item_name, item_labels, document in rows_left.values_list(
        "namespace", "name", "labels", "document"
    ).iterator(chunk_size=2000):
        if labels is not None and not labels.matches(item_labels):
            continue
        if fields is not None and not fields.matches(json.loads(document)):
            continue
        if limit and len(documents) == limit:
            more = True
            break
        documents.append(document)
        last = (item_namespace, item_name)
    if not more:
        return Page(documents, revision or head)
    remaining = _behind(rows, last).count() if labels is None and fields is None else None
    return Page(documents, revision or head, _write_token(revision or head, last), remaining)


def _behind(rows: QuerySet[Any], place: tuple[str, str] | None) -> QuerySet[Any]:
    """The rows that come after a namespace and name in list order."""
    if place is None:
        return rows
    namespace, name = place
    return rows.filter(Q(namespace__gt=namespace) | Q(namespace=namespace, name__gt=name))


def _equalities(selector: Selector) -> dict[str, str]:
    """The part of a selector an index can answer; the rest is judged row by row."""
    return {r.key: r.values[0] for r in selector.requirements if r.op in ("=", "==", "in") and len(r.values) == 1}


def _write_token(revision: int, last: tuple[str, str] | None) -> str:
    return urlsafe_b64encode(json.dumps({"v": "timonel/1", "rv": revision, "start": last}).encode()).decode()


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        content = json.loads(urlsafe_b64decode(token.encode()))
        namespace, name = content["start"]
        return int(content["rv"]), (str(namespace), str(name))
    except (ValueError, KeyError, TypeError) as err:
        raise BadRequest("continue key is not valid: it was not given out by this server") from err


def create(kind: Kind, document: Document, *, namespace: str, actor: Actor, dry_run: bool = False) -> Stored:
    """Store a new object: defaulted, judged, with its addresses and ports, its endpoints derived.

    Raises Invalid with every error at once, AlreadyExists, NotFound for a missing namespace, Forbidden for one that
    goes. Nothing is kept of a failed create.
    """
    cluster = cluster_settings()
    for attempt in range(TRIES):
        now = timezone.now()
        prepared = objects.prepare_create(
            kind,
            deepcopy(document),
            namespace=namespace,
            now=now,
            uid=str(uuid4()),
            cluster=cluster,
            name_suffix=name_suffix(),
        )
        if errors := objects.validate_create(kind, prepared, cluster):
            raise Invalid(kind, prepared["metadata"].get("name", ""), errors)
        generated = not document.get("metadata", {}).get("name") and document["metadata"].get("generateName")
        try:
            return retried(partial(_create_once, kind, prepared, cluster, actor, now, dry_run))
        except AlreadyExists:
            if not generated or attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _create_once(
    kind: Kind, prepared: Document, cluster: ClusterSettings, actor: Actor, now: datetime, dry_run: bool
) -> Stored:
    document = deepcopy(prepared)
    metadata = document["metadata"]
    with transaction.atomic():
        if kind is kinds.SERVICE and not dry_run:
            claims.claim(UUID(metadata["uid"]), None, document, cluster)
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now)
        if kind.namespaced:
            _require_namespace(kind, metadata["namespace"], metadata["name"])
        if kind is kinds.POD:
            document = _as_kubelet(document, now)
        text = tx.insert(kind, document)
        if dry_run:
            tx.send()
            del metadata["resourceVersion"]
            raise _DryRun(Stored(encode(document), 0, created=True))
        revision = tx.log.revision
        tx.finish()
    return Stored(text, revision, created=True)


def _require_namespace(kind: Kind, namespace: str, name: str) -> None:
    text = get(kinds.NAMESPACE, "", namespace).document
    # The word is looked for before the text is parsed: this runs under the counter row.
    if "Terminating" in text and json.loads(text)["status"].get("phase") == "Terminating":
        raise Forbidden(
            kind, name, f"unable to create new content in namespace {namespace} because it is being terminated"
        )


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
) -> Stored:
    """Replace an object by what `change` makes of it, or of its status when that is the subresource.

    change: gets the object as it is now and returns the wanted one; called again after a lost race. A resourceVersion
    it leaves in must be the current one. Raises NotFound, Conflict, Invalid and whatever `change` raises. A change
    that changes nothing is not written.
    """
    cluster = cluster_settings()
    for _ in range(RACES):
        current = get(kind, namespace, name)
        old = json.loads(current.document)
        wanted = change(deepcopy(old))
        _check_identity(kind, name, old, wanted)
        prepared = objects.prepare_update(kind, old, wanted, subresource=subresource, cluster=cluster)
        errors = objects.validate_update(kind, old, prepared, subresource=subresource, cluster=cluster)
        if errors:
            raise Invalid(kind, name, errors)
        prepared["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if prepared == old:
            return current
        with suppress(_LostRace):
            return retried(partial(_update_once, kind, current, old, prepared, cluster, actor, dry_run, subresource))
    raise Conflict(
        kind, name, "the object has been modified; please apply your changes to the latest version and try again"
    )


def _check_identity(kind: Kind, name: str, old: Document, wanted: Document) -> None:
    """Raise Conflict when `wanted` was made from another version, or another object of the same name."""
    metadata = wanted.get("metadata") or {}
    version = metadata.get("resourceVersion")
    if version and version != old["metadata"]["resourceVersion"]:
        raise Conflict(
            kind, name, "the object has been modified; please apply your changes to the latest version and try again"
        )
    uid = metadata.get("uid")
    if uid and uid != old["metadata"]["uid"]:
        raise Conflict(
            kind,
            name,
            f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}",
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
    document = deepcopy(prepared)
    uid = UUID(old["metadata"]["uid"])
    now = timezone.now()
    with transaction.atomic():
        if kind is kinds.SERVICE and not subresource:
            if not dry_run:
                claims.claim(uid, old, document, cluster)
            _reset_programmed(old, document, now)
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=now)
        if not model_of(kind).objects.filter(uid=uid, revision=current.revision).exists():
            raise _LostRace
        if kind is kinds.POD and not subresource:
            document = _as_kubelet(document, now)
        if dry_run:
            raise _DryRun(Stored(encode(document), current.revision))
        if document["metadata"].get("deletionTimestamp") and not _is_held(kind, document):
            return _remove(tx, kind, document, current.document, cluster)
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


def _is_held(kind: Kind, document: Document) -> bool:
    """Whether something still keeps a deleted object: finalizers, or a Pod's grace period."""
    metadata = document["metadata"]
    if metadata.get("finalizers") or (kind is kinds.NAMESPACE and document["spec"].get("finalizers")):
        return True
    return kind is kinds.POD and bool(metadata.get("deletionGracePeriodSeconds"))


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

    Objects with finalizers, Pods with a grace period (bound to a node) and Namespaces are marked first; `revision` is
    then that of the mark. preconditions: uid, resourceVersion. propagation "Orphan" leaves derived objects behind.
    Raises NotFound, Conflict, Forbidden for the namespaces every cluster has.
    """
    if kind is kinds.NAMESPACE and name in PERMANENT_NAMESPACES:
        raise Forbidden(kind, name, "this namespace may not be deleted")
    stored = retried(
        lambda: _delete_once(kind, namespace, name, actor, dry_run, preconditions, grace_period_s, propagation)
    )
    if kind is kinds.NAMESPACE and not dry_run:
        finish_namespace(name, actor=actor, at_most=EMPTIED_AT_ONCE)
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
        for key, wanted in (preconditions or {}).items():
            if wanted and wanted != metadata[key]:
                raise Conflict(
                    kind, name, f"Precondition failed: {key} in precondition: {wanted}, in object meta: {metadata[key]}"
                )
        if dry_run:
            raise _DryRun(current)
        grace_s = _grace_period_s(kind, document, grace_period_s)
        held = bool(metadata.get("finalizers")) or kind is kinds.NAMESPACE or grace_s > 0
        if not held:
            return _remove(tx, kind, document, current.document, cluster_settings(), propagation)
        if metadata.get("deletionTimestamp") and grace_s >= metadata.get("deletionGracePeriodSeconds", 0):
            return current
        metadata["deletionTimestamp"] = timestamp(deletion_deadline(now, grace_s))
        metadata["deletionGracePeriodSeconds"] = grace_s
        if kind is kinds.NAMESPACE:
            document["status"] = {**(document.get("status") or {}), "phase": "Terminating"}
            del metadata["deletionGracePeriodSeconds"]
        text = tx.update(kind, document, current.document)
        revision = tx.log.revision
        tx.finish()
    return Stored(text, revision)


def _grace_period_s(kind: Kind, document: Document, asked: int | None) -> int:
    """How long a Pod that is bound to a node may still be seen ending; 0 for all else."""
    if kind is not kinds.POD or not document["spec"].get("nodeName"):
        return 0
    if (document.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    default = document["spec"].get("terminationGracePeriodSeconds")
    return asked if asked is not None else (30 if default is None else default)


def _remove(
    tx: Transaction,
    kind: Kind,
    document: Document,
    previous: str,
    cluster: ClusterSettings,
    propagation: str | None = None,
) -> Stored:
    """Take an object out, with its claims and what was derived from it."""
    if kind is kinds.SERVICE:
        uid = UUID(document["metadata"]["uid"])
        claims.release(uid, document, None, cluster)
        models.EndpointGroup.objects.filter(service_id=uid).delete()
        if propagation != "Orphan":
            _remove_derived(tx, document)
    text = tx.delete(kind, document, previous)
    revision = tx.log.revision
    tx.finish()
    return Stored(text, revision)


def _remove_derived(tx: Transaction, service: Document) -> None:
    metadata = service["metadata"]
    slices = models.EndpointSlice.objects.filter(namespace=metadata["namespace"], service_name=metadata["name"])
    for text in slices.order_by("name").values_list("document", flat=True):
        document = json.loads(text)
        owners = document["metadata"].get("ownerReferences") or ()
        if any(owner.get("uid") == metadata["uid"] for owner in owners):
            tx.delete(kinds.ENDPOINT_SLICE, document, text)
    rows = models.Endpoints.objects.filter(namespace=metadata["namespace"], name=metadata["name"])
    for text in rows.values_list("document", flat=True):
        # As in Kubernetes, Endpoints of a Service's name go with it, whoever wrote them.
        tx.delete(kinds.ENDPOINTS, json.loads(text), text)


# Namespaces: emptied, then gone

PERMANENT_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
EMPTIED_AT_ONCE = 500  # objects a DELETE of a Namespace removes before it answers; the rest follows in the background
_CONTENT = (kinds.SERVICE, kinds.POD, kinds.ENDPOINT_SLICE, kinds.ENDPOINTS, kinds.EVENT)


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
        if any(model_of(kind).objects.filter(namespace=name).exists() for kind in _CONTENT):
            return False
        tx.delete(kinds.NAMESPACE, document, current.document)
        tx.finish()
    return True


# Transactions


def retried(work: Callable[[], T]) -> T:
    """Run a transaction again after a deadlock or a serialisation failure; both mean that nothing was done."""
    for attempt in range(TRIES):
        try:
            return work()
        except _DryRun as tried:
            return tried.stored  # type: ignore[return-value]
        except OperationalError as err:
            code = getattr(err.__cause__, "sqlstate", None)
            if code not in ("40001", "40P01") or attempt == TRIES - 1:
                raise
            time.sleep(0.01 * (attempt + 1))
    raise AssertionError("unreachable")
