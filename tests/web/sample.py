"""A small world for pages to show: objects through the store, nodes and their reports as the pushers write them."""

from datetime import timedelta
from typing import Any

from django.utils import timezone

from services_app import store
from services_app.models import Change, ControlPlane, Namespace, NodeAccess, NodeSync, Service, SshKey
from services_app.spec import kinds
from services_app.spec.pod import POD_IP

ACTOR = store.Actor("tester", "test")


def add_namespace(name: str) -> None:
    """The namespace, unless it is there."""
    if not Namespace.objects.filter(name=name).exists():
        store.create(kinds.NAMESPACE, {"metadata": {"name": name}}, namespace="", actor=ACTOR)


def add_service(namespace: str, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> Service:
    """A Service on port 80 that selects app=<name>, unless the spec says otherwise."""
    add_namespace(namespace)
    if spec.get("type") != "ExternalName":
        spec = {"ports": [{"port": 80, "targetPort": 8080}], "selector": {"app": name}, **spec}
    document = {"metadata": {"name": name, "annotations": annotations or {}}, "spec": spec}
    store.create(kinds.SERVICE, document, namespace=namespace, actor=ACTOR)
    return Service.objects.get(namespace=namespace, name=name)


def change_service(namespace: str, name: str, **spec: Any) -> None:
    """Other values in a Service's spec."""

    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["spec"].update(spec)
        return document

    store.update(kinds.SERVICE, namespace, name, change, actor=ACTOR)


def delete_service(namespace: str, name: str) -> None:
    """The Service is gone."""
    store.delete(kinds.SERVICE, namespace, name, actor=ACTOR)


def add_pod(namespace: str, name: str, *, app: str, ip: str, node: str = "node-1", ready: bool = True) -> None:
    """A running Pod with app=<app>."""
    add_namespace(namespace)
    document = {
        "metadata": {"name": name, "labels": {"app": app}, "annotations": {POD_IP: ip}},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]},
    }
    store.create(kinds.POD, document, namespace=namespace, actor=ACTOR)
    set_pod(namespace, name, ip=ip, ready=ready)


def set_pod(namespace: str, name: str, *, ip: str, ready: bool) -> None:
    """What the Pod's node says about it."""

    def change(pod: dict[str, Any]) -> dict[str, Any]:
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        pod["status"] = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
        return pod

    store.update(kinds.POD, namespace, name, change, subresource="status", actor=ACTOR)


def add_api_node(name: str, address: str) -> None:
    """A Node that the API knows and nobody enrolled."""

    def change(node: dict[str, Any]) -> dict[str, Any]:
        node.setdefault("status", {})["addresses"] = [{"type": "InternalIP", "address": address}]
        return node

    store.create(kinds.NODE, {"metadata": {"name": name}}, namespace="", actor=ACTOR)
    store.update(kinds.NODE, "", name, change, subresource="status", actor=ACTOR)


def add_node(name: str, address: str, *, state: str = "Live", behind: int = 0, **report: Any) -> NodeSync:
    """An enrolled node that lacks the newest `behind` changes that concern nodes."""
    add_api_node(name, address)
    key, _ = SshKey.objects.get_or_create(
        name="cluster", defaults={"public": "ssh-ed25519 AAAA", "private_encrypted": b"sealed"}
    )
    access = NodeAccess.objects.create(node=name, address=address, host_key="ssh-ed25519 AAAA", ssh_key=key)
    if state == "Pending":
        return NodeSync.objects.create(node=access)
    defaults = {
        "agent_version": "0.1.0",
        "last_apply_ms": 11.4,
        "last_report_at": timezone.now() - timedelta(seconds=2),
        "applied_revision": revision_before(behind),
    }
    return NodeSync.objects.create(node=access, state=state, **{**defaults, **report})


def revision_before(behind: int) -> int:
    """The newest revision that lacks the last `behind` changes that concern nodes."""
    if not behind:
        plane = ControlPlane.objects.first()
        return plane.revision if plane else 0
    newest = Change.objects.filter(owner__isnull=False).order_by("-revision").values_list("revision", flat=True)
    return newest[behind - 1] - 1


def catch_up() -> None:
    """Every live node holds the newest revision."""
    NodeSync.objects.filter(state="Live").update(applied_revision=revision_before(0))
    store.settle_programmed(actor=ACTOR)


def build_shop() -> None:
    """Seven Services in three namespaces, four nodes that answer (one still behind) and one that does not."""
    for number in (1, 2, 3):
        add_node(f"lyon-{number}", f"192.0.2.{10 + number}", last_apply_ms=8.0 + number)
    add_node("porto-1", "198.51.100.21", last_apply_ms=14.2)
    porto_2 = add_node(
        "porto-2",
        "198.51.100.22",
        state="Unreachable",
        reason="ConnectionRefused",
        message="nothing listens at 198.51.100.22:22: connection refused. Is sshd running there?",
        last_report_at=timezone.now() - timedelta(minutes=14),
        last_apply_ms=12.9,
    )
    add_service("shop", "storefront", type="NodePort", ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080}])
    add_service("shop", "cart", sessionAffinity="ClientIP")
    add_service("shop", "orders")
    add_service("shop", "payments", type="ExternalName", externalName="pay.example.org")
    add_service("data", "postgres", clusterIP="None", ports=[{"name": "sql", "port": 5432}])
    for number, node in enumerate(("lyon-1", "lyon-2", "porto-1"), start=1):
        add_pod("shop", f"storefront-{number}", app="storefront", ip=f"10.20.{number}.11", node=node)
        add_pod("shop", f"orders-{number}", app="orders", ip=f"10.20.{number}.12", node=node, ready=number != 2)
    for number, node in enumerate(("lyon-1", "lyon-3"), start=1):
        add_pod("shop", f"cart-{number}", app="cart", ip=f"10.20.{number}.13", node=node)
        add_pod("data", f"postgres-{number}", app="postgres", ip=f"10.20.{number}.14", node=node)
    NodeSync.objects.filter(pk=porto_2.pk).update(applied_revision=revision_before(0))
    add_service("data", "cache", ports=[{"port": 6379}])
    add_pod("data", "cache-1", app="cache", ip="10.20.3.15", node="lyon-3")
    catch_up()
    add_service("monitoring", "metrics", ports=[{"name": "http", "port": 9090}, {"name": "alerts", "port": 9093}])
    add_pod("monitoring", "metrics-1", app="metrics", ip="10.20.2.16", node="lyon-2")
    NodeSync.objects.filter(state="Live").exclude(node="lyon-3").update(applied_revision=revision_before(0))
