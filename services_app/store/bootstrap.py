"""What every cluster has from its first start: the permanent namespaces, its ranges and the Service `kubernetes`."""

import json
import logging
import re
from contextlib import suppress
from copy import deepcopy
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from services_app import changes, models
from services_app.spec import kinds, servicecidr
from services_app.spec.errors import AlreadyExists, NotFound
from services_app.store import addresses, events
from services_app.store.deletion import PERMANENT_NAMESPACES
from services_app.store.objects import Actor, cluster_settings, create, get, update
from services_app.store.transaction import Transaction

logger = logging.getLogger(__name__)

BOOTSTRAP = Actor("timonel:bootstrap")
FILLED_AT_ONCE = 500


def bootstrap() -> None:
    """Create what is missing; does nothing when all is there.

    History begins with a complete cluster: a version from before is too old, as it is for a fresh Kubernetes.
    """
    is_first = changes.head() == 0
    for name in PERMANENT_NAMESPACES:
        _ensure(kinds.NAMESPACE, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    ensure_ranges()
    first = cluster_settings().service_cidrs[0]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": str(first.network_address + 1),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    }
    _ensure(kinds.SERVICE, "default", service)
    fill_addresses()
    if is_first:
        changes.compact(keep=timedelta(0))


def ensure_ranges() -> None:
    """Make the ServiceCIDRs that the settings name and nobody has: `kubernetes`, and one for each further range.

    What is there stays as it is, but for a second family: an object that says otherwise than the settings counts.
    """
    networks = {network.version: str(network) for network in reversed(settings.TIMONEL_SERVICE_CIDRS)}
    families = dict.fromkeys(network.version for network in settings.TIMONEL_SERVICE_CIDRS)
    default = [networks[version] for version in families]
    _ensure(kinds.SERVICE_CIDR, "", _service_cidr(servicecidr.DEFAULT, default))
    found = json.loads(get(kinds.SERVICE_CIDR, "", servicecidr.DEFAULT).document)
    if (had := found["spec"]["cidrs"]) != default:
        if had == default[:1] and not found["metadata"].get("deletionTimestamp"):
            update(kinds.SERVICE_CIDR, "", servicecidr.DEFAULT, lambda old: _widened(old, default), actor=BOOTSTRAP)
        else:
            _tell_difference(found, default)
    known = [text for cidrs in models.ServiceCIDR.objects.values_list("cidrs", flat=True) for text in cidrs]
    for text in map(str, settings.TIMONEL_SERVICE_CIDRS):
        if text not in known:
            _ensure(kinds.SERVICE_CIDR, "", _service_cidr(re.sub(r"[:/]", "-", text), [text]))


def _service_cidr(name: str, cidrs: list[str]) -> dict[str, Any]:
    kind = kinds.SERVICE_CIDR
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, "spec": {"cidrs": cidrs}}


def _widened(document: dict[str, Any], cidrs: list[str]) -> dict[str, Any]:
    return {**deepcopy(document), "spec": {"cidrs": cidrs}}


def _tell_difference(document: dict[str, Any], wanted: list[str]) -> None:
    message = (
        f"the ranges {', '.join(document['spec']['cidrs'])} count, not TIMONEL_SERVICE_CIDRS ({', '.join(wanted)}): "
        "add and delete ServiceCIDRs to change them"
    )
    logger.warning("servicecidr %s: %s reason=default_range_differs", servicecidr.DEFAULT, message)
    with transaction.atomic():
        tx = Transaction(user=BOOTSTRAP.user, request_id="", now=timezone.now())
        reason = "KubernetesDefaultServiceCIDRInconsistent"
        events.record(tx, kinds.SERVICE_CIDR, document, reason, message, component=BOOTSTRAP.user)
        tx.finish()


def fill_addresses() -> int:
    """Write the IPAddresses that Services lack, as after an upgrade; how many. Two queries when none does."""
    written = 0
    while True:
        with transaction.atomic():
            if not _lacking():
                return written
            tx = Transaction(user=BOOTSTRAP.user, request_id="", now=timezone.now())
            rows = _lacking()  # again under the counter row
            for address, namespace, name in rows:
                addresses.insert(tx, address, namespace, name)
            tx.finish()
        written += len(rows)


def _lacking() -> list[tuple[str, str, str]]:
    """(address, namespace, name) of some Services' cluster IPs without an object."""
    sql = (
        "SELECT host(claim.address), service.namespace, service.name FROM services_app_clusteripclaim claim"
        " JOIN services_app_service service ON service.uid = claim.service_id WHERE NOT EXISTS"
        " (SELECT 1 FROM services_app_ipaddress made WHERE made.namespace = '' AND made.name = host(claim.address))"
        " ORDER BY claim.address LIMIT %s"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [FILLED_AT_ONCE])
        return cursor.fetchall()


def _ensure(kind: kinds.Kind, namespace: str, document: dict[str, Any]) -> None:
    try:
        get(kind, namespace, document["metadata"]["name"])
    except NotFound:
        # Another process may be starting as well: then it is there by now.
        with suppress(AlreadyExists):
            create(kind, document, namespace=namespace, actor=BOOTSTRAP)
