"""Mode nftables: the common scenarios. What only its tables can show is in tests/agents/test_packets.py."""

import itertools
import os
import re
from typing import Any, ClassVar

import pytest

from services_app.render.tracer import NodeTables, Packet
from tests.planes.scenarios import InTables
from tests.planes.table import ROWS, SERVICES
from tests.planes.world import VERSIONS, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]


class TestNftables(InTables):
    mode = "nftables"
    tables = ("ip timonel", "ip6 timonel")
    by_hand: ClassVar = {
        "nft delete element ip timonel frontends '{{ {address} . tcp . {port} }}'": "map frontends of table ip timonel",
        "nft insert rule ip6 timonel services accept": "chain services of table ip6 timonel",
    }

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
        for table in self.tables:
            text = world.node.run(["nft", "list", "table", *table.split()], check=False).stdout
            for name, body in re.findall(r"^\t(?:set|map) (\w+) \{$(.*?)^\t\}$", text, re.DOTALL | re.MULTILINE):
                inner = re.search(r"elements = \{(.*)\}", body, re.DOTALL)
                if inner and name != "affinity":
                    found[table, name] = {part.strip() for part in inner[1].split(",")}
        return found
