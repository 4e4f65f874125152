"""`timonel compose-check`: docker-compose.yml built and run with a container engine, and the demo's proof on it.

1. images built, everything started in a project of its own, the one-shot services waited for
2. the proof: kubectl through the published port, connections and dig inside the containers
3. each service restarted, then all at once; after each, a change still reaches every node
4. a node restarted while no control plane runs: it serves what it held
5. taken down and started again on the same volumes: the same addresses and credentials, the proof once more
6. taken down with volumes; nothing of the project is left
"""

import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from services_app.lab import http_probe
from services_app.lab import proof as p
from services_app.lab.client import Kubectl
from services_app.lab.samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent.parent
NODES = ("node-1", "node-2", "node-3")
RESTARTED = ("redis", "postgres", "web", "worker", "beat", "node-2", "myapp-2")
CONTROL_PLANE = ("beat", "worker", "web", "redis", "postgres")
PROBE = Path(http_probe.__file__).read_text(encoding="utf-8")

Say = Callable[[str], None]
T = TypeVar("T")


class NoEngine(RuntimeError):
    """There is no container engine to check with; the text says what was tried and how to get one."""


class ComposeFailed(RuntimeError):
    """A command of the engine or of compose failed; the text is its own."""


def find_compose() -> list[str]:
    """The compose command of an engine that answers. Raises NoEngine."""
    remedy = "Install Docker with its compose plugin (Debian: apt-get install docker.io docker-compose) and start it"
    if shutil.which("docker") is None:
        raise NoEngine(f"docker is not installed. {remedy}")
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise NoEngine(f"no engine answers: {done.stderr.strip()} {remedy}")
    for command in (["docker", "compose"], ["docker-compose"]):
        is_there = shutil.which(command[0]) is not None
        if is_there and not subprocess.run([*command, "version"], capture_output=True, timeout=60).returncode:
            return command
    raise NoEngine(f"an engine answers, but neither `docker compose` nor `docker-compose` is there. {remedy}")


