"""What a Node's zone is to its routes."""

from services_app import changes, store
from services_app.models import NodeSync
from services_app.push import snapshot
from services_app.spec import kinds
from tests.store.conftest import ACTOR


def delta(node, since):
    return snapshot.read_delta(node, "192.0.2.1", since, with_base=False)


def slots(node):
    """The endpoints of Service web in the tables of a node that is told everything."""
    return {value for _, key, value in delta(node, None).owners["shop/web"] if key.startswith("slots ")}


def relabel(name, **labels):
    def change(node):
        return {**node, "metadata": {**node["metadata"], "labels": labels}}

    store.update(kinds.NODE, "", name, change, actor=ACTOR)


def told_everything():
    """The nodes that get everything with their next push; asked once."""
    rows = NodeSync.objects.filter(full_wanted=True)
    found = [*rows.values_list("node_id", flat=True)]
    rows.update(full_wanted=False)
    return found


def test_a_node_that_comes_into_another_zone_is_told_everything_and_others_nothing(committed_world):
    world = committed_world
    zone = "topology.kubernetes.io/zone"
    for name, where in (("n1", "a"), ("n2", "b"), ("n3", "b")):
        world.node(name, **{zone: where})
        world.pod(f"p-{name}", ip=f"10.1.0.1{name[1]}", node=name, app="web")
    world.service(selector={"app": "web"}, trafficDistribution="PreferSameZone")
    one, two, three = (f"10.1.0.1{number} . 80" for number in (1, 2, 3))
    assert [slots(name) for name in ("n1", "n2", "n3")] == [{one}, {two, three}, {two, three}]

    held = changes.head()
    world.node("n4")
    for name in ("n1", "n4"):
        world.enrol(name, full_wanted=False)
    assert slots("n4") == {one, two, three}
    relabel("n4", **{zone: "a"})
    assert told_everything() == ["n4"]
    assert delta("n1", held).owners == {}
    assert slots("n4") == {one}

    held = changes.head()
    relabel("n4", **{zone: "a", "disk": "fast"})
    assert told_everything() == []
    assert delta("n4", held).owners == {}

    held = changes.head()
    world.patch_spec("web", trafficDistribution="PreferSameNode")
    assert [slots(name) for name in ("n1", "n2", "n3", "n4")] == [{one}, {two}, {three}, {one}]
    assert {value for _, key, value in delta("n2", held).owners["shop/web"] if key.startswith("slots ")} == {two}
