"""A whole Timonel on this machine: control plane and lab, nodes enrolled over SSH. Demo, bench and tests use it."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from services_app.lab.client import CORE, ApiClient, ApiRefused, Document, Kubectl, condition
from services_app.lab.network import Lab, Node
from services_app.local.supervisor import Stack

DNS_ADDRESS = "169.254.20.10"

Say = Callable[[str], None]


class StepFailed(RuntimeError):
    """A step of the way up did not work: which, why, and what to do next."""

    def __init__(self, step: str, cause: str, remedy: str) -> None:
        super().__init__(f"cannot {step}: {cause}\n  next: {remedy}")


class Cluster:
    """Control plane and nodes; a context manager. `directory` belongs to it alone; what is there goes on."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        containers: int = 2,
        bind: str = "127.0.0.1:0",
        web_processes: int = 2,
        workers: int = 1,
        durable: bool = True,
        environment: dict[str, str] | None = None,
        kubectl: str = "kubectl",
        service_cidrs: str = "",
        enrols: bool = True,
        say: Say = lambda line: None,
    ) -> None:
        """service_cidrs: as TIMONEL_SERVICE_CIDRS; "" for the usual range. With IPv6 nodes are enrolled with both.

        enrols: whether all nodes are; otherwise `enrol` is the caller's.
        """
        self.directory = directory
        self.say = say
        settings = {**(environment or {}), **({"TIMONEL_SERVICE_CIDRS": service_cidrs} if service_cidrs else {})}
        self.stack = Stack(
            directory,
            bind,
            web_processes=web_processes,
            workers=workers,
            durable=durable,
            environment=settings,
            say=say,
        )
        self._is_dual_stack = ":" in service_cidrs
        self.lab = Lab(nodes=nodes, containers=containers, progress=say)
        self._kubectl_program = kubectl
        self._enrols = enrols
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _start(self) -> None:
        if shutil.which(self._kubectl_program) is None:
            raise StepFailed(
                "find kubectl", f"{self._kubectl_program} is not installed", "apt-get install kubernetes-client"
            )
        self._open.enter_context(self.lab)
        try:
            self._open.enter_context(self.stack)
        except (OSError, RuntimeError, subprocess.SubprocessError) as err:
            raise StepFailed("start the control plane", str(err), f"look into {self.directory}/log") from err
        self.api = ApiClient(self.stack.kubeconfig)
        self.kubectl = Kubectl(self.stack.kubeconfig, self._kubectl_program)
        if self._enrols:
            self.enrol(self.lab.nodes)

    def enrol(self, nodes: Sequence[Node], user: str = "root") -> None:
        """Enrol over SSH with confirmed fingerprints, and wait until each node's Ready condition is True."""
        with ThreadPoolExecutor(max_workers=3) as pool:
            list(pool.map(lambda node: self._enrol(node, user), nodes))
        for node in nodes:
            self.wait_ready(node)

    def _enrol(self, node: Node, user: str) -> None:
        begin = time.monotonic()
        arguments = ["--user", user, "--port", str(node.ssh_port), "--identity", str(self.lab.identity_file)]
        if self._is_dual_stack:
            arguments += ["--node-ip", f"{node.address},{node.address6}"]
        try:
            self.stack.manage(
                "node", "enroll", node.name, node.address, *arguments, "--fingerprint", node.host_key_fingerprint
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as err:
            said = (
                (err.stderr or err.stdout or str(err)) if isinstance(err, subprocess.CalledProcessError) else str(err)
            )
            log = self.lab.directory / f"{node.name}-sshd.log"
            raise StepFailed(
                f"enrol {node.name} ({node.address}) over SSH", said.strip()[-2000:], f"read the node's sshd log: {log}"
            ) from err
        self.say(f"{node.name} {node.address} enrolled in {time.monotonic() - begin:.1f} s")

    def wait_ready(self, node: Node, deadline_s: float = 30.0) -> None:
        """Raises StepFailed with the reason of the node's Ready condition."""
        deadline = time.monotonic() + deadline_s
        found: Document = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(ApiRefused):
                found = condition(self.api.request("GET", f"{CORE}/nodes/{node.name}"), "Ready")
                if found.get("status") == "True":
                    return
            time.sleep(0.1)
        cause = f"{found.get('reason', 'no Ready condition')}: {found.get('message', '')}"
        raise StepFailed(f"see {node.name} ready", cause, f"read the worker's log in {self.directory}/log")

    def applied(self, *arguments: str, input: str | None = None) -> str:
        """What kubectl printed. Raises StepFailed when it failed."""
        try:
            done = self.kubectl(*arguments, input=input)
        except subprocess.TimeoutExpired as err:
            raise StepFailed(f"run kubectl {' '.join(arguments)}", str(err), f"look into {self.directory}/log") from err
        if done.returncode:
            raise StepFailed(
                f"run kubectl {' '.join(arguments)}",
                (done.stderr or done.stdout).strip(),
                f"the logs of web and worker are in {self.directory}/log",
            )
        return done.stdout
