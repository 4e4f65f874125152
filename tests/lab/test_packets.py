"""DESIGN §5's packet paths on plain hosts: who reaches which backend by which way, and as whom it is seen there.

Everything is real: manifests by the API, rules by SSH and agent, connections between namespaces.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, Document, pod, service
from services_app.lab.cluster import Cluster, condition
from services_app.lab.namespaces import Place, ProbeFailed, outcome
from services_app.lab.network import Lab
from tests.agents.test_health import ASK_HTTP
from tests.lab.conftest import SERVICE_CIDRS
from tests.lab.held import wait_equal

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

NAMESPACE = "packets"
PORT = 8080
# A process on the node is told by the kernel's own word for it when what it sends is rejected on its way out.
REFUSED = ("refused", "operation not permitted", "permission denied")


@dataclass(frozen=True)
class Target:
    """A Service with a single endpoint, so that the way is known. virtual_ips: by IP version; node_ports: by protocol."""

    virtual_ips: dict[int, str]
    node_ports: dict[str, int]

    @property
    def virtual_ip(self) -> str:
        return self.virtual_ips[4]


both = pytest.mark.parametrize("version", [4, 6])


def by_version(cluster_ips: list[str]) -> dict[int, str]:
    return {6 if ":" in address else 4: address for address in cluster_ips}


def address_of(where: Place, version: int) -> str:
    return where.address if version == 4 else where.address6


def place(lab: Lab, name: str) -> Place:
    """ "node-1", "container-1-2", "client", "neighbour"."""
    kind, *numbers = name.split("-")
    if kind == "node":
        return lab.nodes[int(numbers[0]) - 1]
    if kind == "container":
        return lab.nodes[int(numbers[0]) - 1].containers[int(numbers[1]) - 1]
    return lab.client if kind == "client" else lab.neighbour


BACKENDS = ("node-1", "node-2", "container-1-1", "container-2-1")


@pytest.fixture(scope="module")
def targets(cluster: Cluster) -> Iterator[dict[str, Target]]:
    """Backend's place -> the Service that leads there."""
    api, lab = cluster.api, cluster.lab
    api.ensure_namespace(NAMESPACE)
    made = {}
    ports = [{"name": p, "protocol": p.upper(), "port": 80, "targetPort": PORT} for p in ("tcp", "udp")]
    for name in BACKENDS:
        where = place(lab, name)
        for protocol in ("tcp", "udp"):
            for version in (4, 6):
                where.serve(name, PORT, protocol=protocol, address=address_of(where, version))
        node = name if name.startswith("node") else f"node-{name.split('-')[1]}"
        address = None if name == node else f"{where.address},{where.address6}"
        record = pod(name, {"at": name}, node, {"tcp": (PORT, "TCP"), "udp": (PORT, "UDP")}, address=address)
        api.create(f"{CORE}/namespaces/{NAMESPACE}/pods", record)
        document = service(f"to-{name}", {"at": name}, ports, kind="NodePort", ipFamilyPolicy="RequireDualStack")
        spec = api.create(f"{CORE}/namespaces/{NAMESPACE}/services", document)["spec"]
        made[name] = Target(by_version(spec["clusterIPs"]), {p["name"]: p["nodePort"] for p in spec["ports"]})
    for name, target in made.items():
        for node in lab.nodes:
            for virtual_ip in target.virtual_ips.values():
                outcome(node.ask_until(virtual_ip, 80, name, deadline_s=30), 40)
    yield made
    api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}")


