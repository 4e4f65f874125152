"""Nodes that are refused, that fail, that come back and that leave: real sshd, agents, cables and packets.

A node that fails says why in its Ready condition, holds nobody else back and catches up by itself. Everything here is
waited for with deadlines; nothing is measured.
"""

import base64
import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import agents
from agents.build import Program, build_zipapp
from services_app.lab.client import CORE, ApiRefused, Document, pod, service
from services_app.lab.cluster import DNS_ADDRESS, Cluster, condition
from services_app.lab.namespaces import outcome
from services_app.lab.network import ORDINARY_USER, Node
from tests.lab.relay import Relay

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

NAMESPACE = "failing"
PORT = 8070
AGENT = "/usr/local/lib/timonel/agent.pyz"
NEWCOMER = "node-3"  # enrolled and removed again and again; node-1 and node-2 stay


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Timonel of this module alone: its nodes are treated badly."""
    directory = Path(tempfile.mkdtemp(prefix="timonel-nodes-"))
    directory.chmod(0o755)  # PostgreSQL's own user has to pass
    try:
        with Cluster(directory, durable=False, web_processes=1) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Moving:
    """A Service whose single endpoint goes to and fro between node-1's two containers."""

    cluster: Cluster
    virtual_ip: str
    at: int = 0

    @property
    def backend(self) -> str:
        return self.cluster.lab.nodes[0].containers[self.at].name

    def move(self) -> str:
        """The backend that is to answer from now on."""
        self.at = 1 - self.at
        address = self.cluster.lab.nodes[0].containers[self.at].address
        change = {"metadata": {"annotations": {"timonel.io/pod-ip": address}}}
        self.cluster.api.request("PATCH", f"{CORE}/namespaces/{NAMESPACE}/pods/moving", change)
        return self.backend

    def wait_reached(self, node: Node, deadline_s: float = 30) -> None:
        """Until connections from the node arrive where the endpoint is now, and there alone.

        A node that was frozen works off what it was sent before: it may be where the endpoint is, and leave again.
        """
        wanted = self.backend
        wait_until(
            f"{node.name} reaches {wanted} alone",
            lambda: {str(a.get("backend")) for a in node.ask_often(self.virtual_ip, 80, 10)} == {wanted},
            deadline_s,
        )


@pytest.fixture(scope="module")
def moving(cluster: Cluster) -> Iterator[Moving]:
    api, first = cluster.api, cluster.lab.nodes[0]
    api.ensure_namespace(NAMESPACE)
    for container in first.containers:
        container.serve(container.name, PORT)
    record = pod("moving", {"app": "moving"}, first.name, {"app": (PORT, "TCP")}, address=first.containers[0].address)
    api.create(f"{CORE}/namespaces/{NAMESPACE}/pods", record)
    document = service("moving", {"app": "moving"}, [{"port": 80, "targetPort": PORT}])
    virtual_ip = api.create(f"{CORE}/namespaces/{NAMESPACE}/services", document)["spec"]["clusterIP"]
    made = Moving(cluster, virtual_ip)
    for node in cluster.lab.nodes[:2]:
        made.wait_reached(node)
    yield made
    api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}")


def wait_until(what: str, is_so: Callable[[], object], deadline_s: float = 40.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.1)


def ready(cluster: Cluster, node: Node) -> Document:
    return condition(cluster.api.request("GET", f"{CORE}/nodes/{node.name}"), "Ready")


def is_known(cluster: Cluster, name: str) -> bool:
    try:
        cluster.api.request("GET", f"{CORE}/nodes/{name}")
    except ApiRefused as err:
        if err.code != 404:
            raise
        return False
    return True


def listed(cluster: Cluster) -> dict[str, str]:
    """Name -> its line of `node list`."""
    head, *lines = cluster.stack.manage("node", "list").stdout.splitlines()
    assert head.split() == ["NAME", "ADDRESS", "STATE", "APPLIED", "BEHIND", "REASON", "MESSAGE"]
    return {line.split()[0]: line for line in lines}


