"""The invariants of plan.checks and of the log, over everything stored. Reads the whole database: not for a hot path."""

import json
from typing import Any

from django.db import connection, transaction

from services_app import models
from services_app.plan import allocation, checks
from services_app.plan.checks import Finding, FreeList
from services_app.spec.objects import ClusterSettings
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
    ]


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
