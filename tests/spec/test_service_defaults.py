"""What a Service means when it says little."""

from copy import deepcopy

import pytest

from tests.spec.sample import DUAL, NOW, SINGLE, UID, errors_of, prepared, service


def test_a_new_service_has_the_defaults_of_kubernetes():
    made = prepared(service(selector={"app.kubernetes.io/name": "MyApp"}, ports=[{"port": 80, "targetPort": 9376}]))
    assert made == {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": "web", "namespace": "shop", "uid": UID, "creationTimestamp": "2024-05-01T12:00:00Z"},
        "spec": {
            "selector": {"app.kubernetes.io/name": "MyApp"},
            "ports": [{"protocol": "TCP", "port": 80, "targetPort": 9376}],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def test_preparing_leaves_the_document_alone():
    document = service()
    before = deepcopy(document)
    prepared(document)
    assert document == before


def test_preparing_twice_changes_nothing_in_the_spec():
    once = prepared(service(type="LoadBalancer", sessionAffinity="ClientIP"))
    assert prepared(once)["spec"] == once["spec"]


@pytest.mark.parametrize(
    "given, target",
    [
        ({}, 80),
        ({"targetPort": 0}, 80),
        ({"targetPort": ""}, 80),
        ({"targetPort": 9376}, 9376),
        ({"targetPort": "web"}, "web"),
    ],
)
def test_target_port_is_the_port_unless_given(given, target):
    assert prepared(service(ports=[{"port": 80} | given]))["spec"]["ports"][0]["targetPort"] == target


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_a_given_protocol_stays(protocol):
    made = service(ports=[{"port": 80, "protocol": protocol}])
    assert prepared(made)["spec"]["ports"][0]["protocol"] == protocol
    assert errors_of(made) == []


def test_one_port_number_serves_two_protocols():
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    assert errors_of(service(ports=ports)) == []


# type -> fields it brings along
TYPE_DEFAULTS = {
    "ClusterIP": {"internalTrafficPolicy": "Cluster"},
    "NodePort": {"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster"},
    "LoadBalancer": {
        "internalTrafficPolicy": "Cluster",
        "externalTrafficPolicy": "Cluster",
        "allocateLoadBalancerNodePorts": True,
    },
    "ExternalName": {},
}


@pytest.mark.parametrize("kind, brings", TYPE_DEFAULTS.items(), ids=TYPE_DEFAULTS)
def test_each_type_brings_its_own_defaults(kind, brings):
    name = "foo.bar.example.com" if kind == "ExternalName" else None
    spec = prepared(service(type=kind, externalName=name))["spec"]
    asked = {"internalTrafficPolicy", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"}
    assert {key: value for key, value in spec.items() if key in asked} == brings


def test_external_addresses_make_a_service_externally_accessible():
    assert prepared(service(externalIPs=["192.0.2.1"]))["spec"]["externalTrafficPolicy"] == "Cluster"


def test_an_external_name_has_no_address_and_no_family():
    spec = prepared(service(type="ExternalName", externalName="foo.bar.example.com", ports=None))["spec"]
    assert spec == {"type": "ExternalName", "externalName": "foo.bar.example.com", "sessionAffinity": "None"}


def test_client_affinity_lasts_three_hours_unless_said():
    def timeout_of(**spec):
        return prepared(service(sessionAffinity="ClientIP", **spec))["spec"]["sessionAffinityConfig"]

    assert timeout_of() == {"clientIP": {"timeoutSeconds": 10800}}
    assert timeout_of(sessionAffinityConfig={}) == {"clientIP": {"timeoutSeconds": 10800}}
    chosen = {"clientIP": {"timeoutSeconds": 60}}
    assert timeout_of(sessionAffinityConfig=chosen) == chosen


def test_without_affinity_its_configuration_goes():
    made = prepared(service(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}}))
    assert "sessionAffinityConfig" not in made["spec"]


def test_the_status_a_client_sends_is_ignored():
    document = service(type="LoadBalancer") | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.127"}]}}}
    assert prepared(document)["status"] == {"loadBalancer": {}}


def test_metadata_the_server_sets_is_not_taken_from_the_client():
    sent = {"uid": "mine", "resourceVersion": "12", "generation": 5, "creationTimestamp": "2000-01-01T00:00:00Z"}
    assert prepared(service(metadata=sent))["metadata"] == {
        "name": "web",
        "namespace": "shop",
        "uid": UID,
        "creationTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


# --- address families

# name -> (cluster, spec, ipFamilyPolicy, ipFamilies)
FAMILIES = {
    "nothing said on one family": (SINGLE, {}, "SingleStack", ["IPv4"]),
    "nothing said on two families": (DUAL, {}, "SingleStack", ["IPv4"]),
    "the other family alone": (DUAL, {"ipFamilies": ["IPv6"]}, "SingleStack", ["IPv6"]),
    "two required": (DUAL, {"ipFamilyPolicy": "RequireDualStack"}, "RequireDualStack", ["IPv4", "IPv6"]),
    "two required, the second first": (
        DUAL,
        {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]},
        "RequireDualStack",
        ["IPv6", "IPv4"],
    ),
    "two preferred where there is one": (SINGLE, {"ipFamilyPolicy": "PreferDualStack"}, "PreferDualStack", ["IPv4"]),
    "two preferred where there are two": (
        DUAL,
        {"ipFamilyPolicy": "PreferDualStack"},
        "PreferDualStack",
        ["IPv4", "IPv6"],
    ),
    "an address says its family": (DUAL, {"clusterIP": "fd00:10:96::7"}, "SingleStack", ["IPv6"]),
    "headless with a selector": (DUAL, {"clusterIP": "None", "selector": {"a": "b"}}, "SingleStack", ["IPv4"]),
    "headless without a selector may be both": (SINGLE, {"clusterIP": "None"}, "RequireDualStack", ["IPv4", "IPv6"]),
}


@pytest.mark.parametrize("cluster, spec, policy, families", FAMILIES.values(), ids=FAMILIES)
def test_families_follow_from_what_is_said(cluster, spec, policy, families):
    made = prepared(service(**spec), cluster)["spec"]
    assert (made["ipFamilyPolicy"], made["ipFamilies"]) == (policy, families)
    assert errors_of(service(**spec), cluster) == []


def test_cluster_ip_is_also_the_first_of_cluster_ips():
    assert prepared(service(clusterIP="10.96.0.9"))["spec"]["clusterIPs"] == ["10.96.0.9"]
    assert prepared(service(clusterIP="None"))["spec"]["clusterIPs"] == ["None"]
