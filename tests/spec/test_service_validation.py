"""What is wrong with a new Service: every rule, and all of them at once."""

import pytest

from services_app.spec.errors import Invalid
from services_app.spec.kinds import SERVICE
from tests.spec.sample import DUAL, SINGLE, errors_of, fields_of, service


def ports(*given):
    return {"ports": list(given)}


# name -> (spec, errors as (type, field))
BROKEN = {
    "no ports": ({"ports": []}, [("Required", "spec.ports")]),
    "port zero": (ports({"port": 0}), [("Invalid", "spec.ports[0].port"), ("Invalid", "spec.ports[0].targetPort")]),
    "port too high": (ports({"port": 65536, "targetPort": 1}), [("Invalid", "spec.ports[0].port")]),
    "target port too high": (ports({"port": 1, "targetPort": 65536}), [("Invalid", "spec.ports[0].targetPort")]),
    "target port name too long": (
        ports({"port": 1, "targetPort": "a" * 16}),
        [("Invalid", "spec.ports[0].targetPort")],
    ),
    "target port name without a letter": (
        ports({"port": 1, "targetPort": "1-2"}),
        [("Invalid", "spec.ports[0].targetPort")],
    ),
    "target port name with two hyphens": (
        ports({"port": 1, "targetPort": "a--b"}),
        [("Invalid", "spec.ports[0].targetPort")],
    ),
    "unknown protocol": (ports({"port": 1, "protocol": "ICMP"}), [("NotSupported", "spec.ports[0].protocol")]),
    "protocol in lower case": (ports({"port": 1, "protocol": "tcp"}), [("NotSupported", "spec.ports[0].protocol")]),
    "two ports without names": (
        ports({"port": 1}, {"port": 2}),
        [("Required", "spec.ports[0].name"), ("Required", "spec.ports[1].name")],
    ),
    "port name with underscore": (ports({"port": 1, "name": "123_abc"}), [("Invalid", "spec.ports[0].name")]),
    "port name that begins with a hyphen": (ports({"port": 1, "name": "-web"}), [("Invalid", "spec.ports[0].name")]),
    "port name twice": (
        ports({"port": 1, "name": "a"}, {"port": 2, "name": "a"}),
        [("Duplicate", "spec.ports[1].name")],
    ),
    "port number twice": (
        ports({"port": 1, "name": "a"}, {"port": 1, "name": "b"}),
        [("Duplicate", "spec.ports[1]")],
    ),
    "appProtocol with a space": (ports({"port": 1, "appProtocol": "a b"}), [("Invalid", "spec.ports[0].appProtocol")]),
    "unknown type": ({"type": "Other"}, [("NotSupported", "spec.type")]),
    "unknown affinity": ({"sessionAffinity": "Cookie"}, [("NotSupported", "spec.sessionAffinity")]),
    "affinity of no time": (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
        [("Invalid", "spec.sessionAffinityConfig.clientIP.timeoutSeconds")],
    ),
    "affinity of more than a day": (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
        [("Invalid", "spec.sessionAffinityConfig.clientIP.timeoutSeconds")],
    ),
    "selector with a bad key": ({"selector": {"a b": "c"}}, [("Invalid", "spec.selector")]),
    "selector with a bad value": ({"selector": {"a": "b c"}}, [("Invalid", "spec.selector")]),
    "address outside the range": ({"clusterIP": "10.97.0.1"}, [("Invalid", "spec.clusterIPs")]),
    "network address of the range": ({"clusterIP": "10.96.0.0"}, [("Invalid", "spec.clusterIPs")]),
    "broadcast address of the range": ({"clusterIP": "10.96.255.255"}, [("Invalid", "spec.clusterIPs")]),
    "address that is none": ({"clusterIP": "garbage"}, [("Invalid", "spec.clusterIPs[0]")]),
    "address with leading zeros": ({"clusterIP": "10.96.0.010"}, [("Invalid", "spec.clusterIPs[0]")]),
    "IPv4 in the dress of IPv6": ({"clusterIP": "::ffff:10.96.0.10"}, [("Invalid", "spec.clusterIPs[0]")]),
    "clusterIPs without clusterIP": ({"clusterIPs": ["10.96.0.9"]}, [("Invalid", "spec.clusterIPs")]),
    "clusterIPs that begin otherwise": (
        {"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"]},
        [("Invalid", "spec.clusterIPs")],
    ),
    "None beside an address": (
        {"clusterIP": "None", "clusterIPs": ["None", "10.96.0.9"]},
        [("Invalid", "spec.clusterIPs")],
    ),
    "an unconfigured family": ({"ipFamilies": ["IPv6"]}, [("Invalid", "spec.ipFamilies[0]")]),
    "an unknown family": ({"ipFamilies": ["IPX"]}, [("NotSupported", "spec.ipFamilies[0]")]),
    "two families where there is one": ({"ipFamilyPolicy": "RequireDualStack"}, [("Invalid", "spec.ipFamilyPolicy")]),
    "an unknown family policy": ({"ipFamilyPolicy": "Both"}, [("NotSupported", "spec.ipFamilyPolicy")]),
    "node port on ClusterIP": (ports({"port": 1, "nodePort": 30001}), [("Forbidden", "spec.ports[0].nodePort")]),
    "node port outside the range": (
        {"type": "NodePort", **ports({"port": 1, "nodePort": 80})},
        [("Invalid", "spec.ports[0].nodePort")],
    ),
    "node port twice for one protocol": (
        {
            "type": "NodePort",
            **ports({"port": 1, "name": "a", "nodePort": 30001}, {"port": 2, "name": "b", "nodePort": 30001}),
        },
        [("Duplicate", "spec.ports[1].nodePort")],
    ),
    "headless NodePort": ({"type": "NodePort", "clusterIP": "None"}, [("Invalid", "spec.clusterIPs[0]")]),
    "external name missing": ({"type": "ExternalName"}, [("Required", "spec.externalName")]),
    "external name that is no name": (
        {"type": "ExternalName", "externalName": "a_b"},
        [("Invalid", "spec.externalName")],
    ),
    "external name with an address": (
        {"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.9"},
        [("Forbidden", "spec.clusterIPs")],
    ),
    "external addresses that cannot be reached": (
        {"externalIPs": ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "x"]},
        [("Invalid", f"spec.externalIPs[{index}]") for index in range(5)],
    ),
    "balancer fields on ClusterIP": (
        {"allocateLoadBalancerNodePorts": True, "loadBalancerClass": "a", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
        [
            ("Forbidden", "spec.LoadBalancerSourceRanges"),
            ("Forbidden", "spec.allocateLoadBalancerNodePorts"),
            ("Forbidden", "spec.loadBalancerClass"),
        ],
    ),
    "source range that is none": (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.1"]},
        [("Invalid", "spec.LoadBalancerSourceRanges[0]")],
    ),
    "balancer on the kubelet's port": (
        {"type": "LoadBalancer", **ports({"port": 10250})},
        [("Invalid", "spec.ports[0]")],
    ),
    "external policy on ClusterIP": ({"externalTrafficPolicy": "Local"}, [("Invalid", "spec.externalTrafficPolicy")]),
    "unknown external policy": (
        {"type": "NodePort", "externalTrafficPolicy": "Near"},
        [("NotSupported", "spec.externalTrafficPolicy")],
    ),
    "unknown internal policy": ({"internalTrafficPolicy": "Near"}, [("NotSupported", "spec.internalTrafficPolicy")]),
    "unknown distribution": ({"trafficDistribution": "Far"}, [("NotSupported", "spec.trafficDistribution")]),
    "health port without Local": (
        {"type": "LoadBalancer", "healthCheckNodePort": 30001},
        [("Invalid", "spec.healthCheckNodePort")],
    ),
}

