"""Mode ipvs: the common scenarios on a kernel that has IPVS, and what only virtual servers can show.

Where the own kernel has none, `make soak` runs them in a virtual machine, and here the node falls back.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents import ipvs, planes, virtual_servers
from services_app.spec.kube_proxy import SCHEDULERS
from tests.agents.test_node import eventually
from tests.planes import guest
from tests.planes.scenarios import AFFINE, Scenarios, both, reached, wait_until_told
from tests.planes.test_switching import loads
from tests.planes.world import PATIENCE, VERSIONS, Given, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
LACK = ipvs.lacks()
IPVSADM = "/usr/sbin/ipvsadm"
IN_THE_GUEST = ("ipvs", "nftables", "switching", "sctp")
INSTEAD = "iptables" if "iptables" in planes.KINDS else "nftables"


def hide_ipvsadm(world: World) -> None:
    """As on a host where it is not installed."""
    if world.node.run(["test", "-e", IPVSADM], check=False).returncode == 0:
        world.node.run(["mount", "--bind", "/dev/null", IPVSADM])


class TestFallback:
    """A node that cannot; also on kernels that could."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        with World("nftables") as world:
            yield world

    def test_without_ipvs_a_node_serves_in_another_mode_and_says_so(self, world: World) -> None:
        hide_ipvsadm(world)
        world.configure("ipvs")
        world.send(web=Given({"inside": "ready"}))
        assert world.serving["mode"] == INSTEAD
        (problem,) = world.serving["problems"]
        assert problem["reason"] == "ModeFallback"
        assert "not in mode ipvs: ipvsadm is not installed" in problem["message"]
        assert not problem["blocking"]
        for version in VERSIONS:
            assert reached(world.node, world.way("web", "cluster ip", version), count=3) == {"inside"}
        world.configure("nftables")
        assert world.serving == {"mode": "nftables", "problems": []}


@pytest.mark.soak
@pytest.mark.timeout(1300)
@pytest.mark.skipif(not LACK, reason="this kernel has IPVS: the scenarios run on it")
def test_the_scenarios_in_a_virtual_machine() -> None:
    missing = [package for tool, package in guest.PACKAGES.items() if not shutil.which(tool)]
    if missing:
        subprocess.run(["sh", "services_app/local/install.sh", *missing], check=True)
    options = "--strict-markers -p no:cacheprovider -p no:django --import-mode=importlib --timeout=300"
    code, said = guest.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-o", f"addopts={options}"]
        + [
            "--confcutdir=tests/planes",
            "--color=no",
            "--durations=20",
            "-k",
            "TestIpvs or every_row or keeps_its_endpoint or association or (missing and ipvs)",
        ]
        # Debian 12's kernel takes not all that newer ones take: mode nftables is tried on it as well. It has SCTP, too.
        + [str((Path(__file__).parent / f"test_{name}.py").relative_to(Path.cwd())) for name in IN_THE_GUEST],
        environment={"TIMONEL_PATIENCE": "5"},
        timeout_s=1200,
    )
    assert code == 0, said
    assert " passed" in said, said
    print(said)


def servers(world: World) -> dict[virtual_servers.Key, virtual_servers.Held]:
    return virtual_servers.parse(world.node.run([IPVSADM, "-Ln"]).stdout)


def server(
    world: World, service: str, way: str = "cluster ip", version: int = 4, kind: str = "tcp"
) -> virtual_servers.Held:
    return servers(world)[virtual_servers.Key(kind, *world.way(service, way, version))]


