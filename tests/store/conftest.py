"""What tests of the store share: objects to write, and ways to look at what is stored."""

import json

import pytest

from services_app import store
from services_app.models import NodeAccess, NodeSync, SshKey
from services_app.push import snapshot
from services_app.spec import kinds
from services_app.store.checks import check_everything

ACTOR = store.Actor("tester", "test")


class World:
    """Short words for writing and reading objects in one namespace."""

    def __init__(self, namespace: str = "shop") -> None:
        self.namespace = namespace

    def namespace_exists(self) -> None:
        store.create(kinds.NAMESPACE, {"metadata": {"name": self.namespace}}, namespace="", actor=ACTOR)

    def service(self, name="web", **spec):
        spec.setdefault("ports", [{"port": 80}])
        document = {"metadata": {"name": name}, "spec": spec}
        return json.loads(store.create(kinds.SERVICE, document, namespace=self.namespace, actor=ACTOR).document)

    def node(self, name="n1", **labels):
        document = {"metadata": {"name": name, "labels": labels}}
        return json.loads(store.create(kinds.NODE, document, namespace="", actor=ACTOR).document)

    def enrol(self, name, **sync):
        """What the tables say of a Node that is pushed to; sync: of its NodeSync."""
        sealed = {"public": "ssh-ed25519 AAAA", "private_encrypted": b"sealed"}
        key, _ = SshKey.objects.get_or_create(name="cluster", defaults=sealed)
        access = NodeAccess.objects.create(node=name, address="192.0.2.1", host_key="ssh-ed25519 AAAA", ssh_key=key)
        NodeSync.objects.create(node=access, **sync)

    def pod(self, name="p1", *, ip=None, ready=True, node="n1", ports=(), **labels):
        document = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "app", "ports": list(ports)}]},
        }
        store.create(kinds.POD, document, namespace=self.namespace, actor=ACTOR)
        return self.pod_status(name, ip=ip, ready=ready)

    def pod_status(self, name, *, ip=None, ready=True):
        def change(pod):
            status = pod.setdefault("status", {})
            status["phase"] = "Running"
            if ip:
                status["podIP"], status["podIPs"] = ip, [{"ip": ip}]
            status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]
            return pod

        return self.update(kinds.POD, name, change, subresource="status")

    def update(self, kind, name, change, **options):
        stored = store.update(kind, self.namespace, name, change, actor=ACTOR, **options)
        return json.loads(stored.document)

    def patch_spec(self, name, **spec):
        def change(service):
            service["spec"].update(spec)
            service["spec"] = {key: value for key, value in service["spec"].items() if value is not None}
            return service

        return self.update(kinds.SERVICE, name, change)

    def get(self, kind, name):
        return json.loads(store.get(kind, self.namespace, name).document)

    def delete(self, kind, name, **options):
        return store.delete(kind, self.namespace, name, actor=ACTOR, **options)

    def endpoints(self, name="web"):
        """Ready (address, port) pairs over all slices of a Service."""
        found = []
        for item in self.slices(name):
            for endpoint in item["endpoints"] or ():
                if endpoint["conditions"]["ready"]:
                    found += [(endpoint["addresses"][0], port["port"]) for port in item["ports"] or ()]
        return sorted(found)

    def slices(self, name="web"):
        page = store.list(kinds.ENDPOINT_SLICE, self.namespace)
        documents = [json.loads(text) for text in page.documents]
        return [d for d in documents if d["metadata"]["labels"]["kubernetes.io/service-name"] == name]


@pytest.fixture
def world(db):
    made = World()
    made.namespace_exists()
    yield made
    assert check_everything() == []


@pytest.fixture
def fresh_snapshots(monkeypatch):
    """Another test's database had other objects at the same revisions: what was rendered of them is not read."""
    monkeypatch.setattr(snapshot, "_kept", snapshot._Kept())
    monkeypatch.setattr(snapshot, "_readings", snapshot._Readings())
    monkeypatch.setattr(snapshot, "_readings_of_all", snapshot._Readings())


@pytest.fixture
def committed_world(transactional_db, fresh_snapshots):
    made = World()
    made.namespace_exists()
    yield made
    assert check_everything() == []
