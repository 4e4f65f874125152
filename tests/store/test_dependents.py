"""What is owned goes with its owner, as by Kubernetes' garbage collector: at once, after a crash, in each policy."""

import json
from uuid import uuid4

import pytest

from services_app import models, store
from services_app.spec import kinds
from services_app.spec.errors import Conflict, NotFound
from services_app.store import deletion
from services_app.store.checks import check_everything
from tests.store.conftest import ACTOR


def reference(document, **more):
    metadata = document["metadata"]
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        **more,
    }


def blocking(document):
    return reference(document, blockOwnerDeletion=True)


def made(name, *owners, kind=kinds.CONFIG_MAP, namespace="shop", finalizers=(), **fields):
    metadata = {"name": name, "ownerReferences": [*owners], "finalizers": [*finalizers]}
    metadata = {key: value for key, value in metadata.items() if value}
    return json.loads(store.create(kind, {"metadata": metadata, **fields}, namespace=namespace, actor=ACTOR).document)


def metadata_of(name, kind=kinds.CONFIG_MAP, namespace="shop"):
    return json.loads(store.get(kind, namespace, name).document)["metadata"]


def owners_of(name):
    return [entry["name"] for entry in metadata_of(name).get("ownerReferences", ())]


def left(kind=kinds.CONFIG_MAP, namespace="shop"):
    return [json.loads(text)["metadata"]["name"] for text in store.list(kind, namespace).documents]


def collect(at_most=100):
    return store.collect(actor=ACTOR, at_most=at_most)


def edit(world, name, **metadata):
    def change(document):
        document["metadata"].update(metadata)
        return document

    return world.update(kinds.CONFIG_MAP, name, change)


@pytest.fixture(autouse=True)
def _nothing_is_left_to_do(world):
    yield
    for policy in models.WaitingOwner.objects.values_list("policy", flat=True):
        assert policy in ("Foreground", "Orphan")
    collect()
    assert collect() == 0
    assert check_everything() == []


def test_what_is_owned_goes_with_its_owner_and_what_that_owned(world):
    top = made("top")
    middle = made("middle", reference(top))
    made("pair", reference(top), kind=kinds.SECRET)
    made("bottom", reference(middle), kind=kinds.SERVICE, spec={"ports": [{"port": 80}]})
    made("bystander")
    world.delete(kinds.CONFIG_MAP, "top")
    assert (left(), left(kinds.SECRET), left(kinds.SERVICE)) == (["bystander"], [], [])
    assert models.OwnerReference.objects.count() == 0
    assert models.ClusterIPClaim.objects.count() == 0


def test_an_owner_among_others_only_takes_its_reference_along(world):
    one, two = made("one"), made("two")
    made("shared", reference(one), reference(two))
    world.delete(kinds.CONFIG_MAP, "one")
    assert owners_of("shared") == ["two"]
    world.delete(kinds.CONFIG_MAP, "two")
    assert left() == []


def test_cluster_wide_owners_are_followed_into_namespaces(world):
    node = world.node("n1")
    made("n1", reference(node), kind=kinds.LEASE, spec={"holderIdentity": "n1"})
    store.delete(kinds.NODE, "", "n1", actor=ACTOR)
    assert left(kinds.LEASE) == []


def test_references_that_never_led_anywhere_are_found(world):
    there = made("there")
    made("invented", {**reference(there), "uid": str(uuid4())})
    made("no-uuid", {**reference(there), "uid": "made up"})
    made("misnamed", {**reference(there), "name": "elsewhere"})
    made("odd", {**reference(there), "name": "nul\0"})
    made("right", reference(there))
    assert collect() == 4
    assert left() == ["right", "there"]


def test_an_owner_that_nobody_can_judge_leaves_all_alone(world):
    gone = {**reference(made("gone")), "uid": str(uuid4())}
    foreign = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": str(uuid4())}
    made("web-5d-x", foreign)
    made("both", foreign, gone)
    made("wide", gone, kind=kinds.INGRESS_CLASS, namespace="", spec={"controller": "example.org/c"})
    assert collect() == 0
    assert left() == ["both", "gone", "web-5d-x"]
    assert left(kinds.INGRESS_CLASS, "") == ["wide"]


