"""The names of Services as `dig` sees them on a node: rendered by the planner, held by the agent's name servers.

Rules: the Kubernetes DNS specification 1.1 (kubernetes/dns, docs/specification.md).
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from services_app.lab.network import Lab, Node
from services_app.render.node import Cluster, OwnerState, network_of, render_base, render_owner
from tests.agents.test_node import DNS, Agent, eventually, place_agent

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(120),
]

CLUSTER = Cluster(
    (ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")),
    "cluster.local",
    (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")),
)
READY = {"ready": True, "serving": True, "terminating": False}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
HTTP = [{"name": "http", "port": 80, "protocol": "TCP"}]
ZONE = "shop.svc.cluster.local."
ROOT = Path(__file__).parents[2]
Document = dict[str, Any]


def a_service(name: str, **spec: Any) -> Document:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"type": "ClusterIP", "ports": HTTP, **spec}}


def headless(name: str, **spec: Any) -> Document:
    return a_service(name, clusterIP="None", clusterIPs=["None"], **spec)


def a_slice(family: int, *endpoints: tuple[str, Document, str], port: int = 8080) -> Document:
    return {
        "addressType": f"IPv{family}",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address], "conditions": conditions, **({"hostname": hostname} if hostname else {})}
            for address, conditions, hostname in endpoints
        ],
    }


SERVICES: list[tuple[Document, tuple[Document, ...]]] = [
    (a_service("both", clusterIP="10.96.0.10", clusterIPs=["10.96.0.10", "fd00:10:96::a"]), ()),
    (a_service("four", clusterIP="10.96.0.11", clusterIPs=["10.96.0.11"]), ()),
    (a_service("six", clusterIP="fd00:10:96::b", clusterIPs=["fd00:10:96::b"]), ()),
    (
        a_service(
            "long-port",
            clusterIP="10.96.0.12",
            clusterIPs=["10.96.0.12"],
            ports=[{"name": "p" * 63, "port": 80, "protocol": "TCP"}, {"name": "ok", "port": 81, "protocol": "SCTP"}],
        ),
        (),
    ),
    (a_service("outside", type="ExternalName", externalName="db.example.org", ports=[]), ()),
    (a_service("inside", type="ExternalName", externalName=f"both.{ZONE}", ports=[]), ()),
    (a_service("nowhere", type="ExternalName", externalName="192.0.2.7", ports=[]), ()),
    (
        headless("many"),
        (
            a_slice(4, ("10.1.0.1", READY, "first"), ("10.1.0.2", READY, ""), ("10.1.0.3", NOT_READY, "third")),
            a_slice(6, ("fd00:1::1", READY, "first"), ("fd00:1::2", READY, "")),
            a_slice(4, ("10.1.0.9", READY, ""), port=9090),
        ),
    ),
    (headless("early", publishNotReadyAddresses=True), (a_slice(4, ("10.1.0.3", NOT_READY, "third")),)),
    (headless("none"), (a_slice(4, ("10.1.0.3", NOT_READY, "third")),)),
    (headless("crowd"), (a_slice(4, *((f"10.2.{n // 250}.{n % 250}", READY, "") for n in range(1000))),)),
]

SRV = f"_http._tcp.many.{ZONE}"
# name, type, what `dig +short` prints, sorted
ANSWERS = [
    ("dns-version.cluster.local.", "TXT", ['"1.1.0"']),
    (f"both.{ZONE}", "A", ["10.96.0.10"]),
    (f"BOTH.{ZONE}", "A", ["10.96.0.10"]),
    (f"both.{ZONE}", "AAAA", ["fd00:10:96::a"]),
    (f"_http._tcp.both.{ZONE}", "SRV", [f"0 100 80 both.{ZONE}"]),
    ("10.0.96.10.in-addr.arpa.", "PTR", [f"both.{ZONE}"]),
    (f"a.{'0.' * 19}6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", "PTR", [f"both.{ZONE}"]),
    (f"six.{ZONE}", "AAAA", ["fd00:10:96::b"]),
    (f"_http._tcp.six.{ZONE}", "SRV", [f"0 100 80 six.{ZONE}"]),
    (f"long-port.{ZONE}", "A", ["10.96.0.12"]),
    (f"_ok._sctp.long-port.{ZONE}", "SRV", [f"0 100 81 long-port.{ZONE}"]),
    (f"outside.{ZONE}", "CNAME", ["db.example.org."]),
    (f"outside.{ZONE}", "A", ["192.0.2.53", "db.example.org."]),
    (f"outside.{ZONE}", "AAAA", ["2001:db8::53", "db.example.org."]),
    (f"inside.{ZONE}", "A", ["10.96.0.10", f"both.{ZONE}"]),
    (f"inside.{ZONE}", "AAAA", [f"both.{ZONE}", "fd00:10:96::a"]),
    (f"nowhere.{ZONE}", "CNAME", ["192.0.2.7."]),
    (f"many.{ZONE}", "A", ["10.1.0.1", "10.1.0.2", "10.1.0.9"]),
    (f"many.{ZONE}", "AAAA", ["fd00:1::1", "fd00:1::2"]),
    (f"first.many.{ZONE}", "A", ["10.1.0.1"]),
    (f"first.many.{ZONE}", "AAAA", ["fd00:1::1"]),
    (f"10-1-0-2.many.{ZONE}", "A", ["10.1.0.2"]),
    (f"fd00-1--2.many.{ZONE}", "AAAA", ["fd00:1::2"]),
    ("1.0.1.10.in-addr.arpa.", "PTR", [f"first.many.{ZONE}"]),
    ("2.0.1.10.in-addr.arpa.", "PTR", [f"10-1-0-2.many.{ZONE}"]),
    (f"1.{'0.' * 23}1.0.0.0.0.0.d.f.ip6.arpa.", "PTR", [f"first.many.{ZONE}"]),
    (
        SRV,
        "SRV",
        [
            f"0 100 8080 10-1-0-2.many.{ZONE}",
            f"0 100 8080 fd00-1--2.many.{ZONE}",
            f"0 100 8080 first.many.{ZONE}",
            f"0 100 9090 10-1-0-9.many.{ZONE}",
        ],
    ),
    (f"early.{ZONE}", "A", ["10.1.0.3"]),
    (f"third.early.{ZONE}", "A", ["10.1.0.3"]),
    (f"crowd.{ZONE}", "A", sorted(f"10.2.{n // 250}.{n % 250}" for n in range(1000))),
]
# name, type, code: there is no such record, or no such name
NO_ANSWERS = [
    (f"four.{ZONE}", "AAAA", "NOERROR"),
    (f"six.{ZONE}", "A", "NOERROR"),
    (f"10-1-0-2.many.{ZONE}", "AAAA", "NOERROR"),
    (f"third.many.{ZONE}", "A", "NXDOMAIN"),
    (f"none.{ZONE}", "A", "NXDOMAIN"),
    (f"missing.{ZONE}", "A", "NXDOMAIN"),
    (f"_other._tcp.both.{ZONE}", "SRV", "NXDOMAIN"),
    ("1.0.2.10.in-addr.arpa.", "PTR", "NXDOMAIN"),  # an endpoint outside: whatever the outside says
    ("99.0.96.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
]

# Plays the rest of the world.
OUTSIDE = """server:
    interface: {address}
    access-control: 0.0.0.0/0 allow
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    use-syslog: no
    local-zone: "." static
    local-data: "db.example.org. 60 A 192.0.2.53"
    local-data: "db.example.org. 60 AAAA 2001:db8::53"
