"""What an update keeps, clears and refuses."""

from copy import deepcopy

import pytest

from services_app.spec import objects
from services_app.spec.kinds import SERVICE
from tests.spec.sample import DUAL, SINGLE, changed, fields_of, service, stored, update_errors, updated

TWO_FAMILIES = {"ipFamilyPolicy": "RequireDualStack"}


def names_only(document):
    """As a client that knows nothing of allocation would send it: without addresses, families and node ports."""
    made = deepcopy(document)
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"):
        made["spec"].pop(key, None)
    for port in made["spec"].get("ports") or ():
        port.pop("nodePort", None)
    return made


@pytest.mark.parametrize(
    "spec",
    [{}, {"type": "NodePort"}, {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, {"clusterIP": "None"}],
)
def test_what_the_client_leaves_out_is_carried_over(spec):
    old = stored(service(**spec))
    assert updated(old, names_only(old)) == old
    assert update_errors(old, names_only(old)) == []


def test_both_addresses_are_carried_over():
    old = stored(service(**TWO_FAMILIES), DUAL)
    assert updated(old, names_only(old), DUAL) == old


def test_an_update_leaves_its_arguments_alone():
    old, new = stored(service(type="NodePort")), service()
    before = deepcopy((old, new))
    updated(old, new)
    assert (old, new) == before


def test_metadata_the_server_sets_stays():
    old = stored(service())
    made = updated(old, service(metadata={"labels": {"a": "b"}}))
    assert made["metadata"] == old["metadata"] | {"labels": {"a": "b"}}


@pytest.mark.parametrize("key, value", [("name", "other"), ("namespace", "other"), ("uid", "other")])
def test_identity_may_not_change(key, value):
    old = stored(service())
    new = deepcopy(old)
    new["metadata"][key] = value
    assert ("Invalid", f"metadata.{key}") in fields_of(update_errors(old, new))


def test_a_cluster_ip_may_not_change():
    old = stored(service())
    assert fields_of(update_errors(old, changed(old, clusterIP="10.96.0.51", clusterIPs=["10.96.0.51"]))) == [
        ("Invalid", "spec.clusterIPs[0]")
    ]


def test_the_singular_field_alone_decides_the_plural():
    old = stored(service())
    assert updated(old, changed(old, clusterIP="10.96.0.51"))["spec"]["clusterIPs"] == ["10.96.0.51"]
    assert updated(old, changed(old, clusterIPs=["10.96.0.51"]))["spec"]["clusterIP"] == "10.96.0.51"


def test_a_family_may_not_change():
    addressed, headless = stored(service(), DUAL), stored(service(clusterIP="None", selector={"a": "b"}), DUAL)
    wrong = update_errors(addressed, changed(addressed, ipFamilies=["IPv6"]), DUAL)
    assert fields_of(wrong) == [("Invalid", "spec.clusterIPs[0]")]
    wrong = update_errors(headless, changed(headless, ipFamilies=["IPv6"]), DUAL)
    assert fields_of(wrong) == [("Invalid", "spec.ipFamilies[0]")]


# --- changes of type

# (from, to) -> fields of the spec that go; node ports are "ports"
TYPE_CHANGES = {
    ("NodePort", "ClusterIP"): {"externalTrafficPolicy", "nodePort"},
    ("LoadBalancer", "NodePort"): {"allocateLoadBalancerNodePorts", "loadBalancerClass"},
    ("LoadBalancer", "ClusterIP"): {
        "allocateLoadBalancerNodePorts",
        "loadBalancerClass",
        "externalTrafficPolicy",
        "nodePort",
    },
    ("NodePort", "ExternalName"): {
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "internalTrafficPolicy",
        "externalTrafficPolicy",
        "nodePort",
    },
    ("ClusterIP", "NodePort"): set(),
}


def _keys(document):
    return {*document["spec"], *(key for port in document["spec"].get("ports") or () for key in port)}


@pytest.mark.parametrize("change, gone", TYPE_CHANGES.items(), ids=["-".join(change) for change in TYPE_CHANGES])
def test_a_change_of_type_drops_what_the_new_type_lacks(change, gone):
    before, after = change
    extra = {"loadBalancerClass": "example.com/a"} if before == "LoadBalancer" else {}
    old = stored(service(type=before, **extra))
    name = {"externalName": "example.com"} if after == "ExternalName" else {}
    new = changed(old, type=after, **name)
    assert _keys(old) - _keys(updated(old, new)) == gone
    assert update_errors(old, new) == []


def test_what_the_client_changed_itself_is_not_dropped_but_refused():
    old = stored(service(type="NodePort"))
    new = changed(old, type="ClusterIP", externalTrafficPolicy="Local", ports=[{"port": 80, "nodePort": 30999}])
    assert fields_of(update_errors(old, new)) == [
        ("Forbidden", "spec.ports[0].nodePort"),
        ("Invalid", "spec.externalTrafficPolicy"),
    ]


def test_giving_up_the_load_balancer_clears_its_status():
    old = stored(service(type="LoadBalancer"))
    old["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.127", "ipMode": "VIP"}]}}
    assert updated(old, changed(old, type="NodePort"))["status"] == {"loadBalancer": {}}
    assert updated(old, changed(old, selector={"a": "b"}))["status"] == old["status"]


