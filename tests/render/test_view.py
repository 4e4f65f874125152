"""What planes that spell rules read of rendered groups: who is drawn how often, by what, and who keeps what it has."""

import pytest

from agents.state import Change
from agents.view import Group, View
from services_app.render.node import Cluster, OwnerState, render_owner

READY = {"ready": True, "serving": True, "terminating": False}
ONE, TWO, THREE = (("10.1.0.1", 80), ("10.1.0.2", 80), ("10.1.0.3", 80))


def elements(weights, by="random", affinity="None"):
    spec = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "sessionAffinity": affinity}
    spec["ports"] = [{"name": "http", "port": 80, "protocol": "TCP"}]
    metadata = {"name": "web", "namespace": "shop", "annotations": {"timonel.io/load-balancing": by}}
    item = {
        "metadata": {"annotations": {"timonel.io/weights": weights}},
        "addressType": "IPv4",
        "ports": spec["ports"],
        "endpoints": [{"addresses": [address], "conditions": READY} for address, _ in (ONE, TWO, THREE)],
    }
    state = OwnerState("shop/web", {"metadata": metadata, "spec": spec}, (item,), {("TCP/80", "Cluster"): 5})
    found = render_owner(state, Cluster((), "cluster.local")).on("n1")
    return {key: value for driver, key, value in found if driver == "nft4"}


CASES = {
    "random": (elements(""), Group("balance", (ONE, TWO, THREE))),
    "weights": (elements("10.1.0.1=50,10.1.0.2=0"), Group("balance", (ONE, THREE, THREE), kept=(TWO,))),
    "affinity": (
        elements("10.1.0.1=50,10.1.0.2=0", affinity="ClientIP"),
        Group("balance", (ONE, THREE, THREE), 10800, kept=(TWO,)),
    ),
    "all of weight 0": (elements("10.1.0.1=0,10.1.0.2=0,10.1.0.3=0"), Group("refuse", kept=(ONE, TWO, THREE))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("before", CASES)
def test_a_group_is_read_as_it_is_meant_also_after_a_change(before, case):
    view = View.of(CASES[before][0])
    assert view.group("0x00000005") == CASES[before][1]
    view.follow(Change(CASES[before][0], CASES[case][0]))
    assert view.group("0x00000005") == CASES[case][1]


def test_by_source_hash_each_place_has_its_endpoint():
    group = View.of(elements("10.1.0.2=0", by="source-hash")).group("0x00000005")
    assert (group.is_by_source_hash, len(group.endpoints), group.kept) == (True, 1024, (TWO,))
    assert set(group.endpoints) == {ONE, THREE}