remote-control:
    control-enable: no
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Node, Agent]]:
    with Lab(nodes=1) as lab, tempfile.TemporaryDirectory() as directory:
        node, outside = lab.nodes[0], lab.neighbour
        conf = Path(directory) / "outside.conf"
        conf.write_text(OUTSIDE.format(address=outside.address, directory=directory))
        outside.background(["unbound", "-d", "-c", str(conf)])
        node.run(["sh", "-c", f"rm -f /etc/resolv.conf; echo nameserver {outside.address} >/etc/resolv.conf"])
        place_agent(node)
        agent = Agent(node)
        owners = {"": render_base(CLUSTER, network_of(None, node.address))}
        for service, slices in SERVICES:
            owner = f"shop/{service['metadata']['name']}"
            state = OwnerState(owner, service, slices, {("TCP/80", "Cluster"): 1, ("SCTP/81", "Cluster"): 2})
            # Names alone: the groups of these Services would be one.
            owners[owner] = [r for r in render_owner(state, CLUSTER).on(node.name) if r[0] == "dns"]
        answer = agent.ask("apply", cluster="c1", revision=1, since=None, owners=owners)
        assert answer["ok"], answer
        assert answer["rejected"] == {}
        eventually(lambda: bool(dig(node, "db.example.org.", "A", "+short").strip()), "the outside answers")
        yield node, agent
        assert agent.close() == 0


