"""Ranges of cluster IPs that come and go, told by packets: routes and names on every node follow without a restart."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_network

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, pod
from services_app.lab.cluster import DNS_ADDRESS, Cluster
from services_app.lab.namespaces import ProbeFailed, outcome
from services_app.lab.network import Node

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]

NETWORKING = "/apis/networking.k8s.io/v1"
NAMESPACE, PORT, WIDENED_PORT = "ranges", 5471, 5472
FOUR, SIX = "10.203.0.0/24", "fd00:203::/112"


@pytest.fixture
def api(cluster: Cluster) -> Iterator[ApiClient]:
    cluster.api.ensure_namespace(NAMESPACE)
    yield cluster.api
    cluster.api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}")
    for name in ("added", "wider"):
        with contextlib.suppress(ApiRefused):
            cluster.api.request("DELETE", f"{NETWORKING}/servicecidrs/{name}")


def routes(node: Node) -> set[str]:
    """The networks that the agent keeps routes to."""
    found = set()
    for family in ("-4", "-6"):
        said = node.run(["ip", "-j", family, "route", "show", "proto", "84"]).stdout
        found |= {str(ip_network(route["dst"])) for route in json.loads(said or "[]")}
    return found


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def name_of(node: Node, address: str) -> tuple[str, list[str]]:
    """The answer to a reverse lookup; the name servers start again with other zones, and answer nothing meanwhile."""
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa."
    try:
        answer: tuple[str, list[str]] = node.lookup(reverse, "PTR", DNS_ADDRESS)
    except ProbeFailed:
        return "", []
    return answer


def is_routed(node: Node, wanted: set[str]) -> bool:
    return routes(node) == wanted


def is_named(node: Node, *names: str) -> bool:
    code, found = name_of(node, "10.203.0.9")
    return bool(code) and found == [*names]


def test_an_added_range_is_reached_from_every_node_and_a_retired_one_leaves_no_route(
    cluster: Cluster, api: ApiClient
) -> None:
    nodes = cluster.lab.nodes
    nodes[0].serve("ranged", PORT)
    api.create(f"{CORE}/namespaces/{NAMESPACE}/pods", pod("p", {"app": "r"}, nodes[0].name, {"web": (PORT, "TCP")}))
    before = routes(nodes[0])
    spec = {"cidrs": [FOUR, SIX]}
    api.create(f"{NETWORKING}/servicecidrs", {"metadata": {"name": "added"}, "spec": spec})
    services = f"{CORE}/namespaces/{NAMESPACE}/services"
    for name, address, family in (("four", "10.203.0.9", "IPv4"), ("six", "fd00:203::9", "IPv6")):
        wanted = {"selector": {"app": "r"}, "clusterIP": address, "ipFamilies": [family]}
        wanted["ports"] = [{"port": 80, "targetPort": PORT}]  # type: ignore[assignment]
        api.create(services, {"metadata": {"name": name}, "spec": wanted})
    for node in nodes:
        outcome(node.ask_until("10.203.0.9", 80, "ranged", deadline_s=30), 40)
        until(partial(is_routed, node, before | {FOUR, SIX}), f"{node.name} routes {routes(node)}")
        until(partial(is_named, node, f"four.{NAMESPACE}.svc.cluster.local."), f"{node.name} has no name for it")

    api.request("DELETE", f"{NETWORKING}/servicecidrs/added")
    with pytest.raises(ApiRefused, match="not in the valid range"):
        late = {"metadata": {"name": "late"}, "spec": {"clusterIP": "10.203.0.10", "ports": [{"port": 80}]}}
        api.create(services, late)
    time.sleep(3)  # long enough for a look at what goes: the range is in use and must stay
    for node in nodes:
        assert routes(node) == before | {FOUR, SIX}
        outcome(node.ask_until("10.203.0.9", 80, "ranged", deadline_s=30), 40)

    for name in ("four", "six"):
        api.request("DELETE", f"{services}/{name}")
    for node in nodes:
        until(partial(is_routed, node, before), f"{node.name} keeps a route")
        until(partial(is_named, node), f"{node.name} keeps the name")
    with pytest.raises(ApiRefused) as refusal:
        api.request("GET", f"{NETWORKING}/servicecidrs/added")
    assert refusal.value.code == 404


def test_a_range_that_is_widened_keeps_its_connections(cluster: Cluster, api: ApiClient) -> None:
    """From a /25 to the /24 around it: the Service stays where it is, and never is without a route."""
    nodes = cluster.lab.nodes
    nodes[1].serve("widened", WIDENED_PORT)
    before = routes(nodes[0])
    api.create(
        f"{CORE}/namespaces/{NAMESPACE}/pods", pod("p", {"app": "w"}, nodes[1].name, {"web": (WIDENED_PORT, "TCP")})
    )
    api.create(f"{NETWORKING}/servicecidrs", {"metadata": {"name": "added"}, "spec": {"cidrs": ["10.203.0.0/25"]}})
    spec = {"selector": {"app": "w"}, "clusterIP": "10.203.0.9", "ports": [{"port": 80, "targetPort": WIDENED_PORT}]}
    api.create(f"{CORE}/namespaces/{NAMESPACE}/services", {"metadata": {"name": "web"}, "spec": spec})
    for node in nodes:
        outcome(node.ask_until("10.203.0.9", 80, "widened", deadline_s=30), 40)
    api.create(f"{NETWORKING}/servicecidrs", {"metadata": {"name": "wider"}, "spec": {"cidrs": [FOUR]}})
    api.request("DELETE", f"{NETWORKING}/servicecidrs/added")
    for node in nodes:
        until(partial(is_routed, node, before | {FOUR}), f"{node.name} routes {routes(node)}")
        answers = node.ask_often("10.203.0.9", 80, 20)
        assert {answer.get("backend") for answer in answers} == {"widened"}
