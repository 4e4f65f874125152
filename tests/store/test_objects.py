"""What is written is what is read, in one order, or nothing is written at all."""

import json

import pytest

from services_app import changes, store
from services_app.models import Change, ClusterIPClaim, FreeValue, NodePortClaim
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from services_app.spec.selectors import parse_label_selector
from tests.store.conftest import ACTOR, World


def test_a_created_service_has_an_address_and_a_version(world):
    service = world.service()
    assert service["spec"]["clusterIP"].startswith("10.96.")
    assert service["spec"]["clusterIPs"] == [service["spec"]["clusterIP"]]
    assert world.get(kinds.SERVICE, "web") == service
    assert ClusterIPClaim.objects.get().address == service["spec"]["clusterIP"]


def test_automatic_addresses_come_from_the_dynamic_band(world):
    taken = [world.service(f"s{i}")["spec"]["clusterIP"] for i in range(3)]
    assert taken == ["10.96.1.1", "10.96.1.2", "10.96.1.3"]


def test_a_chosen_address_is_given_once(world):
    world.service("a", clusterIP="10.96.0.10")
    with pytest.raises(Invalid) as refused:
        world.service("b", clusterIP="10.96.0.10", type="NodePort")
    assert [c["field"] for c in refused.value.status()["details"]["causes"]] == ["spec.clusterIPs"]
    with pytest.raises(NotFound):
        world.get(kinds.SERVICE, "b")


def test_a_taken_node_port_gives_the_address_back(world):
    world.service("a", type="NodePort", ports=[{"port": 80, "nodePort": 30007}])
    with pytest.raises(Invalid) as refused:
        world.service("b", type="NodePort", clusterIP="10.96.0.11", ports=[{"port": 80, "nodePort": 30007}])
    assert [c["field"] for c in refused.value.status()["details"]["causes"]] == ["spec.ports[0].nodePort"]
    assert world.service("c", clusterIP="10.96.0.11")["spec"]["clusterIP"] == "10.96.0.11"


def test_delete_gives_everything_back(world):
    world.service(type="NodePort", ports=[{"port": 80}])
    assert NodePortClaim.objects.count() == 1
    world.delete(kinds.SERVICE, "web")
    assert not ClusterIPClaim.objects.exists() and not NodePortClaim.objects.exists()
    assert FreeValue.objects.filter(value="10.96.1.1").exists()
    assert world.slices() == []


def test_an_address_comes_round_last_after_its_release(world):
    world.service("a")
    world.delete(kinds.SERVICE, "a")
    assert world.service("b")["spec"]["clusterIP"] == "10.96.1.2"


@pytest.mark.parametrize(
    ("kind", "addresses", "ports"),
    [("ClusterIP", 1, 0), ("NodePort", 1, 1), ("LoadBalancer", 1, 1), ("ExternalName", 0, 0)],
)
def test_a_type_change_claims_and_releases(world, kind, addresses, ports):
    world.service(type="NodePort")
    if kind == "ExternalName":
        world.patch_spec("web", type=kind, externalName="a.example.org", clusterIP=None, clusterIPs=None)
    else:
        world.patch_spec("web", type=kind)
    assert (ClusterIPClaim.objects.count(), NodePortClaim.objects.count()) == (addresses, ports)


def test_an_update_from_an_old_version_is_a_conflict(world):
    old = world.service()
    world.patch_spec("web", sessionAffinity="ClientIP")
    with pytest.raises(Conflict):
        world.update(kinds.SERVICE, "web", lambda _: old)


def test_an_update_that_changes_nothing_is_not_written(world):
    world.service()
    before = changes.head()
    world.update(kinds.SERVICE, "web", lambda service: service)
    assert changes.head() == before


def test_a_failed_write_leaves_no_change_behind(world):
    before = changes.head()
    with pytest.raises(Invalid):
        world.service("web", ports=[{"port": 0}])
    with pytest.raises(NotFound):
        World("nowhere").service()
    assert changes.head() == before == Change.objects.count()


def test_names_are_unique_and_generated_ones_are_made_until_free(world):
    world.service()
    with pytest.raises(AlreadyExists):
        world.service()
    document = {"metadata": {"generateName": "web-"}, "spec": {"ports": [{"port": 80}]}}
    made = {
        json.loads(store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR).document)["metadata"]["name"]
        for _ in range(5)
    }
    assert len(made) == 5 and all(name.startswith("web-") and len(name) == 9 for name in made)


def test_a_dry_run_changes_nothing(world):
    document = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    tried = store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR, dry_run=True)
    assert "resourceVersion" not in json.loads(tried.document)["metadata"]
    with pytest.raises(NotFound):
        world.get(kinds.SERVICE, "web")
    assert not ClusterIPClaim.objects.exists()


