"""What travels together: reads with the taking of the counter row, the last writes with the commit."""

import json
import threading

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from services_app import changes, models, store
from services_app.spec import kinds
from services_app.spec import objects as spec_objects
from services_app.spec.errors import AlreadyExists, NotFound
from services_app.store import objects
from services_app.store.transaction import Transaction
from tests.store.conftest import ACTOR


class Thread(threading.Thread):
    """Work with a database connection of its own; `result` joins and gives what it returned or raises what it raised."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self._work = work
        self._outcome = None
        self.start()

    def run(self):
        try:
            self._outcome = self._work(), None
        except BaseException as err:  # told by result
            self._outcome = None, err
        finally:
            connections.close_all()

    @property
    def result(self):
        self.join(20)
        assert self._outcome is not None, "still at work"
        value, error = self._outcome
        if error is not None:
            raise error
        return value


def wait_for_a_waiter():
    """Until somebody waits for the counter row."""
    with connection.cursor() as cursor:
        for _ in range(1000):
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            if cursor.fetchone()[0]:
                return
            cursor.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("nobody came to wait")


def test_a_create_that_waited_sees_what_the_writer_before_it_committed(committed_world):
    """The Pod is committed after the Service's statements were sent, and before they may run."""
    committed_world.node("n1")
    pod = {
        "metadata": {"name": "p1", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "app"}]},
    }
    prepared = spec_objects.prepare_create(
        kinds.POD, pod, namespace="shop", now=timezone.now(), uid="5f0f7b3e-0000-4000-8000-000000000001",
        cluster=objects.cluster_settings(),
    )  # fmt: skip
    prepared["status"] = {
        "phase": "Running",
        "podIP": "10.1.0.1",
        "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    document = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}
    with transaction.atomic():
        tx = Transaction(user="tester", request_id="", now=timezone.now())
        creating = Thread(lambda: store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR))
        wait_for_a_waiter()
        tx.insert(kinds.POD, prepared)
        tx.finish()
    assert creating.result.created
    assert committed_world.endpoints("web") == [("10.1.0.1", 80)]


def test_a_create_that_waited_sees_the_namespace_go(committed_world):
    store.create(kinds.NAMESPACE, {"metadata": {"name": "brief"}}, namespace="", actor=ACTOR)
    document = {"metadata": {"name": "late"}, "data": {"a": "b"}}
    current = store.get(kinds.NAMESPACE, "", "brief")
    with transaction.atomic():
        tx = Transaction(user="tester", request_id="", now=timezone.now())
        creating = Thread(lambda: store.create(kinds.CONFIG_MAP, document, namespace="brief", actor=ACTOR))
        wait_for_a_waiter()
        tx.delete(kinds.NAMESPACE, json.loads(current.document), current.document)
        tx.finish()
    with pytest.raises(NotFound, match="brief"):
        _ = creating.result
    assert not models.ConfigMap.objects.filter(namespace="brief").exists()


def test_finish_commits(committed_world):
    with transaction.atomic():
        tx = Transaction(user="tester", request_id="", now=timezone.now())
        current = store.get(kinds.NAMESPACE, "", "shop")
        document = json.loads(current.document)
        document["metadata"]["labels"] = {"seen": "yes"}
        tx.update(kinds.NAMESPACE, document, current.document)
        tx.finish()
        assert Thread(lambda: models.Namespace.objects.get(name="shop").labels).result == {"seen": "yes"}
        assert Thread(changes.head).result == tx.log.revision


def test_a_name_that_is_taken_leaves_nothing_of_the_whole(committed_world):
    committed_world.service("web")
    before = changes.head(), models.ClusterIPClaim.objects.count(), models.EndpointGroup.objects.count()
    with pytest.raises(AlreadyExists):
        committed_world.service("web", type="NodePort")
    assert (changes.head(), models.ClusterIPClaim.objects.count(), models.EndpointGroup.objects.count()) == before
    assert not models.NodePortClaim.objects.exists()
    # The connection that failed goes on working.
    committed_world.service("other")
    assert changes.head() == before[0] + len(changes.read_after(before[0]))


def test_a_slice_name_that_is_taken_is_named_as_such(committed_world, monkeypatch):
    """What was derived collides: the error is about that object, and nothing stays."""
    monkeypatch.setattr("services_app.store.transaction._new_name", lambda prefix: f"{prefix}same")
    committed_world.service("web")
    document = {
        "metadata": {"name": "web2-same", "labels": {}},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [],
    }
    store.create(kinds.ENDPOINT_SLICE, document, namespace="shop", actor=ACTOR)
    with pytest.raises(AlreadyExists, match="web2-same"):
        committed_world.service("web2", selector={"app": "x"})
    assert not models.Service.objects.filter(name="web2").exists()
