"""Mode iptables: the common scenarios, and what its chains are."""

import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.agents.test_node import eventually
from tests.missing import without
from tests.planes.scenarios import AFFINE, Scenarios, both, reached
from tests.planes.world import Given, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]


def saved(world: World, infix: str = "") -> list[str]:
    """Every line that iptables-save and ip6tables-save print, without comments; "ip" or "ip6" and the table before it."""
    lines = []
    for ip in ("ip", "ip6"):
        table = ""
        for line in world.node.run([f"{ip}tables{infix}-save"]).stdout.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif not line.startswith("#") and line != "COMMIT":
                lines.append(f"{ip} {table} {re.sub(r' .[0-9]+:[0-9]+.$', '', line)}")
    return lines


class TestIptables(Scenarios):
    mode = "iptables"
    by_hand: ClassVar = {
        "iptables -w -t nat -I TIMONEL-SERVICES -j RETURN": "TIMONEL-SERVICES of iptables",
        "ip6tables -w -t nat -D TIMONEL-NODEPORTS 1": "TIMONEL-NODEPORTS of ip6tables",
    }
    infix: ClassVar[str] = ""  # of the commands of the backend that holds the rules
    nothing: ClassVar[Any] = []

    def listing(self, world: World) -> Any:
        return sorted(line for line in saved(world, self.infix) if "TIMONEL-" in line)

    def damage(self, world: World) -> None:
        for ip in ("ip", "ip6"):
            script = "*nat\n:TIMONEL-SERVICES - [0:0]\n:TIMONEL-GENERATION - [0:0]\nCOMMIT\n"
            world.node.run([f"{ip}tables{self.infix}-restore", "--noflush", "-w"], input=script)

    def wait_for_repair(self, world: World) -> None:
        def is_repaired() -> bool:
            return sum("TIMONEL-GENERATION -m comment" in line for line in self.listing(world)) == 2

        eventually(is_repaired, "the chains are written again")

    def foreign(self, world: World) -> str:
        lines = [line for line in saved(world, self.infix) if "TIMONEL-" not in line]
        return "\n".join(line for line in lines if not line.endswith(" ACCEPT"))  # a table without rules

    @both
    def test_masquerade_all_hides_every_client(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready"}))
        way, client = world.way("web", "cluster ip", version), world.places["other"]
        assert client.ask(*way)["client"] == world.own("other", version)
        world.configure(self.mode, masquerade_all=True)
        assert client.ask(*way)["client"] != world.own("other", version)
        world.configure(self.mode)
        assert client.ask(*way)["client"] == world.own("other", version)

    def test_a_service_that_the_host_cannot_do_is_left_out_alone(self, world: World) -> None:
        """Without the extension for affinity."""
        (library,) = world.node.run(["sh", "-c", "ls /usr/lib/*/xtables/libxt_recent.so"]).stdout.split()
        world.send(web=Given({"inside": "ready"}))
        with without(world.node, library):
            world.send(
                sticky=Given({"inside": "ready"}, "tcp", AFFINE),
                plain=Given({"inside": "ready"}),
            )
            assert world.serving == {"mode": self.mode, "problems": []}
            assert list(world.rejected) == ["shop/sticky"]
            assert "recent" in world.rejected["shop/sticky"]["message"]
            for version in (4, 6):
                assert reached(world.node, world.way("plain", "cluster ip", version), count=3) == {"inside"}
        world.send(sticky=Given({"inside": "ready"}, "tcp", AFFINE))
        assert world.rejected == {}
        assert reached(world.node, world.way("sticky", "cluster ip", 4), count=3) == {"inside"}
        world.send(sticky=None, plain=None)


class TestIptablesLegacy:
    """On a host whose firewall is in the legacy tables: the rows of the table, a repair, and nothing in nf_tables."""

    mode = "iptables"
    tries_another = False
    difference = Scenarios.difference
    test_every_row_of_the_table = Scenarios.test_every_row_of_the_table
    test_what_somebody_changed_by_hand_is_repaired_and_told = (
        Scenarios.test_what_somebody_changed_by_hand_is_repaired_and_told
    )
    infix = "-legacy"
    listing = TestIptables.listing
    damage = TestIptables.damage
    wait_for_repair = TestIptables.wait_for_repair

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> Iterator[World]:
        with World("nftables") as world:
            world.node.run(["iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "23", "-j", "DROP"])
            world.configure("iptables")
            yield world

    def test_rules_are_where_the_hosts_are(self, world: World) -> None:
        assert self.listing(world)
        assert saved(world, "-nft") == []
        assert world.node.run(["nft", "list", "ruleset"]).stdout == ""
        assert world.agent.ask("hello", cluster="c1")["facts"]["iptables"].endswith(" (legacy)")
