"""ConfigMaps, Secrets, Leases, Ingresses and IngressClasses: what is wrong with them, field by field."""

from base64 import b64encode
from datetime import UTC, datetime

import pytest

from services_app.spec import kinds, objects
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import BadRequest
from services_app.spec.names import parse_network

CLUSTER = ClusterSettings((parse_network("10.96.0.0/16"),), range(30000, 32768))
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def prepared(kind, **document):
    document.setdefault("metadata", {"name": "x"})
    return objects.prepare_create(kind, document, namespace="shop", now=NOW, uid="u", cluster=CLUSTER)


def wrong(kind, **document):
    errors = objects.validate_create(kind, prepared(kind, **document), CLUSTER)
    return [f"{error.field} {error.type}" for error in errors]


def path(text, kind="Prefix", **backend):
    backend = backend or {"service": {"name": "web", "port": {"number": 80}}}
    return {"path": text, "pathType": kind, "backend": backend}


def ingress(*paths, **rule):
    return {"spec": {"rules": [{**rule, "http": {"paths": list(paths)}}]}}


AT = "spec.rules[0].http.paths[0]"


@pytest.mark.parametrize(
    "kind, document, expected",
    [
        (kinds.CONFIG_MAP, {"data": {"a.b-c_D": "x"}, "binaryData": {"e": "YQ=="}}, []),
        (kinds.CONFIG_MAP, {"data": {"a b": ""}}, ["data[a b] Invalid"]),
        (kinds.CONFIG_MAP, {"data": {"..": ""}}, ["data[..] Invalid"]),
        (kinds.CONFIG_MAP, {"data": {"a": ""}, "binaryData": {"a": ""}}, ["data[a] Invalid"]),
        (kinds.CONFIG_MAP, {"data": {"a": "x" * (1024 * 1024 + 1)}}, [" TooLong"]),
        (kinds.CONFIG_MAP, {"metadata": {"name": "A"}}, ["metadata.name Invalid"]),
        (kinds.SECRET, {"stringData": {"a": "x"}}, []),
        (kinds.SECRET, {"type": "example.org/own"}, []),
        (kinds.SECRET, {"data": {"a/b": ""}}, ["data[a/b] Invalid"]),
        (kinds.SECRET, {"data": {"a": b64encode(b"x" * (1024 * 1024 + 1)).decode()}}, ["data TooLong"]),
        (kinds.SECRET, {"type": "kubernetes.io/tls"}, ["data[tls.crt] Required", "data[tls.key] Required"]),
        (
            kinds.SECRET,
            {"type": "kubernetes.io/basic-auth"},
            ["data[username] Required", "data[password] Required"],
        ),
        (kinds.SECRET, {"type": "kubernetes.io/ssh-auth"}, ["data[ssh-privatekey] Required"]),
        (
            kinds.SECRET,
            {"type": "kubernetes.io/service-account-token"},
            ["metadata.annotations[kubernetes.io/service-account.name] Required"],
        ),
        (kinds.LEASE, {"spec": {"holderIdentity": "", "leaseDurationSeconds": 15}}, []),
        (kinds.LEASE, {}, []),
        (kinds.LEASE, {"spec": {"leaseDurationSeconds": 0}}, ["spec.leaseDurationSeconds Invalid"]),
        (kinds.LEASE, {"spec": {"leaseTransitions": -1}}, ["spec.leaseTransitions Invalid"]),
        (kinds.LEASE, {"spec": {"preferredHolder": "b"}}, ["spec.preferredHolder Forbidden"]),
        (kinds.INGRESS, ingress(path("/"), path("", "ImplementationSpecific"), host="*.example.org"), []),
        (kinds.INGRESS, {"spec": {"defaultBackend": {"service": {"name": "w", "port": {"name": "http"}}}}}, []),
        (kinds.INGRESS, {}, ["spec Invalid"]),
        (kinds.INGRESS, ingress(), ["spec.rules[0].http.paths Required"]),
        (kinds.INGRESS, ingress(path("x")), [f"{AT}.path Invalid"]),
        (kinds.INGRESS, ingress(path("/a//b")), [f"{AT}.path Invalid"]),
        (kinds.INGRESS, ingress(path("/a/..")), [f"{AT}.path Invalid"]),
        (kinds.INGRESS, ingress(path("/", "")), [f"{AT}.pathType Required"]),
        (kinds.INGRESS, ingress(path("/", "Regex")), [f"{AT}.pathType NotSupported"]),
        (kinds.INGRESS, ingress(path("/"), host="192.0.2.1"), ["spec.rules[0].host Invalid"]),
        (kinds.INGRESS, ingress(path("/"), host="a.*.org"), ["spec.rules[0].host Invalid"]),
        (
            kinds.INGRESS,
            ingress(path("/", service={"name": "", "port": {}})),
            [f"{AT}.backend.service.name Required", f"{AT}.backend Required"],
        ),
        (
            kinds.INGRESS,
            ingress(path("/", service={"name": "w", "port": {"name": "http", "number": 80}})),
            [f"{AT}.backend Invalid"],
        ),
        (
            kinds.INGRESS,
            ingress(path("/", service={"name": "w", "port": {"number": 70000}})),
            [f"{AT}.backend.service.port.number Invalid"],
        ),
        (
            kinds.INGRESS,
            ingress(path("/", resource={"kind": "", "name": "a/b"})),
            [f"{AT}.backend.resource.kind Required", f"{AT}.backend.resource.name Invalid"],
        ),
        (
            kinds.INGRESS,
            {**ingress(path("/")), "metadata": {"name": "x", "annotations": {"kubernetes.io/ingress.class": "a"}}},
            [],
        ),
        (
            kinds.INGRESS,
            {"spec": {**ingress(path("/"))["spec"], "tls": [{"hosts": ["A"], "secretName": "_"}]}},
            ["spec.tls[0].hosts[0] Invalid", "spec.tls[0].secretName Invalid"],
        ),
        (kinds.INGRESS_CLASS, {"spec": {"controller": "example.org/edge"}}, []),
        (kinds.INGRESS_CLASS, {}, ["spec.controller Required"]),
        (kinds.INGRESS_CLASS, {"spec": {"controller": "edge"}}, ["spec.controller Invalid"]),
        (
            kinds.INGRESS_CLASS,
            {"spec": {"controller": "a/b", "parameters": {"kind": "K", "name": "n", "scope": "Namespace"}}},
            ["spec.parameters.namespace Required"],
        ),
        (
            kinds.INGRESS_CLASS,
            {"spec": {"controller": "a/b", "parameters": {"kind": "K", "name": "n", "namespace": "shop"}}},
            ["spec.parameters.namespace Forbidden"],
        ),
    ],
)
def test_errors_name_their_fields(kind, document, expected):
    assert wrong(kind, **document) == expected