class Container:
    """A running container of the stack; a place of the proof."""

    containers: Sequence[p.Place] = ()  # nothing sends its packets through another container

    def __init__(self, name: str, identity: str, address: str) -> None:
        self.name, self.address = name, address
        self._identity = identity

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside. Raises ComposeFailed when it fails, unless check is False."""
        return _run(["docker", "exec", "-i", self._identity, *argv], input=input, timeout_s=timeout_s, check=check)

    def ask_often(self, host: str, port: int, count: int, *, timeout_s: float = 2.0) -> list[p.Message]:
        argv = ["python3", "-", host, str(port), str(count), str(timeout_s)]
        answers: list[p.Message] = json.loads(self.run(argv, input=PROBE, timeout_s=count * timeout_s + 30).stdout)
        return answers


class ComposeStack:
    """docker-compose.yml under a project name, ports and a network of its own; a context manager that removes it all."""

    def __init__(self, compose: list[str], directory: Path) -> None:
        """directory: for the kubeconfig."""
        self._compose = compose
        self._kubeconfig = directory / "kubeconfig"
        self.kubectl = Kubectl(self._kubeconfig)
        self.project = f"timonel-check-{os.getpid()}"
        self.node_port = _free_port()
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "TIMONEL_COMPOSE_PORT": str(_free_port()),
            "TIMONEL_COMPOSE_NODE_PORT": str(self.node_port),
            "TIMONEL_COMPOSE_NETWORK": _free_network(),
            "TIMONEL_COMPOSE_ADDRESS": "127.0.0.1",
        }
        self.nodes: list[Container] = []

    def __enter__(self) -> "ComposeStack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout=5", timeout_s=180, check=False)

    def compose(self, *arguments: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Raises ComposeFailed when it fails, unless check is False."""
        return _run(
            [*self._compose, *arguments], timeout_s=timeout_s, check=check, environment=self._environment, cwd=ROOT
        )

    def up(self) -> None:
        """Start everything and wait for the service that ends when all is live. Raises ComposeFailed."""
        self.compose("up", "--detach", timeout_s=300)
        code = _run(["docker", "wait", self.identity_of("enrol")], timeout_s=180).stdout.strip()
        log = self.compose("logs", "--no-color", "--no-log-prefix", "enrol").stdout
        if code != "0":
            raise ComposeFailed(f"the service enrol ended with {code}:\n{log}")
        self.nodes = [self.container(name) for name in NODES]
        self.client = self.container("client")
        self._kubeconfig.touch(0o600)
        self._kubeconfig.write_text(self.compose("exec", "-T", "web", "cat", "/var/lib/timonel/kubeconfig").stdout)

    @property
    def credentials(self) -> str:
        """The kubeconfig's text."""
        return self._kubeconfig.read_text()

    def identity_of(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def container(self, service: str) -> Container:
        identity = self.identity_of(service)
        found = json.loads(_run(["docker", "inspect", identity]).stdout)[0]["NetworkSettings"]["Networks"]
        return Container(service, identity, found[f"{self.project}_hosts"]["IPAddress"])

    def shown(self) -> list[p.Shown]:
        """The samples and where their backends are."""
        return [
            p.Shown(
                sample,
                tuple(
                    p.Endpoint(
                        pod.name,
                        self.nodes[pod.node],
                        self.nodes[pod.node] if pod.is_on_node else self.container(pod.name),
                    )
                    for pod in sample.pods
                ),
            )
            for sample in SAMPLES
        ]

    def logs(self) -> str:
        """The end of every container's log."""
        return self.compose("logs", "--no-color", "--tail=30", check=False).stdout

    def leftovers(self) -> list[str]:
        """What of the project the engine still has."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
        return [
            f"{kind} {identity}"
            for kind, words in kinds.items()
            for identity in _run(["docker", *words, "--quiet", "--filter", label]).stdout.split()
        ]


class ComposeCheck:
    """The whole check; `proof` holds its lines."""

    def __init__(self, say: Say) -> None:
        self._tell = say
        self._begin = time.monotonic()
        self.proof = p.Proof(self._say)

    def run(self) -> bool:
        """Whether every line of the proof is true. Raises NoEngine before anything is done; ComposeFailed."""
        compose = find_compose()
        with tempfile.TemporaryDirectory(prefix="timonel-") as directory:
            stack = ComposeStack(compose, Path(directory))
            with stack:
                try:
                    self._check(stack)
                except ComposeFailed:
                    self._say(f"the end of every container's log:\n{stack.logs()}")
                    raise
                if self.proof.failed:
                    self._say(f"the end of every container's log:\n{stack.logs()}")
        left = stack.leftovers()
        self._note("engine", "after down --volumes", "nothing left", ", ".join(left) or "nothing left", not left)
        return not self.proof.failed

    def _check(self, stack: ComposeStack) -> None:
        self._say("building the images")
        stack.compose("build", timeout_s=1200)
        self._say(f"starting project {stack.project}")
        stack.up()
        addresses, credentials = self._prove(stack), stack.credentials
        for service in RESTARTED:
            stack.compose("restart", "--timeout=5", service, timeout_s=120)
            self._follow_change(stack, f"after a restart of {service}")
        stack.compose("restart", "--timeout=5", timeout_s=180)
        self._follow_change(stack, "after a restart of everything")
        self._prove_independence(stack)
        for shown in stack.shown():
            p.prove_names(self.proof, stack, shown, addresses[shown.namespace])
        self._say("taking everything down but the volumes, and starting again")
        stack.compose("down", "--timeout=5", timeout_s=180)
        stack.up()
        again = self._prove(stack)
        self._note("kubectl", "cluster IPs after down and up", str(addresses), str(again), again == addresses)
        is_same = stack.credentials == credentials
        self._note("kubectl", "kubeconfig after down and up", "the same", "the same" if is_same else "another", is_same)

    def _say(self, line: str) -> None:
        self._tell(f"{time.monotonic() - self._begin:6.1f} s  {line}")

    def _note(self, kind: str, target: str, expected: str, got: str, ok: bool) -> None:
        self.proof.note("the stack", kind, "this machine", target, expected, got, ok)

    def _prove(self, stack: ComposeStack) -> dict[str, str]:
        """The demo's proof as far as containers side by side can give it; namespace -> cluster IP."""
        addresses = {}
        for name in NODES:
            arguments = ["wait", "--for=condition=Ready", f"node/{name}", "--timeout=60s"]
            got = _said(stack.kubectl(*arguments))
            self._note("kubectl", " ".join(arguments), "condition met", got, got == f"node/{name} condition met")
        for shown in stack.shown():
            namespace = ("-n", shown.namespace)
            arguments = ["wait", "--for=condition=Programmed", f"service/{shown.service}", *namespace, "--timeout=60s"]
            got = _said(stack.kubectl(*arguments))
            expected = f"service/{shown.service} condition met"
            self._note("kubectl", " ".join(arguments), expected, got, got == expected)
            path = ["get", "service", shown.service, *namespace, "-o", "jsonpath={.spec.clusterIP}"]
            virtual_ip = addresses[shown.namespace] = _said(stack.kubectl(*path))
            p.prove_kubectl(self.proof, stack.kubectl, shown, virtual_ip)
            p.prove_virtual_ip(self.proof, stack, shown, virtual_ip)
            p.prove_names(self.proof, stack, shown, virtual_ip)
            if shown.namespace == "selector":
                p.prove_balance(self.proof, stack, shown, virtual_ip)
                p.prove_client_addresses(self.proof, stack, shown, virtual_ip)
                self._prove_resolver(stack, shown)
            if shown.namespace == "node-port":
                p.prove_node_port(self.proof, stack, shown, 30007)
                self._prove_published_port(stack, shown)
        return addresses

    def _prove_independence(self, stack: ComposeStack) -> None:
        """A node that starts while no control plane runs serves what it held."""
        stack.compose("stop", "--timeout=5", *CONTROL_PLANE, timeout_s=120)
        stack.compose("restart", "--timeout=5", NODES[2], timeout_s=120)
        shown = stack.shown()[0]
        names = {endpoint.name for endpoint in shown.endpoints}
        when = "restarted without a control plane"
        self._expect(stack.nodes[2], shown, f"{shown.service}.{shown.namespace}", names, when)
        stack.compose("start", *reversed(CONTROL_PLANE), timeout_s=120)
        self._follow_change(stack, "after the control plane's return")

    def _prove_resolver(self, stack: ComposeStack, shown: p.Shown) -> None:
        """A program on a node finds the Service by name through the node's own resolver."""
        names = {endpoint.name for endpoint in shown.endpoints}
        self._expect(stack.nodes[0], shown, f"{shown.service}.{shown.namespace}", names, "by its short name")

    def _prove_published_port(self, stack: ComposeStack, shown: p.Shown) -> None:
        names = {endpoint.name for endpoint in shown.endpoints}
        answers = http_probe.ask_often("127.0.0.1", stack.node_port, p.CONNECTIONS, 2.0)
        target = f"127.0.0.1:{stack.node_port}, published by node-1"
        self._note_answers(shown, "nodeport", "this machine", target, names, answers)

    def _follow_change(self, stack: ComposeStack, when: str) -> None:
        """A Pod that goes gets no more connections from any node, and comes into service again."""
        shown = stack.shown()[0]
        names = {endpoint.name for endpoint in shown.endpoints}
        addresses = {endpoint.name: endpoint.place.address for endpoint in shown.endpoints}
        record = shown.sample.pod_records([node.name for node in stack.nodes], addresses)[-1]
        gone = record["metadata"]["name"]
        delete = ["delete", "pod", gone, "-n", shown.namespace, "--now", "--ignore-not-found"]
        self._change(stack, shown, delete, None, names - {gone}, when)
        self._change(stack, shown, ["apply", "-n", shown.namespace, "-f", "-"], json.dumps(record), names, when)

    def _change(
        self,
        stack: ComposeStack,
        shown: p.Shown,
        arguments: Sequence[str],
        body: str | None,
        names: set[str],
        when: str,
    ) -> None:
        """Make a change with kubectl, and wait until every node answers with exactly these backends."""
        # A client whose API server is just coming back tries again.
        done = _until(lambda: stack.kubectl(*arguments, input=body), lambda done: done.returncode == 0)
        if done.returncode:
            self._note("kubectl", f"{arguments[0]} {when}", "done", _said(done), False)
            return
        for node in stack.nodes:
            self._expect(node, shown, f"{shown.service}.{shown.namespace}", names, when)

    def _expect(self, node: Container, shown: p.Shown, host: str, names: set[str], when: str) -> None:
        """Wait until exactly these backends answer a node."""
        answers = _until(lambda: node.ask_often(host, 80, p.CONNECTIONS), lambda answers: _backends(answers) == names)
        self._note_answers(shown, "vip", node.name, f"http://{host}/ {when}", names, answers)

    def _note_answers(
        self, shown: p.Shown, kind: str, source: str, target: str, names: set[str], answers: list[p.Message]
    ) -> None:
        expected = f"answers from {', '.join(sorted(names))}"
        self.proof.note(shown.title, kind, source, target, expected, p.counted(answers), _backends(answers) == names)


def _backends(answers: list[p.Message]) -> set[str | None]:
    """Who answered; None among them when somebody did not."""
    return {answer.get("backend") for answer in answers}


def _until(ask: Callable[[], T], is_reached: Callable[[T], bool], timeout_s: float = 30.0) -> T:
    """The first answer that is right, else the last one before time ran out."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if is_reached(answer) or time.monotonic() > deadline:
            return answer
        time.sleep(0.5)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout or done.stderr).strip()


def _run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    timeout_s: float = 60.0,
    check: bool = True,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise ComposeFailed(f"{' '.join(argv)} is not done after {timeout_s:.0f} s") from err
    if check and done.returncode:
        raise ComposeFailed(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()[-4000:]}")
    return done


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _free_network() -> str:
    """The first three numbers of a network that the engine has not given out."""
    identities = _run(["docker", "network", "ls", "--quiet"]).stdout.split()
    known = json.loads(_run(["docker", "network", "inspect", *identities]).stdout) if identities else []
    taken = {c.get("Subnet", "") for network in known for c in network["IPAM"]["Config"] or ()}
    numbers = [n for n in range(97, 256) if f"10.213.{n}.0/24" not in taken]
    return f"10.213.{random.choice(numbers)}"