def enrol(
    cluster: Cluster, node: Node, *, fingerprint: str = "", identity: Path | None = None, user: str = "root"
) -> str:
    """What the command printed. Raises CalledProcessError."""
    return cluster.stack.manage(
        *("node", "enroll", node.name, node.address, "--user", user, "--port", str(node.ssh_port)),
        *("--identity", str(identity or cluster.lab.identity_file)),
        *("--fingerprint", fingerprint or node.host_key_fingerprint),
    ).stdout


@contextlib.contextmanager
def refused(reason: str) -> Iterator[list[str]]:
    """The command inside ends with that reason; its words are in the list afterwards."""
    said: list[str] = []
    with pytest.raises(subprocess.CalledProcessError) as caught:
        yield said
    text = caught.value.stderr.strip()
    assert "Traceback" not in text
    assert f"{reason}: " in text
    said.append(text)


def traces(node: Node) -> list[str]:
    """Everything of Timonel that is on a host, in words; empty when there is nothing."""
    looks = {
        "nft": "nft list tables | grep timonel",
        "address": f"ip -o address show dev lo | grep -F {DNS_ADDRESS}",
        "route": "ip route show proto 84",
        "file": "ls -d /usr/local/lib/timonel /var/lib/timonel /run/timonel /etc/sudoers.d/timonel 2>/dev/null",
        "unit": "ls /etc/systemd/system/timonel-agent.service 2>/dev/null",
        "key": "grep -h 'timonel control plane' /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys",
    }
    found = [
        f"{what}: {line}"
        for what, command in looks.items()
        for line in node.run(["/bin/sh", "-c", command], check=False).stdout.splitlines()
    ]
    words = ("agent.pyz", "knotd", "unbound")
    return found + [f"process: {p}" for p in node.processes().values() if any(word in p for word in words)]


@pytest.fixture
def newcomer(cluster: Cluster) -> Iterator[Node]:
    """A host with sshd that is no node; what a test made of it is taken back."""
    node = cluster.lab.nodes[2]
    assert node.name == NEWCOMER
    _make_stranger(cluster, node)
    yield node
    _make_stranger(cluster, node)


def _make_stranger(cluster: Cluster, node: Node) -> None:
    if is_known(cluster, node.name):
        cluster.stack.manage("node", "remove", node.name)
    node.run(["rm", "-rf", "/usr/local/lib/timonel"])  # a refused enrolment may leave the agent there


def hide_nft(node: Node) -> None:
    node.run(["mount", "--bind", "/dev/null", "/usr/sbin/nft"])  # on this node only: no longer a program


def show_nft(node: Node) -> None:
    node.run(["umount", "/usr/sbin/nft"])


# --- enrolment ---


def test_enrolment_with_a_wrong_fingerprint_writes_nothing(cluster: Cluster, newcomer: Node) -> None:
    with refused("HostKeyNotConfirmed") as said:
        enrol(cluster, newcomer, fingerprint="SHA256:" + "A" * 43)
    assert newcomer.host_key_fingerprint in said[0]
    assert "nothing was done" in said[0]
    assert not is_known(cluster, newcomer.name)
    assert newcomer.name not in listed(cluster)
    assert traces(newcomer) == []


def test_enrolment_with_a_key_that_the_host_does_not_know_says_so(
    cluster: Cluster, newcomer: Node, tmp_path: Path
) -> None:
    stranger = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True, timeout=10)
    with refused("AuthenticationFailed") as said:
        enrol(cluster, newcomer, identity=stranger)
    assert "root" in said[0]
    assert "--identity" in said[0], "the remedy is the operator's own key"
    assert not is_known(cluster, newcomer.name)
    assert traces(newcomer) == []


def test_enrolment_of_an_address_without_sshd_says_so(cluster: Cluster, newcomer: Node) -> None:
    newcomer.stop_sshd()
    try:
        with refused("ConnectionRefused") as said:
            enrol(cluster, newcomer)
        assert "is sshd running" in said[0]
    finally:
        newcomer.start_sshd()
    assert not is_known(cluster, newcomer.name)


def test_a_host_without_nft_is_refused_and_told_what_to_install(cluster: Cluster, newcomer: Node) -> None:
    hide_nft(newcomer)
    try:
        with refused("NftMissing") as said:
            enrol(cluster, newcomer)
        assert "install package nftables" in said[0]
        assert not is_known(cluster, newcomer.name)
        assert newcomer.name not in listed(cluster)
    finally:
        show_nft(newcomer)
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)


