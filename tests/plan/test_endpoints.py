"""Slices and Endpoints follow from a Service and its Pods, with the smallest change."""

import itertools
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.plan import endpoints

NOW = "2024-01-01T00:00:00Z"


def a_service(**spec):
    ports = spec.pop("ports", [{"name": "", "port": 80, "protocol": "TCP", "targetPort": 8080}])
    return {
        "metadata": {"name": "web", "namespace": "default", "uid": "u-web", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "x"}, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": ports, **spec},
    }


def a_pod(name, *, ip=None, node="n1", ready=True, terminating=False, ports=(), **more):
    number = int("".join(filter(str.isdigit, name)) or 0)
    return {
        "uid": f"uid-{name}",
        "namespace": "default",
        "name": name,
        "node": node,
        "ips": [ip or f"10.1.{number // 250}.{number % 250 + 1}"],
        "ready": ready,
        "terminating": terminating,
        "hostname": "",
        "subdomain": "",
        "ports": list(ports),
        **more,
    }


def settle(service, pods, existing, **options):
    """The slices after the plan was carried out."""
    numbers = itertools.count(len(existing))
    taken = {item["metadata"]["uid"] for item in existing}
    plan = endpoints.plan_slices(
        service,
        pods,
        deepcopy(existing),
        zones=options.pop("zones", {"n1": "", "n2": ""}),
        now=NOW,
        new_name=lambda prefix: f"{prefix}{next(numbers)}",
        **options,
    )
    gone = {item["metadata"]["uid"] for item in plan.delete}
    updated = {item["metadata"]["uid"]: item for item in plan.update}
    after = [updated.get(i["metadata"]["uid"], i) for i in existing if i["metadata"]["uid"] not in gone]
    for item in plan.create:
        item["metadata"]["uid"] = next(f"s{n}" for n in itertools.count() if f"s{n}" not in taken)
        taken.add(item["metadata"]["uid"])
        after.append(item)
    return after, plan


def addresses(slices):
    return sorted(e["addresses"][0] for item in slices for e in item["endpoints"] or ())


def test_a_service_without_pods_has_one_empty_slice():
    slices, _ = settle(a_service(), [], [])
    assert [(s["endpoints"], s["ports"]) for s in slices] == [(None, None)]
    assert settle(a_service(), [], slices)[1] == endpoints.SliceChanges()


def test_the_empty_slice_goes_when_endpoints_come_and_back():
    empty, _ = settle(a_service(), [], [])
    full, _ = settle(a_service(), [a_pod("p1")], empty)
    assert addresses(full) == ["10.1.0.2"] and len(full) == 1
    assert [s["endpoints"] for s in settle(a_service(), [], full)[0]] == [None]


def test_pods_that_resolve_a_port_name_differently_are_kept_apart():
    service = a_service(ports=[{"name": "", "port": 80, "protocol": "TCP", "targetPort": "http"}])
    pods = [a_pod("p1", ports=[["http", "TCP", 8080]]), a_pod("p2", ports=[["http", "TCP", 9090]])]
    slices, _ = settle(service, pods, [])
    assert sorted((s["ports"][0]["port"], addresses([s])[0]) for s in slices) == [
        (8080, "10.1.0.2"),
        (9090, "10.1.0.3"),
    ]


