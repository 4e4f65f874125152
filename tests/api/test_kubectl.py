"""The real kubectl against the real server: what people type first."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient, Kubectl, pod
from services_app.lab.samples import MANIFESTS
from services_app.local.supervisor import Stack


@pytest.fixture
def namespace(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:40].rstrip("-")
    assert said(kubectl("create", "namespace", name)) == f"namespace/{name} created"
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_apply_get_change_delete(kubectl: Kubectl, namespace: str) -> None:
    manifest = MANIFESTS / "service-with-node-port.yaml"
    on = ("-n", namespace)
    assert said(kubectl("apply", *on, "-f", str(manifest))) == "service/mi-servicio created"
    assert said(kubectl("apply", *on, "-f", str(manifest))) == "service/mi-servicio unchanged"
    row = said(kubectl("get", "svc", *on, "--no-headers")).split()
    assert (row[0], row[1], row[3], row[4]) == ("mi-servicio", "NodePort", "<none>", "80:30007/TCP")
    changed = manifest.read_text().replace("port: 80\n", "port: 81\n", 1)
    assert said(kubectl("apply", *on, "-f", "-", input=changed)) == "service/mi-servicio configured"
    spec = json.loads(said(kubectl("get", "svc", "mi-servicio", *on, "-o", "json")))["spec"]
    assert [(p["port"], p["nodePort"]) for p in spec["ports"]] == [(81, 30007)]
    assert spec["type"] == "NodePort"
    assert "Selector:" in said(kubectl("describe", "svc", "mi-servicio", *on))
    assert said(kubectl("label", "svc", "mi-servicio", *on, "tier=web")) == "service/mi-servicio labeled"
    assert said(kubectl("get", "svc", *on, "-l", "tier=web", "-o", "name")) == "service/mi-servicio"
    assert said(kubectl("get", "svc", *on, "-l", "tier!=web", "-o", "name")) == ""
    assert "deleted" in said(kubectl("delete", "svc", "mi-servicio", *on))
    assert "NotFound" in kubectl("get", "svc", "mi-servicio", *on).stderr


def test_patches_of_both_kinds(kubectl: Kubectl, namespace: str) -> None:
    on = ("-n", namespace)
    said(kubectl("apply", *on, "-f", str(MANIFESTS / "service-with-two-ports.yaml")))
    said(kubectl("patch", "svc", "mi-servicio", *on, "-p", '{"spec":{"ports":[{"port":443,"targetPort":9000}]}}'))
    ports = said(kubectl("get", "svc", "mi-servicio", *on, "-o", "jsonpath={.spec.ports[*].targetPort}"))
    assert sorted(ports.split()) == ["9000", "9376"]
    merge = ("--type=merge", "-p", '{"spec":{"sessionAffinity":"ClientIP"}}')
    said(kubectl("patch", "svc", "mi-servicio", *on, *merge))
    timeout = "jsonpath={.spec.sessionAffinityConfig.clientIP.timeoutSeconds}"
    assert said(kubectl("get", "svc", "mi-servicio", *on, "-o", timeout)) == "10800"


def test_what_go_clients_send_as_protobuf(kubectl: Kubectl, namespace: str) -> None:
    on = ("-n", namespace)
    assert said(kubectl("create", "service", "nodeport", "made", "--tcp=80:8080", *on)) == "service/made created"
    spec = json.loads(said(kubectl("get", "svc", "made", *on, "-o", "json")))["spec"]
    assert spec["ports"][0] | {"nodePort": 0} == {
        "name": "80-8080",
        "port": 80,
        "protocol": "TCP",
        "targetPort": 8080,
        "nodePort": 0,
    }
    assert spec["selector"] == {"app": "made"}


def test_every_error_at_once_and_nothing_taken(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    text = """{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "Bad_Name"}, "spec": {"type": "NodePort",
        "sessionAffinity": "Sometimes", "ports": [{"port": 0, "nodePort": 30999}, {"name": "x", "port": 80}]}}"""
    done = kubectl("apply", "-n", namespace, "-f", "-", input=text)
    assert done.returncode == 1
    for field in ("metadata.name", "spec.ports[0].port", "spec.ports[0].name", "spec.sessionAffinity"):
        assert field in done.stderr, done.stderr
    good = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "good"}}
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30999}]}
    made = api.create(f"{CORE}/namespaces/{namespace}/services", {**good, "spec": spec})
    assert made["spec"]["ports"][0]["nodePort"] == 30999
    done = kubectl(
        "create", "-n", namespace, "-f", "-", input=json.dumps({**good, "metadata": {"name": "b"}, "spec": spec})
    )
    assert "provided port is already allocated" in done.stderr


def test_watch_and_wait(stack: Stack, kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    arguments = [f"--kubeconfig={stack.kubeconfig}", "get", "pods", "-n", namespace, "-w", "-o", "name"]
    watch = subprocess.Popen(["kubectl", *arguments], stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    try:
        time.sleep(0.5)
        api.create(f"{CORE}/namespaces/{namespace}/pods", pod("one", {"app": "a"}, "", {"web": (80, "TCP")}))
        assert watch.stdout.readline().strip() == "pod/one"
        api.request("PATCH", f"{CORE}/namespaces/{namespace}/pods/one", {"metadata": {"labels": {"app": "b"}}})
        assert watch.stdout.readline().strip() == "pod/one"
    finally:
        watch.kill()
        watch.wait()
    waiting = subprocess.Popen(
        [
            "kubectl",
            f"--kubeconfig={stack.kubeconfig}",
            "wait",
            "--for=delete",
            "pod/one",
            "-n",
            namespace,
            "--timeout=20s",
        ],
        stdout=subprocess.PIPE,
    )
    time.sleep(0.5)
    said(kubectl("delete", "pod", "one", "-n", namespace, "--now"))
    assert waiting.wait(30) == 0


def test_a_namespace_takes_its_objects_with_it(kubectl: Kubectl, api: ApiClient) -> None:
    said(kubectl("create", "namespace", "leaving"))
    said(kubectl("apply", "-n", "leaving", "-f", str(MANIFESTS / "service-with-selector.yaml")))
    said(kubectl("delete", "namespace", "leaving", "--timeout=30s"))
    assert api.request("GET", f"{CORE}/services?fieldSelector=metadata.namespace%3Dleaving")["items"] == []


def test_strangers_are_not_let_in(stack: Stack, tmp_path: Path) -> None:
    stranger = tmp_path / "kubeconfig"
    stranger.write_text(stack.kubeconfig.read_text().replace(stack.token, "wrong"))
    done = Kubectl(stranger)("get", "services")
    assert done.returncode == 1
    assert "Unauthorized" in done.stderr or "logged in" in done.stderr
    assert stack.kubeconfig.stat().st_mode & 0o077 == 0
