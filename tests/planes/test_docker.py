"""A node where a real Docker engine has its own rules: both work, and neither touches the other's."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.test_health import ASK_HTTP
from tests.agents.test_node import AGENT, eventually
from tests.planes.scenarios import reached
from tests.planes.world import Given, World

MISSING = [tool for tool in ("dockerd", "docker", "busybox") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.soak,
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: packages docker.io, busybox-static"),
    pytest.mark.timeout(300),
]
PUBLISHED = 18080


class Docker:
    """An engine on a node, with one container whose port is published; everything below a directory of its own."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world, self.directory = world, directory
        world.node.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"])
        options = ["--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec", "-p", f"{directory}/pid"]
        with open(directory / "log", "wb") as log:
            world.node.background(["dockerd", *options, "-H", f"unix://{directory}/sock"], log)
        eventually(lambda: self.run("info", check=False).returncode == 0, "the engine answers")
        pack = f"mkdir -p {directory}/root/bin && cp {shutil.which('busybox')} {directory}/root/bin/ && tar c -C {directory}/root ."
        world.node.run(["sh", "-c", f"{pack} | docker -H unix://{directory}/sock import - tiny"])
        serve = "mkdir -p /w; echo hello >/w/index.html; /bin/busybox httpd -f -p 80 -h /w"
        self.run("run", "-d", "-p", f"{PUBLISHED}:80", "--name", "page", "tiny", "/bin/busybox", "sh", "-c", serve)
        eventually(self.is_reached, "the page is served")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.world.node.run(["docker", "-H", f"unix://{self.directory}/sock", *command], check=check)

    def rules(self) -> list[str]:
        """All rules and chains of iptables that are not ours."""
        saved = self.world.node.run(["sh", "-c", "iptables-save; ip6tables-save"]).stdout
        lines = [re.sub(r" \[[0-9:]+\]$", "", line) for line in saved.splitlines() if "TIMONEL-" not in line]
        return [line for line in lines if line.startswith((":", "-A")) and not line.endswith(" ACCEPT")]

    def is_reached(self) -> bool:
        """Whether a client outside gets the page from the published port."""
        asked = [*ASK_HTTP, self.world.own("node", 4), str(PUBLISHED), "GET", "/"]
        return json.loads(self.world.places["outside"].run(asked).stdout)[2] == "hello\n"

    def ask_from_inside(self, address: str, port: int) -> str:
        """What a new container is answered by a Service."""
        return self.run("run", "--rm", "tiny", "/bin/busybox", "nc", "-w", "3", address, str(port), check=False).stdout


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-docker-"))
    try:
        with World("nftables") as world:
            yield Docker(world, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("mode", ["nftables", "iptables", "userspace"])
def test_services_and_published_ports_stand_side_by_side(docker: Docker, mode: str) -> None:
    world = docker.world
    theirs = docker.rules()
    assert docker.is_reached()
    world.configure(mode)
    world.send(web=Given({"inside": "ready", "neighbour": "ready"}))
    for _ in range(2):
        for client, way in (("outside", "node port"), ("node", "cluster ip"), ("other", "cluster ip")):
            assert reached(world.places[client], world.way("web", way, 4)) == {"inside", "neighbour"}
        way = world.way("web", "cluster ip", 4)
        # Containers do not always start at once on a busy machine.
        eventually(lambda way=way: '"backend"' in docker.ask_from_inside(*way), "a new container reaches the Service")
        eventually(docker.is_reached, "the published port is reached")
        assert docker.rules() == theirs
        world.send(web=Given({"inside": "ready", "neighbour": "ready"}), more=Given({"other": "ready"}))
    world.send(more=None)


def test_the_cleanup_leaves_dockers_rules(docker: Docker) -> None:
    world = docker.world
    world.configure("iptables")
    theirs = docker.rules()
    world.agent.close()
    said = world.node.run(["python3", AGENT, "cleanup"]).stdout
    assert "the agent and its files are gone" in said
    assert docker.rules() == theirs
    assert docker.is_reached()
    world.enrol()
