"""What every mode must do, told once. A mode's test file derives a class from Scenarios and says what it does its own way."""

import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from services_app.lab.namespaces import Place
from tests.agents.test_node import AGENT, Agent, eventually
from tests.planes.table import DROPPED, REFUSED, ROWS, SERVICES, Row
from tests.planes.world import PATIENCE, PORT, VERSIONS, Given, World

# A process on the node is told by the kernel's own words when what it sends is rejected or dropped on its way out.
_WORDS = {
    REFUSED: {"refused", "operation not permitted", "permission denied"},
    DROPPED: {"timeout", "operation not permitted"},
}
both = pytest.mark.parametrize("version", VERSIONS)
AFFINE: Mapping[str, Any] = {
    "sessionAffinity": "ClientIP",
    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
}


def reached(
    place: Place, way: tuple[str, int], protocol: str = "tcp", count: int = 20, timeout_s: float = 1.5
) -> set[str]:
    """The names of who answers, or the reasons why nobody does."""
    answers = place.ask_often(*way, count, protocol=protocol, timeout_s=timeout_s * PATIENCE)
    return {str(answer.get("backend") or answer["error"]) for answer in answers}


def wait_until_told(world: World, words: str = "changed") -> None:
    """Until an event of the node says so; it comes when all of a repair is done."""

    def is_told() -> bool:
        world.agent.ask("ping")
        return any(words in event["message"] for event in world.agent.events)

    try:
        eventually(is_told, f"{words!r} is told", deadline_s=40 * PATIENCE)
    except AssertionError as err:
        raise AssertionError(f"{err}; told was {world.agent.events}") from None


# The first elements of a family, a library that a test has taken away, a virtual server of somebody else in the way.
_NEEDS_REFILL = ("that are not there yet", "libxt_recent.so: file too short", "virtual servers: Service already exists")