# client, way ("vip" or the node whose node port is asked), backend, address the backend sees ("" = any: only reached)
PATHS = [
    # A node is seen as itself, wherever the backend is.
    ("node-1", "vip", "node-1", "node-1"),
    ("node-1", "vip", "node-2", "node-1"),
    ("node-1", "vip", "container-1-1", "node-1"),
    ("node-1", "vip", "container-2-1", "node-1"),
    # A container behind a node: as itself by a backend on its own node, as its node elsewhere.
    ("container-1-1", "vip", "node-1", "container-1-1"),
    ("container-1-1", "vip", "node-2", "node-1"),
    ("container-1-1", "vip", "container-2-1", "node-1"),
    # Over the bridge it came from, also to itself: reached, and seen as the bridge.
    ("container-1-2", "vip", "container-1-1", ""),
    ("container-1-1", "vip", "container-1-1", ""),
    # Outside, by node port: as itself by a backend on the node asked, as that node elsewhere.
    ("client", "node-1", "node-1", "client"),
    ("client", "node-1", "container-1-1", "client"),
    ("client", "node-1", "node-2", "node-1"),
    ("client", "node-1", "container-2-1", "node-1"),
    ("client", "node-3", "node-1", "node-3"),
    # On the nodes' own link the reply could go round even more easily.
    ("neighbour", "node-1", "node-1", "neighbour"),
    ("neighbour", "node-1", "container-1-1", "neighbour"),
    ("neighbour", "node-1", "node-2", "node-1"),
    ("neighbour", "node-2", "container-1-1", "node-2"),
    # Nodes and containers by node port, of their own node and of another.
    ("node-1", "node-1", "node-1", "node-1"),
    ("node-1", "node-1", "node-2", "node-1"),
    ("node-1", "node-2", "node-2", "node-1"),
    ("node-1", "node-2", "node-1", "node-2"),
    ("node-1", "node-2", "container-1-1", "node-2"),
    ("container-1-1", "node-1", "node-1", "container-1-1"),
    ("container-1-1", "node-1", "node-2", "node-1"),
    ("container-1-1", "node-2", "container-2-1", "container-1-1"),
]


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("client, way, backend, seen", PATHS, ids=[" ".join(p[:3]) for p in PATHS])
def test_a_connection_arrives_and_is_seen_as(
    cluster: Cluster,
    targets: dict[str, Target],
    version: int,
    protocol: str,
    client: str,
    way: str,
    backend: str,
    seen: str,
) -> None:
    lab, target = cluster.lab, targets[backend]
    if way == "vip":
        host, port = target.virtual_ips[version], 80
    else:
        host, port = address_of(place(lab, way), version), target.node_ports[protocol]
    answer = place(lab, client).ask(host, port, protocol=protocol)
    assert answer["backend"] == backend
    if seen:
        assert answer["client"] == address_of(place(lab, seen), version)


@both
@pytest.mark.parametrize("client", ["client", "neighbour"])
def test_cluster_ips_are_not_for_the_outside(
    cluster: Cluster, targets: dict[str, Target], client: str, version: int
) -> None:
    with pytest.raises(ProbeFailed):
        place(cluster.lab, client).ask(targets["node-1"].virtual_ips[version], 80, timeout_s=0.3)


@both
def test_a_client_whose_operator_routes_the_range_is_served(
    cluster: Cluster, targets: dict[str, Target], version: int
) -> None:
    lab, cidr = cluster.lab, SERVICE_CIDRS.split(",")[0 if version == 4 else 1]
    first, neighbour = address_of(lab.nodes[0], version), address_of(lab.neighbour, version)
    lab.neighbour.run(["ip", "route", "add", cidr, "via", first])
    try:
        assert lab.neighbour.ask(targets["node-1"].virtual_ips[version], 80)["client"] == neighbour
        assert lab.neighbour.ask(targets["node-2"].virtual_ips[version], 80)["client"] == first
    finally:
        lab.neighbour.run(["ip", "route", "delete", cidr])


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("client", ["node-1", "node-3", "container-1-1"])
def test_an_undefined_port_of_a_virtual_ip_is_refused(
    cluster: Cluster, targets: dict[str, Target], client: str, protocol: str, version: int
) -> None:
    target = targets["node-1"].virtual_ips[version]
    assert place(cluster.lab, client).refusal(target, 81, protocol=protocol) in REFUSED