@pytest.fixture
def node(served: tuple[Node, Agent]) -> Node:
    return served[0]


def dig(node: Node, name: str, kind: str, *options: str) -> str:
    return node.run(["dig", "+tries=1", "+time=3", *options, f"@{DNS}", name, kind], check=False).stdout


@pytest.mark.parametrize(("name", "kind", "expected"), ANSWERS, ids=[f"{a[0]} {a[1]}" for a in ANSWERS])
def test_a_name_is_answered(node: Node, name: str, kind: str, expected: list[str]) -> None:
    assert sorted(dig(node, name, kind, "+short").splitlines()) == expected


@pytest.mark.parametrize(("name", "kind", "code"), NO_ANSWERS, ids=[f"{a[0]} {a[1]}" for a in NO_ANSWERS])
def test_what_there_is_none_of_is_said_rightly(node: Node, name: str, kind: str, code: str) -> None:
    answer = dig(node, name, kind)
    assert f"status: {code}" in answer
    assert "ANSWER: 0" in answer


def test_no_name_is_denied_while_ranges_come_and_go(served: tuple[Node, Agent]) -> None:
    """A question may be lost while the servers read their set-up; an answer that there is no such name would be kept."""
    node, agent = served
    more = Cluster((*CLUSTER.service_cidrs, ip_network("10.203.0.0/24")), CLUSTER.domain, CLUSTER.pod_cidrs)
    names = "".join(f"{name} +tries=1 +time=1\n" for name in (f"both.{ZONE}", f"crowd.{ZONE}") * 1500)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            node.run, ["dig", f"@{DNS}", "-f", "-", "+noall", "+comments"], input=names, check=False, timeout_s=60
        )
        pointer = ["dns", f"7.0.203.10.in-addr.arpa. PTR both.{ZONE}", "5"]
        for number, cluster in enumerate((more, CLUSTER) * 12, 1):
            owners = {"": render_base(cluster, network_of(None, node.address)), "shop/new": [pointer]}
            answer = agent.ask("apply", cluster="c1", revision=number + 1, since=number, owners=owners)
            assert answer["ok"], answer
            for _ in range(2):
                # Knot reads a new zone's file beside its work: what the agent sets before would be gone then.
                named = dig(node, "7.0.203.10.in-addr.arpa.", "PTR", "+short").split()
                assert named == ([f"both.{ZONE}"] if cluster is more else []), number
                time.sleep(0.05)
        codes = Counter(re.findall(r"status: (\w+)", asking.result().stdout))
    assert codes.keys() == {"NOERROR"}, codes
    assert codes["NOERROR"] > 1000


def test_a_container_behind_the_node_is_answered_too(node: Node) -> None:
    command = ["dig", "+short", "+time=3", f"@{DNS}", f"both.{ZONE}", "AAAA"]
    assert node.containers[0].run(command).stdout.split() == ["fd00:10:96::a"]


