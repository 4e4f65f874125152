"""Services without selector, told by packets: endpoints written by hand lead where they say, and stop when they go.

The three uses that Kubernetes' documentation names: a database outside, a Service elsewhere, a workload on its way here.
"""

import time
from collections.abc import Iterator

import pytest

from services_app.lab.client import CORE, DISCOVERY, ApiClient, Document, pod
from services_app.lab.cluster import DNS_ADDRESS, Cluster
from services_app.lab.namespaces import outcome
from services_app.lab.network import Node

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(200)]

PRODUCTION, TEST = "selectorless-prod", "selectorless-test"
DATABASE, BILLING, MOVING = 5432, 5433, 5434


@pytest.fixture
def api(cluster: Cluster) -> Iterator[ApiClient]:
    for name in (PRODUCTION, TEST):
        cluster.api.ensure_namespace(name)
    yield cluster.api
    for name in (PRODUCTION, TEST):
        cluster.api.request("DELETE", f"{CORE}/namespaces/{name}")


def without_selector(api: ApiClient, namespace: str, name: str) -> str:
    """The cluster IP of a new Service without selector, on port 80; endpoints say which port it leads to."""
    document = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    made = api.create(f"{CORE}/namespaces/{namespace}/services", document)
    virtual_ip: str = made["spec"]["clusterIP"]
    return virtual_ip


def endpoints(name: str, address: str, port: int) -> Document:
    return {"metadata": {"name": name}, "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": port}]}]}


def reached(node: Node, address: str, name: str) -> None:
    """Connections from the node to port 80 come to the backend of that name, within half a minute."""
    outcome(node.ask_until(address, 80, name, deadline_s=30), 40)


def test_a_database_outside_in_production_and_an_own_one_in_test(cluster: Cluster, api: ApiClient) -> None:
    """Clients say `db` in both namespaces; the outside database is a host that is no node."""
    outside, client, own = cluster.lab.client, cluster.lab.nodes[0], cluster.lab.nodes[1]
    outside.serve("database-outside", DATABASE)
    own.serve("database-own", DATABASE)
    far = without_selector(api, PRODUCTION, "db")
    api.create(f"{CORE}/namespaces/{PRODUCTION}/endpoints", endpoints("db", outside.address, DATABASE))
    api.create(f"{CORE}/namespaces/{TEST}/pods", pod("postgres-0", {"app": "db"}, own.name, {"sql": (DATABASE, "TCP")}))
    spec = {"selector": {"app": "db"}, "ports": [{"port": 80, "targetPort": DATABASE}]}
    made = api.create(f"{CORE}/namespaces/{TEST}/services", {"metadata": {"name": "db"}, "spec": spec})
    reached(client, far, "database-outside")
    reached(client, made["spec"]["clusterIP"], "database-own")
    for namespace, address in ((PRODUCTION, far), (TEST, made["spec"]["clusterIP"])):
        # A node's names follow its rules, a moment later.
        outcome(client.lookup_until(f"db.{namespace}.svc.cluster.local.", "A", DNS_ADDRESS, [address]))


def test_a_service_elsewhere_moves_with_its_endpoints(cluster: Cluster, api: ApiClient) -> None:
    """The endpoints of a Service of another cluster, and their change, within the transaction that writes them."""
    client, first, second = cluster.lab.nodes
    first.serve("elsewhere-1", BILLING)
    second.serve("elsewhere-2", BILLING)
    virtual_ip = without_selector(api, PRODUCTION, "billing")
    path = f"{CORE}/namespaces/{PRODUCTION}/endpoints"
    api.create(path, endpoints("billing", first.address, BILLING))
    reached(client, virtual_ip, "elsewhere-1")
    api.request("PUT", f"{path}/billing", endpoints("billing", second.address, BILLING))
    reached(client, virtual_ip, "elsewhere-2")


def test_a_workload_on_its_way_here(cluster: Cluster, api: ApiClient) -> None:
    """A slice by hand beside the derived ones, until the last backend has moved."""
    client, here, _ = cluster.lab.nodes
    outside = cluster.lab.client
    here.serve("moved", MOVING)
    outside.serve("not-moved", MOVING)
    spec = {"selector": {"app": "moving"}, "ports": [{"port": 80, "targetPort": MOVING}]}
    services = f"{CORE}/namespaces/{TEST}/services"
    virtual_ip = api.create(services, {"metadata": {"name": "moving"}, "spec": spec})["spec"]["clusterIP"]
    slices = f"{DISCOVERY}/namespaces/{TEST}/endpointslices"
    by_hand = {
        "metadata": {"name": "moving-outside", "labels": {"kubernetes.io/service-name": "moving"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [outside.address]}],
        "ports": [{"name": "", "port": MOVING}],
    }
    api.create(slices, by_hand)
    reached(client, virtual_ip, "not-moved")
    record = pod("moving-1", {"app": "moving"}, here.name, {"web": (MOVING, "TCP")})
    api.create(f"{CORE}/namespaces/{TEST}/pods", record)
    reached(client, virtual_ip, "moved")
    reached(client, virtual_ip, "not-moved")
    api.request("DELETE", f"{slices}/moving-outside")
    deadline = time.monotonic() + 30
    while {answer.get("backend") for answer in client.ask_often(virtual_ip, 80, 30)} != {"moved"}:
        assert time.monotonic() < deadline, "the removed endpoint is still reached"
