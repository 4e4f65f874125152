"""Server-side apply with the real kubectl against the real server."""

import json

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, Kubectl
from tests.api.conftest import said


def manifest(**spec: object) -> str:
    spec.setdefault("ports", [{"port": 80, "name": "http"}])
    return json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})


def managers(document: dict) -> list[tuple[str, str]]:
    return sorted((entry["manager"], entry["operation"]) for entry in document["metadata"]["managedFields"])


def test_apply_twice_is_one_write(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    apply = ("apply", "--server-side", "-n", namespace, "-f", "-")
    path = f"{CORE}/namespaces/{namespace}/services/web"
    assert said(kubectl(*apply, input=manifest(selector={"app": "a"}))) == "service/web serverside-applied"
    first = api.request("GET", path)
    assert said(kubectl(*apply, input=manifest(selector={"app": "a"}))) == "service/web serverside-applied"
    assert api.request("GET", path) == first
    assert managers(first) == [("kubectl", "Apply")]
    assert "managedFields" not in said(kubectl("get", "svc", "web", "-n", namespace, "-o", "yaml"))
    assert "f:selector" in said(kubectl("get", "svc", "web", "-n", namespace, "-o", "yaml", "--show-managed-fields"))


def test_a_conflict_is_shown_with_its_manager_and_can_be_forced(
    kubectl: Kubectl, api: ApiClient, namespace: str
) -> None:
    on = ("-n", namespace)
    apply = ("apply", "--server-side", *on, "-f", "-")
    said(kubectl(*apply, "--field-manager=shop-team", input=manifest(selector={"app": "a"})))
    other = manifest(selector={"app": "b"})
    refused = kubectl(*apply, input=other)
    assert refused.returncode != 0
    assert 'Apply failed with 1 conflict: conflict with "shop-team": .spec.selector' in refused.stderr
    said(kubectl(*apply, "--force-conflicts", input=other))
    document = api.request("GET", f"{CORE}/namespaces/{namespace}/services/web")
    assert document["spec"]["selector"] == {"app": "b"}
    assert managers(document) == [("kubectl", "Apply"), ("shop-team", "Apply")]
    said(kubectl("patch", "svc", "web", *on, "--type=merge", "-p", '{"spec":{"selector":{"app":"c"}}}'))
    refused = kubectl(*apply, input=other)
    assert 'conflict with "kubectl-patch" using v1: .spec.selector' in refused.stderr


def test_what_is_dropped_goes(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    apply = ("apply", "--server-side", "-n", namespace, "-f", "-")
    both = [{"port": 53, "protocol": "UDP", "name": "dns"}, {"port": 53, "protocol": "TCP", "name": "dns-tcp"}]
    said(kubectl(*apply, input=manifest(ports=both, type="NodePort", externalIPs=["192.0.2.7"])))
    path = f"{CORE}/namespaces/{namespace}/services/web"
    before = api.request("GET", path)["spec"]
    said(kubectl(*apply, input=manifest(ports=both[1:], type="NodePort")))
    after = api.request("GET", path)["spec"]
    assert [(port["port"], port["protocol"]) for port in after["ports"]] == [(53, "TCP")]
    assert after["ports"][0]["nodePort"] == before["ports"][1]["nodePort"]
    assert "externalIPs" not in after and after["clusterIP"] == before["clusterIP"]


def test_going_over_from_client_side_apply(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    on = ("-n", namespace, "-f", "-")
    said(kubectl("apply", *on, input=manifest(selector={"app": "a"}, sessionAffinity="ClientIP")))
    path = f"{CORE}/namespaces/{namespace}/services/web"
    assert managers(api.request("GET", path)) == [("kubectl-client-side-apply", "Update")]
    said(kubectl("apply", "--server-side", *on, input=manifest(selector={"app": "b"})))
    document = api.request("GET", path)
    assert document["spec"]["selector"] == {"app": "b"} and document["spec"]["sessionAffinity"] == "None"
    assert ("kubectl", "Apply") in managers(document)
    assert ("kubectl-client-side-apply", "Update") not in managers(document)


def test_dry_run_and_diff_write_nothing(kubectl: Kubectl, namespace: str) -> None:
    on = ("-n", namespace, "-f", "-")
    assert "(server dry run)" in said(kubectl("apply", "--server-side", "--dry-run=server", *on, input=manifest()))
    assert "NotFound" in kubectl("get", "svc", "web", "-n", namespace).stderr
    said(kubectl("apply", "--server-side", *on, input=manifest()))
    changed = kubectl("diff", "--server-side", *on, input=manifest(selector={"app": "a"}))
    assert changed.returncode == 1 and "+    app: a" in changed.stdout, changed.stderr
    assert kubectl("diff", "--server-side", *on, input=manifest()).returncode == 0


def test_bad_manifests_are_refused_with_the_field(kubectl: Kubectl, namespace: str) -> None:
    on = ("--server-side", "--validate=false", "-n", namespace, "-f", "-")
    refused = kubectl("apply", *on, input=manifest(colour="red"))
    assert 'unknown field "spec.colour"' in refused.stderr
    twice = kubectl("apply", *on, input=manifest(ports=[{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]))
    assert 'spec.ports: duplicate entries for key [port=80,protocol="TCP"]' in twice.stderr
    assert "Unsupported value" in kubectl("apply", *on, input=manifest(type="Nope")).stderr


@pytest.mark.parametrize(
    ("method", "query", "field"),
    [
        ("PATCH", "force=true", "force"),
        ("PATCH", "fieldManager=" + "m" * 129, "fieldManager"),
        ("PUT", "fieldManager=a%0Ab", "fieldManager"),
    ],
)
def test_options_that_make_no_sense_are_named(
    api: ApiClient, namespace: str, method: str, query: str, field: str
) -> None:
    services = f"{CORE}/namespaces/{namespace}/services"
    made = api.create(services, json.loads(manifest()))
    assert managers(made) == [("unknown", "Update")]  # this client does not say who it is
    with pytest.raises(ApiRefused) as refused:
        api.request(method, f"{services}/web?{query}", made)
    assert refused.value.code == 422
    assert [cause["field"] for cause in refused.value.status["details"]["causes"]] == [field]
    assert api.request("GET", f"{services}/web") == made
