"""The lab alone: namespaces, sshd, backends, probes; nothing of Timonel runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.namespaces import LabError, ProbeFailed, outcome
from services_app.lab.network import DIRECTORY, ORDINARY_USER, Lab, remove_leftovers

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as lab:
        yield lab


def links() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, timeout=10, check=True).stdout


def is_gone(path: Path, pid: int) -> bool:
    return not path.exists() and not Path(f"/proc/{pid}").exists()


def test_two_labs_live_side_by_side_and_leave_nothing() -> None:
    with Lab(nodes=1, containers=0) as first, Lab(nodes=1, containers=0) as second:
        assert first.network != second.network
        assert first.nodes[0].address != second.nodes[0].address
        for lab in (first, second):
            lab.nodes[0].serve(lab.name, 8080)
            assert lab.client.ask(lab.nodes[0].address, 8080)["backend"] == lab.name
        with pytest.raises(ProbeFailed):
            first.client.ask(second.nodes[0].address, 8080, timeout_s=0.3)
    for lab in (first, second):
        assert lab._link not in links()
        assert is_gone(lab.directory, lab.nodes[0].pid)


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    program = (
        "import sys, time; from services_app.lab.network import Lab\n"
        "lab = Lab(nodes=1, containers=0); lab.__enter__()\n"
        "lab.nodes[0].serve('a', 80)\n"
        "print(lab._link, lab.nodes[0].pid, lab.directory, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    link, pid, directory = owner.stdout.readline().split()
    assert link in links()
    owner.send_signal(signal.SIGKILL)
    owner.wait(timeout=10)
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (Path(f"/proc/{pid}").exists() or link in links()):
        time.sleep(0.05)
    assert link not in links()
    assert Path(directory).name in remove_leftovers() or not Path(directory).exists()
    assert is_gone(Path(directory), int(pid))


def test_a_living_lab_is_no_leftover(lab: Lab) -> None:
    assert lab.name not in remove_leftovers()
    assert lab.identity_file.exists()


@pytest.mark.parametrize("user", ["root", ORDINARY_USER])
def test_sshd_lets_the_lab_key_in_and_shows_its_own_host_key(lab: Lab, user: str, tmp_path: Path) -> None:
    for node in lab.nodes:
        known = tmp_path / f"{node.name}-known-hosts"
        argv = [
            "ssh",
            "-i",
            str(lab.identity_file),
            "-o",
            "BatchMode=yes",
            "-o",
            f"UserKnownHostsFile={known}",
        ]
        argv += ["-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR", f"{user}@{node.address}"]
        said = subprocess.run([*argv, "hostname; id -un"], capture_output=True, text=True, timeout=20, check=True)
        assert said.stdout.split() == [node.name, user]
        seen = subprocess.run(["ssh-keygen", "-lf", str(known)], capture_output=True, text=True, timeout=10, check=True)
        assert node.host_key_fingerprint in seen.stdout


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_backend_answers_from_all_places_and_sees_their_addresses(lab: Lab, protocol: str) -> None:
    node, other = lab.nodes
    node.serve("on-node", 8000, protocol=protocol)
    for place in (node, other, node.containers[0], other.containers[0], lab.client, lab.neighbour):
        answer = place.ask(node.address, 8000, protocol=protocol)
        assert (answer["backend"], answer["address"], answer["client"]) == (
            "on-node",
            node.address,
            place.address,
        )


def test_containers_are_reached_from_nodes_and_containers_only(lab: Lab) -> None:
    container = lab.nodes[0].containers[0]
    container.serve("in-container", 8001)
    for place in (lab.nodes[1], lab.nodes[1].containers[0], container):
        assert place.ask(container.address, 8001)["client"] == place.address
    with pytest.raises(ProbeFailed):
        lab.client.ask(container.address, 8001, timeout_s=0.3)


def test_polling_tells_when_a_backend_came_and_went(lab: Lab) -> None:
    node, other = lab.nodes
    came = other.ask_until(node.address, 8002, "late")
    before = time.monotonic()
    node.serve("late", 8002)
    assert before <= outcome(came)["at"] <= time.monotonic()
    gone = other.ask_until(node.address, 8002, None)
    node.stop_serving(8002)
    assert outcome(gone)["answer"] in ("refused", "timeout", "connection reset by peer")
    with pytest.raises(ProbeFailed, match="refused"):
        outcome(other.ask_until(node.address, 8002, "late", deadline_s=0.05))


def test_a_stream_counts_what_an_outage_costs(lab: Lab) -> None:
    node, other = lab.nodes
    node.serve("steady", 8003)
    lab.client.stream("unharmed", node.address, 8003, interval_ms=10)
    time.sleep(0.2)
    assert lab.client.stream_end("unharmed")["failed"] == 0
    other.stream("harmed", node.address, 8003, interval_ms=10, timeout_s=0.1)
    lab.disconnect(node)
    time.sleep(0.3)
    lab.connect(node)
    outcome(other.ask_until(node.address, 8003, "steady"))
    report = other.stream_end("harmed")
    assert report["failed"] >= 1
    assert report["longest_gap_ms"] >= 200


def test_files_of_a_node_are_its_own(lab: Lab) -> None:
    one, other = lab.nodes
    marker = "/var/lib/timonel-lab-test"
    one.run(["touch", marker, "/etc/timonel-lab-test", "/usr/local/timonel-lab-test"])
    assert not Path(marker).exists()
    assert not Path("/etc/timonel-lab-test").exists()
    assert other.run(["ls", marker], check=False).returncode != 0
    assert one.run(["cat", "/etc/hostname"]).stdout == "node-1\n"


def test_sshd_can_crash_and_come_back(lab: Lab) -> None:
    node = lab.nodes[1]
    node.stop_sshd()
    assert not node.processes()
    node.start_sshd()
    assert any("sshd" in command for command in node.processes().values())


def test_a_failing_command_is_named_with_its_place(lab: Lab) -> None:
    with pytest.raises(LabError, match="cannot run ls /nowhere on node-1"):
        lab.nodes[0].run(["ls", "/nowhere"])
    assert DIRECTORY.exists()