def test_bytes_are_base64_and_an_error_does_not_repeat_them():
    assert prepared(kinds.SECRET, data={"a": "Y\nQ=="})["data"] == {"a": "YQ=="}
    with pytest.raises(BadRequest) as refusal:
        prepared(kinds.SECRET, data={"a": "not base64!"})
    assert "not base64!" not in refusal.value.message


@pytest.mark.parametrize(
    "given, written",
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.1234567Z", "2026-01-02T03:04:05.123456Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05.000000Z"),
    ],
)
def test_times_are_written_back_in_utc(given, written):
    assert prepared(kinds.LEASE, spec={"renewTime": given})["spec"]["renewTime"] == written


@pytest.mark.parametrize("given", ["2026-13-02T03:04:05Z", "yesterday", "0001-01-01T00:00:00+23:00"])
def test_times_that_are_none_are_refused(given):
    with pytest.raises(BadRequest):
        prepared(kinds.LEASE, spec={"renewTime": given})


REFERENCE = {"resource": "services", "namespace": "shop", "name": "web"}


@pytest.mark.parametrize(
    "name, reference, expected",
    [
        ("10.96.0.5", REFERENCE, []),
        ("fd00::5", REFERENCE, []),
        ("10.96.0.5", {"group": "example.org", "resource": "hosts", "name": "one"}, []),
        ("10.96.0.005", REFERENCE, ["metadata.name Invalid"]),
        ("FD00::5", REFERENCE, ["metadata.name Invalid"]),
        ("fd00:0::5", REFERENCE, ["metadata.name Invalid"]),
        ("::ffff:10.96.0.5", REFERENCE, ["metadata.name Invalid"]),
        ("web", REFERENCE, ["metadata.name Invalid"]),
        ("10.96.0.5", None, ["spec.parentRef Required"]),
        ("10.96.0.5", {}, ["spec.parentRef.resource Required", "spec.parentRef.name Required"]),
        (
            "10.96.0.5",
            {"group": "A_B", "resource": "a/b", "name": "..", "namespace": "a%b"},
            [f"spec.parentRef.{key} Invalid" for key in ("group", "resource", "name", "namespace")],
        ),
    ],
)
def test_ip_addresses(name, reference, expected):
    spec = {} if reference is None else {"parentRef": reference}
    assert wrong(kinds.IP_ADDRESS, metadata={"name": name}, spec=spec) == expected


