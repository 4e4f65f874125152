"""The same manifest again is no write: the same resourceVersion, the same managedFields, whichever way it is sent."""

import json
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services_app.lab.client import ApiClient, ApiRefused
from services_app.local.supervisor import Stack
from services_app.spec.kinds import Kind
from tests.clients.conftest import connect
from tests.clients.samples import STORED, name_for, sample
from tests.conformance.player import wait_until

Document = dict[str, Any]

_words = st.text("abc-", min_size=1, max_size=4).map(lambda text: f"x{text}x")
# Nothing empty: as in Kubernetes it is not stored, and so it is contested by the next who applies it.
_maps = st.dictionaries(_words, st.text("abc", max_size=3), min_size=1, max_size=3)
_ports = st.lists(
    st.fixed_dictionaries(
        {"port": st.integers(1, 9)},
        optional={
            "protocol": st.sampled_from(["TCP", "UDP", "SCTP"]),
            "targetPort": st.one_of(st.integers(1, 65535), st.just("http")),
            "appProtocol": st.sampled_from(["http", "example.org/own"]),
        },
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda port: (port["port"], port.get("protocol", "TCP")),
)


@st.composite
def services(draw: st.DrawFn) -> Document:
    """Service specs of every type, with whatever they may have."""
    ports = [{**port, "name": f"p{number}"} for number, port in enumerate(draw(_ports))]
    kind = draw(st.sampled_from([None, "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))
    spec: Document = {"ports": ports, **({"type": kind} if kind else {})}
    if kind == "ExternalName":
        spec["externalName"] = "db.example.org"
    elif kind in (None, "ClusterIP") and draw(st.booleans()):
        spec["clusterIP"] = "None"
    else:
        spec |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "externalIPs": st.lists(
                        st.sampled_from(["192.0.2.1", "192.0.2.2"]), unique=True, min_size=1, max_size=2
                    ),
                    "internalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
                    "ipFamilyPolicy": st.sampled_from(["SingleStack", "PreferDualStack"]),
                },
            )
        )
        if kind in ("NodePort", "LoadBalancer"):
            spec |= draw(
                st.fixed_dictionaries({}, optional={"externalTrafficPolicy": st.sampled_from(["Cluster", "Local"])})
            )
    if draw(st.booleans()):
        spec["selector"] = draw(_maps)
    if kind != "ExternalName" and draw(st.booleans()):
        spec["sessionAffinity"] = "ClientIP"
        if draw(st.booleans()):
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": draw(st.integers(1, 86400))}}
    if draw(st.booleans()):
        spec["publishNotReadyAddresses"] = True
    return spec


class Sender:
    """Patches over one connection."""

    def __init__(self, connection: Any, token: str) -> None:
        self.connection = connection
        self.headers = {"Authorization": f"Bearer {token}"}

    def patch(self, path: str, body: Any, kind: str, manager: str = "tester") -> Document:
        media = "application/apply-patch+yaml" if kind == "apply" else f"application/{kind}-patch+json"
        force = "&force=true" if kind == "apply" else ""
        headers = {**self.headers, "Content-Type": media}
        self.connection.request("PATCH", f"{path}?fieldManager={manager}{force}", json.dumps(body), headers)
        response = self.connection.getresponse()
        answer: Document = json.loads(response.read())
        if response.status >= 400:
            raise ApiRefused(response.status, answer)
        return answer


def check_the_same_again(sender: Sender, api: ApiClient, path: str, manifest: Document) -> None:
    ports = [port.get("port") for port in (manifest.get("spec") or {}).get("ports") or ()]
    first = sender.patch(path, manifest, "apply")
    if first["kind"] == "ServiceCIDR":  # the control plane says that it is ready, which is a write of its own
        wait_until(lambda: bool(api.request("GET", path).get("status")))
        first = api.request("GET", path)
    try:
        for manager in ("tester", "tester"):
            assert sender.patch(path, manifest, "apply", manager) == first
        # Whoever sends what is there already changes nothing, and owns nothing more.
        # A merge patch replaces lists: node ports of one number in two protocols would have to be given out again.
        for kind in ("strategic-merge", *(["merge"] if len(set(ports)) == len(ports) else [])):
            assert sender.patch(path, manifest, kind, "other") == first
        operations = [
            {"op": "replace", "path": f"/{key}", "value": first[key]} for key in ("metadata", *manifest) if key in first
        ]
        assert sender.patch(path, operations, "json", "other") == first
        assert api.request("PUT", path, first) == first
        # Another who applies it owns it as well, once.
        second = sender.patch(path, manifest, "apply", "another")
        assert {entry["manager"] for entry in second["metadata"]["managedFields"]} >= {"tester", "another"}
        assert sender.patch(path, manifest, "apply", "another") == second
        assert sender.patch(path, manifest, "apply") == second
    finally:
        api.request("DELETE", path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=services(), labels=st.none() | _maps, annotations=st.none() | _maps)
def test_services(
    stack: Stack, api: ApiClient, spec: Document, labels: Document | None, annotations: Document | None
) -> None:
    api.ensure_namespace("again")
    metadata = {"name": "web", **({"labels": labels} if labels else {})}
    metadata |= {"annotations": annotations} if annotations else {}
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    with closing(connect(stack)) as connection:
        check_the_same_again(Sender(connection, stack.token), api, "/api/v1/namespaces/again/services/web", manifest)


# A Namespace and a Pod that are deleted are seen ending, and a second apply would meet them.
@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_every_kind(stack: Stack, api: ApiClient, kind: Kind, space: str) -> None:
    root = f"/apis/{kind.api_version}" if kind.group else "/api/v1"
    where = f"/namespaces/{space}" if kind.namespaced else ""
    name = name_for(kind, f"again-{space}"[:60].rstrip("-"))
    manifest = sample(kind, "x", space)
    manifest["metadata"] |= {"name": name, "labels": {"b": "1", "a": "2"}, "annotations": {"note": "x"}}
    with closing(connect(stack)) as connection:
        check_the_same_again(Sender(connection, stack.token), api, f"{root}{where}/{kind.plural}/{name}", manifest)
