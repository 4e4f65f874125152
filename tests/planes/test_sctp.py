"""SCTP associations through a Service, on a kernel that has SCTP; elsewhere an INIT is followed (tests/agents/test_packets.py)."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import ipvs
from tests.planes.scenarios import both
from tests.planes.world import PORT, VERSIONS, Given, World


def lacks() -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).close()
    except OSError:
        return "this kernel has no SCTP"
    return ""


LACK = lacks()
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(LACK), reason=LACK),
    pytest.mark.timeout(180),
]
SCTP = (Path(__file__).parents[1] / "agents" / "sctp.py").read_text()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World("nftables") as world:
        servers = []
        for version in VERSIONS:
            serve = ["python3", "-c", SCTP, "serve", world.own("inside", version), str(PORT), "inside"]
            inside = world.places["inside"].inside(serve)
            servers.append(subprocess.Popen(inside, stdout=subprocess.PIPE, text=True))
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield world
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.parametrize("mode", ["nftables", *([] if ipvs.lacks() else ["ipvs"])])
@both
def test_an_association_reaches_the_endpoint(world: World, mode: str, version: int) -> None:
    world.configure(mode)
    world.send(signals=Given({"inside": "ready"}, "sctp"))
    for client, way in (("other", "cluster ip"), ("outside", "node port")):
        address, port = world.way("signals", way, version)
        ask = ["python3", "-c", SCTP, "ask", world.own(client, version), address, str(port)]
        answer = json.loads(world.places[client].run(ask).stdout)
        assert answer["backend"] == "inside", (client, way)