@both
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_service_without_endpoints_refuses_until_it_has_one(cluster: Cluster, protocol: str, version: int) -> None:
    api, lab = cluster.api, cluster.lab
    name = f"empty-{protocol}-{version}"
    api.ensure_namespace(name)
    ports = [{"protocol": protocol.upper(), "port": 80, "targetPort": PORT + 1}]
    document = service(name, {"app": name}, ports, kind="NodePort", ipFamilies=[f"IPv{version}"])
    spec = api.create(f"{CORE}/namespaces/{name}/services", document)["spec"]
    virtual_ip, node_port = spec["clusterIP"], spec["ports"][0]["nodePort"]
    second = address_of(lab.nodes[1], version)
    done = cluster.kubectl("wait", "--for=condition=Programmed", f"service/{name}", "-n", name, "--timeout=20s")
    assert done.returncode == 0, done.stderr
    assert lab.nodes[0].refusal(virtual_ip, 80, protocol=protocol) in REFUSED
    assert lab.client.refusal(second, node_port, protocol=protocol) == "refused"
    lab.nodes[2].serve(name, PORT + 1, protocol=protocol, address=address_of(lab.nodes[2], version))
    record = pod(name, {"app": name}, "node-3", {"app": (PORT + 1, protocol.upper())})
    api.create(f"{CORE}/namespaces/{name}/pods", record)
    outcome(lab.nodes[0].ask_until(virtual_ip, 80, name, protocol=protocol))
    outcome(lab.client.ask_until(second, node_port, name, protocol=protocol))
    api.request("DELETE", f"{CORE}/namespaces/{name}")
    lab.nodes[2].stop_serving(PORT + 1, protocol=protocol, address=address_of(lab.nodes[2], version))


@both
def test_a_udp_flow_moves_when_its_endpoint_leaves(cluster: Cluster, version: int) -> None:
    """The oldest bug of the field: the flow's conntrack entry would hold on to the endpoint that is gone."""
    api, lab = cluster.api, cluster.lab
    name = f"flow-{version}"
    api.ensure_namespace(name)
    for number, node in enumerate(lab.nodes[1:], start=1):
        node.serve(f"flow-{number}", PORT + 2, protocol="udp", address=address_of(node, version))
    ports = [{"protocol": "UDP", "port": 53, "targetPort": PORT + 2}]
    pods = f"{CORE}/namespaces/{name}/pods"
    api.create(pods, pod("flow-1", {"app": "flow"}, "node-2", {"app": (PORT + 2, "UDP")}))
    document = service("flow", {"app": "flow"}, ports, ipFamilies=[f"IPv{version}"])
    virtual_ip = api.create(f"{CORE}/namespaces/{name}/services", document)["spec"]["clusterIP"]
    outcome(lab.nodes[0].ask_until(virtual_ip, 53, "flow-1", protocol="udp"))
    lab.nodes[0].stream("flow", virtual_ip, 53, protocol="udp", interval_ms=10, kept=True, timeout_s=1)
    api.create(pods, pod("flow-2", {"app": "flow"}, "node-3", {"app": (PORT + 2, "UDP")}))
    outcome(lab.nodes[0].ask_until(virtual_ip, 53, "flow-2", protocol="udp"))
    api.request("DELETE", f"{pods}/flow-1")
    outcome(lab.nodes[1].ask_until(virtual_ip, 53, "flow-2", protocol="udp"))
    time.sleep(1.5)
    report = lab.nodes[0].stream_end("flow")
    assert report["backends"].get("flow-2"), report
    for node in lab.nodes[1:]:
        node.stop_serving(PORT + 2, protocol="udp", address=address_of(node, version))
    api.request("DELETE", f"{CORE}/namespaces/{name}")


def test_programmed_is_said_of_every_service_that_is(cluster: Cluster, targets: dict[str, Target]) -> None:
    for item in cluster.api.request("GET", f"{CORE}/namespaces/{NAMESPACE}/services")["items"]:
        assert condition(item, "Programmed")["status"] == "True", item["metadata"]["name"]


# Policies, external addresses and affinity. What each rule does to packets is in tests/agents/test_packets.py; here it
# is the way from the API to three nodes that differ.

EXTERNAL = {4: "203.0.113.7", 6: "2001:db8:113::7"}