# name -> spec of a Service nothing is wrong with
SOUND = {
    "the manifest of the documentation": {
        "selector": {"app.kubernetes.io/name": "MyApp"},
        "ports": [{"protocol": "TCP", "port": 80, "targetPort": 9376}],
    },
    "named ports": ports({"port": 80, "name": "123-abc"}, {"port": 443, "name": "web"}),
    "named target port": ports({"port": 80, "targetPort": "http-web-svc"}),
    "node port of the documentation": {"type": "NodePort", **ports({"port": 80, "targetPort": 80, "nodePort": 30007})},
    "first and last node port": {
        "type": "NodePort",
        **ports({"port": 1, "name": "a", "nodePort": 30000}, {"port": 2, "name": "b", "nodePort": 32767}),
    },
    "one node port for two protocols": {
        "type": "NodePort",
        **ports(
            {"port": 53, "name": "a", "nodePort": 30053},
            {"port": 53, "name": "b", "protocol": "UDP", "nodePort": 30053},
        ),
    },
    "headless without ports": {"clusterIP": "None", "ports": []},
    "external name": {"type": "ExternalName", "externalName": "foo.bar.example.com.", "ports": []},
    "affinity of a day": {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}},
    },
    "affinity of a second": {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
    },
    "chosen address": {"clusterIP": "10.96.0.10"},
    "appProtocol with a domain": ports({"port": 1, "appProtocol": "mycompany.com/my-custom-protocol"}),
    "balancer with everything": {
        "type": "LoadBalancer",
        "loadBalancerClass": "example.com/internal-vip",
        "loadBalancerSourceRanges": ["192.0.2.0/24", " 198.51.100.0/24 "],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30005,
    },
}


