"""A hundred thousand allocations from 32 clients while parts of the control plane are killed, the database among them.

Nothing is given out twice, nothing leaks, nothing that was accepted is lost, every node ends as the API says, and the
traffic of a Service that nobody changes never fails. Run by `make soak`.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, Document, pod, service
from services_app.lab.cluster import Cluster
from services_app.lab.namespaces import outcome
from tests.lab.held import wait_equal

pytestmark = [pytest.mark.netns, pytest.mark.soak, pytest.mark.timeout(1500)]

ALLOCATIONS = 100_000
CLIENTS = 32
LIVING = 6  # Services a client keeps before it deletes one of them
MOST_PORTS = 60
ROLES = ("web", "worker", "redis", "postgres")
TIME_S = 900.0
NAMESPACE, STEADY = "crowd", "steady"
PORT = 8090
SERVICES = f"{CORE}/namespaces/{NAMESPACE}/services"
ENVIRONMENT = {"TIMONEL_SERVICE_CIDRS": "10.96.0.0/18", "TIMONEL_NODE_PORT_RANGE": "10000-32767"}


@pytest.fixture(scope="module")
def crowded() -> Iterator[Cluster]:
    """A control plane that survives kill -9 of its database, and two nodes."""
    directory = Path(tempfile.mkdtemp(prefix="timonel-soak-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Cluster(directory, nodes=2, durable=True, environment=ENVIRONMENT) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def steady_ip(crowded: Cluster) -> str:
    """The virtual IP of a Service that nobody changes, with an endpoint on each node."""
    api = crowded.api
    api.ensure_namespace(STEADY)
    api.ensure_namespace(NAMESPACE)
    for node in crowded.lab.nodes:
        node.serve(f"{STEADY}-{node.name}", PORT)
        for name in (STEADY, NAMESPACE):
            record = pod(node.name, {"app": name}, node.name, {"app": (PORT, "TCP")})
            api.create(f"{CORE}/namespaces/{name}/pods", record)
    document = service(STEADY, {"app": STEADY}, [{"port": 80, "targetPort": PORT}])
    virtual_ip: str = api.create(f"{CORE}/namespaces/{STEADY}/services", document)["spec"]["clusterIP"]
    for node in crowded.lab.nodes:
        for other in crowded.lab.nodes:
            outcome(node.ask_until(virtual_ip, 80, f"{STEADY}-{other.name}", deadline_s=30), 40)
    return virtual_ip


class Ledger:
    """What all clients together were told is theirs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: dict[str, str] = {}
        self.duplicates: list[str] = []
        self.allocations = 0
        self.unanswered = 0
        self.counts: Counter[str] = Counter()

    def given(self, name: str, values: list[str]) -> None:
        with self._lock:
            for value in values:
                other = self._owner.setdefault(value, name)
                if other != name:
                    self.duplicates.append(f"{value} was given to {name} while {other} had it")
            self.allocations += len(values)
            self.counts["created"] += 1

    def given_back(self, name: str) -> None:
        """Called before the deletion is asked for: from then on somebody else may be given the values."""
        with self._lock:
            self._owner = {value: owner for value, owner in self._owner.items() if owner != name}
            self.counts["deleted"] += 1

    def repeated(self) -> None:
        with self._lock:
            self.unanswered += 1