def test_an_unknown_type_is_the_only_thing_wrong():
    old = stored(service())
    assert fields_of(update_errors(old, changed(old, type="Nope"))) == [("NotSupported", "spec.type")]


def test_leaving_headless_for_an_address_is_refused_and_so_is_the_way_back():
    headless, addressed = stored(service(clusterIP="None", selector={"a": "b"})), stored(service(selector={"a": "b"}))
    to_address = changed(headless, clusterIP="10.96.0.9", clusterIPs=["10.96.0.9"])
    to_headless = changed(addressed, clusterIP="None", clusterIPs=["None"])
    for old, new in ((headless, to_address), (addressed, to_headless)):
        assert ("Invalid", "spec.clusterIPs[0]") in fields_of(update_errors(old, new))


def test_the_class_of_a_load_balancer_may_not_change():
    old = stored(service(type="LoadBalancer", loadBalancerClass="example.com/a"))
    for value in ("example.com/b", None):
        wrong = update_errors(old, changed(old, loadBalancerClass=value))
        assert fields_of(wrong) == [("Invalid", "spec.loadBalancerClass")]


def test_the_health_check_port_may_not_change():
    old = stored(service(type="LoadBalancer", externalTrafficPolicy="Local"))
    wrong = update_errors(old, changed(old, healthCheckNodePort=30901))
    assert fields_of(wrong) == [("Forbidden", "spec.healthCheckNodePort")]


# --- node ports


def test_node_ports_follow_the_name_of_the_port():
    ports = [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]
    old = stored(service(type="NodePort", ports=ports))
    new = changed(old, ports=[{"name": "b", "port": 8081}, {"name": "a", "port": 8080}, {"name": "c", "port": 1}])
    assert [port.get("nodePort") for port in updated(old, new)["spec"]["ports"]] == [30081, 30080, None]


def test_a_node_port_outside_the_range_stays_once_it_is_there():
    narrow = SINGLE.__class__(SINGLE.service_cidrs, range(31000, 31010))
    old = stored(service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))
    assert update_errors(old, changed(old, selector={"a": "b"}), narrow) == []
    new = changed(old, ports=[{"port": 80, "nodePort": 30081}])
    assert fields_of(update_errors(old, new, narrow)) == [("Invalid", "spec.ports[0].nodePort")]


def test_a_load_balancer_without_node_ports_keeps_those_it_has():
    old = stored(service(type="LoadBalancer"))
    new = changed(old, allocateLoadBalancerNodePorts=False)
    assert updated(old, new)["spec"]["ports"] == old["spec"]["ports"]


def test_local_policy_given_up_gives_up_the_health_check_port():
    old = stored(service(type="LoadBalancer", externalTrafficPolicy="Local"))
    new = changed(old, externalTrafficPolicy="Cluster")
    assert "healthCheckNodePort" not in updated(old, new)["spec"]
    assert update_errors(old, new) == []


