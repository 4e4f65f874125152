"""What every cluster has from its first start: the permanent namespaces and the Service `kubernetes`."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from services_app import changes
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists, NotFound
from services_app.store.objects import PERMANENT_NAMESPACES, Actor, cluster_settings, create, get

BOOTSTRAP = Actor("timonel:bootstrap")


def bootstrap() -> None:
    """Create what is missing; does nothing when all is there.

    History begins with a complete cluster: a version from before is too old, as it is for a fresh Kubernetes.
    """
    is_first = changes.head() == 0
    for name in PERMANENT_NAMESPACES:
        _ensure(kinds.NAMESPACE, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
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
    if is_first:
        changes.compact(keep=timedelta(0))


def _ensure(kind: kinds.Kind, namespace: str, document: dict[str, Any]) -> None:
    try:
        get(kind, namespace, document["metadata"]["name"])
    except NotFound:
        # Another process may be starting as well: then it is there by now.
        with suppress(AlreadyExists):
            create(kind, document, namespace=namespace, actor=BOOTSTRAP)
