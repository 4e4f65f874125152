"""Rows as the store and the pushers write them, for pages to read. Written straight to the tables: pages only read."""

import json
import uuid
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from services_app.models import Change, ControlPlane, EndpointSlice, Namespace, Node, NodeAccess, NodeSync, Service, SshKey

Endpoint = tuple[str, bool]  # address, ready


def next_revision() -> int:
    plane, _ = ControlPlane.objects.get_or_create(id=1)
    plane.revision += 1
    plane.save()
    return plane.revision


def add_namespace(name: str) -> None:
    if Namespace.objects.filter(name=name).exists():
        return
    document = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}
    Namespace.objects.create(
        uid=uuid.uuid4(), name=name, revision=next_revision(), created_at=timezone.now(), document=json.dumps(document)
    )


def add_change(revision: int, namespace: str, name: str, verb: str = "ADDED") -> None:
    Change.objects.create(
        revision=revision, kind="services", namespace=namespace, name=name, verb=verb, document="{}", owner=f"{namespace}/{name}"
    )


def build_service(
    namespace: str,
    name: str,
    *,
    revision: int,
    cluster_ip: str | None = "10.96.0.10",
    type: str = "ClusterIP",
    ports: list[dict[str, Any]] | None = None,
    selector: dict[str, str] | None = None,
    programmed: bool | None = True,
    annotations: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
) -> Service:
    """An unsaved Service row."""
    ports = [{"port": 80, "protocol": "TCP", "targetPort": 8080}] if ports is None else ports
    uid = uuid.uuid4()
    document = {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": str(uid),
            "resourceVersion": str(revision),
            "annotations": annotations or {},
        },
        "spec": {
            "type": type,
            "clusterIP": cluster_ip or "None",
            "ports": ports,
            "selector": selector if selector is not None else {"app": name},
            **(spec or {}),
        },
        "status": status or {"loadBalancer": {}},
    }
    return Service(
        uid=uid,
        namespace=namespace,
        name=name,
        revision=revision,
        created_at=timezone.now(),
        labels={},
        document=json.dumps(document),
        type=type,
        cluster_ip=cluster_ip,
        selector=selector if selector is not None else {"app": name},
        changed_revision=revision,
        programmed=programmed,
    )


def build_slice(service: Service, endpoints: list[Endpoint], *, port: int = 8080, revision: int = 1) -> EndpointSlice:
    """An unsaved EndpointSlice row of a Service."""
    name = f"{service.name}-{uuid.uuid4().hex[:5]}"
    document = {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": service.namespace},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": ready, "serving": ready, "terminating": False},
                "nodeName": f"node-{index % 3 + 1}",
                "targetRef": {"kind": "Pod", "name": f"{service.name}-{index}"},
            }
            for index, (address, ready) in enumerate(endpoints)
        ],
    }
    return EndpointSlice(
        uid=uuid.uuid4(),
        namespace=service.namespace,
        name=name,
        revision=revision,
        created_at=timezone.now(),
        document=json.dumps(document),
        service_name=service.name,
        managed_by="endpointslice-controller.k8s.io",
    )


def add_service(namespace: str, name: str, *, endpoints: list[Endpoint] | None = None, port: int = 8080, **fields: Any) -> Service:
    """A Service with one slice, in the log as well."""
    add_namespace(namespace)
    revision = next_revision()
    service = build_service(namespace, name, revision=revision, **fields)
    service.save(force_insert=True)
    add_change(revision, namespace, name)
    if endpoints:
        build_slice(service, endpoints, port=port, revision=next_revision()).save(force_insert=True)
    return service


def add_node(
    name: str,
    address: str,
    *,
    state: str = "Live",
    behind: int = 0,
    reported: datetime | None = None,
    **report: Any,
) -> NodeSync:
    """An enrolled node that holds all but the newest `behind` revisions."""
    key, _ = SshKey.objects.get_or_create(name="cluster", defaults={"public": "ssh-ed25519 AAAA", "private_encrypted": b""})
    Node.objects.create(
        uid=uuid.uuid4(), name=name, revision=next_revision(), created_at=timezone.now(), document="{}", address=address
    )
    access = NodeAccess.objects.create(node=name, address=address, host_key="ssh-ed25519 AAAA", ssh_key=key)
    if state == "Pending":
        return NodeSync.objects.create(node=access)
    fields = {
        "agent_version": "0.1.0",
        "last_apply_ms": 11.4,
        "last_report_at": reported or timezone.now() - timedelta(seconds=2),
        "applied_revision": max(ControlPlane.objects.get().revision - behind, 0),
        **report,
    }
    return NodeSync.objects.create(node=access, state=state, **fields)


def catch_up() -> None:
    """Every live node holds the newest revision."""
    NodeSync.objects.filter(state="Live").update(applied_revision=ControlPlane.objects.get().revision)
