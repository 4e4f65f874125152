"""Mode iptables: the common scenarios, and what its chains are."""

import os
import re
from typing import Any, ClassVar

import pytest

from tests.agents.test_node import eventually
from tests.planes.scenarios import Scenarios
from tests.planes.world import World

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
