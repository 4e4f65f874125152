"""One whole Timonel for the tests of this folder that need it: control plane, three nodes, everything real."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.cluster import Cluster

SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/112"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-cluster-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Cluster(directory, durable=False, service_cidrs=SERVICE_CIDRS) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)
