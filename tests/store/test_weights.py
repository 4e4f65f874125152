"""Annotations about how connections are spread, from the write to what a node is sent."""

import pytest

from services_app import store
from services_app.push import snapshot
from services_app.spec import kinds
from services_app.spec.errors import Invalid
from tests.store.conftest import ACTOR


def annotate(world, kind, name, **annotations):
    def change(document):
        texts = {f"timonel.io/{key.replace('_', '-')}": text for key, text in annotations.items()}
        return {**document, "metadata": {**document["metadata"], "annotations": texts}}

    world.update(kind, name, change)


def group():
    """Verdict, and who has how many slots."""
    found = snapshot.read_delta("n1", "192.0.2.1", None, with_base=False).owners["shop/web"]
    slots = [value for _, key, value in found if key.startswith("slots ")]
    (verdict,) = (value for _, key, value in found if key.startswith("groups "))
    return verdict, {value: slots.count(value) for value in slots}


def test_a_pods_weight_and_a_services_choice_reach_the_nodes(committed_world):
    world = committed_world
    world.node()
    world.service(selector={"app": "web"})
    for number in (1, 2):
        world.pod(f"p{number}", ip=f"10.1.0.{number}", app="web")
    one, two = "10.1.0.1 . 80", "10.1.0.2 . 80"
    assert group() == ("goto lb_2", {one: 1, two: 1})
    annotate(world, kinds.POD, "p2", weight="25")
    assert [item["metadata"]["annotations"]["timonel.io/weights"] for item in world.slices()] == ["10.1.0.2=25"]
    assert group() == ("goto lb_5", {one: 4, two: 1})
    annotate(world, kinds.SERVICE, "web", load_balancing="source-hash")
    verdict, slots = group()
    assert (verdict, slots.keys()) == ("goto hash_1024", {one, two})
    assert 150 < slots[two] < 260, "a fifth of 1024"
    annotate(world, kinds.POD, "p2", weight="0")
    assert group() == ("goto hash_1024", {one: 1024, two: 1})


def test_what_cannot_be_is_refused(committed_world):
    world = committed_world
    world.node()
    world.service(selector={"app": "web"})
    world.pod("p1", ip="10.1.0.1", app="web")
    for kind, name, annotations in (
        (kinds.POD, "p1", {"weight": "101"}),
        (kinds.SERVICE, "web", {"load_balancing": "least-connections"}),
        (kinds.ENDPOINT_SLICE, world.slices()[0]["metadata"]["name"], {"weights": "10.1.0.1=x"}),
        (kinds.ENDPOINTS, "web", {"weights": "10.1.0.1"}),
    ):
        with pytest.raises(Invalid, match=r"metadata.annotations\[timonel.io/"):
            annotate(world, kind, name, **annotations)
    document = {"metadata": {"name": "p2", "annotations": {"timonel.io/weight": "-1"}}}
    document["spec"] = {"containers": [{"name": "c", "image": "app"}]}
    with pytest.raises(Invalid, match=r"timonel.io/weight"):
        store.create(kinds.POD, document, namespace="shop", actor=ACTOR)
