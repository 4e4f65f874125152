"""The documents about the API: what is below an object is in them, and every type they name is there."""

import json
import re

import pytest

from services_app.spec import discovery, kinds, openapi

CORE = json.loads(openapi.v3_document("api/v1"))
V2 = json.loads(openapi.v2_document())
BELOW = "/api/v1/namespaces/{namespace}/pods/{name}"


def named(reference: str) -> str:
    return reference.rpartition("/")[2]


@pytest.mark.parametrize(
    "root", sorted({"api/v1", *(f"apis/{kind.group}/{kind.version}" for kind in kinds.KINDS if kind.group)})
)
def test_every_type_that_is_named_is_described(root):
    text = openapi.v3_document(root)
    types = json.loads(text)["components"]["schemas"]
    assert {named(reference) for reference in re.findall(r'"\$ref":"([^"]+)"', text)} <= set(types)


def test_every_type_of_the_second_form_is_described():
    assert {named(r) for r in re.findall(r'"\$ref":"([^"]+)"', openapi.v2_document())} <= set(V2["definitions"])


def test_a_binding_is_posted_and_a_namespace_finalized():
    for paths in (CORE["paths"], V2["paths"]):
        assert {"post", "parameters"} == set(paths[f"{BELOW}/binding"])
        assert {"put", "parameters"} == set(paths["/api/v1/namespaces/{name}/finalize"])
        assert {"get", "put", "patch", "parameters"} == set(paths[f"{BELOW}/status"])
    bind = CORE["paths"][f"{BELOW}/binding"]["post"]
    assert named(bind["requestBody"]["content"]["application/json"]["schema"]["$ref"]) == "io.k8s.api.core.v1.Binding"
    assert bind["x-kubernetes-group-version-kind"] == {"group": "", "kind": "Binding", "version": "v1"}
    assert bind["operationId"] == "postCoreV1NamespacedPodBinding"
    finalize = CORE["paths"]["/api/v1/namespaces/{name}/finalize"]["put"]
    assert finalize["operationId"] == "putCoreV1NamespaceFinalize"


def test_operations_have_names_of_their_own():
    names = [
        operation["operationId"]
        for item in V2["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
    ]
    assert len(names) == len(set(names))


def test_what_is_below_a_pod_is_listed_in_both_forms_of_discovery():
    flat = {entry["name"]: entry for entry in discovery.resource_list("", "v1")["resources"]}
    assert flat["pods/eviction"] == {
        "name": "pods/eviction",
        "singularName": "",
        "namespaced": True,
        "group": "policy",
        "version": "v1",
        "kind": "Eviction",
        "verbs": ["create"],
    }
    assert flat["services/proxy"]["kind"] == "ServiceProxyOptions"
    assert flat["nodes/proxy"]["kind"] == "NodeProxyOptions"
    assert "group" not in flat["pods/log"]
    (group,) = discovery.aggregated(core=True)["items"]
    for resource in group["versions"][0]["resources"]:
        for below in resource.get("subresources", ()):
            entry = flat[f"{resource['resource']}/{below['subresource']}"]
            assert (entry["kind"], entry["verbs"]) == (below["responseKind"]["kind"], below["verbs"])


def parameters(operation):
    return {parameter["name"] for parameter in operation.get("parameters", ()) if parameter.get("in") == "query"}


@pytest.mark.parametrize("document", [CORE, V2], ids=["v3", "v2"])
def test_what_a_delete_may_say_is_described(document):
    one = document["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]
    several = document["paths"]["/api/v1/namespaces/{namespace}/configmaps"]
    said = {"dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"}
    chosen = {"continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch"}
    assert (parameters(one["get"]), parameters(one["delete"])) == (set(), said)
    assert parameters(several["delete"]) == said | chosen | {"sendInitialEvents", "timeoutSeconds"}
    assert parameters(one) == parameters(several) == {"pretty"}
    assert set(one["delete"]["responses"]) == {"200", "202"}


def test_a_delete_sends_its_options_and_is_answered_by_a_status_or_the_object():
    answers = {}
    for kind in ("configmaps", "services", "pods"):
        delete = CORE["paths"][f"/api/v1/namespaces/{{namespace}}/{kind}/{{name}}"]["delete"]
        body, answer = (
            named(part["content"]["application/json"]["schema"]["$ref"])
            for part in (delete["requestBody"], delete["responses"]["200"])
        )
        assert (body.rpartition(".")[2], "required" in delete["requestBody"]) == ("DeleteOptions", False)
        answers[kind] = answer.rpartition(".")[2]
    assert answers == {"configmaps": "Status", "services": "Service", "pods": "Pod"}
