"""The parts that figures are made with, over loopback: they count what is there. Nothing is timed."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from services_app.lab import bench, dataplane, place
from services_app.lab.connections import DIRECT, Rates
from services_app.lab.namespaces import LabError
from services_app.lab.network import MOST_NODES, MOST_WITH_CONTAINERS, NEIGHBOUR, Lab, host_part


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def test_connections_are_counted():
    port = free_port()
    place._sink({"port": port}, {})
    made = place._connect({"host": "127.0.0.1", "port": port, "seconds": 0.05}, {})
    assert made["count"] >= 50
    assert made["count"] % 50 == 0
    assert made["seconds"] >= 0.05
    assert made["cpu_s"] > 0


def test_each_of_many_is_waited_for():
    answers = {"127.0.0.1": ["old", "old", "new"], "127.0.0.2": ["new"]}  # in their order, by the address asked
    with socket.create_server(("", 0)) as listener:

        def answer() -> None:
            for _ in range(4):
                taken, _ = listener.accept()
                with taken:
                    said = {"backend": answers[taken.getsockname()[0]].pop(0)}
                    taken.sendall(json.dumps(said).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        request = {"port": listener.getsockname()[1], "wanted": {host: ["new"] for host in answers}, "deadline_s": 20}
        assert place._ask_each_until({**request, "timeout_s": 10}, {})["tries"] == 3
        thread.join(20)
    assert answers == {"127.0.0.1": [], "127.0.0.2": []}


def test_what_never_comes_ends_with_how_many_are_missing():
    wanted = {"127.0.0.1": ["new"], "127.0.0.2": ["new"]}
    with pytest.raises(LookupError, match="2 are missing"):
        place._ask_each_until({"port": free_port(), "wanted": wanted, "deadline_s": 0.02}, {})


def test_processes_tell_their_time_parent_and_memory():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert dataplane.parent_of(child.pid) == os.getpid()
        assert dataplane.resident_mib(os.getpid()) > 10
        assert dataplane.cpu_s(os.getpid()) > 0
    finally:
        child.communicate(b"\n", timeout=20)
    assert dataplane.resident_mib(child.pid) == 0
    assert dataplane.parent_of(child.pid) == 0


def test_a_ratio_is_against_direct_connections():
    rates = Rates({DIRECT: 20_000, "first": 16_000})
    assert rates.ratio("first") == pytest.approx(0.8)
    assert rates.extra_us("first") == pytest.approx(12.5)


def test_figures_are_merged_and_told_with_their_aims(tmp_path):
    results = tmp_path / "var" / "bench.json"
    bench.merge(results, [bench.Figure("a", 1), bench.Figure("b", 2)])
    bench.merge(results, [bench.Figure("b", 3)])
    assert json.loads(results.read_text()) == {"a": 1, "b": 3}
    lines = bench.table([bench.Figure("ratio", 0.81, 0.7, at_least=True), bench.Figure("load_s", 2.5, 3)]).splitlines()
    assert [line.split() for line in lines[1:]] == [["ratio", "0.81", "≥", "0.7"], ["load_s", "2.5", "≤", "3"]]


@pytest.mark.parametrize(("nodes", "containers"), [(MOST_NODES + 1, 0), (MOST_WITH_CONTAINERS + 1, 1)])
def test_a_lab_that_its_networks_have_no_room_for_is_refused(nodes, containers):
    with pytest.raises(LabError, match="room for"):
        Lab(nodes=nodes, containers=containers)


def test_nodes_have_addresses_of_their_own():
    parts = {host_part(number) for number in range(1, MOST_NODES + 1)}
    assert len(parts) == MOST_NODES
    assert not parts & {1, NEIGHBOUR, 254}
    assert max(parts) < 254
    assert 100 + MOST_WITH_CONTAINERS < 255