def test_an_owner_in_another_namespace_is_none_and_that_is_told(world):
    store.create(kinds.NAMESPACE, {"metadata": {"name": "other"}}, namespace="", actor=ACTOR)
    owner = made("owner", namespace="other")
    made("stray", reference(owner))
    collect()
    assert left() == []
    (event,) = (json.loads(text) for text in store.list(kinds.EVENT, "shop").documents)
    assert (event["type"], event["reason"]) == ("Warning", "OwnerRefInvalidNamespace")
    assert event["involvedObject"]["name"] == "stray"
    uid = owner["metadata"]["uid"]
    where = f"[v1/ConfigMap, namespace: shop, name: owner, uid: {uid}]"
    assert event["message"] == f'ownerRef {where} does not exist in namespace "shop"'


def test_an_edited_reference_counts_as_it_is_now(world):
    old, new = made("old"), made("new")
    made("moved", reference(old))
    edit(world, "moved", ownerReferences=[reference(new)])
    world.delete(kinds.CONFIG_MAP, "old")
    assert left() == ["moved", "new"]
    edit(world, "moved", ownerReferences=[])
    world.delete(kinds.CONFIG_MAP, "new")
    assert left() == ["moved"]
    assert collect() == 0


def test_finalizers_hold_what_is_owned_and_it_is_marked_once(world):
    owner = made("owner")
    made("held", reference(owner), finalizers=["example.org/hold"])
    world.delete(kinds.CONFIG_MAP, "owner")
    mark = metadata_of("held")
    assert mark["deletionTimestamp"]
    assert collect() == 0
    assert metadata_of("held")["resourceVersion"] == mark["resourceVersion"]
    edit(world, "held", finalizers=[])
    assert left() == []


