"""The real kubectl against the real server: what people type first."""

import json
import os
import subprocess
import time
from pathlib import Path

from services_app.lab.client import CORE, ApiClient, Kubectl, pod
from services_app.lab.samples import MANIFESTS
from services_app.local.supervisor import Stack
from tests.api.conftest import said


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


def test_an_ordinary_day(stack: Stack, kubectl: Kubectl, namespace: str) -> None:
    """Look, narrow, edit, watch, wait, describe and delete, as people do between two applies."""
    on = ("-n", namespace)
    said(kubectl("apply", *on, "-f", str(MANIFESTS / "service-with-two-ports.yaml")))
    said(kubectl("create", "service", "clusterip", "other", "--tcp=80:8080", *on))
    wide = said(kubectl("get", "svc", "mi-servicio", *on, "-o", "wide", "--no-headers")).split()
    assert (wide[1], wide[3], wide[4], wide[6]) == ("ClusterIP", "<none>", "80/TCP,443/TCP", "app=MiApp")
    assert "clusterIPs:" in said(kubectl("get", "svc", "mi-servicio", *on, "-o", "yaml"))
    everywhere = said(kubectl("get", "svc", "-A", "--no-headers"))
    assert [line.split()[:2] for line in everywhere.splitlines()].count([namespace, "mi-servicio"]) == 1
    said(kubectl("label", "svc", "other", *on, "tier=web"))
    assert said(kubectl("get", "svc", *on, "-l", "tier in (web,api)", "-o", "name")) == "service/other"
    assert said(kubectl("get", "svc", *on, "--field-selector", "metadata.name=other", "-o", "name")) == "service/other"
    by_name = said(kubectl("get", "svc", *on, "--sort-by=.metadata.name", "-o", "name"))
    assert by_name.split() == ["service/mi-servicio", "service/other"]
    # kubectl edit: the whole object goes to an editor and comes back as a patch.
    environment = {**os.environ, "KUBE_EDITOR": "sed -i s/port:.80$/port:\\ 8081/", "HOME": str(stack.data_dir)}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        environment.pop(name, None)
    edit = ["kubectl", f"--kubeconfig={stack.kubeconfig}", "edit", "svc", "mi-servicio", *on]
    edited = subprocess.run(edit, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "service/mi-servicio edited" in said(edited)
    ports = "jsonpath={.spec.ports[*].port}"
    assert sorted(said(kubectl("get", "svc", "mi-servicio", *on, "-o", ports)).split()) == ["443", "8081"]
    assert said(kubectl("diff", *on, "-f", "-", input=service_text("other", 8080))) == ""
    described = said(kubectl("describe", "svc", "mi-servicio", *on))
    assert all(word in described for word in ("Selector:", "app=MiApp", "Port:", "8081/TCP", "Endpoints:"))
    said(kubectl("annotate", "svc", "other", *on, "note=x"))
    said(kubectl("set", "selector", "svc", "other", "app=changed", *on))
    assert said(kubectl("get", "svc", "other", *on, "-o", "jsonpath={.spec.selector.app}")) == "changed"
    said(kubectl("wait", "--for=jsonpath={.spec.type}=ClusterIP", "svc/other", *on, "--timeout=10s"))
    said(kubectl("replace", *on, "-f", "-", input=service_text("other", 9090)))
    assert said(kubectl("get", "svc", "other", *on, "-o", "jsonpath={.spec.ports[0].targetPort}")) == "9090"
    assert said(kubectl("delete", "svc", "--all", *on)).count("deleted") == 2
    assert said(kubectl("get", "svc,endpoints,endpointslices", *on, "-o", "name")) == ""


def service_text(name: str, target: int) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": {"app": name, "tier": "web"}},
            "spec": {
                "selector": {"app": name},
                "ports": [{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": target}],
            },
        }
    )


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