def test_the_log_says_who_wrote_what(world):
    world.service()
    change = Change.objects.filter(kind="services").get()
    assert (change.verb, change.namespace, change.name, change.user, change.request_id) == (
        "ADDED",
        "shop",
        "web",
        "tester",
        "test",
    )
    assert change.owner == "shop/web" and json.loads(change.document)["metadata"]["name"] == "web"


def test_lists_are_in_byte_order_and_in_pages(world):
    for name in ("b", "a-b", "a", "a1"):
        world.service(name)
    names, token = [], ""
    while True:
        page = store.list(kinds.SERVICE, "shop", limit=3, continue_token=token)
        names += [json.loads(text)["metadata"]["name"] for text in page.documents]
        token = page.continue_token
        if not token:
            break
        assert page.remaining == 1
    assert names == ["a", "a-b", "a1", "b"]


def test_lists_by_label(world):
    world.node("n1", zone="a", disk="ssd")
    world.node("n2", zone="b")

    def names(selector):
        page = store.list(kinds.NODE, None, labels=parse_label_selector(selector))
        return [json.loads(text)["metadata"]["name"] for text in page.documents]

    assert names("zone=a") == ["n1"]
    assert names("zone in (a,b)") == ["n1", "n2"]
    assert names("zone!=a") == ["n2"]
    assert names("disk") == ["n1"]
    assert names("!disk,zone=b") == ["n2"]


def test_an_object_with_finalizers_goes_when_the_last_is_taken_off(world):
    world.service()

    def hold(service):
        service["metadata"]["finalizers"] = ["example.org/hold"]
        return service

    def let_go(service):
        service["metadata"].pop("finalizers", None)
        return service

    world.update(kinds.SERVICE, "web", hold)
    world.delete(kinds.SERVICE, "web")
    assert world.get(kinds.SERVICE, "web")["metadata"]["deletionTimestamp"]
    world.update(kinds.SERVICE, "web", let_go)
    with pytest.raises(NotFound):
        world.get(kinds.SERVICE, "web")
    assert not ClusterIPClaim.objects.exists()


def test_preconditions_hold_a_delete_back(world):
    world.service()
    with pytest.raises(Conflict):
        world.delete(kinds.SERVICE, "web", preconditions={"uid": "00000000-0000-0000-0000-000000000000"})
    world.delete(kinds.SERVICE, "web", preconditions={"uid": world.get(kinds.SERVICE, "web")["metadata"]["uid"]})


def test_a_namespace_takes_its_content_along(world):
    world.node()
    world.service(selector={"app": "x"})
    world.pod(ip="10.1.0.1", app="x")
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    with pytest.raises(NotFound):
        store.get(kinds.NAMESPACE, "", "shop")
    assert not ClusterIPClaim.objects.exists()


def test_a_namespace_that_goes_takes_nothing_new(world):
    world.service()

    def hold(service):
        service["metadata"]["finalizers"] = ["example.org/hold"]
        return service

    world.update(kinds.SERVICE, "web", hold)
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    with pytest.raises(Forbidden):
        world.service("late")
    assert json.loads(store.get(kinds.NAMESPACE, "", "shop").document)["status"]["phase"] == "Terminating"


def test_the_permanent_namespaces_stay(db):
    store.bootstrap()
    store.bootstrap()
    with pytest.raises(Forbidden):
        store.delete(kinds.NAMESPACE, "", "default", actor=ACTOR)
    assert json.loads(store.get(kinds.SERVICE, "default", "kubernetes").document)["spec"]["clusterIP"] == "10.96.0.1"


def test_a_dry_run_finds_the_name_taken_too(world):
    world.service()
    before = changes.head()
    document = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    with pytest.raises(AlreadyExists):
        store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR, dry_run=True)
    assert changes.head() == before


def test_a_taken_name_takes_nothing(world):
    """The insert goes to the database with what follows it: all of it is undone."""
    world.service("web", type="NodePort")
    claims = ClusterIPClaim.objects.count(), NodePortClaim.objects.count(), Change.objects.count()
    with pytest.raises(AlreadyExists, match='services "web" already exists'):
        world.service("web", type="NodePort", selector={"app": "x"})
    assert claims == (ClusterIPClaim.objects.count(), NodePortClaim.objects.count(), Change.objects.count())


@pytest.mark.parametrize(("propagation", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
def test_what_is_marked_on_its_way_out_is_seen_marked_and_then_gone(world, propagation, finalizer):
    world.service()
    before = changes.head()
    stored = world.delete(kinds.SERVICE, "web", propagation=propagation)
    assert json.loads(stored.document)["metadata"]["finalizers"] == [finalizer]
    written = [(row.kind, row.verb) for row in changes.read_after(before)]
    assert written == [("services", "MODIFIED"), ("services", "DELETED"), ("ipaddresses", "DELETED")]
    assert not ClusterIPClaim.objects.exists()
