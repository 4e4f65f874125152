"""What reaches into workloads is refused as Kubernetes would, with what to do instead; the real kubectl says it on."""

import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, Kubectl, pod, service
from services_app.local.supervisor import Stack
from tests.api.conftest import said

NODE = "reached-node"


@pytest.fixture
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what was said to it: nothing may be."""
    server = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            heard.append(connection.recv(1000))
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], heard
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def by_hand(service: str, address: str, port: int, **reference: str):
    addresses = [{"ip": address, **({"targetRef": {"kind": "Pod", **reference}} if reference else {})}]
    return {"metadata": {"name": service}, "subsets": [{"addresses": addresses, "ports": [{"port": port}]}]}


@pytest.fixture(scope="module")
def place(stack: Stack) -> str:
    """A namespace with Pods and Services of every sort, for tests that leave them as they are."""
    api, namespace = ApiClient(stack.kubeconfig), "connecting"
    api.ensure_namespace(namespace)
    fill(api, namespace)
    return namespace


def fill(api: ApiClient, namespace: str, node: str = NODE) -> None:
    root = f"{CORE}/namespaces/{namespace}"
    web = pod("web-1", {"app": "web"}, node, {"http": (9376, "TCP")})
    two = pod("two", {}, node, {})
    two["spec"]["containers"].append({"name": "side", "image": "example.org/side"})
    idle = pod("idle", {}, "", {})
    for document in (web, two, idle):
        api.create(f"{root}/pods", document)
    status = {"status": {"phase": "Running", "podIP": "192.0.2.7", "podIPs": [{"ip": "192.0.2.7"}]}}
    status["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    api.request("PATCH", f"{root}/pods/web-1/status", status)
    port = {"name": "http", "port": 80, "targetPort": 9376}
    api.create(f"{root}/services", service("web", {"app": "web"}, [port]))
    api.create(f"{root}/services", service("empty", {"app": "nothing"}, [{"port": 80}]))
    api.create(f"{root}/services", {"metadata": {"name": "hand"}, "spec": {"ports": [{"port": 80}]}})


def ask(api: ApiClient, method: str, path: str, body=None):
    """(code, answer); of a success the code is only told by the answer's Status."""
    try:
        answer = api.request(method, path, body)
    except ApiRefused as err:
        return err.code, err.status
    return answer.get("code", 200), answer


@pytest.mark.parametrize(
    ("method", "path", "code", "reason", "told"),
    [
        ("GET", "services/web:http/proxy/", 405, "MethodNotAllowed", "leads to 192.0.2.7:9376"),
        ("GET", "services/web/proxy/", 503, "ServiceUnavailable", 'no endpoints available for service "web"'),
        ("GET", "services/http:web:http/proxy/a/b?c=d", 405, "MethodNotAllowed", "leads to 192.0.2.7:9376"),
        ("POST", "services/web:80/proxy", 405, "MethodNotAllowed", "Connect to its cluster IP from a node"),
        (
            "GET",
            "services/web:nope/proxy/",
            503,
            "ServiceUnavailable",
            'no endpoints available for service "web"',
        ),
        ("GET", "services/web:81/proxy/", 503, "ServiceUnavailable", 'no service port 81 found for service "web"'),
        ("GET", "services/empty/proxy/", 503, "ServiceUnavailable", 'no endpoints available for service "empty"'),
        ("GET", "services/hand/proxy/", 503, "ServiceUnavailable", 'no endpoints available for service "hand"'),
        ("GET", "services/missing/proxy/", 404, "NotFound", 'services "missing" not found'),
        ("GET", "services/a:b:c:d/proxy/", 400, "BadRequest", 'invalid service request "a:b:c:d"'),
        ("GET", "pods/web-1/proxy/", 405, "MethodNotAllowed", "Connect to 192.0.2.7:9376 from there"),
        ("DELETE", "pods/web-1:8080/proxy/x", 405, "MethodNotAllowed", "Connect to 192.0.2.7:8080 from there"),
        ("GET", "pods/idle/proxy/", 400, "BadRequest", "address not allowed"),
        ("GET", "pods/missing/proxy/", 404, "NotFound", 'pods "missing" not found'),
        ("GET", "pods/web-1/log", 405, "MethodNotAllowed", f'It runs on node "{NODE}": read its log there.'),
        ("GET", "pods/web-1/log?container=nope", 400, "BadRequest", "container nope is not valid for pod web-1"),
        ("GET", "pods/two/log", 400, "BadRequest", "for pod two, choose one of: [app side]"),
        ("GET", "pods/two/log?container=side", 405, "MethodNotAllowed", 'no logs of container "side"'),
        ("GET", "pods/idle/log", 400, "BadRequest", "pod idle does not have a host assigned"),
        ("POST", "pods/web-1/exec?command=ls&stdout=1", 405, "MethodNotAllowed", 'runs nothing in container "app"'),
        ("GET", "pods/web-1/exec?command=ls&stdout=1", 405, "MethodNotAllowed", 'runs nothing in container "app"'),
        ("POST", "pods/web-1/attach?stdout=1", 405, "MethodNotAllowed", "log in there"),
        ("POST", "pods/idle/portforward", 400, "BadRequest", "pod idle does not have a host assigned"),
        ("POST", "pods/web-1/portforward", 405, "MethodNotAllowed", "for instance with ssh -L"),
        ("PUT", "pods/web-1/exec", 405, "MethodNotAllowed", "the server does not allow this method"),
        ("POST", "pods/web-1/log", 405, "MethodNotAllowed", "the server does not allow this method"),
        ("PATCH", "pods/web-1/resize", 405, "MethodNotAllowed", "nothing here could change what runs in"),
        ("PATCH", "pods/missing/ephemeralcontainers", 404, "NotFound", 'pods "missing" not found'),
        ("GET", "pods/web-1/exec/more", 404, "NotFound", "the server could not find the requested resource"),
    ],
)
def test_what_reaches_into_workloads_is_refused(api, place, method, path, code, reason, told):
    answered, status = ask(api, method, f"{CORE}/namespaces/{place}/{path}")
    assert (answered, status["code"], status["reason"], status["kind"]) == (code, code, reason, "Status")
    assert told in status["message"]