@pytest.fixture(scope="module")
def spread(cluster: Cluster, targets: dict[str, Target]) -> Iterator[str]:
    """The namespace with a Pod on node-1's first container and one on node-2 itself, both ready."""
    api, lab = cluster.api, cluster.lab
    name = "spread"
    api.ensure_namespace(name)
    container = lab.nodes[0].containers[0]
    for where, node, address in (
        (container, "node-1", f"{container.address},{container.address6}"),
        (lab.nodes[1], "node-2", None),
    ):
        for version in (4, 6):
            where.serve(f"spread-{node}", PORT + 3, address=address_of(where, version))
        record = pod(f"spread-{node}", {"app": "spread"}, node, {"app": (PORT + 3, "TCP")}, address=address)
        api.create(f"{CORE}/namespaces/{name}/pods", record)
    yield name
    api.request("DELETE", f"{CORE}/namespaces/{name}")


def make(cluster: Cluster, namespace: str, name: str, **spec: object) -> Document:
    """A dual-stack Service of the spread Pods, once every node holds it."""
    ports = [{"port": 80, "targetPort": PORT + 3}]
    document = service(name, {"app": "spread"}, ports, ipFamilyPolicy="RequireDualStack", **spec)
    made = cluster.api.create(f"{CORE}/namespaces/{namespace}/services", document)
    done = cluster.kubectl("wait", "--for=condition=Programmed", f"service/{name}", "-n", namespace, "--timeout=20s")
    assert done.returncode == 0, done.stderr
    return made


def reached(where: Place, host: str, port: int, count: int = 12) -> set[str]:
    answers = where.ask_often(host, port, count, timeout_s=0.4)
    return {str(answer.get("backend") or answer["error"]) for answer in answers}


ALL = {"spread-node-1", "spread-node-2"}


@both
def test_external_policy_local_serves_from_the_node_asked(cluster: Cluster, spread: str, version: int) -> None:
    lab = cluster.lab
    name = f"outside-{version}"
    made = make(cluster, spread, name, kind="NodePort", externalTrafficPolicy="Local")
    port = made["spec"]["ports"][0]["nodePort"]
    node_1, node_2, node_3 = (address_of(node, version) for node in lab.nodes)
    answers = lab.client.ask_often(node_1, port, 10)
    assert {(a["backend"], a["client"]) for a in answers} == {("spread-node-1", address_of(lab.client, version))}
    answers = lab.client.ask_often(node_2, port, 10)
    assert {(a["backend"], a["client"]) for a in answers} == {("spread-node-2", address_of(lab.client, version))}
    assert reached(lab.client, node_3, port, 2) == {"timeout"}
    # A node asks itself: no policy for the outside.
    assert reached(lab.nodes[2], node_3, port) == ALL
    assert reached(lab.nodes[2], by_version(made["spec"]["clusterIPs"])[version], 80) == ALL
    # The endpoint on node-2 ends but still serves: node-2 goes on with it, the others leave it.
    pods = f"{CORE}/namespaces/{spread}/pods"
    cluster.api.request("DELETE", f"{pods}/spread-node-2?gracePeriodSeconds=8")
    outcome(lab.nodes[2].ask_until(node_3, port, "spread-node-1"))
    wait_equal(cluster.api, lab.nodes)
    deadline = time.monotonic() + 20
    seen = []
    while "timeout" not in seen and time.monotonic() < deadline:
        seen.extend(sorted(reached(lab.client, node_2, port, 1)))
    assert "spread-node-2" in seen
    assert seen[-1] == "timeout"  # it is gone: nothing is left on node-2
    assert reached(lab.nodes[2], node_3, port) == {"spread-node-1"}
    cluster.api.create(pods, pod("spread-node-2", {"app": "spread"}, "node-2", {"app": (PORT + 3, "TCP")}))
    outcome(lab.client.ask_until(node_2, port, "spread-node-2"))
    cluster.api.request("DELETE", f"{CORE}/namespaces/{spread}/services/{name}")