def test_foreground_waits_for_what_blocks_and_for_nothing_else(world):
    owner = made("owner")
    made("blocker", blocking(owner), finalizers=["example.org/hold"])
    made("other", reference(owner), finalizers=["example.org/hold"])
    stored = json.loads(world.delete(kinds.CONFIG_MAP, "owner", propagation="Foreground").document)
    assert stored["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert [name for name in left() if "deletionTimestamp" in metadata_of(name)] == ["blocker", "other", "owner"]
    collect()
    assert left() == ["blocker", "other", "owner"]
    edit(world, "blocker", finalizers=[])
    collect()
    assert left() == ["other"]
    edit(world, "other", finalizers=[])
    assert left() == []


def test_foreground_goes_down_the_tree_and_up_again(world):
    top = made("top")
    middle = made("middle", blocking(top))
    for name in ("leaf-1", "leaf-2"):
        made(name, blocking(middle))
    world.delete(kinds.CONFIG_MAP, "top", propagation="Foreground")
    assert left() == []
    rows = models.Change.objects.filter(verb="DELETED", kind="configmaps").order_by("revision")
    gone = [*rows.values_list("name", flat=True)]
    assert (sorted(gone[:2]), gone[2:]) == (["leaf-1", "leaf-2"], ["middle", "top"])
    assert models.WaitingOwner.objects.count() == 0


def test_foreground_opens_a_circle(world):
    one = made("one")
    two = made("two", blocking(one))
    edit(world, "one", ownerReferences=[blocking(two)])
    world.delete(kinds.CONFIG_MAP, "one", propagation="Foreground")
    collect()
    assert left() == []


def test_foreground_takes_only_a_reference_from_what_others_own_too(world):
    owner, keeper = made("owner"), made("keeper")
    made("shared", blocking(owner), reference(keeper))
    world.delete(kinds.CONFIG_MAP, "owner", propagation="Foreground")
    assert left() == ["keeper", "shared"]
    assert owners_of("shared") == ["keeper"]


def test_background_ends_the_wait_of_foreground(world):
    owner = made("owner")
    made("blocker", blocking(owner), finalizers=["example.org/hold"])
    world.delete(kinds.CONFIG_MAP, "owner", propagation="Foreground")
    world.delete(kinds.CONFIG_MAP, "owner")
    assert left() == ["blocker", "owner"]
    world.delete(kinds.CONFIG_MAP, "owner", propagation="Background")
    assert left() == ["blocker"]
    edit(world, "blocker", finalizers=[])


def test_orphans_stay_without_the_reference(world):
    owner, other = made("owner"), made("other")
    made("alone", blocking(owner))
    made("shared", reference(owner), reference(other))
    stored = json.loads(world.delete(kinds.CONFIG_MAP, "owner", propagation="Orphan").document)
    assert stored["metadata"]["finalizers"] == ["orphan"]
    assert left() == ["alone", "other", "shared"]
    assert (owners_of("alone"), owners_of("shared")) == ([], ["other"])
    assert collect() == 0


def test_a_policy_as_finalizer_is_followed_for_what_is_owned(world):
    owner = made("owner")
    middle = made("middle", reference(owner), finalizers=["orphan"])
    made("bottom", reference(middle))
    world.delete(kinds.CONFIG_MAP, "owner")
    assert left() == ["bottom"]
    assert owners_of("bottom") == []


def test_a_namespace_that_goes_waits_for_no_owner(world):
    owner = made("owner")
    made("blocker", blocking(owner), finalizers=["example.org/hold"])
    world.delete(kinds.CONFIG_MAP, "owner", propagation="Foreground")
    edit(world, "blocker", finalizers=[])
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    with pytest.raises(NotFound):
        store.get(kinds.NAMESPACE, "", "shop")
    assert models.WaitingOwner.objects.count() == 0


def test_a_namespace_is_an_owner_like_others(world):
    namespace = json.loads(store.get(kinds.NAMESPACE, "", "shop").document)
    wide = {"kind": kinds.INGRESS_CLASS, "namespace": "", "spec": {"controller": "example.org/c"}}
    made("blocker", blocking(namespace), finalizers=["example.org/hold"], **wide)
    made("content", blocking(namespace))
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR, propagation="Foreground")
    assert metadata_of("shop", kinds.NAMESPACE, "")["finalizers"] == ["foregroundDeletion"]
    assert left() == []

    def freed(document):
        del document["metadata"]["finalizers"]
        return document

    store.update(kinds.INGRESS_CLASS, "", "blocker", freed, actor=ACTOR)
    collect()
    assert store.finish_namespace("shop", actor=ACTOR, at_most=10)
    with pytest.raises(NotFound):
        store.get(kinds.NAMESPACE, "", "shop")


def test_a_pod_keeps_its_owner_waiting_until_its_grace_is_over(world):
    node = world.node("n1")
    owner = made("owner")
    containers = [{"name": "c", "image": "app"}]
    made("p", blocking(owner), kind=kinds.POD, spec={"nodeName": node["metadata"]["name"], "containers": containers})
    world.delete(kinds.CONFIG_MAP, "owner", propagation="Foreground")
    assert metadata_of("p", kinds.POD)["deletionGracePeriodSeconds"] == 30
    collect()
    assert left() == ["owner"]
    world.delete(kinds.POD, "p", grace_period_s=0)
    assert left() == []


def test_slices_by_hand_go_with_their_service(world):
    world.node()
    service = world.service(selector={"app": "web"})
    world.pod(ip="192.0.2.1", app="web")
    labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "example.org"}
    document = {
        "metadata": {"name": "mine", "labels": labels, "ownerReferences": [reference(service)]},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [],
    }
    store.create(kinds.ENDPOINT_SLICE, document, namespace="shop", actor=ACTOR)
    assert [*models.OwnerReference.objects.values_list("name", flat=True)] == ["mine"]
    world.delete(kinds.SERVICE, "web")
    assert left(kinds.ENDPOINT_SLICE) == []