def test_a_host_is_no_kubelet(api):
    name = "proxied-node"
    api.create(f"{CORE}/nodes", {"metadata": {"name": name}})
    assert ask(api, "GET", f"{CORE}/nodes/{name}/proxy/pods")[0] == 405
    assert ask(api, "GET", f"{CORE}/nodes/{name}:10250/proxy/metrics")[0] == 405
    assert ask(api, "GET", f"{CORE}/nodes/missing/proxy/pods")[0] == 404
    api.request("DELETE", f"{CORE}/nodes/{name}")


@pytest.mark.parametrize("reference", [{}, {"name": "idle"}, {"name": "missing"}], ids=["none", "other", "missing"])
def test_addresses_of_no_pod_are_not_proxied_to_and_no_socket_is_opened(api, kubectl, namespace, listening, reference):
    port, heard = listening
    root = f"{CORE}/namespaces/{namespace}"
    address = "198.51.100.9"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=False, capture_output=True)
    reference = {**reference, "namespace": namespace} if reference else {}
    fill(api, namespace)
    api.create(f"{root}/endpoints", by_hand("hand", address, port, **reference))
    code, status = ask(api, "GET", f"{root}/services/hand/proxy/")
    assert (code, status["reason"]) == (503, "ServiceUnavailable")
    assert "none of its addresses is one of a Pod" in status["message"]
    forwarded = kubectl("port-forward", "-n", namespace, "svc/hand", f"{port + 1 if port < 65535 else 1024}:80")
    assert forwarded.returncode != 0
    assert "Service is defined without a selector" in forwarded.stderr
    assert heard == []
    subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["port-forward", "svc/web", "0:80"], "for instance with ssh -L"),
        (["port-forward", "pod/web-1", "0:9376"], "for instance with ssh -L"),
        (["logs", "web-1"], "read its log there"),
        (["logs", "two"], 'no logs of container "app"'),
        (["exec", "web-1", "--", "ls"], "runs nothing in container"),
        (["attach", "web-1"], "runs nothing in container"),
        (["get", "--raw", "/api/v1/namespaces/{ns}/services/web:http/proxy/"], "leads to 192.0.2.7:9376"),
        (["get", "--raw", "/api/v1/namespaces/{ns}/services/empty/proxy/"], "no endpoints available for service"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_kubectl_tells_what_to_do(kubectl: Kubectl, place: str, arguments, told):
    done = kubectl("-n", place, *[word.replace("{ns}", place) for word in arguments], timeout_s=30)
    assert done.returncode != 0
    assert told in done.stderr + done.stdout


def test_kubectl_evicts_a_pod(api: ApiClient, kubectl: Kubectl, namespace: str):
    """As `kubectl drain` does for each Pod of a node."""
    root = f"{CORE}/namespaces/{namespace}"
    node = "to-be-drained"  # all of its Pods go, whatever their namespace
    fill(api, namespace, node)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "other"}}
    assert ask(api, "POST", f"{root}/pods/idle/eviction", eviction)[0] == 400
    eviction["metadata"]["name"] = "idle"
    tried = {**eviction, "deleteOptions": {"dryRun": ["All"]}}
    assert ask(api, "POST", f"{root}/pods/idle/eviction", tried)[0] == 201
    stale = {**eviction, "deleteOptions": {"preconditions": {"uid": "another"}}}
    assert ask(api, "POST", f"{root}/pods/idle/eviction", stale)[0] == 409
    code, status = ask(api, "POST", f"{root}/pods/idle/eviction", eviction)
    assert (code, status["status"]) == (201, "Success")
    assert ask(api, "POST", f"{root}/pods/idle/eviction", eviction)[0] == 404
    api.create(f"{CORE}/nodes", {"metadata": {"name": node}})
    drained = kubectl("drain", node, "--force", "--grace-period=0", "--timeout=30s", "--pod-selector=app=web")
    assert "pod/web-1 evicted" in said(drained)
    assert json.loads(said(kubectl("get", "node", node, "-o", "json")))["spec"]["unschedulable"] is True
    api.request("DELETE", f"{CORE}/nodes/{node}")


def test_kubectl_proxy_leads_to_the_api_and_no_further(stack: Stack, place: str):
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    command = ["kubectl", f"--kubeconfig={stack.kubeconfig}", "proxy", "--port=0"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**environment, "HOME": str(stack.data_dir)}
    )
    try:
        port = int(running.stdout.readline().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", f"{CORE}/namespaces/{place}/services/web")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["metadata"]["name"]) == (200, "web")
        for method in ("GET", "POST", "DELETE"):
            connection.request(method, f"{CORE}/namespaces/{place}/services/web:http/proxy/a/b?c=d")
            answer = connection.getresponse()
            status = json.loads(answer.read())
            assert (answer.status, status["reason"]) == (405, "MethodNotAllowed"), (method, status["message"])
            assert "leads to 192.0.2.7:9376" in status["message"]
    finally:
        running.terminate()
        running.wait(20)
