"""Several workers share the nodes: each node has one session, and none is left alone when a worker ends."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services_app.lab.client import CORE, pod, service
from services_app.lab.cluster import Cluster
from services_app.lab.namespaces import outcome
from services_app.push.tasks import queue_of
from tests.agents.test_node import eventually

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]
WORKERS = 2
PORT = 18090


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-workers-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Cluster(directory, nodes=4, containers=0, workers=WORKERS, durable=False) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def sessions(cluster: Cluster) -> list[int]:
    """How many agents serve on each node."""
    return [
        sum(command.endswith("agent.pyz serve") for command in node.processes().values()) for node in cluster.lab.nodes
    ]


def test_two_workers_share_the_nodes_and_one_takes_over_again(cluster: Cluster) -> None:
    api, nodes = cluster.api, cluster.lab.nodes
    parts = {int(queue_of(node.name).rpartition("-")[2]) % WORKERS for node in nodes}
    assert len(parts) == WORKERS, "the names of these nodes are all of one worker"
    api.ensure_namespace("shop")
    nodes[0].serve("first", PORT)
    api.create(f"{CORE}/namespaces/shop/pods", pod("first", {"app": "web"}, nodes[0].name, {"app": (PORT, "TCP")}))
    made = api.create(
        f"{CORE}/namespaces/shop/services", service("web", {"app": "web"}, [{"port": 80, "targetPort": "app"}])
    )
    address = made["spec"]["clusterIP"]
    for node in nodes:
        outcome(node.ask_until(address, 80, "first", deadline_s=30), 40)
    eventually(lambda: sessions(cluster) == [1] * len(nodes), "every node has one session")
    for number, killed in enumerate(cluster.stack.pids_of("worker"), start=1):
        os.kill(killed, signal.SIGKILL)
        name = f"after-{number}"
        nodes[number].serve(name, PORT)
        api.create(f"{CORE}/namespaces/shop/pods", pod(name, {"app": name}, nodes[number].name, {"app": (PORT, "TCP")}))
        api.request("PATCH", f"{CORE}/namespaces/shop/services/web", {"spec": {"selector": {"app": name}}})
        for node in nodes:
            outcome(node.ask_until(address, 80, name, deadline_s=60), 70)
        eventually(lambda: len(cluster.stack.pids_of("worker")) == WORKERS, "the worker is there again")
        eventually(lambda: sessions(cluster) == [1] * len(nodes), "every node has one session again", 60)


def test_a_lost_claim_is_made_anew_by_a_look_of_the_workers(cluster: Cluster) -> None:
    """Every three minutes; asked for here. The look is a process of its own, and has what it needs there."""
    api, stack = cluster.api, cluster.stack
    api.ensure_namespace("repaired")
    path = f"{CORE}/namespaces/repaired/services"
    address = api.create(path, service("web", {"app": "web"}, [{"port": 80}]))["spec"]["clusterIP"]
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        lost = database.execute("DELETE FROM services_app_clusteripclaim WHERE address = %s", [address])
        assert lost.rowcount == 1
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "services_app.celery",
            "call",
            "services_app.push.tasks.repair",
        ]
        subprocess.run(command, env=stack.environment, capture_output=True, timeout=60, check=True)
        claims = "SELECT count(*) FROM services_app_clusteripclaim WHERE address = %s"
        eventually(lambda: database.execute(claims, [address]).fetchone() == (1,), "the claim is back", 60)
    reasons = [event["reason"] for event in api.request("GET", f"{CORE}/namespaces/repaired/events")["items"]]
    assert reasons == ["ClusterIPNotAllocated"]