def test_what_an_ip_address_belongs_to_never_changes():
    old = stored(kinds.IP_ADDRESS, metadata={"name": "10.96.0.5"}, spec={"parentRef": REFERENCE})
    new = {**old, "spec": {"parentRef": {**REFERENCE, "name": "other"}}}
    assert refused(kinds.IP_ADDRESS, old, new) == ["spec.parentRef Invalid"]
    labelled = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}
    assert refused(kinds.IP_ADDRESS, old, labelled) == []


@pytest.mark.parametrize(
    "cidrs, expected",
    [
        (["10.97.0.0/16"], []),
        (["fd00:97::/112", "10.97.0.0/16"], []),
        ([], ["spec.cidrs Required"]),
        (["10.97.0.0/16", "10.98.0.0/16"], ["spec.cidrs Invalid"]),
        (["10.97.0.0/16", "fd00:97::/112", "10.98.0.0/16"], ["spec.cidrs Invalid"]),
        (["10.97.0.1/16"], ["spec.cidrs[0] Invalid"]),
        (["10.97.0.0/16", "fd00:97::1/112"], ["spec.cidrs[1] Invalid"]),
        (["FD00:97::/112"], ["spec.cidrs[0] Invalid"]),
        (["fd00:97:0::/112"], ["spec.cidrs[0] Invalid"]),
        (["10.097.0.0/16"], ["spec.cidrs[0] Invalid"]),
        (["10.97.0.0"], ["spec.cidrs[0] Invalid"]),
        (["somewhere", "nowhere"], ["spec.cidrs[0] Invalid", "spec.cidrs[1] Invalid"]),
    ],
)
def test_service_cidrs(cidrs, expected):
    assert wrong(kinds.SERVICE_CIDR, spec={"cidrs": cidrs}) == expected


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (["10.97.0.0/16"], ["10.97.0.0/16"], []),
        (["10.97.0.0/16"], ["10.98.0.0/16"], ["spec.cidrs[0] Invalid"]),
        (["10.97.0.0/16"], ["10.97.0.0/16", "fd00:97::/112"], []),
        (["10.97.0.0/16"], ["10.97.0.0/16", "10.98.0.0/16"], ["spec.cidrs Invalid"]),
        (["10.97.0.0/16"], ["fd00:97::/112", "10.97.0.0/16"], ["spec.cidrs[0] Invalid"]),
        (["10.97.0.0/16", "fd00:97::/112"], ["10.97.0.0/16"], ["spec.cidrs Invalid"]),
        (["10.97.0.0/16"], [], ["spec.cidrs Invalid"]),
    ],
)
def test_a_service_cidr_only_gains_the_other_family(before, after, expected):
    old = stored(kinds.SERVICE_CIDR, spec={"cidrs": before})
    assert refused(kinds.SERVICE_CIDR, old, {**old, "spec": {"cidrs": after}}) == expected


def test_status_of_a_service_cidr_is_written_apart():
    ready = {"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": None}
    old = stored(kinds.SERVICE_CIDR, spec={"cidrs": ["10.97.0.0/16"]}, status={"conditions": [ready]})
    assert old["status"] == {}
    given = {**old, "status": {"conditions": [ready]}}
    changed = objects.prepare_update(kinds.SERVICE_CIDR, old, given, subresource="status", cluster=CLUSTER)
    assert changed["status"]["conditions"][0]["status"] == "True"
    assert objects.prepare_update(kinds.SERVICE_CIDR, old, given, cluster=CLUSTER)["status"] == {}


def stored(kind, **document):
    made = prepared(kind, **document)
    made["metadata"]["resourceVersion"] = "7"
    return made


def refused(kind, old, new):
    made = objects.prepare_update(kind, old, new, cluster=CLUSTER)
    return [f"{error.field} {error.type}" for error in objects.validate_update(kind, old, made, cluster=CLUSTER)]