@both
def test_internal_policy_local_serves_from_the_clients_node(cluster: Cluster, spread: str, version: int) -> None:
    lab = cluster.lab
    name = f"inside-{version}"
    virtual_ip = by_version(make(cluster, spread, name, internalTrafficPolicy="Local")["spec"]["clusterIPs"])[version]
    for node, expected in zip(lab.nodes, ("spread-node-1", "spread-node-2", "timeout"), strict=True):
        assert reached(node, virtual_ip, 80, 4) == {expected}
        assert reached(node.containers[0], virtual_ip, 80, 4) == {expected}
    cluster.api.request(
        "PATCH", f"{CORE}/namespaces/{spread}/services/{name}", {"spec": {"internalTrafficPolicy": "Cluster"}}
    )
    outcome(lab.nodes[2].ask_until(virtual_ip, 80, [*ALL]))
    assert reached(lab.nodes[2], virtual_ip, 80) == ALL
    cluster.api.request("DELETE", f"{CORE}/namespaces/{spread}/services/{name}")


@both
def test_external_ips_and_load_balancers_addresses_are_served(cluster: Cluster, spread: str, version: int) -> None:
    api, lab = cluster.api, cluster.lab
    name = f"external-{version}"
    path = f"{CORE}/namespaces/{spread}/services/{name}"
    make(cluster, spread, name, kind="LoadBalancer", externalIPs=[EXTERNAL[version]])
    balancer = EXTERNAL[version][:-1] + "8"
    ingress = [{"ip": balancer, "ipMode": "VIP"}]
    api.request("PATCH", f"{path}/status", {"status": {"loadBalancer": {"ingress": ingress}}})
    bits = 32 if version == 4 else 128
    for address in (EXTERNAL[version], balancer):
        lab.switch.run(["ip", "route", "add", f"{address}/{bits}", "via", address_of(lab.nodes[0], version)])
        for client in (lab.nodes[1], lab.nodes[1].containers[0], lab.client, lab.neighbour):
            outcome(client.ask_until(address, 80, [*ALL]))
            assert reached(client, address, 80) == ALL, (client.name, address)
        seen = {a["backend"]: a["client"] for a in lab.client.ask_often(address, 80, 12)}
        assert seen["spread-node-1"] == address_of(lab.client, version)
        assert seen["spread-node-2"] == address_of(lab.nodes[0], version)
    api.request("PATCH", f"{path}/status", {"status": {"loadBalancer": {"ingress": None}}})
    wait_equal(api, lab.nodes)
    api.request("DELETE", path)
    wait_equal(api, lab.nodes)
    for address in (EXTERNAL[version], balancer):
        lab.switch.run(["ip", "route", "delete", f"{address}/{bits}"])


@both
def test_a_load_balancers_address_has_its_clients_and_its_health_checks(
    cluster: Cluster, spread: str, version: int
) -> None:
    api, lab = cluster.api, cluster.lab
    name, address, bits = f"balanced-{version}", EXTERNAL[version][:-1] + "9", 32 if version == 4 else 128
    path = f"{CORE}/namespaces/{spread}/services/{name}"
    mine = [f"{address_of(lab.client, v)}/{32 if v == 4 else 128}" for v in (4, 6)]
    policy = {"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": mine}
    made = make(cluster, spread, name, kind="LoadBalancer", **policy)
    api.request("PATCH", f"{path}/status", {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})
    wait_equal(api, lab.nodes)

    def checked() -> list[int]:
        port = str(made["spec"]["healthCheckNodePort"])
        asked = [[*ASK_HTTP, address_of(node, version), port, "GET"] for node in lab.nodes]
        return [json.loads(lab.client.run(command).stdout)[0] for command in asked]

    lab.switch.run(["ip", "route", "add", f"{address}/{bits}", "via", address_of(lab.nodes[0], version)])
    try:
        assert reached(lab.client, address, 80) == {"spread-node-1"}
        assert lab.neighbour.refusal(address, 80, tries=1) == "timeout"
        api.request("PATCH", path, {"spec": {"loadBalancerSourceRanges": []}})
        outcome(lab.neighbour.ask_until(address, 80, "spread-node-1"))

        wait_until(lambda: checked() == [200, 200, 503])
        pods = f"{CORE}/namespaces/{spread}/pods"
        record = api.request("GET", f"{pods}/spread-node-2")
        api.request("PATCH", f"{pods}/spread-node-2", {"metadata": {"labels": {"app": "elsewhere"}}})
        wait_until(lambda: checked() == [200, 503, 503])
        api.request("PATCH", f"{pods}/spread-node-2", {"metadata": {"labels": record["metadata"]["labels"]}})
        wait_until(lambda: checked() == [200, 200, 503])
    finally:
        lab.switch.run(["ip", "route", "delete", f"{address}/{bits}"])
        api.request("DELETE", path)
    wait_until(lambda: checked() == [0, 0, 0])
    wait_equal(api, lab.nodes)