@pytest.mark.parametrize(
    ("ready", "terminating", "publish", "conditions"),
    [
        (True, False, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (True, True, False, (False, True, True)),
        (False, False, True, (True, False, False)),
        (True, True, True, (True, True, True)),
    ],
)
def test_conditions_tell_ready_serving_and_terminating(ready, terminating, publish, conditions):
    service = a_service(publishNotReadyAddresses=publish)
    slices, _ = settle(service, [a_pod("p1", ready=ready, terminating=terminating)], [])
    found = slices[0]["endpoints"][0]["conditions"]
    assert (found["ready"], found["serving"], found["terminating"]) == conditions


def test_a_pod_on_an_unknown_node_is_no_endpoint_unless_all_are_published():
    pods = [a_pod("p1", node="gone")]
    assert addresses(settle(a_service(), pods, [])[0]) == []
    assert addresses(settle(a_service(publishNotReadyAddresses=True), pods, [])[0]) == ["10.1.0.2"]


@pytest.mark.parametrize(("count", "sizes"), [(100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_a_slice_is_full_at_a_hundred(count, sizes):
    slices, _ = settle(a_service(), [a_pod(f"p{i}") for i in range(count)], [])
    assert [len(s["endpoints"]) for s in slices] == sizes


def test_one_more_pod_changes_one_slice():
    before, _ = settle(a_service(), [a_pod(f"p{i}") for i in range(150)], [])
    _, plan = settle(a_service(), [a_pod(f"p{i}") for i in range(151)], before)
    assert (len(plan.create), len(plan.update), len(plan.delete)) == (0, 1, 0)


def test_slices_stay_when_the_selector_goes_and_go_with_external_name():
    before, _ = settle(a_service(), [a_pod("p1")], [])
    assert settle(a_service(selector=None), [], before)[1] == endpoints.SliceChanges()
    assert settle(a_service(type="ExternalName"), [], before)[0] == []


POD_SETS = st.lists(
    st.lists(
        st.builds(
            lambda i, ready, port: a_pod(f"p{i}", ready=ready, ports=[["http", "TCP", port]]),
            st.integers(0, 40),
            st.booleans(),
            st.sampled_from([8080, 9090]),
        ),
        unique_by=lambda p: p["uid"],
        max_size=30,
    ),
    min_size=1,
    max_size=6,
)


@given(POD_SETS)
def test_whatever_happened_before_the_slices_say_what_the_pods_say(history):
    service = a_service(ports=[{"name": "", "port": 80, "protocol": "TCP", "targetPort": "http"}])
    slices = []
    for pods in history:
        slices, _ = settle(service, pods, slices, capacity=7)
        assert addresses(slices) == sorted(p["ips"][0] for p in pods)
        assert all(len(s["endpoints"] or ()) <= 7 for s in slices)
        assert len(slices) >= 1
        assert settle(service, pods, slices, capacity=7)[1] == endpoints.SliceChanges()


def test_endpoints_list_ready_and_unready_addresses_by_port():
    document = endpoints.plan_endpoints(a_service(), [a_pod("p1"), a_pod("p2", ready=False)], None, now=NOW)
    assert document["subsets"] == [
        {
            "addresses": [
                {"ip": "10.1.0.2", "nodeName": "n1", "targetRef": document["subsets"][0]["addresses"][0]["targetRef"]}
            ],
            "notReadyAddresses": document["subsets"][0]["notReadyAddresses"],
            "ports": [{"port": 8080, "protocol": "TCP"}],
        }
    ]
    assert document["subsets"][0]["notReadyAddresses"][0]["ip"] == "10.1.0.3"


def test_endpoints_that_are_right_are_not_written_again():
    pods = [a_pod("p1"), a_pod("p2")]
    document = endpoints.plan_endpoints(a_service(), pods, None, now=NOW)
    assert endpoints.plan_endpoints(a_service(), pods, document, now="2025-01-01T00:00:00Z") is None


def test_a_terminating_pod_is_not_in_endpoints():
    document = endpoints.plan_endpoints(a_service(), [a_pod("p1", terminating=True)], None, now=NOW)
    assert "subsets" not in document


@pytest.mark.parametrize(("count", "listed", "mark"), [(1000, 1000, None), (1001, 1000, "truncated")])
def test_endpoints_hold_a_thousand_addresses_and_say_when_there_are_more(count, listed, mark):
    pods = [a_pod(f"p{i}") for i in range(count)]
    document = endpoints.plan_endpoints(a_service(), pods, None, now=NOW)
    assert sum(len(s["addresses"]) for s in document["subsets"]) == listed
    assert document["metadata"]["annotations"].get(endpoints.OVER_CAPACITY) == mark
    if mark:
        fewer = endpoints.plan_endpoints(a_service(), pods[:-1], document, now=NOW)
        assert endpoints.OVER_CAPACITY not in fewer["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("status", "is_endpoint"),
    [
        ({"phase": "Running", "podIP": "10.0.0.1"}, True),
        ({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}, True),
        ({"phase": "Pending"}, False),
        ({"phase": "Failed", "podIP": "10.0.0.1"}, False),
        ({"phase": "Succeeded", "podIP": "10.0.0.1"}, False),
    ],
)
def test_a_pod_counts_from_when_it_has_an_address_until_it_ends(status, is_endpoint):
    pod = {"metadata": {"uid": "u", "namespace": "d", "name": "p"}, "spec": {}, "status": status}
    assert (endpoints.traits(pod) is not None) == is_endpoint


def test_slices_carry_the_weights_of_their_pods():
    def marks(slices):
        return [item["metadata"]["annotations"].get("timonel.io/weights") for item in slices]

    pods = [a_pod("p1", weight=50), a_pod("p2"), a_pod("p3", weight=0)]
    slices, _ = settle(a_service(), pods, [])
    assert marks(slices) == ["10.1.0.2=50,10.1.0.4=0"]
    assert settle(a_service(), pods, slices)[1] == endpoints.SliceChanges()
    by_hand = deepcopy(slices)
    by_hand[0]["metadata"]["annotations"]["timonel.io/weights"] = "10.1.0.2=1"
    slices, plan = settle(a_service(), pods, by_hand)
    assert len(plan.update) == 1
    assert marks(slices) == ["10.1.0.2=50,10.1.0.4=0"]
    slices, _ = settle(a_service(), [a_pod("p1"), a_pod("p2")], slices)
    assert marks(slices) == [None]
    two, _ = settle(a_service(), pods, [], capacity=2)
    assert marks(two) == ["10.1.0.2=50", "10.1.0.4=0"]


def test_a_pods_weight_is_read_from_its_annotation():
    pod = {
        "metadata": {"uid": "u", "namespace": "d", "name": "p", "annotations": {"timonel.io/weight": "25"}},
        "spec": {},
        "status": {"podIP": "10.0.0.1"},
    }
    assert endpoints.traits(pod)["weight"] == 25
    pod["metadata"]["annotations"] = {"timonel.io/weight": "100"}
    assert "weight" not in endpoints.traits(pod)
