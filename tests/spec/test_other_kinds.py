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
