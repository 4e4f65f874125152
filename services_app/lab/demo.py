"""`timonel demo`: the mission's own manifests become addresses that answer on three hosts, and a proof of it.

1. a lab of three nodes with containers behind them and a client outside
2. a control plane with its own PostgreSQL and Redis
3. the nodes enrolled over SSH
4. backends started and described as Pods, the manifests applied with kubectl, waited for until Programmed
5. the proof, read from outside; how long changes take; an endpoint removed
6. the addresses for people, until Ctrl-C
"""

import fcntl
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from services_app.lab import proof as p
from services_app.lab.cluster import Cluster, StepFailed
from services_app.lab.convergence import Convergence
from services_app.lab.namespaces import LabError, ProbeFailed
from services_app.lab.network import Lab
from services_app.lab.samples import SAMPLES

CONVERGENCE_CHANGES = 50

Say = Callable[[str], None]


class Demo:
    """Everything from an empty directory to the proof."""

    def __init__(self, directory: Path, proof_file: Path, *, bind: tuple[str, int], say: Say) -> None:
        """directory: emptied first, removed when all went well. bind: taken when it is free."""
        self._directory = directory
        self._proof_file = proof_file
        self._bind = bind
        self._say = say
        self._begin = time.monotonic()
        self.proof = p.Proof(self._step)

    def run(self, stay: Callable[[], object] | None) -> bool:
        """Whether every line of the proof is true.

        stay: called in the end with everything running, ended by KeyboardInterrupt; None: do not stay.
        Raises StepFailed, LabError or ProbeFailed when it cannot come so far.
        """
        make_empty(self._directory)
        host, port = self._bind
        bind = f"{host}:{port if is_free(host, port) else 0}"
        with Cluster(self._directory, bind=bind, say=self._step) as cluster:
            self._prove(cluster)
            self.proof.write(self._proof_file)
            self._summary()
            if stay:
                self._invite(cluster)
                with suppress(KeyboardInterrupt):
                    stay()
            self._say("stopping …")
        if not self.proof.failed:
            shutil.rmtree(self._directory, ignore_errors=True)
        return not self.proof.failed

    def _step(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._begin:6.1f} s  {line}")

    def _prove(self, cluster: Cluster) -> None:
        lab = cluster.lab
        for shown in start_backends(lab):
            virtual_ip = self._publish(cluster, shown)
            p.prove_kubectl(self.proof, cluster.kubectl, shown, virtual_ip)
            p.prove_virtual_ip(self.proof, lab, shown, virtual_ip)
            p.prove_names(self.proof, lab, shown, virtual_ip)
            if shown.namespace == "selector":
                p.prove_balance(self.proof, lab, shown, virtual_ip)
                p.prove_client_addresses(self.proof, lab, shown, virtual_ip)
                self._remove_endpoint(cluster, shown, virtual_ip)
            if shown.namespace == "node-port":
                p.prove_node_port(self.proof, lab, shown, 30007)
        cluster.applied("create", "namespace", "convergence")
        self._step(f"{CONVERGENCE_CHANGES} changes of one endpoint, one every 100 ms")
        with Convergence(lab.nodes, cluster.api, "convergence") as moving:
            moving.measure(10)
            measured = moving.measure(CONVERGENCE_CHANGES)
        cluster.applied("delete", "namespace", "convergence")
        self.proof.convergence_ms = {"p50": round(measured.p50_ms, 1), "p99": round(measured.p99_ms, 1)}

    def _publish(self, cluster: Cluster, shown: p.Shown) -> str:
        """Describe the backends, apply the manifest; returns the cluster IP once it is programmed."""
        namespace = ("-n", shown.namespace)
        cluster.applied("create", "namespace", shown.namespace)
        manifest = shown.sample.manifest
        said = cluster.applied("apply", *namespace, "-f", str(manifest))
        self._step(f"kubectl apply -n {shown.namespace} -f {manifest.name}: {said.strip()}")
        cluster.applied("apply", *namespace, "-f", "-", input=pods_text(cluster.lab, shown))
        arguments = ["wait", "--for=condition=Programmed", f"service/{shown.service}", *namespace, "--timeout=30s"]
        done = cluster.kubectl(*arguments)
        got = (done.stdout or done.stderr).strip()
        expected = f"service/{shown.service} condition met"
        self.proof.note(shown.title, "kubectl", "this machine", " ".join(arguments), expected, got, got == expected)
        return cluster.applied("get", "service", shown.service, *namespace, "-o", "jsonpath={.spec.clusterIP}").strip()

    def _remove_endpoint(self, cluster: Cluster, shown: p.Shown, virtual_ip: str) -> None:
        """An endpoint whose Pod is deleted gets no more connections, and none is lost; then it comes back."""
        gone, rest = shown.endpoints[-1], replace(shown, endpoints=shown.endpoints[:-1])
        port = next(iter(shown.ports.values()))[0]
        client = cluster.lab.nodes[1]
        client.stream("removal", virtual_ip, port, interval_ms=5)
        cluster.applied("delete", "pod", gone.name, "-n", shown.namespace, "--wait=false")
        self._step(f"kubectl delete pod {gone.name} -n {shown.namespace}")
        names = {e.name for e in rest.endpoints}
        for node in cluster.lab.nodes:
            deadline = time.monotonic() + 10
            while True:
                answers = node.ask_often(virtual_ip, port, p.CONNECTIONS)
                ok = {a.get("backend") for a in answers} == names
                if ok or time.monotonic() > deadline:
                    break
            target = f"{virtual_ip}:{port} without {gone.name}"
            expected = f"answers from {', '.join(sorted(names))}"
            self.proof.note(shown.title, "vip", node.name, target, expected, p.counted(answers), ok)
        report = client.stream_end("removal")
        got = f"{report['failed']} of {report['asked']} connections failed"
        self.proof.note(
            shown.title, "vip", client.name, f"{virtual_ip}:{port} meanwhile", "0 failed", got, report["failed"] == 0
        )
        p.prove_kubectl(self.proof, cluster.kubectl, rest, virtual_ip)
        cluster.applied("delete", "pod", gone.name, "-n", shown.namespace, "--now")
        cluster.applied("apply", "-n", shown.namespace, "-f", "-", input=pods_text(cluster.lab, shown))

    def _summary(self) -> None:
        proof = self.proof
        self._say("")
        for kind in ("vip", "nodeport", "dns", "kubectl"):
            lines = [line for line in proof.lines if line.kind == kind]
            self._say(f"  {kind:<9} {sum(line.ok for line in lines):>3} of {len(lines)} as expected")
        times = proof.convergence_ms
        self._say(f"  convergence, API write to last node's packets: p50 {times['p50']} ms, p99 {times['p99']} ms")
        self._say(f"  the whole proof: {self._proof_file}")
        for line in proof.failed:
            where = f"{line.service} {line.kind} {line.source} → {line.target}"
            self._say(f"  FAIL {where}: expected {line.expected}, got {line.got}")
        if proof.failed:
            self._say(f"  next: the logs of web and worker are in {self._directory}/log")

    def _invite(self, cluster: Cluster) -> None:
        stack, nodes = cluster.stack, cluster.lab.nodes
        self._say(
            f"\nTimonel runs, with {len(nodes)} nodes. Ctrl-C ends it and leaves nothing behind.\n"
            f"  page        {stack.url}/   login admin, password {stack.admin_password}\n"
            f"  kubectl     export KUBECONFIG={stack.kubeconfig}\n"
            f"  a node      {' '.join(nodes[0].inside(['bash']))}\n"
            f"  outside     {' '.join(cluster.lab.client.inside(['bash']))}\n"
        )


