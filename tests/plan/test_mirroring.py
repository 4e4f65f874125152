"""Endpoints written by hand become slices, one for each set of ports and family."""

import itertools
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.plan import mirroring
from services_app.plan.endpoints import SliceChanges

NUMBERS = itertools.count()
SERVICE = {"metadata": {"name": "web", "namespace": "default", "uid": "u-web"}, "spec": {"ports": [{"port": 80}]}}


def by_hand(*subsets, **metadata):
    return {
        "metadata": {"name": "web", "namespace": "default", "uid": "u-endpoints", **metadata},
        "subsets": list(subsets),
    }


def subset(*addresses, unready=(), ports=(("", 80),)):
    return {
        "addresses": [{"ip": ip} for ip in addresses],
        "notReadyAddresses": [{"ip": ip} for ip in unready],
        "ports": [{"name": name, "port": number, "protocol": "TCP"} for name, number in ports],
    }


def settle(endpoints, existing=(), service=SERVICE):
    """The slices after the plan was carried out, and the plan."""
    plan = mirroring.plan_mirror(
        service, endpoints, deepcopy([*existing]), new_name=lambda prefix: f"{prefix}{next(NUMBERS)}"
    )
    updated = {item["metadata"]["name"]: item for item in plan.update}
    gone = {item["metadata"]["name"] for item in plan.delete}
    after = [updated.get(i["metadata"]["name"], i) for i in existing if i["metadata"]["name"] not in gone]
    return [*after, *plan.create], plan


def content(slices):
    return sorted(
        (
            item["addressType"],
            tuple(port["port"] for port in item["ports"] or ()),
            tuple((e["addresses"][0], e["conditions"]["ready"]) for e in item["endpoints"]),
        )
        for item in slices
    )


def test_each_family_and_each_set_of_ports_has_a_slice():
    slices, _ = settle(
        by_hand(
            subset("192.0.2.1", "2001:db8::1", unready=["192.0.2.9"], ports=[("a", 80)]),
            subset("192.0.2.2", ports=[("b", 81)]),
        )
    )
    assert content(slices) == [
        ("IPv4", (80,), (("192.0.2.1", True), ("192.0.2.9", False))),
        ("IPv4", (81,), (("192.0.2.2", True),)),
        ("IPv6", (80,), (("2001:db8::1", True),)),
    ]


def test_ports_with_the_same_addresses_share_a_slice_and_unready_anywhere_is_unready():
    slices, _ = settle(
        by_hand(
            subset("192.0.2.1", ports=[("a", 80)]),
            subset("192.0.2.1", ports=[("b", 81)]),
        )
    )
    assert content(slices) == [("IPv4", (80, 81), (("192.0.2.1", True),))]
    slices, _ = settle(by_hand(subset("192.0.2.1"), subset("192.0.2.2", unready=["192.0.2.1"])))
    assert content(slices) == [("IPv4", (80,), (("192.0.2.2", True), ("192.0.2.1", False)))]


@pytest.mark.parametrize(
    ("service", "metadata"),
    [
        (None, {}),
        ({**SERVICE, "spec": {"selector": {"app": "x"}}}, {}),
        (SERVICE, {"labels": {mirroring.SKIP_MIRROR: "true"}}),
        (SERVICE, {"annotations": {mirroring.LEADER: "{}"}}),
    ],
    ids=["no Service", "a Service with selector", "declined by label", "a leader's lock"],
)
def test_what_is_not_mirrored_any_more_leaves_nothing(service, metadata):
    slices, _ = settle(by_hand(subset("192.0.2.1")))
    assert settle(by_hand(subset("192.0.2.1"), **metadata), slices, service)[0] == []
    assert settle(None, slices, service)[0] == []


def test_labels_and_annotations_go_along_except_those_of_tools():
    annotations = {
        "note": "x",
        mirroring.LAST_APPLIED: "{}",
        "endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:00Z",
    }
    slices, _ = settle(by_hand(subset("192.0.2.1"), labels={"team": "a"}, annotations=annotations))
    metadata = slices[0]["metadata"]
    assert metadata["annotations"] == {"note": "x"}
    assert metadata["labels"] == {
        "endpointslice.kubernetes.io/managed-by": mirroring.MIRROR_CONTROLLER,
        "kubernetes.io/service-name": "web",
        "team": "a",
    }
    assert metadata["ownerReferences"][0] | {"kind": "", "uid": ""} == {
        "apiVersion": "v1",
        "kind": "",
        "name": "web",
        "uid": "",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_a_slice_takes_a_thousand_of_a_subset_ready_ones_first():
    many = [f"10.9.{n // 250}.{n % 250}" for n in range(1001)]
    document = by_hand(subset(*many[1:], unready=many[:1]))
    slices, _ = settle(document)
    assert len(slices[0]["endpoints"]) == 1000
    assert all(endpoint["conditions"]["ready"] for endpoint in slices[0]["endpoints"])
    assert mirroring.addresses_left_out(document) == 1


def test_a_slice_that_would_go_is_used_for_the_one_that_comes():
    before, _ = settle(by_hand(subset("192.0.2.1", ports=[("a", 80)])))
    after, plan = settle(by_hand(subset("192.0.2.1", ports=[("a", 81)])), before)
    assert (len(plan.create), len(plan.update), len(plan.delete)) == (0, 1, 0)
    assert after[0]["metadata"]["name"] == before[0]["metadata"]["name"]
    assert after[0]["metadata"]["generation"] == 2


ADDRESSES = st.lists(
    st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"]), max_size=4, unique=True
)
SUBSETS = st.lists(
    st.builds(
        lambda ready, unready, port: subset(*ready, unready=unready, ports=[("", port)]),
        ADDRESSES,
        ADDRESSES,
        st.integers(80, 83),
    ),
    max_size=4,
)


@given(st.lists(SUBSETS, min_size=1, max_size=6))
def test_whatever_happened_before_the_slices_say_what_the_endpoints_say(history):
    slices = []
    for subsets in history:
        document = by_hand(*subsets)
        slices, _ = settle(document, slices)
        assert content(slices) == content(settle(document)[0])
        assert settle(document, slices)[1] == SliceChanges()
