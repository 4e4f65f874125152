"""The manifests of Kubernetes' own page about Services, applied as they stand, each in a namespace of its own."""

import json

import pytest

from services_app.lab.client import ApiClient, Kubectl
from services_app.lab.samples import MANIFESTS
from tests.api.conftest import said

FILES = {
    "service-with-selector": "service/mi-servicio created",
    "service-with-two-ports": "service/mi-servicio created",
    "service-with-node-port": "service/mi-servicio created",
    "service-without-selector": "service/mi-servicio created",
    "endpoints-by-hand": "endpoints/mi-servicio created",
    "service-with-load-balancer": "service/mi-servicio created",
    "service-with-external-ips": "service/mi-servicio created",
}


# kubectl compares with the manifest itself and sends what differs from defaults or belongs to the status.
SENT_AGAIN = ("endpoints-by-hand", "service-with-load-balancer")


def applied(kubectl: Kubectl, namespace: str, *names: str) -> list[str]:
    files = [argument for name in names for argument in ("-f", str(MANIFESTS / f"{name}.yaml"))]
    return said(kubectl("apply", "-n", namespace, *files)).splitlines()


@pytest.mark.parametrize("name", FILES)
def test_every_manifest_applies_twice(kubectl: Kubectl, namespace: str, name: str) -> None:
    assert applied(kubectl, namespace, name) == [FILES[name]]
    about = ("-n", namespace, "-f", str(MANIFESTS / f"{name}.yaml"))
    version = said(kubectl("get", *about, "-o", "jsonpath={.metadata.resourceVersion}"))
    again = "configured" if name in SENT_AGAIN else "unchanged"
    assert applied(kubectl, namespace, name) == [FILES[name].replace("created", again)]
    assert said(kubectl("get", *about, "-o", "jsonpath={.metadata.resourceVersion}")) == version
    assert "deleted" in said(kubectl("delete", *about))


def test_a_service_and_endpoints_by_hand(kubectl: Kubectl, namespace: str) -> None:
    applied(kubectl, namespace, "service-without-selector", "endpoints-by-hand")
    found = json.loads(said(kubectl("get", "endpointslices", "-n", namespace, "-o", "json")))["items"]
    assert [item["endpoints"][0]["addresses"] for item in found] == [["192.0.2.42"]]
    assert [port["port"] for port in found[0]["ports"]] == [9376]
    managed_by = found[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
    assert managed_by == "endpointslicemirroring-controller.k8s.io"
    said(kubectl("delete", "svc", "mi-servicio", "-n", namespace))
    assert said(kubectl("get", "endpointslices,endpoints", "-n", namespace, "-o", "name")) == ""


def test_an_external_name_has_no_address(kubectl: Kubectl, namespace: str) -> None:
    done = kubectl("apply", "-f", str(MANIFESTS / "service-with-external-name.yaml"), "-n", "prod")
    assert done.returncode != 0  # the manifest names its namespace, which is not there yet
    said(kubectl("create", "namespace", "prod"))
    assert applied(kubectl, "prod", "service-with-external-name") == ["service/mi-servicio created"]
    assert applied(kubectl, "prod", "service-with-external-name") == ["service/mi-servicio unchanged"]
    row = said(kubectl("get", "svc", "mi-servicio", "-n", "prod", "--no-headers")).split()
    assert row[:4] == ["mi-servicio", "ExternalName", "<none>", "my.database.example.com"]
    said(kubectl("delete", "namespace", "prod", "--timeout=30s"))


def test_external_ips_are_stored_and_warned_of(kubectl: Kubectl, namespace: str) -> None:
    done = kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "service-with-external-ips.yaml"))
    assert "Warning: spec.externalIPs is deprecated" in done.stderr
    row = said(kubectl("get", "svc", "mi-servicio", "-n", namespace, "--no-headers")).split()
    assert row[3] == "80.11.12.10"


def test_a_load_balancer_keeps_its_chosen_address_and_has_no_outer_one_yet(
    kubectl: Kubectl,
    api: ApiClient,
    namespace: str,
) -> None:
    """Its cluster IP lies in the second range of this control plane; a status that is posted is ignored."""
    applied(kubectl, namespace, "service-with-load-balancer")
    row = said(kubectl("get", "svc", "mi-servicio", "-n", namespace, "--no-headers")).split()
    assert row[1:4] == ["LoadBalancer", "10.0.171.239", "<pending>"]
    stored = api.request("GET", f"/api/v1/namespaces/{namespace}/services/mi-servicio")
    assert stored["status"]["loadBalancer"] == {}
    assert stored["spec"]["ports"][0]["nodePort"]
