"""The invariants of plan.checks and of the log, over everything stored. Reads the whole database: not for a hot path."""

import json
from typing import Any

from django.db import connection, transaction

from services_app import models
from services_app.plan import checks


def check_everything() -> list[str]:
    """Sentences about what does not hold at this moment, over one snapshot; empty when all is well."""
    nested = connection.in_atomic_block  # then the caller's transaction is the snapshot
    with transaction.atomic():
        if not nested:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        services = _documents(models.Service)
        addresses = {str(a): str(uid) for a, uid in models.ClusterIPClaim.objects.values_list("address", "service_id")}
        ports = {port: str(uid) for port, uid in models.NodePortClaim.objects.values_list("port", "service_id")}
        return [
            *checks.check_claims(services, addresses, ports),
            *checks.check_endpoints(
                services,
                _documents(models.Pod),
                _documents(models.EndpointSlice),
                _documents(models.Endpoints),
                _documents(models.Node),
            ),
            *_check_log(),
        ]


def _documents(model: type[models.ApiObject]) -> list[dict[str, Any]]:
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
