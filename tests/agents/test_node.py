"""The agent on a host of its own: frames in, packets and names out."""

import base64
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.build import build_zipapp
from agents.state import digest
from services_app.lab.network import Lab, Node
from tests.missing import without

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

AGENT = "/usr/local/lib/timonel/agent.pyz"
DNS = "169.254.20.10"
VIRTUAL_IP = "10.96.0.10"
SIGNER = "ssh-ed25519 " + "A" * 68
Message = dict[str, Any]


class Agent:
    """A serving agent, asked by frames."""

    def __init__(self, node: Node) -> None:
        self.process = subprocess.Popen(
            node.inside(["python3", AGENT, "serve"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.events: list[Message] = []
        self._node = node
        self._number = 0
        self._logged = 0

    def logged(self) -> list[str]:
        """The lines in the node's log since this was asked last."""
        lines = self._node.run(["cat", "/var/lib/timonel/agent.log"]).stdout.splitlines()
        new, self._logged = lines[self._logged :], len(lines)
        print(*new, sep="\n", file=sys.stderr)  # for who looks at a failed test
        return new

    def told(self) -> list[str]:
        """The reasons of all events so far."""
        assert self.ask("ping")["ok"]
        return [event["reason"] for event in self.events]

    def ask(self, op: str, **arguments: Any) -> Message:
        self._number += 1
        body = json.dumps({"id": self._number, "op": op, **arguments}).encode()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack(">I", len(body)) + body)
        self.process.stdin.flush()
        while True:
            (size,) = struct.unpack(">I", self.process.stdout.read(4))
            message = json.loads(self.process.stdout.read(size))
            if "event" not in message:
                assert message["id"] == self._number
                return dict(message)
            self.events.append(message)

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


def place_agent(node: Node) -> None:
    """Install the agent on a node, as enrolment does, for control plane c1."""
    text = base64.b64encode(build_zipapp().content).decode()
    node.run(["sh", "-c", f"mkdir -p {AGENT.rpartition('/')[0]} && base64 -d > {AGENT}"], input=text)
    node.run(["python3", AGENT, "adopt", "c1", "--signer", SIGNER])


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(nodes=1) as lab:
        node = lab.nodes[0]
        place_agent(node)
        node.serve("on-node", 8080)
        node.containers[0].serve("in-container", 8080)
        yield node


@pytest.fixture(scope="module")
def revision() -> Callable[[], int]:
    numbers = iter(range(1, 10_000))
    return lambda: next(numbers)


def base(node: Node) -> list[list[str]]:
    settings = {
        "node-address": node.address,
        "node-address6": node.address6,
        "zone": "cluster.local",
        "dns-listen": DNS,
        "route 10.96.0.0/16": "",
        "route fd00:10:96::/112": "",
    }
    return [["host", key, value] for key, value in {**settings, "reverse 96.10.in-addr.arpa.": ""}.items()]


def service(address: str, group: str, endpoints: list[str], name: str = "web") -> list[list[str]]:
    verdict = f"goto lb_{len(endpoints)}" if endpoints else "goto refuse"
    return [
        ["nft4", f"frontends {address} . tcp . 80", group],
        ["nft4", f"cluster_ips {address}", ""],
        ["nft4", f"groups {group}", verdict],
        *(["nft4", f"slots {group} . {i}", f"{endpoint} . 8080"] for i, endpoint in enumerate(endpoints)),
        ["dns", f"{name}.shop.svc.cluster.local. A {address}", "5"],
    ]


def whole(node: Node) -> dict[str, list[list[str]]]:
    endpoints = [node.address, node.containers[0].address]
    return {"": base(node), "shop/web": service(VIRTUAL_IP, "0x00000001", endpoints)}


@pytest.fixture
def agent(node: Node, revision: Callable[[], int]) -> Iterator[Agent]:
    """An agent that holds `whole`."""
    agent = Agent(node)
    answer = agent.ask("apply", cluster="c1", revision=revision(), since=None, owners=whole(node))
    assert answer["ok"], answer
    assert answer["digest"] == digest(whole(node))
    yield agent
    agent.process.kill()
    agent.process.wait()


def backends(node: Node, address: str = VIRTUAL_IP) -> set[str]:
    return answers(node, address, 30)


def answers(node: Node, address: str, count: int) -> set[str]:
    """Names of backends, and why nobody answered."""
    return {str(answer.get("backend") or answer["error"]) for answer in node.ask_often(address, 80, count)}


def eventually(is_so: Callable[[], bool], what: str, deadline_s: float = 20) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, f"not in {deadline_s:.0f} s: {what}"
        time.sleep(0.1)


def name_of(node: Node, name: str) -> tuple[str, list[str]]:
    return node.lookup(f"{name}.shop.svc.cluster.local.", "A", DNS)


def test_pushes_become_packets_and_names(node: Node, agent: Agent, revision: Callable[[], int]) -> None:
    assert backends(node) == {"on-node", "in-container"}
    assert {str(a.get("backend") or a) for a in node.containers[0].ask_often(VIRTUAL_IP, 80, 30)} == {
        "on-node",
        "in-container",
    }
    assert name_of(node, "web") == ("NOERROR", [VIRTUAL_IP])
    assert node.containers[0].lookup("web.shop.svc.cluster.local.", "A", DNS) == ("NOERROR", [VIRTUAL_IP])
    held = agent.ask("ping")["revision"]
    more = {"shop/more": service("10.96.0.11", "0x00000002", [node.address], "more"), "shop/web": []}
    assert agent.ask("apply", cluster="c1", revision=revision(), since=held, owners=more)["rejected"] == {}
    assert backends(node, "10.96.0.11") == {"on-node"}
    assert name_of(node, "more") == ("NOERROR", ["10.96.0.11"])
    assert name_of(node, "web")[0] == "NXDOMAIN"


def test_pushes_that_may_not_be_applied_change_nothing(node: Node, agent: Agent) -> None:
    held = agent.ask("ping")
    later = held["revision"] + 1000
    for reason, arguments in {
        "OtherCluster": {"cluster": "c2", "revision": later, "since": None},
        "StaleRevision": {"cluster": "c1", "revision": held["revision"] - 1, "since": None},
        "BaseMismatch": {"cluster": "c1", "revision": later, "since": later - 1},
    }.items():
        answer = agent.ask("apply", owners={}, **arguments)
        assert (answer["ok"], answer["reason"]) == (False, reason)
    assert agent.ask("ping")["digest"] == held["digest"]
    assert agent.ask("juggle")["reason"] == "UnknownOperation"
    assert backends(node) == {"on-node", "in-container"}


def test_an_owner_that_cannot_be_read_is_rejected_alone(node: Node, agent: Agent, revision: Callable[[], int]) -> None:
    held = agent.ask("ping")["revision"]
    owners = {
        "shop/bad": [["nft4", "groups 0x00000009", "accept"]],
        "shop/good": service("10.96.0.12", "0x00000003", [node.address], "good"),
    }
    answer = agent.ask("apply", cluster="c1", revision=revision(), since=held, owners=owners)
    assert answer["ok"]
    assert answer["rejected"]["shop/bad"]["reason"] == "InvalidResource"
    assert list(answer["rejected"]) == ["shop/bad"]
    assert backends(node, "10.96.0.12") == {"on-node"}


def test_what_somebody_else_breaks_is_repaired(node: Node, agent: Agent) -> None:
    node.run(["nft", "flush", "ruleset"])
    eventually(lambda: backends(node) == {"on-node", "in-container"}, "the table is refilled")
    eventually(lambda: agent.told() == ["Repaired"], "it is told")
    for daemon in ("knotd", "unbound"):
        assert node.kill(rf"{daemon}\b")

        def is_back() -> bool:
            try:
                return name_of(node, "web") == ("NOERROR", [VIRTUAL_IP])
            except Exception:
                return False

        eventually(is_back, f"{daemon} runs again")


@pytest.mark.parametrize(
    "damage",
    [
        "ip route delete 10.96.0.0/16; ip route delete default",
        "ip -6 route delete fd00:10:96::/112; ip -6 route delete default",
        "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        f"ip address delete {DNS}/32 dev lo",
    ],
)
def test_what_somebody_changes_on_the_host_is_repaired(node: Node, agent: Agent, damage: str) -> None:
    before = host_settings(node)
    assert "10.96.0.0/16 dev lo" in before
    assert "fd00:10:96::/112 dev eth0" in before
    assert before.splitlines()[:2] == ["1", "1"]
    defaults = [node.run(["ip", f"-{v}", "route", "show", "default"]).stdout.split() for v in (4, 6)]
    node.run(["sh", "-c", damage])
    try:
        eventually(lambda: host_settings(node) == before, "the host is as it was")
    finally:
        for words in defaults:
            node.run(["ip", "route", "replace", *words[:5]])


CONNTRACK = {
    "tcp-established": ("tcp_timeout_established", "86400"),
    "tcp-close-wait": ("tcp_timeout_close_wait", "3600"),
    "udp": ("udp_timeout", "25"),
    "udp-stream": ("udp_timeout_stream", "170"),
    "tcp-be-liberal": ("tcp_be_liberal", "1"),
}


def conntrack_settings(node: Node) -> list[str]:
    paths = [f"/proc/sys/net/netfilter/nf_conntrack_{setting}" for setting, _ in CONNTRACK.values()]
    return node.run(["cat", *paths]).stdout.split()


def test_conntrack_is_what_the_configuration_says_and_afterwards_as_it_was(
    node: Node, agent: Agent, revision: Callable[[], int]
) -> None:
    def send(names: Iterable[str]) -> None:
        resources = [["host", f"conntrack {name}", CONNTRACK[name][1]] for name in names]
        held = agent.ask("ping")["revision"]
        size = [["host", "conntrack max", "1 4096"]] if resources else []
        answer = agent.ask(
            "apply", cluster="c1", revision=revision(), since=held, owners={"": [*base(node), *resources, *size]}
        )
        assert answer["ok"], answer

    before = conntrack_settings(node)
    wanted = [value for _, value in CONNTRACK.values()]
    assert all(old != new for old, new in zip(before, wanted, strict=True))
    send(CONNTRACK)
    assert conntrack_settings(node) == wanted
    node.run(["sh", "-c", "echo 77 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout"])
    eventually(lambda: conntrack_settings(node) == wanted, "what somebody changed is repaired")
    # The table's size is the whole machine's: here it cannot be set, and that is told.
    (problem,) = agent.ask("hello", cluster="c1")["problems"]
    assert (problem["reason"], problem["blocking"]) == ("ConntrackNotSized", False)
    assert "net/netfilter/nf_conntrack_max is " in problem["message"]
    send(["udp"])
    assert conntrack_settings(node) == [*before[:2], "25", *before[3:]]
    send([])
    assert conntrack_settings(node) == before
    assert agent.ask("hello", cluster="c1")["problems"] == []


def test_an_ipv6_address_that_is_just_being_checked_is_waited_for(
    node: Node, agent: Agent, revision: Callable[[], int]
) -> None:
    """At boot the kernel asks the link for a second or two whether somebody has it; until then it is no source."""
    fresh = node.address6.rpartition(":")[0] + ":77"
    node.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_dad"])
    node.run(["ip", "address", "add", f"{fresh}/64", "dev", "eth0"])
    try:
        held = agent.ask("ping")["revision"]
        other = [r if r[1] != "node-address6" else ["host", "node-address6", fresh] for r in base(node)]
        answer = agent.ask("apply", cluster="c1", revision=revision(), since=held, owners={"": other})
        assert answer["ok"], answer
        assert f"src {fresh}" in node.run(["ip", "-6", "route", "show", "proto", "84"]).stdout
    finally:
        node.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad"])
        node.run(["ip", "address", "delete", f"{fresh}/64", "dev", "eth0"])


def test_a_route_that_the_host_overrules_is_told_once(node: Node, agent: Agent) -> None:
    node.run(["ip", "route", "add", "unreachable", "10.96.0.0/16", "table", "99"])
    node.run(["ip", "rule", "add", "to", "10.96.0.0/16", "table", "99", "priority", "10"])
    try:
        time.sleep(3.5)
    finally:
        node.run(["ip", "rule", "delete", "priority", "10"])
        node.run(["ip", "route", "flush", "table", "99"])
    assert agent.ask("ping")["ok"]
    assert [event["reason"] for event in agent.events] == ["HostFailed"]
    assert "ip rule" in agent.events[0]["message"]
    assert backends(node) == {"on-node", "in-container"}


def host_settings(node: Node) -> str:
    return node.run(
        [
            "sh",
            "-c",
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; ip route show proto 84;"
            " ip -6 route show proto 84; ip -o address show dev lo",
        ]
    ).stdout


@pytest.mark.parametrize("table", ["older-table.nft", "a table of other types"])
def test_a_table_that_is_not_ours_yet_becomes_ours(node: Node, agent: Agent, table: str) -> None:
    """What an older agent left is refilled in place; what cannot be is made anew."""
    assert agent.close() == 0
    node.run(["nft", "flush", "ruleset"])
    if table.endswith(".nft"):
        text = Path(__file__).with_name(table).read_text()
    else:
        text = "table ip timonel { map frontends { type ipv4_addr : mark; }; chain services { accept; }; }"
    node.run(["nft", "-f", "-"], input=text)
    successor = Agent(node)
    assert successor.ask("hello", cluster="c1")["problems"] == []
    assert backends(node) == {"on-node", "in-container"}
    assert "map affinity" in node.run(["nft", "list", "table", "ip", "timonel"]).stdout
    assert successor.close() == 0


def with_overlapping_ranges(address: str, group: str) -> list[list[str]]:
    """What every parser reads and the kernel refuses."""
    mark = f"0x2{group[3:]}"
    ranges = [["nft4", f"source_ranges {mark} . {network}", ""] for network in ("10.0.0.0/8", "10.1.0.0/16")]
    return [*service(address, group, [], name="bad"), *ranges]


def test_what_the_kernel_refuses_is_left_out_and_the_rest_applied(
    node: Node, agent: Agent, revision: Callable[[], int]
) -> None:
    def push(owners: Message, since: int | None) -> Message:
        answer = agent.ask("apply", cluster="c1", revision=revision(), since=since, owners=owners)
        assert answer["ok"], answer
        return answer

    held = agent.ask("ping")["revision"]
    more = {f"shop/more-{n}": service(f"10.96.1.{n}", f"0x000001{n:02x}", [node.address], "more") for n in range(40)}
    bad = {f"shop/bad-{n}": with_overlapping_ranges(f"10.96.2.{n}", f"0x000002{n:02x}") for n in (1, 2)}
    node.stream("traffic", VIRTUAL_IP, 80, interval_ms=10)
    answer = push({**more, **bad}, held)
    assert {owner: why["reason"] for owner, why in answer["rejected"].items()} == {
        "shop/bad-1": "KernelRefused",
        "shop/bad-2": "KernelRefused",
    }
    assert answer["rejected"]["shop/bad-1"]["message"].endswith("File exists: 0x20000201 . 10.1.0.0/16")
    assert backends(node, "10.96.1.7") == {"on-node"}
    assert answers(node, "10.96.2.1", 2) <= {"timeout", "no route to host", "host is unreachable"}
    assert answer["digest"] == digest({**whole(node), **more, **bad})
    # The next change is a delta again, also for another agent.
    log = node.run(["cat", "/var/lib/timonel/agent.log"]).stdout
    answer = push({"shop/more-1": []}, answer["revision"])
    assert agent.close() == 0
    successor = Agent(node)
    assert successor.ask("hello", cluster="c1")["problems"] == []
    assert successor.close() == 0
    assert "refill" not in node.run(["cat", "/var/lib/timonel/agent.log"]).stdout.removeprefix(log)
    agent.process = Agent(node).process
    assert answer["rejected"].keys() == bad.keys()
    # It comes into force as soon as it is pushed as something that can be.
    good = {"shop/bad-1": service("10.96.2.1", "0x00000201", [node.address], "bad")}
    answer = push(good, answer["revision"])
    assert answer["rejected"].keys() == {"shop/bad-2"}
    assert backends(node, "10.96.2.1") == {"on-node"}
    # And in a push of everything.
    answer = push({**whole(node), **more, **bad}, None)
    assert answer["rejected"].keys() == bad.keys()
    assert backends(node, "10.96.1.7") == {"on-node"}
    report = node.stream_end("traffic")
    assert report["failed"] == 0, report


def test_a_killed_agent_leaves_traffic_and_its_successor_goes_on(node: Node, agent: Agent) -> None:
    held = agent.ask("ping")
    node.stream("traffic", VIRTUAL_IP, 80, interval_ms=10)
    agent.process.kill()
    node.kill_agent()
    time.sleep(0.3)
    successor = Agent(node)
    greeting = successor.ask("hello", cluster="c1")
    report = node.stream_end("traffic")
    assert (greeting["revision"], greeting["digest"]) == (held["revision"], held["digest"])
    assert greeting["problems"] == []
    assert report["asked"] > 10
    assert report["failed"] == 0, report
    assert successor.close() == 0
    assert backends(node) == {"on-node", "in-container"}


def test_a_newer_agent_takes_over(node: Node, agent: Agent) -> None:
    newer = Agent(node)
    assert newer.ask("hello", cluster="c1")["ok"]
    assert agent.process.wait(10) != 0
    assert newer.close() == 0


def test_without_nft_the_reason_is_told_and_it_recovers(node: Node, agent: Agent, revision: Callable[[], int]) -> None:
    held = agent.ask("ping")["revision"]
    with without(node, "/usr/sbin/nft"):
        owners = {"shop/late": service("10.96.0.13", "0x00000004", [node.address], "late")}
        newest = revision()
        answer = agent.ask("apply", cluster="c1", revision=newest, since=held, owners=owners)
        assert (answer["ok"], answer["reason"]) == (False, "NftMissing")
        assert "install" in answer["message"].lower()
        assert "NftMissing" in [p["reason"] for p in agent.ask("hello", cluster="c1")["problems"]]
        assert backends(node) == {"on-node", "in-container"}
    assert agent.ask("ping")["revision"] == newest
    assert backends(node, "10.96.0.13") == {"on-node"}


def test_what_is_no_frame_ends_the_agent_with_a_sentence(node: Node, agent: Agent) -> None:
    done = subprocess.run(
        node.inside(["python3", AGENT, "serve"]),
        input=b"GET / HTTP/1.1\r\n\r\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert b"does not speak this protocol" in done.stderr
    assert backends(node) == {"on-node", "in-container"}


def sysctl(node: Node, name: str) -> str:
    return node.run(["cat", f"/proc/sys/net/{name}"]).stdout.strip()


def test_restore_status_and_cleanup(node: Node, agent: Agent) -> None:
    assert agent.close() == 0
    node.run(["nft", "flush", "ruleset"])
    node.run(["python3", AGENT, "restore"])
    assert backends(node) == {"on-node", "in-container"}
    status = json.loads(node.run(["python3", AGENT, "status"]).stdout)
    assert (status["cluster"], status["services"], status["problems"]) == ("c1", 1, [])
    assert sysctl(node, "ipv6/conf/all/forwarding") == "1"
    assert sysctl(node, "ipv6/conf/eth0/accept_ra") == "2"
    node.run(["python3", AGENT, "cleanup"])
    assert sysctl(node, "ipv4/ip_forward") == "1"  # as it was
    assert sysctl(node, "ipv6/conf/all/forwarding") == "0"
    assert sysctl(node, "ipv6/conf/eth0/accept_ra") == "1"
    assert "fd00:10:96" not in node.run(["ip", "-6", "route"]).stdout
    assert node.run(["nft", "list", "tables"]).stdout == ""
    assert DNS not in node.run(["ip", "address"]).stdout
    assert "10.96" not in node.run(["ip", "route"]).stdout
    assert not [words for words in node.processes().values() if "knotd" in words or "unbound" in words]
    left = node.run(["sh", "-c", "ls -d /var/lib/timonel /run/timonel /usr/local/lib/timonel/*"], check=False)
    assert left.stdout == ""