def test_a_service_location_comes_with_its_addresses(node: Node) -> None:
    """One question instead of three: the additional section."""
    answer = dig(node, f"_http._tcp.both.{ZONE}", "SRV")
    additional = answer.partition(";; ADDITIONAL SECTION:")[2]
    assert "10.96.0.10" in additional
    assert "fd00:10:96::a" in additional


ALONE = f"""
import subprocess, tempfile
from pathlib import Path
from agents import dns
from agents.errors import AgentError
from agents.knot import Control
from agents.state import Change

for command in (["link", "set", "lo", "up"], ["address", "add", "{DNS}/32", "dev", "lo"]):
    subprocess.run(["ip", *command], check=True)
"""
REFUSED = f"""
with tempfile.TemporaryDirectory() as directory:
    Path(directory).chmod(0o755)
    names = dns.Names(Path(directory), Path(directory, "run"))
    zones = dns.Zones("cluster.local", "{DNS}", ())
    many = {{f"n{{n}}.shop.svc.cluster.local. A 10.96.{{n >> 8}}.{{n & 255}}": "5" for n in range(4000)}}
    names.start(zones, many)
    try:
        for bad in (10, 1100, 2999):  # in the first of the blocks that are sent, in one between, in the last
            added = [f"m{{n}}.shop.svc.cluster.local. A 10.97.{{n >> 8}}.{{n & 255}}" for n in range(3000)]
            added[bad] = "bad.shop.svc.cluster.local. A 10.97.0.256"
            try:
                names.commit(Change({{}}, dict.fromkeys(added, "5")))
            except AgentError as err:
                assert "bad.shop.svc.cluster.local. A 10.97.0.256" in str(err), err
            else:
                raise AssertionError("it was taken")
            with Control(names._control) as control:
                held = [item for item in control.ask("zone-read", zone="cluster.local.") if item["type"] == "A"]
            assert len(held) == 4000, len(held)
        names.commit(Change({{}}, {{"one.shop.svc.cluster.local. A 10.97.0.1": "5"}}))
        names.start(zones, many)
        with Control(names._control) as control:
            assert not [item for item in control.ask("zone-read", zone="cluster.local.") if item["data"] == "10.97.0.1"]
    finally:
        names.stop()
"""


KILLED = f"""
with tempfile.TemporaryDirectory() as directory:
    Path(directory).chmod(0o755)
    place = Path(directory), Path(directory, "run")
    first, wider = dns.Zones("cluster.local", "{DNS}", ()), dns.Zones("cluster.local", "{DNS}", ("1.10.in-addr.arpa.",))
    records = {{"web.shop.svc.cluster.local. A 10.1.0.1": "5", "1.0.1.10.in-addr.arpa. PTR web.shop.svc.cluster.local.": "5"}}
    names = dns.Names(*place)
    names.start(first, records)
    try:
        pid = names._knot.pid
        dns.Names(*place).start(first, records)
        assert names._knot.pid == pid, "what is right is not started anew"
        names._loaded_file.unlink()  # as an agent that knew no such file
        dns.Names(*place).start(first, records)
        assert names._knot.pid == pid

        def die(*_):
            raise KeyboardInterrupt

        killed = dns.Names(*place)
        killed._knot.stop = killed._knot.start = killed._is_reloaded = die
        try:
            killed.start(wider, records)
        except KeyboardInterrupt:
            pass
        again = dns.Names(*place)
        again.start(wider, records)
        with Control(again._control) as control:
            assert [item["data"] for item in control.ask("zone-read", zone="1.10.in-addr.arpa.") if item["type"] == "PTR"]
    finally:
        names.stop()
"""


@pytest.mark.parametrize("steps", [REFUSED, KILLED], ids=["refused", "killed"])
def test_the_name_servers_alone(steps: str) -> None:
    """A refused record among thousands changes nothing; what a killed agent did not tell Knot is told by the next."""
    command = ["unshare", "--net", sys.executable, "-c", ALONE + steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
