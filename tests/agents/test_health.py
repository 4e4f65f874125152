"""Health check node ports: who asks a node is told whether it has endpoints of its own, also while no agent runs."""

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from services_app.lab.namespaces import Place
from services_app.lab.network import Lab, Node
from tests.agents.test_node import AGENT, Agent, base, eventually, place_agent
from tests.missing import without

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(120),
]

PORT = 32000
# and then: host, port, method, path (/healthz unless given); prints [status, headers, text], or [0, {}, why nobody answers]
ASK_HTTP = (
    "python3",
    "-c",
    """
import http.client, json, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=3)
try:
    connection.request(sys.argv[3], *sys.argv[4:] or ["/healthz"])
    answer = connection.getresponse()
    text = answer.read().decode()
    print(json.dumps([answer.status, dict(answer.getheaders()), text]))
except OSError as err:
    print(json.dumps([0, {}, err.strerror or str(err)]))
""",
)
# and then: host, port, a command for a shell that is run when half of the request is sent; prints the answer's first and last line
ASK_SLOWLY = (
    "python3",
    "-c",
    """
import socket, subprocess, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as wire:
    wire.sendall(b"GET /healthz HTTP/1.0\\r\\n")
    subprocess.run(["sh", "-c", sys.argv[3]], check=True)
    time.sleep(0.3)
    wire.sendall(b"\\r\\n")
    lines = b"".join(iter(lambda: wire.recv(65536), b"")).splitlines()
    print(lines[0].decode(), lines[-1].decode())
""",
)
Document = dict[str, Any]


