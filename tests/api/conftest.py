"""A control plane without nodes, as `make serve` starts it, for the tests of this folder."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import ApiClient, Kubectl
from services_app.local.supervisor import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-api-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    environment = {"TIMONEL_SERVICE_CIDRS": "10.96.0.0/20,10.0.160.0/20"}
    try:
        with Stack(directory, "127.0.0.1:0", durable=False, environment=environment) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def api(stack: Stack) -> ApiClient:
    return ApiClient(stack.kubeconfig)


@pytest.fixture
def kubectl(stack: Stack) -> Kubectl:
    return Kubectl(stack.kubeconfig)


@pytest.fixture
def namespace(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, named after it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:60].strip("-")
    assert said(kubectl("create", "namespace", name)) == f"namespace/{name} created"
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What kubectl printed; it must have worked."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
