"""Kill -9 of each part in the middle of a stream of changes: afterwards all is as the API says, and nobody noticed.

Nobody helps: what died is started again by its supervisor (an sshd by the node's, played here by the lab).
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, Document, pod, service
from services_app.lab.cluster import Cluster
from services_app.lab.namespaces import outcome
from tests.lab.held import wait_equal

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

STEADY = "steady"
CHANGING = "changing"
PORT = 8090


@pytest.fixture(scope="module")
def steady_ip(cluster: Cluster) -> Iterator[str]:
    """The virtual IP of a Service that nobody changes, with an endpoint on each node."""
    api, lab = cluster.api, cluster.lab
    api.ensure_namespace(STEADY)
    api.ensure_namespace(CHANGING)
    for node in lab.nodes:
        node.serve(f"{STEADY}-{node.name}", PORT)
        record = pod(node.name, {"app": STEADY}, node.name, {"app": (PORT, "TCP")})
        api.create(f"{CORE}/namespaces/{STEADY}/pods", record)
    document = service(STEADY, {"app": STEADY}, [{"port": 80, "targetPort": PORT}])
    virtual_ip = api.create(f"{CORE}/namespaces/{STEADY}/services", document)["spec"]["clusterIP"]
    names = [f"{STEADY}-{node.name}" for node in lab.nodes]
    for node in lab.nodes:
        for name in names:
            outcome(node.ask_until(virtual_ip, 80, name, deadline_s=30), 40)
    yield virtual_ip
    for namespace in (STEADY, CHANGING):
        api.request("DELETE", f"{CORE}/namespaces/{namespace}")


class Changes(threading.Thread):
    """Services and Pods that come, change and go until stopped; each write is tried until it is accepted."""

    def __init__(self, api: ApiClient, seed: int) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._services = f"{CORE}/namespaces/{CHANGING}/services"
        self._pods = f"{CORE}/namespaces/{CHANGING}/pods"
        self._numbers = iter(range(seed * 100_000, (seed + 1) * 100_000))
        self._living: list[int] = []
        self.accepted = 0

    def run(self) -> None:
        while not self._stopping.wait(0.03):
            kind = self._random.choice(["add", "add", "move", "move", "widen", "bend", "remove"])
            if kind == "add" or len(self._living) < 3:
                self._add(next(self._numbers))
                continue
            number = self._random.choice(self._living)
            if kind == "move":
                self._write(
                    "PATCH", f"{self._pods}/p-{number}", {"metadata": {"annotations": annotation(self._address())}}
                )
            elif kind == "widen":
                ports = [{"name": n, "port": p, "targetPort": p} for n, p in (("web", 80), ("more", 81))]
                self._write("PATCH", f"{self._services}/s-{number}", {"spec": {"ports": ports}})
            elif kind == "bend":
                self._write("PATCH", f"{self._services}/s-{number}", {"spec": self._random.choice(BENDS)})
            else:
                self._living.remove(number)
                self._write("DELETE", f"{self._services}/s-{number}", None)

    def _add(self, number: int) -> None:
        labels = {"app": f"a-{number}"}
        node = self._random.choice(["node-1", "node-2"])
        record = pod(f"p-{number}", labels, node, {"web": (80, "TCP")}, address=self._address())
        self._write("POST", self._pods, record)
        ports = [{"name": "web", "port": 80, "targetPort": "web"}]
        families = self._random.choice(["SingleStack", "PreferDualStack"])
        spec = {"ipFamilyPolicy": families, **self._random.choice(BENDS)}
        self._write(
            "POST", self._services, service(f"s-{number}", labels, ports, kind=spec.pop("type", "ClusterIP"), **spec)
        )
        self._living.append(number)

    def _address(self) -> str:
        number = self._random.randrange(1, 255)
        return f"198.51.100.{number},2001:db8::{number:x}"

    def _write(self, method: str, path: str, body: Document | None) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._api.request(method, path, body, timeout_s=5)
            except ApiRefused as err:
                # Already done by the try whose answer was lost.
                if err.code < 500 and not (err.code in (404, 409) and method in ("POST", "DELETE")):
                    raise
                if err.code < 500:
                    break
            except OSError:
                pass
            else:
                break
            assert time.monotonic() < deadline, f"{method} {path} not accepted in 30 s"
            time.sleep(0.05)
        self.accepted += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=60)
        assert not self.is_alive()


# What a Service may be besides; a patch with one of these leaves the others' traces.
BENDS: list[Document] = [
    {"type": "NodePort"},
    {"type": "NodePort", "externalTrafficPolicy": "Local"},
    {"type": "NodePort", "externalTrafficPolicy": "Cluster", "sessionAffinity": "ClientIP"},
    {"internalTrafficPolicy": "Local"},
    {"internalTrafficPolicy": "Cluster", "sessionAffinity": "None"},
]


def annotation(address: str) -> dict[str, str]:
    return {"timonel.io/pod-ip": address}


def kill_role(cluster: Cluster, role: str, count: int | None = None) -> None:
    pids = cluster.stack.pids_of(role)
    assert pids, f"no {role} runs"
    for pid in pids[:count]:
        os.kill(pid, signal.SIGKILL)


def kill_sshd(cluster: Cluster) -> None:
    node = cluster.lab.nodes[1]
    node.stop_sshd()
    time.sleep(0.5)
    node.start_sshd()


def kill_agent(cluster: Cluster) -> None:
    """The agent of node-3; it may be on its way back from the kill before."""
    deadline = time.monotonic() + 30
    while not cluster.lab.nodes[2].kill_agent():
        assert time.monotonic() < deadline, "no agent runs"
        time.sleep(0.05)


def kill_all(cluster: Cluster) -> None:
    kill_role(cluster, "web")
    kill_role(cluster, "worker")
    kill_agent(cluster)
    kill_sshd(cluster)


VICTIMS: dict[str, Callable[[Cluster], None]] = {
    "a web server": lambda cluster: kill_role(cluster, "web", 1),
    "the worker": lambda cluster: kill_role(cluster, "worker"),
    "an sshd": kill_sshd,
    "an agent": kill_agent,
    "Redis": lambda cluster: kill_role(cluster, "redis"),
    "everything at once": kill_all,
}


@contextlib.contextmanager
def watched(cluster: Cluster, virtual_ip: str) -> Iterator[None]:
    """Connections to the Service that nobody changes, from every node all the time: none may fail.

    The time limit leaves room for a machine that stands still for seconds; a connection that was led astray stays so.
    """
    nodes = cluster.lab.nodes
    for node in nodes:
        node.stream("new", virtual_ip, 80, interval_ms=20, timeout_s=6)
        node.stream("kept", virtual_ip, 80, interval_ms=20, timeout_s=6, kept=True)
    yield
    reports = {(node.name, key): node.stream_end(key) for node in nodes for key in ("new", "kept")}
    if any(report["failed"] for report in reports.values()):
        flows = {
            node.name: node.run(["conntrack", "-L", "-p", "tcp", "--orig-dst", virtual_ip]).stdout for node in nodes
        }
        odd = {
            name: [f for f in text.splitlines() if "TIME_WAIT" not in f and "CLOSE " not in f]
            for name, text in flows.items()
        }
        said = "\n".join(node.run(["tail", "-n", "80", "/var/lib/timonel/agent.log"]).stdout for node in nodes)
        now = f"it is {time.monotonic():.3f}, {time.strftime('%H:%M:%S')}"
        pytest.fail(f"connections failed: {reports}; flows: {odd}; {now}; agents:\n{said}")
    assert all(report["asked"] > 10 for report in reports.values())


@pytest.mark.parametrize("victim", VICTIMS)
def test_after_a_kill_every_node_holds_what_the_api_says(cluster: Cluster, steady_ip: str, victim: str) -> None:
    with watched(cluster, steady_ip):
        changes = Changes(cluster.api, seed=list(VICTIMS).index(victim))
        changes.start()
        time.sleep(1)
        VICTIMS[victim](cluster)
        time.sleep(2)
        changes.stop()
        wait_equal(cluster.api, cluster.lab.nodes)
    assert changes.accepted > 5


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_after_many_kills_every_node_holds_what_the_api_says(cluster: Cluster, steady_ip: str) -> None:
    choice = random.Random(4)
    with watched(cluster, steady_ip):
        changes = Changes(cluster.api, seed=50)
        changes.start()
        end = time.monotonic() + 180
        while time.monotonic() < end:
            VICTIMS[choice.choice(list(VICTIMS))](cluster)
            time.sleep(choice.uniform(0.2, 8))
        changes.stop()
        wait_equal(cluster.api, cluster.lab.nodes, deadline_s=60)


def test_a_node_that_was_cut_off_catches_up_by_itself(cluster: Cluster, steady_ip: str) -> None:
    lab = cluster.lab
    others = [lab.nodes[0], lab.nodes[2]]
    changes = Changes(cluster.api, seed=60)
    lab.disconnect(lab.nodes[1])
    try:
        changes.start()
        time.sleep(3)
        changes.stop()
        wait_equal(cluster.api, others)  # nobody waits for the one that is away
    finally:
        lab.connect(lab.nodes[1])
    wait_equal(cluster.api, lab.nodes, deadline_s=60)
