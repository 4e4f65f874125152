"""Mode userspace: the common scenarios, and what only proxies do."""

import json
import os
import re
from collections import Counter
from typing import Any, ClassVar

import pytest

from tests.agents.test_node import eventually
from tests.planes.scenarios import InTables, reached, wait_until_told
from tests.planes.world import VERSIONS, Given, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]
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


def pids(world: World) -> set[str]:
    """The processes of HAProxy, as it says itself."""
    return set(re.findall(r"(?m)^Pid: ([0-9]+)$", ask(world, "show info")))


def servers(world: World) -> set[tuple[str, str, str]]:
    """(listener, server, whether it is taken out) of all."""
    lines = [line.split() for line in ask(world, "show servers state").splitlines()]
    return {(line[1], line[3], line[6]) for line in lines if len(line) > 6 and line[0] != "#"}


class TestUserspace(InTables):
    mode = "userspace"
    tables = ("ip timonel_userspace", "ip6 timonel_userspace")
    by_hand: ClassVar = {
        "nft delete element ip timonel_userspace frontends '{{ {address} . tcp . {port} }}'": "map frontends",
        "nft flush set ip6 timonel_userspace guarded": "set guarded of table ip6",
        "nft add rule ip timonel_userspace to_haproxy accept": "chain to_haproxy",
    }
    tries_another = True

    def assert_fair(self, shares: Counter[str], endpoints: int) -> None:
        assert len(shares) == endpoints
        assert max(shares.values()) - min(shares.values()) <= 1, shares

    def listing(self, world: World) -> Any:
        found: dict[Any, Any] = {}
        for table in self.tables:
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

    def test_a_changed_endpoint_starts_no_process_and_keeps_connections(self, world: World) -> None:
        """And a Service more finds a listener that is open already."""
        world.send(web=Given({"inside": "ready", "neighbour": "ready"}))
        way, client = world.way("web", "cluster ip", 4), world.places["other"]
        before = pids(world)
        assert len(before) == 1
        client.stream("kept", *way, kept=True)
        for endpoints in (("inside",), ("inside", "other"), ("neighbour", "other")):
            world.send(web=Given(dict.fromkeys(endpoints, "ready")))
        world.send(more=Given({"inside": "ready"}))
        assert reached(world.node, way) == {"neighbour", "other"}
        assert reached(world.node, world.way("more", "cluster ip", 4), count=2) == {"inside"}
        kept = client.stream_end("kept")
        assert kept["failed"] == 0, kept
        assert pids(world) == before
        world.send(more=None)

    def test_a_killed_proxy_is_back_soon_and_it_is_told(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}), names=Given({"inside": "ready"}, "udp"))
        for name, service, protocol in (("haproxy", "web", "tcp"), ("nginx", "names", "udp")):
            world.agent.events.clear()
            assert world.node.kill(name) > 0
            for version in VERSIONS:
                way = world.way(service, "cluster ip", version)
                eventually(
                    lambda way=way, protocol=protocol: reached(world.node, way, protocol, count=1) == {"inside"},
                    f"{name} is back",
                )
            wait_until_told(world, f"{name} has ended")

    def test_a_server_taken_out_by_hand_is_put_back_and_named(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        listener, server = next((one, server) for one, server, is_out in sorted(servers(world)) if is_out == "0")
        world.agent.events.clear()
        ask(world, f"set server {listener}/{server} state maint")
        wait_until_told(world, f"changed haproxy's servers of {listener}")
        assert (listener, server, "0") in servers(world)

    def test_leaving_the_mode_tells_how_many_connections_stay(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        places = ("other", "outside", "node")
        for place in places:
            world.places[place].stream("kept", *world.way("web", "node port", 4), kept=True)
        eventually(lambda: "CurrConns: 3" in ask(world, "show info"), "haproxy has them")
        world.agent.events.clear()
        world.configure("nftables")
        wait_until_told(world, "3 connections stay with haproxy until they end")
        for place in places:
            report = world.places[place].stream_end("kept")
            assert report["failed"] == 0, report
        world.configure(self.mode)

    def test_what_proxies_cannot_is_refused_and_the_rest_served(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}), signals=Given({"inside": "ready"}, "sctp"))
        assert world.rejected["shop/signals"]["reason"] == "ProtocolUnsupported"
        assert world.rejected.keys() == {"shop/signals"}
        assert reached(world.node, world.way("web", "cluster ip", 4), count=2) == {"inside"}
        world.configure("nftables")
        assert world.rejected == {}
        world.configure(self.mode)
        assert world.rejected.keys() == {"shop/signals"}
        world.send(signals=None)
        assert world.rejected == {}

    def test_who_was_not_redirected_is_kept_off_the_listeners(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}), names=Given({"inside": "ready"}, "udp"))
        held = json.loads(world.node.run(["cat", "/var/lib/timonel/userspace/ports.json"]).stdout)
        doors = [("tcp", version, port) for _, _, version, port, _ in held["listeners"]]
        doors += [("udp", 6 if ":" in address else 4, port) for address, _, port in held["udp"]]
        assert {protocol for protocol, _, _ in doors} == {"tcp", "udp"}
        for protocol, version, port in doors:
            for client in ("outside", "other"):
                address = world.own("node", version)
                assert world.places[client].refusal(address, port, protocol=protocol) == "refused", (protocol, port)
