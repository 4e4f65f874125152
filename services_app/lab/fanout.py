"""How long a change takes to many real nodes: from sending the write until the last one's report is stored.

Each node is a set of namespaces with a sshd, an agent, a kernel table and name servers of its own, all on this machine.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from services_app.lab import dataplane
from services_app.lab.client import CORE, condition, pod, service
from services_app.lab.cluster import Cluster, StepFailed
from services_app.lab.simulation import HEARTBEAT_S, Costs
from services_app.local.supervisor import ROOT

NAMESPACE = "fanout"
PAUSE_S = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """Of each change, in milliseconds: until every node's report is stored, and until the write was answered.

    cpu_ms: process -> what it took of a processor for one change.
    """

    last_ms: tuple[float, ...]
    answered_ms: tuple[float, ...]
    cpu_ms: dict[str, float]


def enrol_all(cluster: Cluster, say: Say, timeout_s: float = 400) -> None:
    """Enrol every node of the lab, and wait until all are ready. Raises StepFailed."""
    begin = time.monotonic()
    hosts = [
        {"name": node.name, "address": node.address, "fingerprint": node.host_key_fingerprint}
        for node in cluster.lab.nodes
    ]
    done = subprocess.run(
        [sys.executable, "-m", "services_app.lab.enrolment", str(cluster.lab.identity_file)],
        input=json.dumps(hosts),
        env=cluster.stack.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise StepFailed("enrol every node", done.stderr[-2000:], f"look into {cluster.directory}/log")
    say(f"{len(hosts)} nodes enrolled in {time.monotonic() - begin:.0f} s")
    while waiting := _unready(cluster):
        if time.monotonic() > begin + timeout_s:
            raise StepFailed("see every node ready", ", ".join(waiting[:5]), f"look into {cluster.directory}/log")
        time.sleep(0.5)
    say(f"all ready after {time.monotonic() - begin:.0f} s")


def _unready(cluster: Cluster) -> list[str]:
    nodes = cluster.api.request("GET", f"{CORE}/nodes")["items"]
    return [node["metadata"]["name"] for node in nodes if condition(node, "Ready").get("status") != "True"]


class Fanout:
    """A Service whose endpoint moves, on every node of a cluster; a context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._database = psycopg.connect(cluster.stack.database_url, autocommit=True)
        self._moves = 0
        api = cluster.api
        api.ensure_namespace(NAMESPACE)
        labels = {"app": "moving"}
        record = pod("moving", labels, cluster.lab.nodes[0].name, {"app": (9376, "TCP")}, address=self._address())
        api.create(f"{CORE}/namespaces/{NAMESPACE}/pods", record)
        api.create(f"{CORE}/namespaces/{NAMESPACE}/services", service("moving", labels, [{"port": 80}]))

    def __enter__(self) -> "Fanout":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def measure(self, changes: int) -> Times:
        """One change after the other, each when the one before is on every node and a pause is over."""
        last, answered = [], []
        before = self._cpu_s()
        for _ in range(changes):
            ms = self._change()
            last.append(ms[0])
            answered.append(ms[1])
            time.sleep(PAUSE_S)
        after = self._cpu_s()
        cpu_ms = {role: (after[role] - before[role]) * 1000 / changes for role in after}
        return Times(tuple(last), tuple(answered), cpu_ms)

    def record(self, times: Times, changes: int = 30, idle_s: float = 12.0) -> Costs:
        """What one push took, for the simulation: `times` of many nodes less what they take when nothing happens, and
        changes while only one node is pushed to.
        """
        before, begin = self._cpu_s(), time.monotonic()
        time.sleep(idle_s)
        after, idle_s = self._cpu_s(), time.monotonic() - begin
        idle = {role: (after[role] - before[role]) / idle_s for role in after}  # seconds a second
        count = len(self._cluster.lab.nodes)
        took_s = sum(times.last_ms) / 1000 / len(times.last_ms) + PAUSE_S

        def of_a_push(role: str) -> float:
            return max(times.cpu_ms[role] - idle[role] * 1000 * took_s, 0.0) / count

        worker, database = of_a_push("worker"), of_a_push("postgres")
        alone = self._alone(changes)
        rest_ms = statistics.median(whole - applied for whole, applied in alone)
        return Costs(
            wake_ms=max(rest_ms - worker - database, 0.0),
            worker_cpu_ms=worker,
            database_cpu_ms=database,
            node_cpu_ms=of_a_push("nodes"),
            node_ms=tuple(sorted(round(applied, 2) for _, applied in alone)),
            ask_worker_cpu_ms=idle["worker"] * 1000 * HEARTBEAT_S / count,
            ask_database_cpu_ms=idle["postgres"] * 1000 * HEARTBEAT_S / count,
        )

    def _alone(self, changes: int) -> list[tuple[float, float]]:
        """Of changes while no other node is pushed to: until its report is stored, and how long it worked; in ms."""
        node = self._cluster.lab.nodes[0].name
        hold = "UPDATE services_app_nodesync SET next_attempt_at = now() + %s::interval WHERE node <> %s"
        for _ in range(2):  # a push under way sets the time anew when it ends
            self._database.execute(hold, ["1 day", node])
            time.sleep(0.5)
        found = []
        for _ in range(changes):
            whole_ms, _ = self._change(only=node)
            applied = self._database.execute("SELECT last_apply_ms FROM services_app_nodesync WHERE node = %s", [node])
            found.append((whole_ms, float((applied.fetchone() or (0.0,))[0])))
            time.sleep(PAUSE_S / 2)
        self._database.execute(hold, ["0 days", node])
        return found

    def _change(self, only: str = "") -> tuple[float, float]:
        """Milliseconds until every node's report is stored, or only that one's, and until the write was answered."""
        self._moves += 1
        body = {"metadata": {"annotations": {"timonel.io/pod-ip": self._address()}}}
        begin = time.monotonic()
        self._cluster.api.request("PATCH", f"{CORE}/namespaces/{NAMESPACE}/pods/moving", body)
        answered = time.monotonic()
        newest = "SELECT max(revision) FROM services_app_change WHERE owner IS NOT NULL"
        (revision,) = self._database.execute(newest).fetchone() or (0,)
        behind = "SELECT count(*) FROM services_app_nodesync WHERE applied_revision < %s AND %s IN ('', node)"
        while self._database.execute(behind, [revision, only]).fetchone() != (0,):
            if time.monotonic() > begin + 60:
                raise TimeoutError("a change has not reached every node after 60 s")
            time.sleep(0.005)
        return (time.monotonic() - begin) * 1000, (answered - begin) * 1000

    def _address(self) -> str:
        return f"192.0.2.{self._moves % 250 + 1}"

    def _cpu_s(self) -> dict[str, float]:
        """Processor seconds so far: by role in the control plane, and of all that runs on the nodes."""
        stack = self._cluster.stack
        roots = {pid: role for role in ("web", "worker", "postgres", "redis") for pid in stack.pids_of(role)}
        here = os.readlink("/proc/self/ns/pid")
        found = dict.fromkeys((*roots.values(), "nodes"), 0.0)
        parents: dict[int, int] = {}
        took: dict[int, float] = {}
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(OSError):  # gone meanwhile
                if os.readlink(f"/proc/{pid}/ns/pid") != here:
                    found["nodes"] += dataplane.cpu_s(pid)
                else:
                    parents[pid], took[pid] = dataplane.parent_of(pid), dataplane.cpu_s(pid)
        for pid, seconds in took.items():
            while pid not in roots and pid in parents:
                pid = parents[pid]
            if pid in roots:
                found[roots[pid]] += seconds
        return found
