"""Mode userspace: the common scenarios, and what only proxies do."""

import os
import re
from collections import Counter
from typing import Any

import pytest

from tests.agents.test_node import eventually
from tests.planes.scenarios import Scenarios
from tests.planes.world import World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]
OURS = ("ip timonel_userspace", "ip6 timonel_userspace")
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as control:
    control.connect("/run/timonel/userspace/haproxy.sock")
    control.sendall(sys.argv[1].encode() + b"\\n")
    while part := control.recv(1 << 16):
        sys.stdout.write(part.decode())
"""


def ask(world: World, commands: str) -> str:
    """What HAProxy's runtime API says."""
    return world.node.run(["python3", "-c", ASK, commands], check=False).stdout


def servers(world: World) -> set[tuple[str, str, str]]:
    """(listener, server, whether it is taken out) of all."""
    lines = [line.split() for line in ask(world, "show servers state").splitlines()]
    return {(line[1], line[3], line[6]) for line in lines if len(line) > 6 and line[0] != "#"}


class TestUserspace(Scenarios):
    mode = "userspace"
    tries_another = True

    def assert_fair(self, shares: Counter[str], endpoints: int) -> None:
        assert len(shares) == endpoints
        assert max(shares.values()) - min(shares.values()) <= 1, shares

    def listing(self, world: World) -> Any:
        found: dict[Any, Any] = {}
        for table in OURS:
            text = world.node.run(["nft", "list", "table", *table.split()], check=False).stdout
            for name, body in re.findall(r"^\t(?:set|map|chain) (\w+) \{$(.*?)^\t\}$", text, re.DOTALL | re.MULTILINE):
                inner = re.search(r"elements = \{(.*)\}", body, re.DOTALL)
                if inner and name not in ("affinity", "guarded", "peer"):
                    found[table, name] = {part.strip() for part in inner[1].split(",")}
                elif name.startswith("udp_"):
                    found[table, name] = body
        if lines := servers(world):
            found["haproxy"] = lines
        return found

    def damage(self, world: World) -> None:
        script = "".join(
            f"flush chain {table} services\nflush set {table} generation\nflush map {table} groups\n" for table in OURS
        )
        world.node.run(["nft", "-f", "-"], input=script)

    def wait_for_repair(self, world: World) -> None:
        def is_repaired() -> bool:
            rules = [world.node.run(["nft", "list", "table", *table.split()]).stdout for table in OURS]
            return all("elements" in text.partition("set generation")[2][:80] for text in rules)

        eventually(is_repaired, "the tables are refilled")

    def foreign(self, world: World) -> str:
        text = world.node.run(["nft", "list", "ruleset"]).stdout
        return "".join(part for part in re.split(r"(?m)^(?=table )", text) if "timonel" not in part.split("\n")[0])