# --- from one family to two and back


@pytest.mark.parametrize("policy", ["PreferDualStack", "RequireDualStack"])
def test_a_second_family_comes_with_the_policy(policy):
    old = stored(service(), DUAL)
    new = changed(old, ipFamilyPolicy=policy)
    made = updated(old, new, DUAL)["spec"]
    assert (made["ipFamilies"], made["clusterIPs"]) == (["IPv4", "IPv6"], ["10.96.0.50"])
    assert update_errors(old, new, DUAL) == []


def test_single_stack_gives_up_the_second_address_and_family():
    old = stored(service(**TWO_FAMILIES), DUAL)
    new = changed(old, ipFamilyPolicy="SingleStack")
    made = updated(old, new, DUAL)["spec"]
    assert (made["ipFamilies"], made["clusterIPs"]) == (["IPv4"], ["10.96.0.50"])
    assert update_errors(old, new, DUAL) == []


def test_the_second_family_does_not_go_without_the_policy():
    old = stored(service(**TWO_FAMILIES), DUAL)
    new = changed(old, ipFamilies=["IPv4"])
    assert fields_of(update_errors(old, new, DUAL)) == [("Invalid", "spec.ipFamilyPolicy")]


def test_who_prefers_two_is_left_alone_when_the_cluster_gets_a_second_family():
    old = stored(service(ipFamilyPolicy="PreferDualStack"), SINGLE)
    assert updated(old, changed(old, selector={"a": "b"}), DUAL)["spec"]["ipFamilies"] == ["IPv4"]


# --- status and deletion


def test_a_status_update_changes_only_the_status():
    old = stored(service(type="LoadBalancer"))
    new = changed(old, selector={"x": "y"})
    new["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.127"}]}}
    made = objects.prepare_update(SERVICE, old, new, subresource="status", cluster=SINGLE)
    assert made["spec"] == old["spec"]
    assert made["status"] == {"loadBalancer": {"ingress": [{"ip": "192.0.2.127", "ipMode": "VIP"}]}}
    assert objects.validate_update(SERVICE, old, made, subresource="status", cluster=SINGLE) == []


# name -> (type, ingress, error)
STATUS = {
    "on another type": ("NodePort", {"ip": "192.0.2.1"}, ("Forbidden", "status.loadBalancer.ingress")),
    "no address": ("LoadBalancer", {"ip": "x"}, ("Invalid", "status.loadBalancer.ingress[0].ip")),
    "a mode alone": (
        "LoadBalancer",
        {"hostname": "a.example.com", "ipMode": "VIP"},
        ("Forbidden", "status.loadBalancer.ingress[0].ipMode"),
    ),
    "an unknown mode": (
        "LoadBalancer",
        {"ip": "192.0.2.1", "ipMode": "X"},
        ("NotSupported", "status.loadBalancer.ingress[0].ipMode"),
    ),
    "an address for a name": (
        "LoadBalancer",
        {"hostname": "192.0.2.1"},
        ("Invalid", "status.loadBalancer.ingress[0].hostname"),
    ),
}


@pytest.mark.parametrize("kind, ingress, error", STATUS.values(), ids=STATUS)
def test_a_status_has_rules_of_its_own(kind, ingress, error):
    old = stored(service(type=kind))
    new = deepcopy(old) | {"status": {"loadBalancer": {"ingress": [ingress]}}}
    made = objects.prepare_update(SERVICE, old, new, subresource="status", cluster=SINGLE)
    assert fields_of(objects.validate_update(SERVICE, old, made, subresource="status", cluster=SINGLE)) == [error]


def test_an_object_that_goes_takes_no_new_finalizers():
    old = stored(service(metadata={"finalizers": ["example.com/a"]}))
    old["metadata"]["deletionTimestamp"] = "2024-05-01T12:00:00Z"
    new = deepcopy(old)
    new["metadata"]["finalizers"] = ["example.com/a", "example.com/b"]
    assert fields_of(update_errors(old, new)) == [("Forbidden", "metadata.finalizers")]
    new["metadata"]["finalizers"] = []
    assert update_errors(old, new) == []