class Configured:
    """What the test said of kube-proxy; `end` takes it back, so that a test that fails leaves none to the next."""

    def __init__(self, api: ApiClient) -> None:
        self._api, self._nodes = api, set[str]()
        self.path = f"{CORE}/namespaces/kube-system/configmaps"
        self._is_there = False

    def everywhere(self, text: str | None) -> None:
        """A KubeProxyConfiguration but its head; None: none."""
        if self._is_there:
            self._api.request("DELETE", f"{self.path}/kube-proxy")
            self._is_there = False
        if text is not None:
            self._api.ensure_namespace("kube-system")
            metadata = {"name": "kube-proxy", "namespace": "kube-system"}
            self._api.create(self.path, {"metadata": metadata, "data": self.data(text)})
            self._is_there = True

    @staticmethod
    def data(text: str) -> dict[str, str]:
        head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        return {"config.conf": head + text}

    def on(self, node: str, text: str | None) -> None:
        """A node's own, which is stronger."""
        self._nodes.add(node)
        annotations = {"timonel.io/kube-proxy-configuration": text}
        self._api.request("PATCH", f"{CORE}/nodes/{node}", {"metadata": {"annotations": annotations}})

    def end(self) -> None:
        self.everywhere(None)
        for node in self._nodes:
            self.on(node, None)


@pytest.fixture
def configured(cluster: Cluster) -> Iterator[Configured]:
    configured = Configured(cluster.api)
    yield configured
    configured.end()


def test_the_kube_proxy_configuration_is_followed_at_once(
    cluster: Cluster, spread: str, configured: Configured
) -> None:
    api, lab = cluster.api, cluster.lab
    port = make(cluster, spread, "configured", kind="NodePort")["spec"]["ports"][0]["nodePort"]
    first, second = lab.nodes[0].address, lab.nodes[1].address
    outcome(lab.client.ask_until(first, port, [*ALL]))
    outcome(lab.client.ask_until(second, port, [*ALL]))
    lab.client.stream("steady", first, port, interval_ms=10, timeout_s=2)
    configured.everywhere(f"nodePortAddresses: [{first}/32]")
    outcome(lab.client.ask_until(second, port, None))
    for _ in range(10):  # as soon as one is in force the next comes, while the push of it is still being noted
        for text, backends in (("nodePortAddresses: [primary]", [*ALL]), (None, None)):
            configured.on(lab.nodes[1].name, text)
            outcome(lab.client.ask_until(second, port, backends))
    with pytest.raises(ApiRefused, match="modus"):
        api.request("PATCH", f"{configured.path}/kube-proxy", {"data": configured.data("modus: nftables")})
    configured.everywhere(None)
    outcome(lab.client.ask_until(second, port, [*ALL]))
    report = lab.client.stream_end("steady")
    assert not report["failed"], report
    api.request("DELETE", f"{CORE}/namespaces/{spread}/services/configured")


