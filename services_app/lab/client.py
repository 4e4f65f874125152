"""How the lab talks to Timonel's API: as any client would, over HTTPS with the token of the kubeconfig, and kubectl."""

import base64
import http.client
import json
import os
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

Document = dict[str, Any]

CORE = "/api/v1"
DISCOVERY = "/apis/discovery.k8s.io/v1"


class ApiRefused(RuntimeError):
    """An answer of 400 or above; `code` and the Kubernetes Status in `status`."""

    def __init__(self, code: int, status: Document) -> None:
        super().__init__(f"{code} {status.get('reason', '')}: {status.get('message', '')}")
        self.code = code
        self.status = status


class ApiClient:
    """One keep-alive connection a thread. server: the API's address, "" for the kubeconfig's."""

    def __init__(self, kubeconfig: Path, server: str = "") -> None:
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
        user = next(u["user"] for u in config["users"] if u["name"] == context["user"])
        self.url: str = server or cluster["server"]
        self.token: str = user["token"]
        authority = cluster.get("certificate-authority-data")
        self.tls = ssl.create_default_context(
            cadata=base64.b64decode(authority).decode("ascii") if authority else None,
            cafile=cluster.get("certificate-authority"),
        )
        self._local = threading.local()

    def request(
        self, method: str, path: str, body: Document | None = None, *, patch: str = "merge", timeout_s: float = 30.0
    ) -> Document:
        """The decoded answer. patch: kind of a PATCH's body. Raises ApiRefused; OSError when nobody answers."""
        content_type = f"application/{patch}-patch+json" if method == "PATCH" else "application/json"
        code, content = self._ask(method, path, body, content_type, timeout_s)
        answer: Document = json.loads(content or b"{}")
        if code >= 400:
            raise ApiRefused(code, answer)
        return answer

    def read(self, path: str, *, timeout_s: float = 30.0) -> bytes:
        """An answer as it comes, not decoded. Raises as `request`."""
        code, content = self._ask("GET", path, None, "application/json", timeout_s)
        if code >= 400:
            raise ApiRefused(code, json.loads(content))
        return content

    def _ask(
        self, method: str, path: str, body: Document | None, content_type: str, timeout_s: float
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        data = json.dumps(body) if body is not None else None
        for is_last in (False, True):
            connection = self._connection(timeout_s)
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except (http.client.HTTPException, OSError) as err:
                self._local.connection = None
                connection.close()
                # A kept connection that the server closed meanwhile says nothing; a new one is asked once.
                if is_last or not isinstance(err, http.client.RemoteDisconnected | ConnectionError | ssl.SSLEOFError):
                    raise
        raise AssertionError("unreachable")

    def _connection(self, timeout_s: float) -> http.client.HTTPSConnection:
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            parts = urlsplit(self.url)
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port or 443, context=self.tls, timeout=timeout_s
            )
            self._local.connection = connection
        return connection

    def create(self, collection: str, document: Document) -> Document:
        return self.request("POST", collection, document)

    def apply(self, collection: str, document: Document) -> Document:
        """Make the object what the document says, whether it exists or not; fields it does not name stay."""
        try:
            path = f"{collection}/{document['metadata']['name']}"
            return self.request("PATCH", path, document, patch="strategic-merge")
        except ApiRefused as err:
            if err.code != 404:
                raise
            return self.create(collection, document)

    def ensure_namespace(self, name: str) -> None:
        try:
            self.create(f"{CORE}/namespaces", namespace(name))
        except ApiRefused as err:
            if err.code != 409:
                raise


class Kubectl:
    """The real kubectl with a kubeconfig of ours and nothing of the caller's own configuration."""

    def __init__(self, kubeconfig: Path, program: str = "kubectl") -> None:
        self._kubeconfig = kubeconfig
        self._program = program

    def __call__(
        self, *arguments: str, input: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; standard error is part of what it printed when it failed."""
        environment = {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "DEBUG")}
        environment["HOME"] = str(self._kubeconfig.parent)  # its discovery cache belongs to this cluster
        # A proxy of this machine is no way to an address of this machine.
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            environment.pop(name, None)
        return subprocess.run(
            [self._program, f"--kubeconfig={self._kubeconfig}", *arguments],
            input=input,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def namespace(name: str) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def pod(
    name: str,
    labels: dict[str, str],
    node: str,
    ports: dict[str, tuple[int, str]],
    *,
    address: str | None = None,
) -> Document:
    """A Pod record. ports: name -> (number, "TCP" or "UDP"); address: None means its node's."""
    metadata: Document = {"name": name, "labels": labels}
    if address:
        metadata["annotations"] = {"timonel.io/pod-ip": address}
    named = [{"name": n, "containerPort": number, "protocol": kind} for n, (number, kind) in ports.items()]
    container = {"name": "app", "image": "example.org/app", "ports": named}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": [container]},
    }


def service(
    name: str, selector: dict[str, str], ports: list[Document], *, kind: str = "ClusterIP", **spec: Any
) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": kind, "selector": selector, "ports": ports, **spec},
    }


def condition(document: Document, kind: str) -> Document:
    """The condition of that type; empty when there is none."""
    for found in document.get("status", {}).get("conditions") or ():
        if found["type"] == kind:
            return dict(found)
    return {}
