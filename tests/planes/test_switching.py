"""From one mode to another and back under load: nobody notices, and nothing of the old mode is left."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agents import ipvs
from services_app.lab.namespaces import Place
from tests.agents.test_node import eventually
from tests.missing import without
from tests.planes.scenarios import reached, wait_until_told
from tests.planes.world import PATIENCE, VERSIONS, Given, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]


@dataclass(frozen=True)
class Mode:
    """A mode beside nftables. look: prints what it has on a node, nothing when it is not in force; tool: what it cannot do
    without, and `instead` can. keeps_connections: also those that its predecessor made, and the other way round."""

    name: str
    look: str
    tool: str
    instead: str = "nftables"
    server: str = ""
    keeps_connections: bool = True


MODES = [
    Mode("iptables", "(iptables-save; ip6tables-save) | grep TIMONEL-", "/usr/sbin/iptables"),
    Mode("userspace", "nft list tables | grep timonel_userspace", "/usr/sbin/haproxy", server="haproxy"),
]
if not ipvs.lacks():
    look = "nft list tables | grep timonel_ipvs; ipvsadm -Ln | grep -F '->' | grep -v RemoteAddress; ip rule list priority 84"
    MODES.append(Mode("ipvs", look, "/usr/sbin/ipvsadm", "iptables", keeps_connections=False))
NFTABLES = "nft list tables | grep timonel$"
WAYS = ("cluster ip", "node port", "external ip")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World("nftables") as world:
        yield world


def has(world: World, look: str) -> bool:
    return bool(world.node.run(["sh", "-c", look], check=False).stdout)


def loads(world: World) -> list[tuple[str, Place, str, int, bool]]:
    """Streams of new connections and kept ones: key, client, address, port, whether kept."""
    clients = {"cluster ip": "other", "node port": "outside", "external ip": "node"}
    return [
        (
            f"{way} {version} {'kept' if kept else 'new'}",
            world.places[clients[way]],
            *world.way("web", way, version),
            kept,
        )
        for way in WAYS
        for version in VERSIONS
        for kept in (True, False)
    ]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_there_and_back_under_load(world: World, mode: Mode) -> None:
    world.configure("nftables")
    world.agent.events.clear()
    world.send(web=Given({"inside": "ready", "other": "ready", "neighbour": "ready"}), nobody=Given({}))
    running = loads(world)
    for key, client, address, port, kept in running:
        client.stream(key, address, port, kept=kept, interval_ms=10 * PATIENCE, timeout_s=2 * PATIENCE)
    for name in (mode.name, "nftables", mode.name, "nftables"):
        world.configure(name)
        assert world.serving == {"mode": name, "problems": []}
        wait_until_told(world, f"mode {name} serves instead of")
        world.agent.events.clear()
        assert has(world, mode.look) == (name == mode.name)
        assert has(world, NFTABLES) == (name == "nftables")
        # It is the new mode that serves: what comes now, comes by it.
        world.send(web=Given({"inside": "ready", "neighbour": "ready"}))
        assert reached(world.node, world.way("nobody", "cluster ip", 4), count=1) <= {
            "refused",
            "operation not permitted",
        }
        world.send(web=Given({"inside": "ready", "other": "ready", "neighbour": "ready"}))
    for key, client, _, _, kept in running:
        report = client.stream_end(key)
        assert report["asked"] > 10, (key, report)
        if mode.keeps_connections or not kept:
            assert report["failed"] == 0, (key, report)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_tool_that_is_missing(world: World, mode: Mode) -> None:
    """Another mode serves instead and says so, until the tool is there again."""
    world.configure("nftables")
    world.send(web=Given({"inside": "ready"}))
    with without(world.node, mode.tool):
        world.configure(mode.name)
        assert world.serving["mode"] == mode.instead
        (problem,) = world.serving["problems"]
        assert (problem["reason"], problem["blocking"]) == ("ModeFallback", False)
        assert f"not in mode {mode.name}: " in problem["message"]
        for version in VERSIONS:
            assert reached(world.node, world.way("web", "cluster ip", version), count=3) == {"inside"}
    eventually(lambda: has(world, mode.look), f"mode {mode.name} comes into force", deadline_s=40 + 10 * PATIENCE)
    assert world.agent.ask("ping")["serving"] == {"mode": mode.name, "problems": []}
    for version in VERSIONS:
        assert reached(world.node, world.way("web", "cluster ip", version), count=3) == {"inside"}
    assert not has(world, NFTABLES)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_tool_that_goes_while_its_mode_serves(world: World, mode: Mode) -> None:
    """The next change that needs it is served by another mode, whatever still stands of this one."""
    world.configure(mode.name)
    world.send(web=Given({"inside": "ready"}))
    with without(world.node, mode.tool):
        if mode.server:
            world.send(web=Given({"inside": "ready", "other": "ready"}))
            assert world.serving == {"mode": mode.name, "problems": []}
            assert world.node.kill(mode.server) > 0
        world.send(web=Given({"other": "ready"}))
        if mode.server:  # it may have had a moment left, and taken the change
            eventually(lambda: world.agent.ask("ping")["serving"]["mode"] == mode.instead, "another mode serves")
        else:
            assert world.serving["mode"] == mode.instead
        for version in VERSIONS:
            for way in WAYS:
                assert reached(world.node, world.way("web", way, version), count=5) == {"other"}
        world.configure("nftables")
    assert not has(world, mode.look)
    world.configure(mode.name)
    assert world.serving == {"mode": mode.name, "problems": []}
    assert not has(world, NFTABLES)