class Scenarios:
    """mode: the one under test."""

    mode: ClassVar[str]
    tries_another: ClassVar[bool] = False  # when an endpoint does not take a connection
    steps: ClassVar[int] = 40  # of a random walk

    @pytest.fixture(autouse=True)
    def deltas_lead_to_what_a_refill_makes(self, world: World) -> Iterator[None]:
        """Every scenario ends with it, and no delta took the long way over a refill without need."""
        world.agent.logged()
        yield
        refills = [line for line in world.agent.logged() if "refilling: " in line]
        assert not [line for line in refills if not any(need in line for need in _NEEDS_REFILL)], refills
        # Virtual servers follow the node's addresses within a second.
        deadline = time.monotonic() + 5 * PATIENCE
        while (found := world.unlike_a_refill()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found == [], found

    def test_every_row_of_the_table(self, world: World) -> None:
        world.send(**SERVICES)
        assert world.rejected == {}
        assert world.serving == {"mode": self.mode, "problems": []}
        questions = [(row, version) for row in ROWS for version in VERSIONS]
        with ThreadPoolExecutor(24) as pool:
            found = pool.map(lambda question: self.difference(world, *question), questions)
        problems = [problem for problem in found if problem]
        assert not problems, "\n".join(problems)

    def difference(self, world: World, row: Row, version: int) -> str:
        """What a row's client met and should not have; "" for nothing."""
        outcome, sees = row.expected(self.mode)
        protocol, place = row.service.rpartition("_")[2], world.places[row.client]
        way = world.way(row.service, row.way, version)
        told = f"{row} in IPv{version} should be {sorted(outcome) if isinstance(outcome, frozenset) else outcome}"
        if isinstance(outcome, str):
            # Silence is asked again: a host sends only a few ICMP errors at once (RFC 4443, 2.4 f).
            for _ in range(5):
                words = reached(place, way, protocol, count=1, timeout_s=0.4)
                if outcome == DROPPED or words != {"timeout"}:
                    break
            return "" if words <= _WORDS[outcome] else f"{told}, not {words}"
        answers: list[dict[str, Any]] = []
        while len(answers) < 40 and {a.get("backend") for a in answers} != outcome:
            answers += place.ask_often(*way, 4 if answers else 8, protocol=protocol, timeout_s=2)
        names = {str(a.get("backend") or a["error"]) for a in answers}
        if names != outcome:
            return f"{told}, not {sorted(names)}"
        for answer in answers:
            wanted = sees.get(answer["backend"])
            at_node = world.node_towards(answer["backend"], version)
            if wanted and answer["client"] != (world.own(row.client, version) if wanted == "client" else at_node):
                return f"{row} in IPv{version}: {answer['backend']} sees {answer['client']}, not the {wanted}"
        return ""

    @both
    def test_an_undefined_port_of_a_cluster_ip_is_refused(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready"}))
        address, _ = world.way("web", "cluster ip", version)
        for client in ("node", "other"):
            assert world.places[client].refusal(address, 81) in _WORDS[REFUSED]

    @both
    def test_connections_are_shared_among_endpoints(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready", "other": "ready", "neighbour": "ready"}))
        answers = world.places["node"].ask_often(*world.way("web", "cluster ip", version), 300)
        self.assert_fair(Counter(answer["backend"] for answer in answers), 3)

    def assert_fair(self, shares: Counter[str], endpoints: int) -> None:
        """Random choice: chi squared with two degrees of freedom is above 18.4 in one of 10,000 runs."""
        assert len(shares) == endpoints
        mean = shares.total() / endpoints
        assert sum((count - mean) ** 2 / mean for count in shares.values()) < 18.4, shares

    @both
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_weights_are_shares_and_none_keeps_what_it_has(self, world: World, version: int, protocol: str) -> None:
        two = {"inside": "ready", "other": "ready"}
        world.send(web=Given(two, protocol, weights={"inside": 80, "other": 20}))
        way, client = world.way("web", "cluster ip", version), world.places["node"]
        shares = Counter(answer["backend"] for answer in client.ask_often(*way, 200, protocol=protocol))
        assert 120 < shares["inside"] < 195, shares
        world.send(web=Given(two, protocol, weights={"other": 0}))
        outside, door = world.places["outside"], world.way("web", "node port", version)
        outside.stream("kept", *door, protocol=protocol, kept=True)
        time.sleep(0.2)
        world.send(web=Given(two, protocol, weights={"inside": 0}))
        # Not the client of before: by UDP it may use a port again, and with it a flow that is kept.
        assert reached(world.places["other"], way, protocol) == {"other"}
        kept = outside.stream_end("kept")
        assert kept["failed"] == 0, kept
        assert kept["backends"].keys() == {"inside"}, kept

    @both
    def test_a_dead_endpoint(self, world: World, version: int) -> None:
        """One that is said to be ready, and whose host refuses: only a proxy that connects by itself can try another."""
        world.send(web=Given({"inside": "ready", "neighbour": "ready"}))
        dead = {"address": world.own("neighbour", version)}
        world.places["neighbour"].stop_serving(PORT, **dead)
        try:
            found = reached(world.node, world.way("web", "cluster ip", version), count=30)
        finally:
            world.places["neighbour"].serve("neighbour", PORT, **dead)
        assert found == ({"inside"} if self.tries_another else {"inside", "refused"})

    @both
    def test_node_ports_are_answered_where_the_configuration_says(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready"}))
        primary, port = world.way("web", "node port", version)
        second, whole = ("192.0.2.77", 32) if version == 4 else ("2001:db8:77::77", 128)
        world.node.run(["ip", "address", "add", f"{second}/{whole}", "dev", "lo"])
        world.lab.switch.run(["ip", "route", "replace", f"{second}/{whole}", "via", primary])
        try:
            for chosen, at_primary, at_second in (
                ((), True, True),
                (("primary",), True, False),
                (("192.0.2.64/26", "2001:db8:77::/64"), False, True),
            ):
                world.configure(self.mode, node_port_addresses=chosen)
                for client in ("outside", "node"):
                    for address, is_open in ((primary, at_primary), (second, at_second)):
                        wanted = {"inside"} if is_open else {"refused"}
                        found = reached(world.places[client], (address, port), count=3)
                        assert found == wanted, (chosen, client, address)
        finally:
            world.configure(self.mode)
            world.node.run(["ip", "address", "delete", f"{second}/{whole}", "dev", "lo"])
            world.lab.switch.run(["ip", "route", "delete", f"{second}/{whole}"])

    @both
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_client_keeps_its_endpoint(self, world: World, version: int, protocol: str) -> None:
        def send(*endpoints: str) -> None:
            world.send(web=Given(dict.fromkeys(endpoints, "ready"), protocol, AFFINE))

        send("node", "inside", "neighbour")
        way, client = world.way("web", "cluster ip", version), world.places["other"]
        first = reached(client, way, protocol)
        assert len(first) == 1
        # Another endpoint that goes is no reason to move, its own is.
        left = sorted({"node", "inside", "neighbour"} - first)
        send(*first, left[0])
        assert reached(client, way, protocol) == first
        send(left[0])
        assert reached(client, way, protocol) == {left[0]}

    @both
    def test_a_client_is_forgotten_after_its_time(self, world: World, version: int) -> None:
        spec = {**AFFINE, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 2}}}
        world.send(web=Given(dict.fromkeys(("node", "inside", "other", "neighbour"), "ready"), "tcp", spec))
        way, client = world.way("web", "cluster ip", version), world.places["node"]
        first = reached(client, way, count=1)
        for _ in range(2):
            time.sleep(1.2)  # longer than its time together: every connection begins it again
            assert reached(client, way, count=1) == first
        found = set(first)
        for _ in range(12):
            time.sleep(2.6)
            found |= reached(client, way, count=1)
            if len(found) > 1:
                return
        pytest.fail(f"forgotten twelve times and always {found} again")

    @both
    def test_a_udp_flow_leaves_an_endpoint_that_left(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready"}, "udp"))
        client, way = world.places["outside"], world.way("web", "node port", version)
        client.stream("flow", *way, protocol="udp", interval_ms=10, timeout_s=0.3, kept=True)
        time.sleep(0.3)
        world.send(web=Given({"other": "ready"}, "udp"))
        time.sleep(1.5)
        report = client.stream_end("flow")
        assert report["backends"].get("inside", 0) > 5, report
        assert report["backends"].get("other", 0) > 10, report

    @both
    def test_connections_outlive_changes_and_a_repair(self, world: World, version: int) -> None:
        world.send(web=Given({"inside": "ready", "neighbour": "ready"}))
        client = world.places["outside"]
        client.stream("kept", *world.way("web", "node port", version), kept=True)
        client.stream("new", *world.way("web", "node port", version), timeout_s=2)
        for number in range(6):
            world.send(
                web=Given({"inside": "ready", "neighbour": "ready", **({"other": "ready"} if number % 2 else {})})
            )
            world.send(**{f"crowd{number}": Given({"inside": "ready"})})
        new = client.stream_end("new")
        assert new["failed"] == 0, new
        assert new["backends"].keys() >= {"inside", "neighbour"}, new
        self.damage(world)
        self.wait_for_repair(world)
        for number in range(6):
            world.send(**{f"crowd{number}": None})
        kept = client.stream_end("kept")
        assert kept["failed"] == 0, kept

    def test_what_somebody_changed_by_hand_is_repaired_and_told(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        world.agent.events.clear()
        self.damage(world)
        self.wait_for_repair(world)
        for version in VERSIONS:
            way = world.way("web", "cluster ip", version)
            eventually(lambda way=way: reached(world.node, way, count=3) == {"inside"}, "it is served again")
        wait_until_told(world)

    def test_a_single_change_by_hand_is_found_and_named(self, world: World) -> None:
        """Also one that leaves the generation alone."""
        world.send(web=Given({"inside": "ready"}), names=Given({"inside": "ready"}, "udp"))
        good = self.listing(world)
        for command, said in self.by_hand.items():
            world.agent.events.clear()
            address, port = world.way("web", "cluster ip", 4)
            world.node.run(["sh", "-c", command.format(address=address, port=port)])
            wait_until_told(world, said)
            assert self.listing(world) == good, command

    def test_deltas_lead_to_the_same_as_everything_at_once(self, world: World) -> None:
        """What many small changes left is what one refill makes."""
        choice = random.Random(11)
        places = ("node", "inside", "other", "neighbour")
        for _ in range(self.steps):
            number = choice.randrange(6)
            spec: dict[str, Any] = {
                "internalTrafficPolicy": choice.choice(["Cluster", "Local"]),
                "externalTrafficPolicy": choice.choice(["Cluster", "Local"]),
            }
            if choice.random() < 0.3:
                spec |= AFFINE
            given = Given(
                {
                    place: choice.choice(["ready", "draining", "gone"])
                    for place in choice.sample(places, choice.randrange(5))
                },
                choice.choice(["tcp", "udp"]),
                spec,
                choice.choice([(), ("outside",), ("outside", "node")]),
            )
            world.send(**{f"walk{number}": given if choice.random() < 0.9 else None})
        by_deltas = self.listing(world)
        assert world.agent.ask("ping")["digest"] == world.expected_digest()
        self.damage(world)
        self.wait_for_repair(world)
        assert self.listing(world) == by_deltas
        world.send(**{f"walk{number}": None for number in range(6)})

    def test_traffic_goes_on_without_the_agent(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        world.agent.process.kill()
        world.agent.process.wait()
        for version in VERSIONS:
            for way in ("cluster ip", "node port"):
                assert reached(world.node, world.way("web", way, version), count=3) == {"inside"}
        world.agent = Agent(world.node)
        before = self.listing(world)
        answer = world.agent.ask("hello", cluster="c1")
        assert answer["serving"]["mode"] == self.mode
        assert answer["digest"] == world.expected_digest()
        assert self.listing(world) == before
        world.send(web=Given({"other": "ready"}))
        assert reached(world.node, world.way("web", "cluster ip", 4), count=3) == {"other"}

    def test_the_cleanup_leaves_what_others_made(self, world: World) -> None:
        world.send(web=Given({"inside": "ready"}))
        world.agent.close()
        foreign = self.foreign(world)
        said = world.node.run(["python3", AGENT, "cleanup"]).stdout
        assert "the agent and its files are gone" in said
        assert self.listing(world) == self.nothing
        assert self.foreign(world) == foreign
        world.enrol()
        assert reached(world.node, world.way("web", "cluster ip", 4), count=3) == {"inside"}

    # What a mode does its own way

    nothing: ClassVar[Any] = {}
    by_hand: ClassVar[Mapping[str, str]]  # what somebody does to a Service's address and port -> how it is told

    def listing(self, world: World) -> Any:
        """Everything of ours in the kernel and in servers, to be compared; not what packets left there."""
        raise NotImplementedError

    def damage(self, world: World) -> None:
        """What somebody does by hand who breaks it."""
        raise NotImplementedError

    def wait_for_repair(self, world: World) -> None:
        """Until the damage is repaired."""
        raise NotImplementedError

    def foreign(self, world: World) -> str:
        """The host's rules that are not ours."""
        raise NotImplementedError


class InTables(Scenarios):
    """Of a mode whose elements are in tables of its own."""

    tables: ClassVar[tuple[str, str]]

    def damage(self, world: World) -> None:
        script = "".join(
            f"flush chain {table} services\nflush set {table} generation\nflush map {table} groups\n"
            for table in self.tables
        )
        world.node.run(["nft", "-f", "-"], input=script)

    def wait_for_repair(self, world: World) -> None:
        def is_repaired() -> bool:
            rules = [world.node.run(["nft", "list", "table", *table.split()]).stdout for table in self.tables]
            return all(re.search(r"set generation \{\s+type ipv6_addr\s+elements", text) for text in rules)

        eventually(is_repaired, "the tables are refilled")

    def foreign(self, world: World) -> str:
        text = world.node.run(["nft", "list", "ruleset"]).stdout
        return "".join(part for part in re.split(r"(?m)^(?=table )", text) if "timonel" not in part.split("\n")[0])