class Client(threading.Thread):
    """Creates Services and deletes some of its own, each until it is accepted."""

    def __init__(self, number: int, api: ApiClient, ledger: Ledger, enough: threading.Event) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._number, self._api, self._ledger, self._enough = number, api, ledger, enough
        self._random = random.Random(number)
        self.living: dict[str, list[str]] = {}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            made = 0
            while not self._enough.is_set():
                self._create(f"c{self._number}-{made}")
                made += 1
                while len(self.living) > LIVING or (self.living and self._random.random() < 0.3):
                    self._remove(self._random.choice([*self.living]))
                if self._ledger.allocations >= ALLOCATIONS:
                    self._enough.set()
        except BaseException as err:  # the test tells of it
            self.failure = err
            self._enough.set()

    def _create(self, name: str) -> None:
        numbers = range(80, 80 + self._random.randint(1, MOST_PORTS))
        ports: list[Document] = [{"name": f"p{n}", "port": n, "targetPort": PORT} for n in numbers]
        document = service(name, {"app": NAMESPACE}, ports, kind="NodePort")
        made = self._until_accepted("POST", SERVICES, document, done=409)
        if not made:
            made = self._until_accepted("GET", f"{SERVICES}/{name}", None)
        self.living[name] = values_of(made)
        self._ledger.given(name, self.living[name])

    def _remove(self, name: str) -> None:
        self._ledger.given_back(name)
        del self.living[name]
        self._until_accepted("DELETE", f"{SERVICES}/{name}", None, done=404)

    def _until_accepted(self, method: str, path: str, body: Document | None, *, done: int = 0) -> Document:
        """The answer; empty when `done` tells that a try got through whose answer was lost (`request` tries again, too)."""
        deadline = time.monotonic() + 90
        while True:
            try:
                return self._api.request(method, path, body, timeout_s=60)
            except ApiRefused as err:
                if err.code == done:
                    return {}
                if err.code < 500:
                    raise
            except OSError:
                pass
            self._ledger.repeated()
            assert time.monotonic() < deadline, f"{method} {path} not accepted in 90 s"
            time.sleep(self._random.uniform(0.1, 0.4))


def values_of(item: Document) -> list[str]:
    return [item["spec"]["clusterIP"], *(str(port["nodePort"]) for port in item["spec"]["ports"])]


def kill(cluster: Cluster, role: str, choice: random.Random) -> None:
    pids = cluster.stack.pids_of(role)
    if pids:
        os.kill(choice.choice(pids), signal.SIGKILL)


@contextlib.contextmanager
def steady_traffic(cluster: Cluster, virtual_ip: str) -> Iterator[None]:
    """Connections to the Service that nobody changes, from every node all the time: none may fail."""
    for node in cluster.lab.nodes:
        node.stream("new", virtual_ip, 80, interval_ms=50, timeout_s=5)
        node.stream("kept", virtual_ip, 80, interval_ms=50, timeout_s=5, kept=True)
    yield
    for node in cluster.lab.nodes:
        for key in ("new", "kept"):
            report = node.stream_end(key)
            assert report["asked"] > 100
            assert not report["failed"], (node.name, key, report)


def repaired(cluster: Cluster) -> str:
    """What `timonel repair --check` finds, "" when all holds."""
    try:
        cluster.stack.manage("repair", "--check")
    except subprocess.CalledProcessError as err:
        return err.stdout + err.stderr
    return ""


def test_a_hundred_thousand_allocations_while_everything_is_killed(crowded: Cluster, steady_ip: str) -> None:
    ledger, enough, choice = Ledger(), threading.Event(), random.Random(7)
    clients = [Client(number, crowded.api, ledger, enough) for number in range(CLIENTS)]
    begin = time.monotonic()
    kills: Counter[str] = Counter()
    with steady_traffic(crowded, steady_ip):
        for client in clients:
            client.start()
        first = iter(ROLES)  # each at least once
        while not enough.wait(choice.uniform(3, 9)) and time.monotonic() < begin + TIME_S:
            role = next(first, None) or choice.choice([*ROLES, "web"])
            kill(crowded, role, choice)
            kills[role] += 1
        enough.set()
        for client in clients:
            client.join(120)
        took_s = time.monotonic() - begin
        print(
            f"{ledger.allocations} allocations in {took_s:.0f} s; {dict(ledger.counts)}; killed {dict(kills)};", end=" "
        )
        print(f"{ledger.unanswered} requests repeated")
        assert [client.failure for client in clients if client.failure] == []
        assert ledger.duplicates == []
        assert ledger.allocations >= ALLOCATIONS
        assert min(kills[role] for role in ROLES) > 0
        items = crowded.api.request("GET", SERVICES)["items"]
        held = {item["metadata"]["name"]: values_of(item) for item in items}
        assert held == {name: values for client in clients for name, values in client.living.items()}
        values = [value for of_one in held.values() for value in of_one]
        assert len(set(values)) == len(values)
        assert repaired(crowded) == ""
        wait_equal(crowded.api, crowded.lab.nodes, deadline_s=120)
    crowded.api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}", timeout_s=120)
    deadline = time.monotonic() + 60
    while crowded.api.request("GET", SERVICES)["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert repaired(crowded) == ""
    wait_equal(crowded.api, crowded.lab.nodes, deadline_s=60)
