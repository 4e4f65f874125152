"""The invariants of plan.checks and of the log, over everything stored. Reads the whole database: not for a hot path."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Q

from services_app import models
from services_app.plan import allocation, checks, ownership
from services_app.plan.checks import Finding, FreeList, Mend
from services_app.spec import kinds
from services_app.spec.errors import InternalError
from services_app.spec.kinds import Kind
from services_app.spec.objects import ClusterSettings
from services_app.store import forms, references
from services_app.store.columns import model_of
from services_app.store.objects import cluster_settings

Document = dict[str, Any]


def check_everything() -> list[str]:
    """Sentences about what does not hold at this moment, over one snapshot; empty when all is well."""
    with transaction.atomic():
        _take_snapshot()
        return [*map(str, _find()), *_check_log()]


def find() -> tuple[list[Finding], dict[str, int]]:
    """What does not hold, over one snapshot, and the revision each Service had in it (uid -> revision)."""
    with transaction.atomic():
        _take_snapshot()
        revisions = {str(uid): revision for uid, revision in models.Service.objects.values_list("uid", "revision")}
        return _find(), revisions


def _take_snapshot() -> None:
    if len(connection.savepoint_ids) == 0:  # else the caller's transaction is the snapshot
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _find() -> list[Finding]:
    cluster = cluster_settings()
    services = _documents(models.Service)
    claimed = {str(a): uid for a, uid in models.ClusterIPClaim.objects.values_list("address", "service_id")}
    addresses = {address: str(uid) for address, uid in claimed.items() if uid is not None}
    by_hand = claimed.keys() - addresses.keys()
    made = {document["metadata"]["name"]: document for document in _documents(models.IPAddress)}
    ports = {port: str(uid) for port, uid in models.NodePortClaim.objects.values_list("port", "service_id")}
    taken = {*claimed, *map(str, ports)}
    for service in services:
        taken.update(allocation.cluster_ips_of(service), map(str, allocation.node_ports_of(service)))
    return [
        *checks.check_claims(services, addresses, ports, cluster),
        *checks.check_addresses(services, made, addresses, by_hand),
        *checks.check_free_lists(_free_lists(cluster), taken),
        *checks.check_endpoints(
            services,
            _documents(models.Pod),
            _documents(models.EndpointSlice),
            _documents(models.Endpoints),
            _documents(models.Node),
            cluster,
        ),
        *_check_references({service["metadata"]["uid"] for service in services}),
    ]


def _check_references(services: set[str]) -> Iterator[Finding]:
    """What is kept of ownerReferences, and of who waits, is what the objects say. services: their uids."""
    kept: defaultdict[UUID, set[references.Row]] = defaultdict(set)
    columns = ("dependent", "owner", "owner_kind", "owner_name", "blocks")
    for dependent, owner, plural, name, blocks in models.OwnerReference.objects.values_list(*columns):
        kept[dependent].add((owner, plural, name, blocks))
    waiting = dict(models.WaitingOwner.objects.values_list("uid", "policy"))
    causes = services | {str(uid) for uid in models.Endpoints.objects.values_list("uid", flat=True)}
    for kind in (kind for kind in kinds.STORED if kind not in (kinds.EVENT, kinds.EVENTS_EVENT)):
        for metadata in _telling(kind):
            uid = UUID(metadata["uid"])
            rows, policy = {*references.rows(metadata)}, ownership.waits(metadata)
            is_derived = kind is kinds.ENDPOINT_SLICE and len(rows) == 1 and str(next(iter(rows))[0]) in causes
            if is_derived and not kept.get(uid):
                rows = set()  # it goes with its Service, in one transaction
            if kept.pop(uid, set()) != rows or waiting.pop(uid, None) != policy:
                yield _wrongly_kept(uid, f"{kind.plural}/{metadata.get('namespace', '')}/{metadata['name']}")
    places = {uid: "/".join(place) for uid, *place in _places_kept()}
    yield from (_wrongly_kept(uid, places[uid]) for uid in sorted({*kept, *waiting}))


def _telling(kind: Kind) -> Iterator[Document]:
    """The metadata of objects that may have owners or wait; all Secrets that can be read, as they are sealed."""
    objects = model_of(kind).objects
    said = Q(document__contains='"ownerReferences":') | Q(document__contains='"deletionTimestamp":')
    for text in (objects.all() if kind is kinds.SECRET else objects.filter(said)).values_list("document", flat=True):
        with suppress(InternalError):
            yield json.loads(forms.shown_text(kind, text))["metadata"]


def _places_kept() -> Iterator[tuple[UUID, str, str, str]]:
    yield from models.OwnerReference.objects.values_list("dependent", "kind", "namespace", "name")
    yield from models.WaitingOwner.objects.values_list("uid", "kind", "namespace", "name")


def _wrongly_kept(uid: UUID, place: str) -> Finding:
    message = f"what is kept of the owners of {place} is not what it says"
    return Finding("OwnersNotKept", message, place, uid=str(uid), mend=Mend.REFER)


def _free_lists(cluster: ClusterSettings) -> list[FreeList]:
    """Of the pools in use; what is left of a range that is configured no more offers nothing."""
    laid_out = {name: int(offset) for name, offset in models.Pool.objects.values_list("name", "next_offset")}
    values: dict[str, set[str]] = {}
    for pool, value in models.FreeValue.objects.values_list("pool", "value"):
        values.setdefault(pool, set()).add(value)
    cidrs = dict.fromkeys(cluster.service_cidrs)
    pools = [*map(allocation.address_pool, cidrs), allocation.port_pool(cluster.node_port_range)]
    return [FreeList(p, laid_out.get(p.name, 0), frozenset(values.get(p.name, ()))) for p in pools]


def _documents(model: type[models.ApiObject]) -> list[Document]:
    return [json.loads(text) for text in model.objects.values_list("document", flat=True)]


def _check_log() -> list[str]:
    """The log has no holes between the last compaction and the counter."""
    control = models.ControlPlane.objects.filter(id=1).first()
    if control is None:
        return []
    expected = control.revision - control.compacted_revision
    count = models.Change.objects.count()
    if count != expected:
        return [f"the log holds {count} changes, not the {expected} after revision {control.compacted_revision}"]
    return []