def test_a_derived_slice_that_comes_back_from_a_backup_goes_again(world):
    world.node()
    world.service(selector={"app": "web"})
    world.pod(ip="192.0.2.1", app="web")
    (document,) = world.slices()
    world.delete(kinds.SERVICE, "web")
    for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        document["metadata"].pop(key, None)
    store.create(kinds.ENDPOINT_SLICE, document, namespace="shop", actor=ACTOR)
    assert collect() == 1
    assert left(kinds.ENDPOINT_SLICE) == []


def test_no_object_is_forgotten_when_the_process_ends_after_the_commit(world, monkeypatch):
    """`follow` runs after the commit: here the process ends instead."""
    owner = made("owner")
    middle = made("middle", reference(owner))
    made("bottom", reference(middle))
    free = made("free")
    made("orphan", reference(free))
    held = made("held")
    made("blocker", blocking(held))
    monkeypatch.setattr(deletion, "follow", lambda *_, **__: 0)
    world.delete(kinds.CONFIG_MAP, "owner")
    world.delete(kinds.CONFIG_MAP, "free", propagation="Orphan")
    world.delete(kinds.CONFIG_MAP, "held", propagation="Foreground")
    assert left() == ["blocker", "bottom", "free", "held", "middle", "orphan"]
    monkeypatch.undo()
    collect()
    assert left() == ["orphan"]
    assert owners_of("orphan") == []


def test_many_go_in_portions(world):
    owner = made("owner")
    for number in range(5):
        made(f"owned-{number}", blocking(owner))
    deletion.delete(kinds.CONFIG_MAP, "shop", "owner", actor=ACTOR, propagation="Foreground", dry_run=True)
    assert len(left()) == 6
    concerned = set()
    deletion._delete(kinds.CONFIG_MAP, "shop", "owner", actor=ACTOR, concerned=concerned, propagation="Foreground")
    assert deletion.follow(concerned, actor=ACTOR, at_most=2) == 2
    assert len(left()) == 4
    assert collect(at_most=2) == 2
    assert collect() == 2
    assert left() == []


def test_an_owner_found_anew_while_it_was_judged_saves_an_object(world, monkeypatch):
    """Somebody gives the object another owner between the look at its owners and its deletion."""
    keeper, owner = made("keeper"), made("owner")
    made("saved", reference(owner))
    state_of = deletion.references.state_of

    def interrupted(asked):
        monkeypatch.undo()
        found = state_of(asked)
        edit(world, "saved", ownerReferences=[reference(keeper)])
        return found

    monkeypatch.setattr(deletion.references, "state_of", interrupted)
    world.delete(kinds.CONFIG_MAP, "owner")
    assert left() == ["keeper", "saved"]
    with pytest.raises(Conflict):
        world.delete(kinds.CONFIG_MAP, "saved", preconditions={"resourceVersion": "1"})


def test_what_is_not_kept_as_it_should_be_is_noted_anew(world):
    """As after writes of an older version beside this one."""
    owner = made("owner")
    for name in ("missed", "changed"):
        made(name, reference(owner), finalizers=["example.org/hold"])
    made("sealed", reference(owner), kind=kinds.SECRET)
    made("held", reference(owner))
    models.OwnerReference.objects.filter(name__in=["missed", "sealed"]).delete()
    models.OwnerReference.objects.filter(name="changed").update(owner_name="another")
    models.WaitingOwner.objects.create(
        uid=uuid4(), kind="configmaps", namespace="shop", name="gone", policy="Foreground"
    )
    found = {sighting.finding.value for sighting in store.repair(actor=ACTOR) if sighting.mended}
    assert found == {f"configmaps/shop/{name}" for name in ("missed", "changed", "gone")} | {"secrets/shop/sealed"}
    assert store.repair(actor=ACTOR) == []
    world.delete(kinds.CONFIG_MAP, "owner")
    assert (left(), left(kinds.SECRET)) == (["changed", "missed"], [])


def test_objects_without_owners_write_no_row(world):
    world.node()
    world.service(selector={"app": "web"})
    world.pod(ip="192.0.2.1", app="web")
    made("plain")
    assert world.slices()[0]["metadata"]["ownerReferences"]
    assert models.OwnerReference.objects.count() == 0