@pytest.mark.timeout(180)
@pytest.mark.skipif(bool(LACK), reason=LACK)
class TestIpvs(Scenarios):
    mode = "ipvs"
    by_hand: ClassVar = {
        "nft delete element ip timonel_ipvs frontends '{{ {address} . tcp . {port} }}'": "map frontends of table ip timonel_ipvs",
        f"{IPVSADM} -D -t {{address}}:{{port}}": "virtual server -t",
    }
    steps = 40 if PATIENCE == 1 else 8

    def assert_fair(self, shares: Counter[str], endpoints: int) -> None:
        """Round robin: all the same but for one."""
        assert len(shares) == endpoints
        assert max(shares.values()) - min(shares.values()) <= 1, shares

    @both
    def test_a_client_is_forgotten_after_its_time(self, world: World, version: int) -> None:
        """IPVS forgets a client when its last connection is forgotten too, minutes later; here only that it is told."""
        world.send(web=Given(dict.fromkeys(("node", "inside", "other"), "ready"), "tcp", AFFINE))
        for way in ("cluster ip", "node port", "external ip"):
            assert server(world, "web", way, version).affinity_s == 600
        world.send(web=Given(dict.fromkeys(("node", "inside", "other"), "ready"), "tcp"))
        assert server(world, "web", version=version).affinity_s is None
        way = world.way("web", "cluster ip", version)
        assert reached(world.places["other"], way) == {"node", "inside", "other"}

    def test_every_service_may_choose_its_scheduler(self, world: World) -> None:
        endpoints = {"inside": "ready", "other": "ready"}
        chosen = {name: Given(endpoints, annotations={"timonel.io/ipvs-scheduler": name}) for name in SCHEDULERS}
        world.send(**chosen, plain=Given(endpoints))
        for version in VERSIONS:
            for name in SCHEDULERS:
                assert server(world, name, version=version).scheduler == name
                assert reached(world.node, world.way(name, "cluster ip", version), count=4) <= {"inside", "other"}
            assert server(world, "plain", version=version).scheduler == "rr"
        world.send(**dict.fromkeys((*SCHEDULERS, "plain")))

    def test_a_node_has_a_scheduler_for_the_rest(self, world: World) -> None:
        endpoints = {"inside": "ready", "other": "ready"}
        world.send(web=Given(endpoints, annotations={"timonel.io/ipvs-scheduler": "sh"}), plain=Given(endpoints))
        try:
            world.configure(self.mode, ipvs_scheduler="lc")
            assert (server(world, "web").scheduler, server(world, "plain").scheduler) == ("sh", "lc")
        finally:
            world.configure(self.mode)
        assert (server(world, "web").scheduler, server(world, "plain").scheduler) == ("sh", "rr")

    def test_a_virtual_server_that_somebody_deleted_comes_back(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        before = self.listing(world)
        for damage in (
            ["-D", "-t", "10.96.0.1:80"],
            ["-d", "-t", "10.96.0.1:80", "-r", f"{world.own('inside', 4)}:8080"],
            ["-E", "-t", "10.96.0.1:80", "-s", "lc"],
            ["-C"],
        ):
            number = world.way("web", "cluster ip", 4)[0]
            world.node.run([IPVSADM, *(word.replace("10.96.0.1", number) for word in damage)])
            assert self.listing(world) != before
            eventually(lambda: self.listing(world) == before, f"{damage} is repaired", 30)
        assert reached(world.node, world.way("web", "cluster ip", 4), count=3) == {"inside"}

    def test_somebody_elses_virtual_servers_stay(self, world: World) -> None:
        world.node.run([IPVSADM, "-A", "-t", "192.0.2.99:80", "-s", "lc"])
        try:
            world.send(web=Given({"inside": "ready"}))
            world.configure(self.mode)
            assert virtual_servers.Key("tcp", "192.0.2.99", 80) in servers(world)
        finally:
            world.node.run([IPVSADM, "-D", "-t", "192.0.2.99:80"])

    @both
    def test_an_endpoint_that_left_keeps_its_connections(self, world: World, version: int) -> None:
        name, client = f"left{version}", world.places["other"]
        world.send(**{name: Given({"inside": "ready"})})
        way = world.way(name, "cluster ip", version)

        def endpoints() -> list[tuple[int, int]]:
            """Weight and connections of each."""
            return sorted(server(world, name, version=version).endpoints.values())

        client.stream("kept", *way, kept=True, timeout_s=2)
        eventually(lambda: endpoints() == [(1, 1)], "the connection is there")
        world.send(**{name: Given({"neighbour": "ready"})})
        assert endpoints() == [(0, 1), (1, 0)]
        assert reached(client, way, count=4) == {"neighbour"}
        time.sleep(2.5)  # the agent has looked meanwhile
        kept = client.stream_end("kept")
        assert (kept["failed"], kept["backends"].keys()) == (0, {"inside"}), kept
        assert [weight for weight, _ in endpoints()] == [0, 1]

    def test_from_and_to_other_modes_under_load(self, world: World) -> None:
        """New connections never fail, and only those that IPVS translated end."""
        world.configure("nftables")
        world.send(
            web=Given({"inside": "ready", "other": "ready", "neighbour": "ready"}), held=Given({"inside": "ready"})
        )
        running = loads(world)
        for key, client, address, port, kept in running:
            client.stream(key, address, port, kept=kept, interval_ms=30 * PATIENCE, timeout_s=2 * PATIENCE)
        try:
            for name in ("iptables", "nftables"):
                world.configure("ipvs")
                assert world.serving == {"mode": "ipvs", "problems": []}
                translated = [f"translated {version}" for version in VERSIONS]
                for key, version in zip(translated, VERSIONS, strict=True):
                    way = world.way("held", "cluster ip", version)
                    world.places["other"].stream(
                        key, *way, kept=True, interval_ms=30 * PATIENCE, timeout_s=2 * PATIENCE
                    )
                eventually(
                    lambda: all(server(world, "held", version=version).active == 1 for version in VERSIONS),
                    "IPVS has both",
                )
                world.agent.events.clear()
                world.configure(name)
                assert world.serving == {"mode": name, "problems": []}
                wait_until_told(world, "2 connections that IPVS translated ended")
                for key in translated:
                    report = world.places["other"].stream_end(key)
                    assert report["failed"] > 0, (key, report)
        finally:
            reports = {key: client.stream_end(key) for key, client, *_ in running}
            world.configure(self.mode)
        for key, report in reports.items():
            assert report["asked"] > 10, (key, report)
            assert report["failed"] == 0, (key, report)

    def test_an_endpoint_of_udp_goes_at_once(self, world: World) -> None:
        world.send(dns=Given({"inside": "ready"}, "udp"))
        reached(world.node, world.way("dns", "cluster ip", 4), "udp", count=3)
        world.send(dns=Given({"other": "ready"}, "udp"))
        assert len(server(world, "dns", kind="udp").endpoints) == 1
        assert reached(world.node, world.way("dns", "cluster ip", 4), "udp", count=3) == {"other"}

    def test_endpoints_without_connections_are_taken_off(self, world: World) -> None:
        world.send(idle=Given({"inside": "ready"}))
        world.send(idle=Given({"other": "ready"}))
        eventually(lambda: len(server(world, "idle").endpoints) == 1, "the endpoint that left is gone", 30)
        world.send(idle=Given({}))
        key = virtual_servers.Key("tcp", *world.way("idle", "cluster ip", 4))
        eventually(lambda: key not in servers(world), "the virtual server without endpoints is gone", 30)

    def test_a_service_where_somebody_has_a_virtual_server_is_refused_alone(self, world: World) -> None:
        world.send(clash=None)
        address, port = world.way("clash", "cluster ip", 4)
        theirs = f"{address}:{port}"
        world.node.run([IPVSADM, "-A", "-t", theirs, "-s", "lc"])
        try:
            world.send(clash=Given({"inside": "ready"}), beside=Given({"inside": "ready"}))
            assert world.rejected.keys() == {"shop/clash"}
            assert "somebody else has a virtual server" in world.rejected["shop/clash"]["message"]
            assert reached(world.node, world.way("beside", "cluster ip", 4), count=3) == {"inside"}
            assert server(world, "clash").scheduler == "lc"
        finally:
            world.node.run([IPVSADM, "-D", "-t", theirs])
        world.send(clash=Given({"other": "ready"}))
        assert world.rejected == {}
        assert reached(world.node, world.way("clash", "cluster ip", 4), count=3) == {"other"}

    def listing(self, world: World) -> Any:
        found: dict[str, Any] = {}
        for key, held in servers(world).items():
            weights = {name: weight for name, (weight, _) in held.endpoints.items() if weight}
            if held.is_ours and weights:
                found[str(key)] = held.scheduler, held.affinity_s, weights
        tables = world.node.run(["nft", "list", "ruleset"]).stdout
        for table in ("ip timonel_ipvs", "ip6 timonel_ipvs"):
            if f"table {table} " in tables:
                text = world.node.run(["nft", "list", "set", *table.split(), "generation"]).stdout
                rules = world.node.run(["nft", "list", "chain", *table.split(), "services"]).stdout
                found[table] = text, rules
        for version in ("-4", "-6"):
            rules = world.node.run(["ip", version, "rule", "show", "priority", ipvs.PRIORITY], check=False).stdout
            routes = world.node.run(["ip", version, "route", "show", "table", ipvs.TABLE], check=False).stdout
            if rules or routes:
                found[version] = rules, routes
        for name in ipvs.SETTINGS:
            value = world.node.run(["cat", f"/proc/sys/{name}"]).stdout.strip()
            if value != "0":
                found[name] = value
        return found

    def damage(self, world: World) -> None:
        self.before = self.listing(world)
        for key, held in servers(world).items():
            if key.address.startswith(("10.96.", "fd00:10:96:")) and held.is_ours:
                world.node.run([IPVSADM, "-D", *str(key).split()])
        script = "".join(
            f"flush chain {ip} timonel_ipvs services\nflush set {ip} timonel_ipvs generation\n" for ip in ("ip", "ip6")
        )
        world.node.run(["nft", "-f", "-"], input=script)
        world.node.run(["ip", "rule", "del", "priority", ipvs.PRIORITY])

    def wait_for_repair(self, world: World) -> None:
        eventually(lambda: self.listing(world) == self.before, "all is as it was", 20 * PATIENCE)

    def foreign(self, world: World) -> str:
        text = world.node.run(["nft", "list", "ruleset"]).stdout
        tables = [part for part in re.split(r"(?m)^(?=table )", text) if "timonel" not in part.split("\n")[0]]
        rules = world.node.run(["ip", "rule"]).stdout.splitlines()
        others = [line for line in rules if f"lookup {ipvs.TABLE}" not in line]
        return "".join([*tables, *others, world.node.run(["ip", "-br", "link"]).stdout])
