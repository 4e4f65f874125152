"""Mode nftables: the common scenarios. What only its tables can show is in tests/agents/test_packets.py."""

import itertools
import os
import re
from typing import Any

import pytest

from services_app.render.tracer import NodeTables, Packet
from tests.agents.test_node import eventually
from tests.planes.scenarios import Scenarios
from tests.planes.table import ROWS, SERVICES
from tests.planes.world import VERSIONS, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]
OURS = ("ip timonel", "ip6 timonel")


class TestNftables(Scenarios):
    mode = "nftables"

    def test_the_tracer_says_what_the_table_says(self, world: World) -> None:
        world.send(**SERVICES)
        resources = [(driver, key, value) for held in world.held.values() for driver, key, value in held]
        tables = NodeTables(resources, [world.own("node", version) for version in VERSIONS])
        for row, version in itertools.product(ROWS, VERSIONS):
            destination, port = world.way(row.service, row.way, version)
            protocol = row.service.rpartition("_")[2]
            said = tables.trace(Packet(world.own(row.client, version), destination, port, protocol))
            if isinstance(row.outcome, str):
                assert said.action == row.outcome, (str(row), said.steps)
                continue
            own = {world.own(name, version): name for name in world.places}
            found = {own[target.address]: "client" if target.sees_client else "node" for target in said.targets}
            assert found.keys() == row.outcome, (str(row), said.steps)
            assert found.items() >= row.sees.items(), (str(row), said.steps)

    def listing(self, world: World) -> Any:
        found: dict[tuple[str, str], set[str]] = {}
        for table in OURS:
            text = world.node.run(["nft", "list", "table", *table.split()], check=False).stdout
            for name, body in re.findall(r"^\t(?:set|map) (\w+) \{$(.*?)^\t\}$", text, re.DOTALL | re.MULTILINE):
                inner = re.search(r"elements = \{(.*)\}", body, re.DOTALL)
                if inner and name != "affinity":
                    found[table, name] = {part.strip() for part in inner[1].split(",")}
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
