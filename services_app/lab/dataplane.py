"""What one node does with many Services: to load them, to follow single changes and bursts, and the memory it takes."""

import contextlib
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from agents import ruleset
from agents.journal import Journal
from agents.state import State
from services_app.lab.client import CORE, ApiClient, Document, pod, service
from services_app.lab.cluster import Cluster
from services_app.lab.namespaces import Place, outcome
from services_app.lab.network import Container, Node
from services_app.lab.pages import Browser
from services_app.spec import kube_proxy

PORT = 9376
FIRST_ADDRESS = 150  # of the Pods, in their container's network; below are the ones of other measurements
CLIENTS = 8
ELSEWHERE = "somewhere"  # a Node
NAME_SERVERS = r"\bknotd\b|\bunbound\b"

Say = Callable[[str], None]


class Held:
    """A node of a cluster, and when it is pushed to; a context manager. Asked for as an operator does, but for what says so."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.cluster, self.node = cluster, node
        self._browser = Browser(cluster.api)
        self._browser.log_in("admin", cluster.stack.admin_password)
        self._database = psycopg.connect(cluster.stack.database_url, autocommit=True)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def hold(self) -> None:
        """Let no push begin; by the tables, as while a host is cleaned up."""
        for _ in range(2):  # a push under way sets the time anew when it ends
            self._database.execute(
                "UPDATE services_app_nodesync SET next_attempt_at = now() + interval '1 day' WHERE node = %s",
                [self.node.name],
            )
            time.sleep(0.5)

    def push(self, timeout_s: float = 120) -> float:
        """Ask for a push of everything; seconds until its report is stored."""
        begin = time.monotonic()
        self._browser.press(f"/ui/nodes/{self.node.name}/push/")
        while self._is_wanted():
            if time.monotonic() > begin + timeout_s:
                raise TimeoutError(f"{self.node.name} has not got everything after {timeout_s:.0f} s")
            time.sleep(0.005)
        return time.monotonic() - begin

    def _is_wanted(self) -> bool:
        rows = self._database.execute("SELECT full_wanted FROM services_app_nodesync WHERE node = %s", [self.node.name])
        return bool(rows.fetchone() == (True,))

    def serve_by(self, mode: str, timeout_s: float = 120) -> None:
        """Have the node serve Services in a mode. Raises ApiRefused when there is no such mode, RuntimeError otherwise."""
        metadata = {"annotations": {kube_proxy.ANNOTATION: f"mode: {mode}"}}
        self.cluster.api.request("PATCH", f"{CORE}/nodes/{self.node.name}", {"metadata": metadata})
        said = "SELECT facts->>'mode' FROM services_app_nodesync WHERE node = %s"
        deadline = time.monotonic() + timeout_s
        while (found := self._database.execute(said, [self.node.name]).fetchone()) != (mode,):
            if time.monotonic() > deadline:
                raise RuntimeError(f"cannot have {self.node.name} serve in mode {mode}: it says {found and found[0]}")
            time.sleep(0.1)

    def settle(self, timeout_s: float = 120) -> None:
        """Wait until every Service is Programmed: until then the control plane writes conditions."""
        deadline = time.monotonic() + timeout_s
        left = "SELECT count(*) FROM services_app_service WHERE programmed IS NOT TRUE"
        while self._database.execute(left).fetchone() != (0,):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not every Service is Programmed after {timeout_s:.0f} s")
            time.sleep(0.1)

    # What the node holds

    @property
    def journal(self) -> Path:
        """The agent's file, from outside."""
        return Path(f"/proc/{self.node.pid}/root/var/lib/timonel/journal")

    def empty(self) -> None:
        """End the session and leave the node as after enrolment: it belongs to the control plane, and holds nothing."""
        self.hold()
        self.node.kill_agent()
        self.node.kill(NAME_SERVERS)
        self.node.run(["nft", "flush", "ruleset"])
        state = Journal(self.journal).load()
        Journal(self.journal).rewrite(State(state.cluster))

    def spoil(self) -> None:
        """End the session and make the table another than what the agent left: the next one fills it anew, in place."""
        self.hold()
        self.node.kill_agent()
        self.node.run(["nft", "flush", "set", "ip", "timonel", "generation"])

    def elements(self, namespace: str = "") -> dict[str, str]:
        """The elements of the IPv4 table as the agent holds them; namespace: only its Services'."""
        state = Journal(self.journal).load()
        if not namespace:
            return state.elements("nft4")
        return {
            key: value
            for owner, held in state.owners.items()
            if owner.startswith(f"{namespace}/")
            for (driver, key), value in held.items()
            if driver == "nft4"
        }

    def agent_pid(self) -> int:
        """Of the process that serves the open session."""
        return next(pid for pid, command in self.node.processes().items() if re.search(r"python3.*\bserve\b", command))


def add_pods(api: ApiClient, namespace: str, node: Node, container: Container, count: int) -> None:
    """Pods that are the endpoints of each Service of the namespace; of ten one is the node's, as among ten nodes.

    The others are of a Node that is not enrolled, and somebody else tells their status. All addresses are the container's.
    """
    api.ensure_namespace(namespace)
    api.apply(f"{CORE}/nodes", {"metadata": {"name": ELSEWHERE}})  # a Pod of no Node is no endpoint
    network, pods = container.address.rpartition(".")[0], f"{CORE}/namespaces/{namespace}/pods"
    for i in range(count):
        address = f"{network}.{FIRST_ADDRESS + i}"
        place = ELSEWHERE if i % 10 else node.name
        api.create(pods, pod(f"backend-{i}", {"app": "backend"}, place, {"app": (PORT, "TCP")}, address=address))
        if place == ELSEWHERE:
            ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
            api.request("PATCH", f"{pods}/backend-{i}/status", {"status": status})