@pytest.mark.parametrize("spec, errors", BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_is_told_with_its_field(spec, errors):
    assert fields_of(errors_of(service(**spec))) == sorted(errors)


@pytest.mark.parametrize("spec", SOUND.values(), ids=SOUND)
def test_nothing_is_said_against_a_sound_service(spec):
    assert errors_of(service(**spec)) == []


@pytest.mark.parametrize("name", ["a", "my-service", "1abc", "a" * 63])
def test_a_name_is_a_dns_label(name):
    assert errors_of(service(name)) == []


@pytest.mark.parametrize("name", ["Abc", "a_b", "a.b", "-a", "a-", "a" * 64, "ä", "a\n"])
def test_other_names_are_refused(name):
    assert fields_of(errors_of(service(name))) == [("Invalid", "metadata.name")]


def test_a_name_is_required():
    assert fields_of(errors_of(service(""))) == [("Required", "metadata.name")]


# name -> (metadata, errors)
METADATA = {
    "label key of two slashes": ({"labels": {"a/b/c": "d"}}, ("Invalid", "metadata.labels")),
    "label key with an empty prefix": ({"labels": {"/b": "d"}}, ("Invalid", "metadata.labels")),
    "label value too long": ({"labels": {"a": "b" * 64}}, ("Invalid", "metadata.labels")),
    "label value that ends in a dot": ({"labels": {"a": "b."}}, ("Invalid", "metadata.labels")),
    "annotation key": ({"annotations": {"a b": ""}}, ("Invalid", "metadata.annotations")),
    "annotations over 256 KiB": ({"annotations": {"a": "b" * 256 * 1024}}, ("TooLong", "metadata.annotations")),
    "finalizer without a domain": ({"finalizers": ["mine"]}, ("Invalid", "metadata.finalizers[0]")),
}


@pytest.mark.parametrize("metadata, error", METADATA.values(), ids=METADATA)
def test_labels_annotations_and_finalizers_have_a_grammar(metadata, error):
    assert fields_of(errors_of(service(metadata=metadata))) == [error]


def test_labels_may_be_empty_and_long():
    labels = {"a": "", f"{'p' * 63}.example.com/{'n' * 63}": "v" * 63}
    assert errors_of(service(metadata={"labels": labels})) == []


def test_all_errors_come_at_once_with_a_cause_each():
    errors = errors_of(
        service(
            "Bad_Name",
            type="NodePort",
            sessionAffinity="Cookie",
            ports=[{"port": 0, "protocol": "ICMP", "nodePort": 80}, {"port": 99999}],
        )
    )
    assert fields_of(errors) == [
        ("Invalid", "metadata.name"),
        ("Invalid", "spec.ports[0].nodePort"),
        ("Invalid", "spec.ports[0].port"),
        ("Invalid", "spec.ports[0].targetPort"),
        ("Invalid", "spec.ports[1].port"),
        ("Invalid", "spec.ports[1].targetPort"),
        ("NotSupported", "spec.ports[0].protocol"),
        ("NotSupported", "spec.sessionAffinity"),
        ("Required", "spec.ports[0].name"),
        ("Required", "spec.ports[1].name"),
    ]
    status = Invalid(SERVICE, "Bad_Name", errors).status()
    assert (status["code"], status["reason"], status["details"]["kind"]) == (422, "Invalid", "Service")
    assert len(status["details"]["causes"]) == len(errors)
    assert status["message"].startswith('Service "Bad_Name" is invalid: [metadata.name: Invalid value: "Bad_Name": ')


def test_a_cause_says_kind_value_and_rule():
    (error,) = errors_of(service(type="NodePort", ports=[{"port": 80, "nodePort": 80}]))
    assert error.cause() == {
        "reason": "FieldValueInvalid",
        "message": "Invalid value: 80: provided port is not in the valid range. "
        "The range of valid ports is 30000-32767",
        "field": "spec.ports[0].nodePort",
    }
    assert Invalid(SERVICE, "web", [error]).message == f'Service "web" is invalid: {error}'


def test_addresses_may_be_one_of_each_family():
    pair = {
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9", "fd00:10:96::9"],
        "ipFamilyPolicy": "RequireDualStack",
    }
    assert errors_of(service(**pair), DUAL) == []
    twice = pair | {"clusterIPs": ["10.96.0.9", "10.96.0.8"]}
    assert fields_of(errors_of(service(**twice), DUAL)) == [("Invalid", "spec.clusterIPs")]
    crossed = pair | {"ipFamilies": ["IPv6", "IPv4"]}
    assert fields_of(errors_of(service(**crossed), DUAL)) == [
        ("Invalid", "spec.clusterIPs[0]"),
        ("Invalid", "spec.clusterIPs[1]"),
    ]


def test_two_addresses_want_a_policy_for_two():
    spec = {
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9", "fd00:10:96::9"],
        "ipFamilyPolicy": "SingleStack",
    }
    assert fields_of(errors_of(service(**spec), DUAL)) == [("Invalid", "spec.ipFamilyPolicy")]
    assert fields_of(errors_of(service(**spec), SINGLE)) != []