def test_every_node_takes_another_mode_while_it_serves(cluster: Cluster, spread: str, configured: Configured) -> None:
    """And one node still another; what cannot be served there is told of the Service, as long as it is so."""
    api, lab = cluster.api, cluster.lab
    port = make(cluster, spread, "moded", kind="NodePort")["spec"]["ports"][0]["nodePort"]
    signals = {"ports": [{"port": 9, "protocol": "SCTP"}], "selector": {"app": "spread"}}
    api.create(f"{CORE}/namespaces/{spread}/services", {"metadata": {"name": "signals"}, "spec": signals})
    for number, node in enumerate(lab.nodes):
        outcome(lab.client.ask_until(node.address, port, [*ALL]))
        lab.client.stream(f"steady {number}", node.address, port, interval_ms=20, timeout_s=2)

    def modes() -> list[str]:
        look = "nft list tables; iptables-save -t nat | grep -o TIMONEL-SERVICES"
        said = [node.run(["sh", "-c", look], check=False).stdout for node in lab.nodes]
        words = {"ip timonel\n": "nftables", "TIMONEL-": "iptables", "timonel_userspace": "userspace"}
        return ["+".join(mode for word, mode in words.items() if word in text) for text in said]

    def programmed() -> tuple[str, str]:
        service = api.request("GET", f"{CORE}/namespaces/{spread}/services/signals")
        found = next((c for c in service["status"].get("conditions", ()) if c["type"] == "Programmed"), {})
        return found.get("status", ""), found.get("reason", "")

    configured.on(lab.nodes[2].name, "mode: userspace")
    wait_until(lambda: modes() == ["nftables", "nftables", "userspace"])
    wait_until(lambda: programmed() == ("False", "ProtocolUnsupported"))
    configured.everywhere("mode: iptables")
    wait_until(lambda: modes() == ["iptables", "iptables", "userspace"])
    for node in lab.nodes:
        outcome(lab.client.ask_until(node.address, port, [*ALL]))
    configured.on(lab.nodes[2].name, None)
    wait_until(lambda: modes() == ["iptables"] * 3)
    wait_until(lambda: programmed()[0] == "True")
    configured.everywhere(None)
    wait_until(lambda: modes() == ["nftables"] * 3)
    for number in range(len(lab.nodes)):
        report = lab.client.stream_end(f"steady {number}")
        assert report["asked"] > 50, report
        assert not report["failed"], report
    for node in lab.nodes[:2]:
        wait_until(
            lambda node=node: any("iptables serves instead of nftables" in text for text in told(api, node.name))
        )
    for name in ("moded", "signals"):
        api.request("DELETE", f"{CORE}/namespaces/{spread}/services/{name}")
    wait_equal(api, lab.nodes)


def test_what_somebody_changed_on_a_node_is_repaired_and_told(cluster: Cluster, spread: str) -> None:
    """As an Event on the Node, which names it; the same again counts on."""
    api, node = cluster.api, cluster.lab.nodes[0]
    service = make(cluster, spread, "touched")
    address = service["spec"]["clusterIP"]
    outcome(node.ask_until(address, 80, [*ALL]))
    said = "somebody changed map frontends of table ip timonel"
    for count in (1, 2):
        node.run(["nft", "delete", "element", "ip", "timonel", "frontends", f"{{ {address} . tcp . 80 }}"])
        wait_until(lambda count=count: told(api, node.name).get(said) == ("Repaired", "Warning", count), 35)
        outcome(node.ask_until(address, 80, [*ALL]))
    api.request("DELETE", f"{CORE}/namespaces/{spread}/services/touched")


def test_what_a_node_holds_already_is_not_sent_again(cluster: Cluster, spread: str) -> None:
    """A new session tells the digest of all; a push of everything would begin the journal anew."""
    node = cluster.lab.nodes[0]
    wait_equal(cluster.api, cluster.lab.nodes)

    def journal() -> str:
        return node.run(["stat", "-c", "%i", "/var/lib/timonel/journal"]).stdout

    def push_everything() -> None:
        node.kill_agent()
        model = f"__import__('services_app.models').models.NodeSync.objects.filter(node_id='{node.name}')"
        cluster.stack.manage("shell", "-c", f"{model}.update(full_wanted=True, next_attempt_at='2020-01-01T00:00Z')")
        asked = f"print({model}.get().full_wanted)"
        wait_until(lambda: cluster.stack.manage("shell", "-c", asked).stdout.strip().endswith("False"), 40)

    before = journal()
    push_everything()
    assert journal() == before
    other = (
        "sed 's/goto lb_1/goto lb_2/g' /var/lib/timonel/journal >/tmp/other && cat /tmp/other >/var/lib/timonel/journal"
    )
    node.run(["sh", "-c", other])
    push_everything()
    assert journal() != before
    wait_equal(cluster.api, cluster.lab.nodes)