def add_services(api: ApiClient, namespace: str, numbers: range, say: Say) -> None:
    """Services over the same Pods, from several clients: each has endpoints and a group of its own on the node."""
    path = f"{CORE}/namespaces/{namespace}/services"
    begin = time.monotonic()

    def create(i: int) -> None:
        api.create(path, service(f"many-{i}", {"app": "backend"}, [{"port": 80, "targetPort": PORT}]))

    with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        for done, _ in enumerate(pool.map(create, numbers), start=1):
            if done % 2500 == 0:
                say(f"{done} of {len(numbers)} Services in {time.monotonic() - begin:.0f} s")


# Loads


def kernel_load_s(place: Place, elements: Mapping[str, str], rounds: int = 3) -> float:
    """What `nft` takes in a place without rules for the agent's own script: median seconds."""
    script = ruleset.refill_script(ruleset.IPV4, elements, ["lo", "eth0"])
    times = []
    for _ in range(rounds):
        begin = time.monotonic()
        place.run(["nft", "-f", "-"], input=script)
        times.append(time.monotonic() - begin)
        place.run(["nft", "delete", "table", "ip", "timonel"])
    return statistics.median(times)


def full_load_s(held: Held, say: Say, rounds: int = 3) -> float:
    """From a node that holds nothing until its report of everything is stored: median seconds."""
    return _pushed_s(held, held.empty, "from empty", say, rounds)


def reload_s(held: Held, say: Say, rounds: int = 3) -> float:
    """The same over a full table, which is filled anew in place."""
    return _pushed_s(held, held.spoil, "over a full table", say, rounds)


def _pushed_s(held: Held, prepare: Callable[[], None], what: str, say: Say, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        prepare()
        times.append(held.push())
        held.settle()
    say(f"everything pushed {what}: {', '.join(f'{seconds:.2f}' for seconds in times)} s")
    return statistics.median(times)


@contextlib.contextmanager
def watched_memory(node: Node) -> Iterator[list[float]]:
    """Looks every 20 ms at the agent with its children; the greatest sum of resident MiB comes into the list."""
    peak = [0.0]
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.02):
            agents = {pid for pid, command in node.processes().items() if re.search(r"python3.*\bserve\b", command)}
            pids = agents | {pid for pid in node.processes() if parent_of(pid) in agents}
            peak[0] = max(peak[0], sum(resident_mib(pid) for pid in pids))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ending.set()
        thread.join(10)


def resident_mib(pid: int) -> float:
    """0 when the process is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def parent_of(pid: int) -> int:
    """0 when the process is gone."""
    with contextlib.suppress(OSError):
        return int(_stat(pid)[1])
    return 0


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and the children it has waited for."""
    user, system, of_children, in_children = (int(field) for field in _stat(pid)[11:15])
    return (user + system + of_children + in_children) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


# Changes


class Burst:
    """Services with one endpoint each, all of which move at once; a context manager. `namespace` must exist."""

    def __init__(self, api: ApiClient, node: Node, namespace: str, count: int) -> None:
        self._api, self._node, self._namespace = api, node, namespace
        self._container = container = node.containers[0]
        network = container.address.rpartition(".")[0]
        self._addresses = [f"{network}.{FIRST_ADDRESS - 2 + i}" for i in range(2)]
        for i, address in enumerate(self._addresses):
            container.add_address(FIRST_ADDRESS - 2 + i)
            container.serve(f"side-{i}", PORT, address=address)
        self._side = 0
        self._hosts: list[str] = []
        for i in range(count):
            labels = {"app": f"burst-{i}"}
            record = pod(f"burst-{i}", labels, node.name, {"app": (PORT, "TCP")}, address=self._addresses[0])
            api.create(f"{CORE}/namespaces/{namespace}/pods", record)
            made = api.create(
                f"{CORE}/namespaces/{namespace}/services",
                service(f"burst-{i}", labels, [{"port": 80, "targetPort": PORT}]),
            )
            self._hosts.append(made["spec"]["clusterIP"])
        self._arrived(60)

    def __enter__(self) -> "Burst":
        return self

    def __exit__(self, *_: object) -> None:
        for address in self._addresses:
            self._container.stop_serving(PORT, address=address)

    def measure_ms(self) -> float:
        """From sending the last write until the last Service is answered by where its endpoint went."""
        self._side = 1 - self._side
        body: Document = {"metadata": {"annotations": {"timonel.io/pod-ip": self._addresses[self._side]}}}

        def move(i: int) -> float:
            begin = time.monotonic()
            self._api.request("PATCH", f"{CORE}/namespaces/{self._namespace}/pods/burst-{i}", body)
            return begin

        with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
            begins = [pool.submit(move, i) for i in range(len(self._hosts))]
            arrival = self._arrived(30)
            return (arrival - max(begin.result() for begin in begins)) * 1000

    def _arrived(self, deadline_s: float) -> float:
        wanted = {host: [f"side-{self._side}"] for host in self._hosts}
        waiting = self._node.prober.start("ask_each_until", wanted=wanted, port=80, deadline_s=deadline_s)
        at: float = outcome(waiting, deadline_s + 10)["at"]
        return at