def test_a_user_who_may_not_use_sudo_is_refused(cluster: Cluster, newcomer: Node) -> None:
    with refused("SudoRefused") as said:
        enrol(cluster, newcomer, user=ORDINARY_USER)
    assert ORDINARY_USER in said[0]
    assert not is_known(cluster, newcomer.name)
    assert traces(newcomer) == []


@contextlib.contextmanager
def sudo_for_all(node: Node) -> Iterator[None]:
    """The ordinary user may do everything on the host, as an operator's login may while he enrols it."""
    rule = f"{ORDINARY_USER} ALL=(ALL) NOPASSWD: ALL\n"
    node.run(["/bin/sh", "-c", "umask 227 && cat >/etc/sudoers.d/operators"], input=rule)
    try:
        yield
    finally:
        node.run(["rm", "-f", "/etc/sudoers.d/operators"])


def test_an_ordinary_user_with_sudo_enrols_a_host(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    with sudo_for_all(newcomer):
        enrol(cluster, newcomer, user=ORDINARY_USER)
    cluster.wait_ready(newcomer)  # by the rule that enrolment left, and no other
    moving.wait_reached(newcomer)
    assert newcomer.kill_agent()
    moving.move()
    moving.wait_reached(newcomer)
    cluster.stack.manage("node", "remove", newcomer.name)
    assert traces(newcomer) == []


def test_enrolling_twice_is_harmless(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    moving.wait_reached(newcomer)
    before = cluster.api.request("GET", f"{CORE}/nodes/{newcomer.name}")["metadata"]["uid"]
    newcomer.stream("twice", moving.virtual_ip, 80, timeout_s=2)
    try:
        enrol(cluster, newcomer)
        cluster.wait_ready(newcomer)
        moving.move()
        moving.wait_reached(newcomer)
    finally:
        report = newcomer.stream_end("twice")
    assert report["asked"]
    assert not report["failed"], report["failures"]
    assert cluster.api.request("GET", f"{CORE}/nodes/{newcomer.name}")["metadata"]["uid"] == before
    keys = newcomer.run(["grep", "-c", "timonel control plane", "/root/.ssh/authorized_keys"]).stdout
    assert keys.strip() == "1"


# --- the agent's upgrade ---


def older_build(tmp_path: Path) -> Program:
    """An agent of the release that is shipped, from other sources."""
    package = tmp_path / "agents"
    shutil.copytree(Path(agents.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "version.py").write_text((package / "version.py").read_text() + "\n# before\n")
    return build_zipapp(package)


@pytest.mark.parametrize("user", ["root", ORDINARY_USER])
def test_an_older_agent_is_replaced_by_the_one_that_is_shipped(
    cluster: Cluster, newcomer: Node, moving: Moving, user: str, tmp_path: Path
) -> None:
    with sudo_for_all(newcomer):
        enrol(cluster, newcomer, user=user)
    cluster.wait_ready(newcomer)
    moving.wait_reached(newcomer)
    shipped, older = build_zipapp(), older_build(tmp_path)
    assert version_on(newcomer) == shipped.version
    text = base64.b64encode(older.content).decode()
    newcomer.run(["/bin/sh", "-c", f"base64 -d >{AGENT}.new && mv {AGENT}.new {AGENT}"], input=text)
    assert version_on(newcomer) == older.version
    newcomer.stream("upgrade", moving.virtual_ip, 80, timeout_s=2)
    assert newcomer.kill_agent()
    wait_until("the shipped agent is back", lambda: version_on(newcomer) == shipped.version)
    moving.move()
    moving.wait_reached(newcomer)
    report = newcomer.stream_end("upgrade")
    assert report["asked"]
    assert not report["failed"], report["failures"]


def test_an_agent_that_refuses_the_signature_stays_and_serves(
    cluster: Cluster, newcomer: Node, moving: Moving, tmp_path: Path
) -> None:
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    older = older_build(tmp_path)
    text = base64.b64encode(older.content).decode()
    newcomer.run(["/bin/sh", "-c", f"base64 -d >{AGENT}"], input=text)
    newcomer.run(["/bin/sh", "-c", "echo '* ssh-ed25519 AAAA' >/var/lib/timonel/signers"])
    assert newcomer.kill_agent()

    def is_told() -> bool:
        found = condition(cluster.api.request("GET", f"{CORE}/nodes/{newcomer.name}"), "HostProblems")
        return found.get("reason") == "SignatureRefused" and older.version in found["message"]

    wait_until("the refusal is told", is_told)
    moving.move()
    moving.wait_reached(newcomer)
    assert version_on(newcomer) == older.version


def version_on(node: Node) -> str:
    """ "" when it does not run: Python, which opens the file again for each module, may meet two programs in one."""
    return node.run(["python3", AGENT, "--version"], check=False).stdout.strip()


# --- failures ---


@dataclass(frozen=True)
class Failure:
    """states: what `node list` may call it; reasons: what the Ready condition may give."""

    begin: Callable[[Cluster, Node], None]
    end: Callable[[Cluster, Node], None]
    state: str
    reasons: frozenset[str]
    words: str = ""


def restart_sshd(node: Node) -> None:
    node.stop_sshd()
    node.start_sshd()


def forget_keys(cluster: Cluster, node: Node) -> None:
    node.run(["mv", "/root/.ssh/authorized_keys", "/root/.ssh/kept"])
    restart_sshd(node)


def remember_keys(cluster: Cluster, node: Node) -> None:
    node.run(["mv", "/root/.ssh/kept", "/root/.ssh/authorized_keys"])


def change_host_key(cluster: Cluster, node: Node) -> None:
    """As a reinstalled host, or another host at its address."""
    node.run(["mv", "/etc/ssh/lab_host_key", "/etc/ssh/kept"])
    node.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/lab_host_key"])
    restart_sshd(node)


def confirm_host_key(cluster: Cluster, node: Node) -> None:
    with refused("HostKeyNotConfirmed"):
        cluster.stack.manage("node", "confirm-key", node.name, "--fingerprint", node.host_key_fingerprint)
    assert ready(cluster, node)["status"] == "False", "a refused confirmation changes nothing"
    shown = node.run(["ssh-keygen", "-l", "-E", "sha256", "-f", "/etc/ssh/lab_host_key.pub"]).stdout.split()[1]
    assert shown in ready(cluster, node)["message"], "the message names the key to confirm"
    cluster.stack.manage("node", "confirm-key", node.name, "--fingerprint", shown)
    node.host_key_fingerprint = shown


def fill_disk(node: Node) -> None:
    """The file system of the agent's directory has no room left; what is in it stays."""
    script = (
        "size=$(($(du -sk /var/lib/timonel | cut -f1) + 512)) && mkdir -p /run/small && "
        "mount -t tmpfs -o size=${size}k tmpfs /run/small && "
        "cp -a /var/lib/timonel/. /run/small/ && mount --bind /run/small /var/lib/timonel && "
        "cat /dev/zero >/var/lib/timonel/ballast"
    )
    node.run(["/bin/sh", "-c", script], check=False)  # the last command ends with "no space left"


def freeze_nft(node: Node) -> None:
    node.run(["/bin/sh", "-c", "printf '#!/bin/sh\\nexec sleep 600\\n' >/run/slow-nft && chmod 755 /run/slow-nft"])
    node.run(["mount", "--bind", "/run/slow-nft", "/usr/sbin/nft"])


FAILURES = {
    "sshd is down": Failure(
        lambda cluster, node: node.stop_sshd(),
        lambda cluster, node: node.start_sshd(),
        "Unreachable",
        frozenset({"ConnectionRefused"}),
        "is sshd running",
    ),
    "the cable is pulled": Failure(
        lambda cluster, node: cluster.lab.disconnect(node),
        lambda cluster, node: cluster.lab.connect(node),
        "Unreachable",
        frozenset({"Timeout", "Unreachable"}),
    ),
    "the host hangs": Failure(
        lambda cluster, node: node.freeze(),
        lambda cluster, node: node.thaw(),
        "Unreachable",
        frozenset({"Timeout"}),
    ),
    "the key is no longer accepted": Failure(
        forget_keys,
        remember_keys,
        "Unreachable",
        frozenset({"AuthenticationFailed"}),
        "authorized_keys",
    ),
    "the host key is another": Failure(
        change_host_key,
        confirm_host_key,
        "Quarantined",
        frozenset({"HostKeyChanged"}),
        "confirm-key",
    ),
    "the disk is full": Failure(
        lambda cluster, node: fill_disk(node),
        lambda cluster, node: node.run(["rm", "/var/lib/timonel/ballast"]),
        "Failed",
        frozenset({"DiskFull"}),
        "/var/lib/timonel/journal",
    ),
    "nft hangs": Failure(
        lambda cluster, node: freeze_nft(node),
        lambda cluster, node: show_nft(node),
        "Failed",
        frozenset({"NftTimeout"}),
        "nft",
    ),
    "nft is gone": Failure(
        lambda cluster, node: hide_nft(node),
        lambda cluster, node: show_nft(node),
        "Failed",
        frozenset({"NftMissing"}),
        "Install the package nftables",
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failing_node_says_why_holds_nobody_back_and_catches_up(cluster: Cluster, moving: Moving, what: str) -> None:
    failure, api = FAILURES[what], cluster.api
    first, failing = cluster.lab.nodes[:2]
    services = f"{CORE}/namespaces/{NAMESPACE}/services"
    name = what.replace(" ", "-")

    def is_told() -> bool:
        moving.move()  # changes go on; a full disk has room for a few
        found = ready(cluster, failing)
        return found["status"] == "False" and found["reason"] in failure.reasons

    def is_programmed() -> bool:
        return condition(api.request("GET", f"{services}/{name}"), "Programmed").get("status") == "True"

    failure.begin(cluster, failing)
    try:
        moving.move()
        document = service(name, {"app": "moving"}, [{"port": 80, "targetPort": PORT}])
        virtual_ip = api.create(services, document)["spec"]["clusterIP"]
        moving.wait_reached(first)
        outcome(first.ask_until(virtual_ip, 80, moving.backend, deadline_s=30), 40)
        wait_until(f"{failing.name} gives one of {sorted(failure.reasons)}", is_told)
        wait_until(f"{name} is programmed without {failing.name}", is_programmed)
        assert failure.words in ready(cluster, failing)["message"]
        line = listed(cluster)[failing.name]
        assert failure.state in line.split()
        assert failure.reasons & set(line.split())
        assert ready(cluster, first)["status"] == "True"
        moving.move()
        moving.wait_reached(first)
    finally:
        failure.end(cluster, failing)
    moving.wait_reached(failing, deadline_s=40)
    outcome(failing.ask_until(virtual_ip, 80, moving.backend, deadline_s=30), 40)
    cluster.wait_ready(failing)
    api.request("DELETE", f"{services}/{name}")


# --- nodes that work, with something amiss ---


def amiss(cluster: Cluster, node: Node) -> str:
    """The reason of the node's HostProblems condition; "" without one."""
    document = cluster.api.request("GET", f"{CORE}/nodes/{node.name}")
    return str(condition(document, "HostProblems").get("reason", ""))


def test_a_node_behind_a_slow_way_says_so_and_is_served(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    first = cluster.lab.nodes[0]
    with Relay(newcomer.address, newcomer.ssh_port, delay_s=0.1) as relay:
        cluster.stack.manage(
            *("node", "enroll", newcomer.name, "127.0.0.1", "--port", str(relay.port)),
            *("--node-ip", newcomer.address, "--identity", str(cluster.lab.identity_file)),
            *("--fingerprint", newcomer.host_key_fingerprint),
        )
        cluster.wait_ready(newcomer)
        moving.wait_reached(newcomer)

        def is_said(reason: str) -> bool:
            """After one more change, which both get: a change is answered, and answers tell how slow the way is."""
            moving.move()
            moving.wait_reached(first)
            moving.wait_reached(newcomer)
            return amiss(cluster, newcomer) == reason

        wait_until("the slow way is told", lambda: is_said("SlowLink"), 60)
        assert ready(cluster, newcomer)["status"] == "True"
        assert amiss(cluster, first) in ("", "NoProblems")
        relay.delay_s = 0.0
        wait_until("the way is quick again", lambda: is_said("NoProblems"), 60)
        cluster.stack.manage("node", "remove", newcomer.name)


LOSSY = """
table inet lossy {
    chain in { type filter hook input priority -400; meta iifname "lo" accept; numgen random mod 100 < 5 drop; }
    chain out { type filter hook output priority -400; meta oifname "lo" accept; numgen random mod 100 < 5 drop; }
}
"""


def test_a_node_whose_packets_get_lost_says_so_and_catches_up(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    first = cluster.lab.nodes[0]
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    newcomer.run(["nft", "-f", "-"], input=LOSSY)

    def is_told() -> bool:
        moving.move()
        moving.wait_reached(first)
        return amiss(cluster, newcomer) == "LossyLink"

    try:
        wait_until("the losses are told", is_told, 120)
        assert amiss(cluster, first) in ("", "NoProblems")
    finally:
        newcomer.run(["nft", "delete", "table", "inet", "lossy"])
    moving.move()
    moving.wait_reached(newcomer)


def test_a_node_with_a_wrong_clock_says_so_and_is_served(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    # What asks for the time here is an hour behind; the kernel's clock is one for all namespaces.
    late = (
        "import runpy, sys, time; real = time.time; time.time = lambda: real() - 3600; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    wrapper = f'#!/bin/sh\nexec /usr/bin/python3 -c "{late}" "$@"\n'
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    newcomer.run(["/bin/sh", "-c", "cat >/usr/local/bin/python3 && chmod 755 /usr/local/bin/python3"], input=wrapper)
    assert newcomer.kill_agent()
    try:
        wait_until("the wrong clock is told", lambda: amiss(cluster, newcomer) == "ClockSkew", 60)
        document = cluster.api.request("GET", f"{CORE}/nodes/{newcomer.name}")
        assert "behind" in condition(document, "HostProblems")["message"]
        moving.move()
        moving.wait_reached(newcomer)
    finally:
        newcomer.run(["rm", "/usr/local/bin/python3"])
    assert newcomer.kill_agent()
    wait_until("the clock is right again", lambda: amiss(cluster, newcomer) == "NoProblems", 60)


# --- list and remove ---


def test_node_list_shows_who_is_live_and_nobody_behind(cluster: Cluster, moving: Moving) -> None:
    def is_settled() -> bool:
        lines = listed(cluster)
        return all(lines[node.name].split()[2] == "Live" and lines[node.name].split()[4] == "0" for node in nodes)

    nodes = cluster.lab.nodes[:2]
    wait_until("both nodes are live and up to date", is_settled)
    for node in nodes:
        assert listed(cluster)[node.name].split()[1] == node.address


def test_remove_cleans_the_host_while_changes_go_on(cluster: Cluster, newcomer: Node, moving: Moving) -> None:
    """The pushers come back for a node whose session ended: that must not get in the way of its cleanup."""
    before = newcomer.run(["cat", "/root/.ssh/authorized_keys"]).stdout
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    moving.wait_reached(newcomer)
    assert traces(newcomer)
    stopping = threading.Event()

    def change() -> None:
        while not stopping.wait(0.02):
            moving.move()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        cluster.stack.manage("node", "remove", newcomer.name)
    finally:
        stopping.set()
        changing.join(timeout=60)
    moving.wait_reached(cluster.lab.nodes[0])
    assert traces(newcomer) == []
    assert newcomer.run(["cat", "/root/.ssh/authorized_keys"]).stdout == before
    assert not is_known(cluster, newcomer.name)
    assert newcomer.name not in listed(cluster)


def test_an_unreachable_node_stays_until_it_is_forgotten(cluster: Cluster, newcomer: Node) -> None:
    enrol(cluster, newcomer)
    cluster.wait_ready(newcomer)
    newcomer.stop_sshd()
    try:
        with refused("ConnectionRefused"):
            cluster.stack.manage("node", "remove", newcomer.name)
        assert is_known(cluster, newcomer.name)
        said = cluster.stack.manage("node", "remove", newcomer.name, "--forget").stdout
        assert "stays there" in said
        assert not is_known(cluster, newcomer.name)
    finally:
        newcomer.start_sshd()
    assert traces(newcomer), "nobody cleaned it"
    enrol(cluster, newcomer)  # a forgotten host may come again
    cluster.wait_ready(newcomer)


def test_removing_a_node_that_is_none_says_so(cluster: Cluster) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        cluster.stack.manage("node", "remove", "nowhere")
    assert 'nodes "nowhere" not found' in caught.value.stderr
