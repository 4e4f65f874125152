"""Deletion as watchers see it: marks, what goes first, what stays behind."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from django.db import connection

from services_app import models, store
from services_app.spec import kinds
from services_app.spec.errors import Conflict, NotFound
from tests.store.conftest import ACTOR


def told(kind, name="web"):
    """(verb, finalizers, whether marked) of each change of an object, oldest first."""
    rows = models.Change.objects.filter(kind=kind.plural, name=name).order_by("revision")
    found = []
    for row in rows:
        metadata = json.loads(row.document)["metadata"]
        found.append((row.verb, metadata.get("finalizers"), "deletionTimestamp" in metadata))
    return found


def owners(world):
    return [document["metadata"].get("ownerReferences") for document in world.slices()]


@pytest.fixture
def served(world):
    world.node()
    world.service(selector={"app": "web"})
    world.pod(ip="192.0.2.1", app="web")
    assert world.endpoints() == [("192.0.2.1", 80)]
    return world


def test_foreground_marks_first_and_answers_with_the_mark(served):
    stored = served.delete(kinds.SERVICE, "web", propagation="Foreground")
    assert json.loads(stored.document)["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert told(kinds.SERVICE)[-2:] == [("MODIFIED", ["foregroundDeletion"], True), ("DELETED", None, True)]
    assert served.slices() == []
    with pytest.raises(NotFound):
        served.get(kinds.SERVICE, "web")


def test_orphan_leaves_slices_without_their_owner(served):
    served.delete(kinds.SERVICE, "web", propagation="Orphan")
    assert told(kinds.SERVICE)[-2:] == [("MODIFIED", ["orphan"], True), ("DELETED", None, True)]
    assert owners(served) == [None]
    assert served.get(kinds.ENDPOINTS, "web")["subsets"]
    # A Service of the same name takes them up again.
    served.service(selector={"app": "web"})
    assert served.endpoints() == [("192.0.2.1", 80)]
    assert len(served.slices()) == 1


def test_background_leaves_no_mark(served):
    served.delete(kinds.SERVICE, "web", propagation="Background")
    assert told(kinds.SERVICE)[-1] == ("DELETED", None, False)
    assert served.slices() == []


def test_another_finalizer_still_holds_after_dependents_are_gone(served):
    def held(service):
        service["metadata"]["finalizers"] = ["example.org/hold"]
        return service

    served.update(kinds.SERVICE, "web", held)
    served.delete(kinds.SERVICE, "web", propagation="Foreground")
    assert served.get(kinds.SERVICE, "web")["metadata"]["finalizers"] == ["example.org/hold"]
    assert served.slices() == []

    def free(service):
        service["metadata"]["finalizers"] = []
        return service

    served.update(kinds.SERVICE, "web", free)
    with pytest.raises(NotFound):
        served.get(kinds.SERVICE, "web")


def test_an_object_made_with_a_policy_as_finalizer_follows_it(world):
    document = {"metadata": {"name": "x", "finalizers": ["foregroundDeletion"]}}
    store.create(kinds.CONFIG_MAP, document, namespace="shop", actor=ACTOR)
    world.delete(kinds.CONFIG_MAP, "x")
    assert [verb for verb, _, _ in told(kinds.CONFIG_MAP, "x")] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_pod_on_no_node_is_marked_before_it_goes(world):
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "app"}]}}
    store.create(kinds.POD, pod, namespace="shop", actor=ACTOR)
    world.delete(kinds.POD, "p")
    assert told(kinds.POD, "p") == [("ADDED", None, False), ("MODIFIED", None, True), ("DELETED", None, True)]


@pytest.mark.parametrize("key", ["uid", "resourceVersion"])
def test_a_failed_precondition_deletes_nothing(world, key):
    world.service()
    with pytest.raises(Conflict) as refusal:
        world.delete(kinds.SERVICE, "web", preconditions={key: "7"})
    assert refusal.value.status()["details"] == {"name": "web", "kind": "Service"}
    assert told(kinds.SERVICE) == [("ADDED", None, False)]


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_what_is_made_while_its_owner_goes_goes_as_well(committed_world, propagation):
    """Four clients make dependents, two delete the owner and collect: nothing is left over and nothing waits on."""
    owner = {"metadata": {"name": "owner"}}
    uid = json.loads(store.create(kinds.CONFIG_MAP, owner, namespace="shop", actor=ACTOR).document)["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": True}

    def make(client):
        for number in range(8):
            metadata = {"name": f"d{client}-{number}", "ownerReferences": [reference]}
            store.create(kinds.CONFIG_MAP, {"metadata": metadata}, namespace="shop", actor=ACTOR)
        connection.close()

    def remove(_):
        with suppress(NotFound):
            committed_world.delete(kinds.CONFIG_MAP, "owner", propagation=propagation)
        store.collect(actor=ACTOR, at_most=100)
        connection.close()

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(make, client) for client in range(4)] + [pool.submit(remove, None) for _ in range(2)]
        for future in done:
            future.result()
    store.collect(actor=ACTOR, at_most=100)
    assert store.list(kinds.CONFIG_MAP, "shop").documents == []
    assert not models.OwnerReference.objects.exists()
    assert not models.WaitingOwner.objects.exists()