def start_backends(lab: Lab) -> list[p.Shown]:
    """The samples, with a backend started for each Pod: on its node, or in a container behind it that is still free."""
    free = {node.name: iter(node.containers) for node in lab.nodes}
    shown = []
    for sample in SAMPLES:
        endpoints = []
        for pod in sample.pods:
            node = lab.nodes[pod.node]
            place = node if pod.is_on_node else next(free[node.name])
            for _, target_port in sample.ports.values():
                place.serve(pod.name, target_port)
            endpoints.append(p.Endpoint(pod.name, node, place))
        shown.append(p.Shown(sample, tuple(endpoints)))
    return shown


def pods_text(lab: Lab, shown: p.Shown) -> str:
    """The manifests of its Pods, as YAML."""
    addresses = {endpoint.name: endpoint.place.address for endpoint in shown.endpoints}
    records = shown.sample.pod_records([node.name for node in lab.nodes], addresses)
    return yaml.safe_dump_all(records, sort_keys=False)


def make_empty(directory: Path) -> None:
    """An empty directory of that name; what an earlier run left is removed. Raises StepFailed when one still runs."""
    lock = directory / "lock"
    if lock.exists():
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise StepFailed(
                    f"use {directory}", "another demo or bench runs there", "end that one, or set TIMONEL_DATA_DIR"
                ) from err
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s, suppress(OSError):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((host.strip("[]"), port))
        return True
    return False


FAILURES = (StepFailed, LabError, ProbeFailed, OSError)
