"""A control plane as `make serve` starts it, for clients that know nothing of Timonel."""

import http.client
import re
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services_app.lab.client import CORE, ApiClient, namespace
from services_app.local.supervisor import Stack

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(scope="session", autouse=True)
def _no_proxy() -> Iterator[None]:
    """A proxy of this machine is no way to an address of this machine, and not every client knows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PROXIES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-clients-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Stack(directory, "127.0.0.1:0", durable=False) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def api(stack: Stack) -> ApiClient:
    return ApiClient(stack.kubeconfig)


@pytest.fixture
def space(api: ApiClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, named after it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))[:60].strip("-")
    api.create(f"{CORE}/namespaces", namespace(name))
    yield name
    api.request("DELETE", f"{CORE}/namespaces/{name}")


def connect(stack: Stack, timeout_s: float = 30.0) -> http.client.HTTPSConnection:
    """A connection of one's own, for what no client library does."""
    parts = urlsplit(stack.url)
    tls = ssl.create_default_context(cafile=str(stack.ca))
    return http.client.HTTPSConnection(parts.hostname or "", parts.port, context=tls, timeout=timeout_s)


def compact(stack: Stack) -> None:
    """Cut the log as far as there is one: who comes with an earlier version has to list again."""
    program = "from datetime import timedelta; from services_app import changes; changes.compact(keep=timedelta(0))"
    stack.manage("shell", "-v0", "-c", program)