class Health:
    """A node whose agent is told of Services with health checks."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node: Node = lab.nodes[0]
        self.agent = Agent(self.node)
        self.revision = 0

    def send(self, checks: dict[int, str], since: int | None = -1) -> Document:
        """Push these checks, value by port, as all that Services have; since None: everything, -1: as a delta."""
        owners = {value.split()[0]: [["health", f"port {port}", value]] for port, value in checks.items()}
        gone: dict[str, list[list[str]]] = {owner: [] for owner in ("shop/web", "shop/other") if owner not in owners}
        owners = {**owners, "": base(self.node)} if since is None else {**gone, **owners}
        before, self.revision = self.revision, self.revision + 1
        answer = self.agent.ask(
            "apply", cluster="c1", revision=self.revision, since=before if since == -1 else since, owners=owners
        )
        assert answer["ok"], answer
        assert answer["rejected"] == {}
        return answer

    def send_base(self, *resources: list[str]) -> None:
        """Push the base with these as a delta."""
        before, self.revision = self.revision, self.revision + 1
        owners = {"": [*base(self.node), *resources]}
        answer = self.agent.ask("apply", cluster="c1", revision=self.revision, since=before, owners=owners)
        assert (answer["ok"], answer["rejected"]) == (True, {})

    def ask(
        self,
        port: int = PORT,
        *,
        place: Place | None = None,
        version: int = 4,
        method: str = "GET",
        path: str = "/healthz",
    ) -> Any:
        """[status, headers, text], or [0, {}, why nobody answers]."""
        host = self.node.address if version == 4 else self.node.address6
        done = (place or self.lab.client).run([*ASK_HTTP, host, str(port), method, path])
        return json.loads(done.stdout)

    def becomes(self, status: int, port: int = PORT) -> None:
        eventually(lambda: self.ask(port)[0] == status, f"port {port} answers {status}")


@pytest.fixture(scope="module")
def health() -> Iterator[Health]:
    with Lab(nodes=1) as lab:
        place_agent(lab.nodes[0])
        health = Health(lab)
        health.send({}, since=None)
        yield health
        health.agent.process.kill()
        health.agent.process.wait()


@pytest.mark.parametrize("version", [4, 6])
def test_the_answer_is_kube_proxys(health: Health, version: int) -> None:
    health.send({PORT: "shop/web 2"})
    health.becomes(200)
    status, headers, text = health.ask(version=version)
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "application/json", "nosniff")
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert json.loads(text) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert health.ask(method="HEAD", version=version)[::2] == [200, ""]
    assert health.ask(method="POST", version=version)[0] == 501


def test_a_node_without_endpoints_says_so_and_a_port_that_goes_is_closed(health: Health) -> None:
    health.send({PORT: "shop/web 0", PORT + 1: "shop/other 1"})
    health.becomes(503)
    _, headers, text = health.ask()
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "0"
    assert json.loads(text)["localEndpoints"] == 0
    assert health.ask(PORT + 1)[0] == 200
    health.send({PORT: "shop/web 1"})
    health.becomes(200)
    eventually(lambda: health.ask(PORT + 1)[2] == "Connection refused", "the other port is closed")
    health.send({})
    eventually(lambda: health.ask()[2] == "Connection refused", "the port is closed")
    assert "agent.pyz" not in "".join(w for w in health.node.processes().values() if "health" in w)
    assert health.node.run(["ls", "/var/lib/timonel"]).stdout.split().count("health") == 0


def test_checks_are_answered_while_no_agent_runs_and_after_a_boot(health: Health) -> None:
    health.send({PORT: "shop/web 2"})
    health.becomes(200)
    health.agent.process.kill()
    health.agent.process.wait()
    health.node.kill_agent()
    time.sleep(1)
    assert health.ask()[0] == 200
    assert health.node.kill("agent.pyz health") == 1
    assert health.ask()[0] == 0
    health.node.run(["python3", AGENT, "restore"])
    health.becomes(200)
    health.agent = Agent(health.node)
    assert health.agent.ask("hello", cluster="c1")["problems"] == []
    assert health.node.kill("agent.pyz health") == 1
    health.becomes(200)
    eventually(lambda: health.agent.told() == ["Repaired"], "it is told")


def test_healthz_says_whether_the_node_is_fit_for_traffic(health: Health) -> None:
    """As kube-proxy on port 10256: load balancers and cloud controllers ask all nodes so."""
    port, moment = 10256, r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}\.[0-9]{9} \+0000 UTC"
    health.send({})
    health.send_base(["health", "healthz [::]:10256", "eligible"])
    for version in (4, 6):
        eventually(lambda version=version: health.ask(port, version=version)[0] == 200, "it is answered")
    said = json.loads(health.ask(port)[2])
    assert said.keys() == {"lastUpdated", "currentTime", "nodeEligible"}
    assert (said["nodeEligible"], said["lastUpdated"]) == (True, said["currentTime"])
    assert re.fullmatch(moment, said["lastUpdated"])
    assert json.loads(health.ask(port, path="/livez")[2]).keys() == {"lastUpdated", "currentTime"}
    assert health.ask(port, path="/metrics")[0] == 404

    health.send_base(["health", "healthz [::]:10256", "leaving"])
    health.becomes(503, port)
    assert json.loads(health.ask(port)[2])["nodeEligible"] is False
    assert health.ask(port, path="/livez")[0] == 200, "the proxy is well, whatever becomes of the node"

    health.send_base(["health", f"healthz {health.node.address}:10256", "eligible"])
    health.becomes(200, port)
    assert health.ask(port, version=6)[0] == 0, "on the address that is named alone"
    with without(health.node, "/usr/sbin/nft"):
        owners = {"shop/other": [["nft4", "cluster_ips 10.96.0.77", ""]]}
        health.agent.ask("apply", cluster="c1", revision=health.revision + 1, since=health.revision, owners=owners)
        health.revision += 1
        health.becomes(503, port)
        first, second = (json.loads(health.ask(port, path="/livez")[2]) for _ in range(2))
        assert first["lastUpdated"] == second["lastUpdated"] < first["currentTime"] < second["currentTime"]
    health.becomes(200, port)
    health.send_base()
    eventually(lambda: health.ask(port)[2] == "Connection refused", "the port is closed")


def test_another_agents_server_is_replaced(health: Health) -> None:
    health.send({PORT: "shop/web 2"})
    health.becomes(200)
    health.agent.close()
    place_agent(health.node)
    health.node.run(["sed", "-i", 's/"version": "[^"]*"/"version": "older"/', "/var/lib/timonel/health/wanted"])
    eventually(lambda: health.ask()[0] == 0, "it ends when another version is wanted")
    health.agent = Agent(health.node)
    health.agent.ask("hello", cluster="c1")
    health.becomes(200)


def test_who_has_asked_is_answered_by_a_server_that_ends(health: Health) -> None:
    health.send({PORT: "shop/web 2"})
    health.becomes(200)
    health.agent.close()
    older = """sed -i 's/"version": "[^"]*"/"version": "older"/' /var/lib/timonel/health/wanted"""
    assert health.node.run([*ASK_SLOWLY, health.node.address, str(PORT), older]).stdout == "HTTP/1.0 200 OK }\n"
    eventually(lambda: health.ask()[0] == 0, "nobody else is answered")
    health.agent = Agent(health.node)
    health.agent.ask("hello", cluster="c1")
    health.becomes(200)


def test_a_taken_port_is_told_and_opened_when_it_is_free(health: Health) -> None:
    health.agent.events.clear()
    health.node.serve("somebody", PORT + 2)
    health.send({PORT: "shop/web 1", PORT + 2: "shop/other 1"})
    health.becomes(200)
    time.sleep(2.5)
    assert health.agent.ask("ping")["ok"]
    told = [(event["reason"], event["message"]) for event in health.agent.events]
    assert told == [
        ("HealthPortTaken", f"cannot answer health checks of shop/other on port {PORT + 2}: address already in use")
    ]
    health.node.stop_serving(PORT + 2)
    health.becomes(200, PORT + 2)


def test_an_agent_that_cannot_keep_its_word_says_so_in_every_answer(health: Health) -> None:
    health.send({PORT: "shop/web 1"})
    health.becomes(200)
    with without(health.node, "/usr/sbin/nft"):
        owners = {"shop/other": [["nft4", "cluster_ips 10.96.0.77", ""]]}
        answer = health.agent.ask(
            "apply", cluster="c1", revision=health.revision + 1, since=health.revision, owners=owners
        )
        health.revision += 1
        assert answer["reason"] == "NftMissing"
        health.becomes(503)
        assert json.loads(health.ask()[2])["serviceProxyHealthy"] is False
    health.becomes(200)


def test_cleanup_ends_the_server(health: Health) -> None:
    health.send({PORT: "shop/web 1"})
    health.becomes(200)
    health.agent.close()
    health.node.run(["python3", AGENT, "cleanup"])
    assert health.ask()[2] == "Connection refused"
    assert not [words for words in health.node.processes().values() if "agent.pyz health" in words]