def told(api: ApiClient, node: str) -> dict[str, tuple[str, str, int]]:
    """Message -> reason, type and count, of the Events about a Node."""
    found = api.request("GET", f"{CORE}/events?fieldSelector=involvedObject.kind=Node,involvedObject.name={node}")
    return {event["message"]: (event["reason"], event["type"], event["count"]) for event in found["items"]}


def wait_until(is_so: Callable[[], bool], deadline_s: float = 25.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {deadline_s:g} s"
        time.sleep(0.1)


@both
def test_a_client_keeps_its_endpoint_while_it_is_there(cluster: Cluster, spread: str, version: int) -> None:
    lab = cluster.lab
    name = f"sticky-{version}"
    config = {"clientIP": {"timeoutSeconds": 300}}
    made = make(cluster, spread, name, kind="NodePort", sessionAffinity="ClientIP", sessionAffinityConfig=config)
    virtual_ip, port = by_version(made["spec"]["clusterIPs"])[version], made["spec"]["ports"][0]["nodePort"]
    for client in (lab.nodes[0], lab.nodes[1], lab.nodes[2].containers[0], lab.nodes[2].containers[1]):
        assert len(reached(client, virtual_ip, 80, 20)) == 1, client.name
    third = address_of(lab.nodes[2], version)
    (first,) = reached(lab.client, third, port, 20)
    # Its endpoint goes: the client moves, and stays where it is when the endpoint is back.
    pods, node = f"{CORE}/namespaces/{spread}/pods", first.removeprefix("spread-")
    record = cluster.api.request("GET", f"{pods}/{first}")
    cluster.api.request("DELETE", f"{pods}/{first}?gracePeriodSeconds=0")
    other = (ALL - {first}).pop()
    outcome(lab.client.ask_until(third, port, other))
    assert reached(lab.client, third, port, 20) == {other}
    annotations = record["metadata"].get("annotations", {})
    again = pod(
        first, {"app": "spread"}, node, {"app": (PORT + 3, "TCP")}, address=annotations.get("timonel.io/pod-ip")
    )
    cluster.api.create(pods, again)
    wait_equal(cluster.api, lab.nodes)
    assert reached(lab.client, third, port, 20) == {other}
    cluster.api.request("DELETE", f"{CORE}/namespaces/{spread}/services/{name}")


def test_pods_behind_a_node_are_inside_once_their_network_is_known(cluster: Cluster, spread: str) -> None:
    lab = cluster.lab
    made = make(cluster, spread, "known", kind="NodePort", externalTrafficPolicy="Local")
    port = made["spec"]["ports"][0]["nodePort"]
    third, container = lab.nodes[2], lab.nodes[2].containers[0]
    for version in (4, 6):
        assert reached(container, address_of(third, version), port, 2) == {"timeout"}
    cidrs = [f"{container.address.rpartition('.')[0]}.0/24", f"{container.address6.rpartition('::')[0]}::/64"]
    cluster.api.request("PATCH", f"{CORE}/nodes/node-3", {"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}})
    for version in (4, 6):
        outcome(container.ask_until(address_of(third, version), port, [*ALL]))
        assert reached(container, address_of(third, version), port) == ALL
        assert reached(lab.client, address_of(third, version), port, 2) == {"timeout"}
    cluster.api.request("DELETE", f"{CORE}/namespaces/{spread}/services/known")


# What many deltas left on each node is what everything at once would be: by the digests.
DIGESTS = """
from services_app.models import Node, NodeSync
from services_app.push.snapshot import expected
for node, held in NodeSync.objects.values_list("node_id", "digest"):
    print(node, held == expected(node, Node.objects.get(name=node).address).digest)
"""


def test_after_all_that_every_node_is_what_the_api_says(cluster: Cluster, targets: dict[str, Target]) -> None:
    wait_equal(cluster.api, cluster.lab.nodes)
    lines = cluster.stack.manage("shell", "-c", DIGESTS).stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("node-")) == ["node-1 True", "node-2 True", "node-3 True"]
