"""The manifests of Kubernetes' page on Services, unchanged, by packets: with fixtures for the addresses they name.

The ones with selector, two ports and node port are what the demo proves.
"""

import pytest

from services_app.lab.client import CORE, pod
from services_app.lab.cluster import DNS_ADDRESS, Cluster
from services_app.lab.namespaces import outcome
from services_app.lab.samples import MANIFESTS

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(200)]

DATABASE, EXTERNAL, PORT = "192.0.2.42", "80.11.12.10", 9376


def apply(cluster: Cluster, namespace: str, *names: str) -> None:
    cluster.api.ensure_namespace(namespace)
    for name in names:
        cluster.applied("apply", "-n", namespace, "-f", str(MANIFESTS / f"{name}.yaml"))


def test_a_service_without_selector_leads_to_the_endpoint_written_by_hand(cluster: Cluster) -> None:
    lab = cluster.lab
    lab.neighbour.run(["ip", "address", "add", f"{DATABASE}/32", "dev", "lo"])
    lab.neighbour.serve("database", PORT, address=DATABASE)
    for node in lab.nodes:
        node.run(["ip", "route", "add", DATABASE, "via", lab.neighbour.address])
    apply(cluster, "by-hand", "service-without-selector", "endpoints-by-hand")
    virtual_ip = cluster.api.request("GET", f"{CORE}/namespaces/by-hand/services/mi-servicio")["spec"]["clusterIP"]
    for place in (*lab.nodes, lab.nodes[0].containers[0]):
        outcome(place.ask_until(virtual_ip, 80, "database", deadline_s=20), 30)
    cluster.api.request("DELETE", f"{CORE}/namespaces/by-hand")
    for node in lab.nodes:
        node.run(["ip", "route", "delete", DATABASE])


def test_an_external_ip_leads_to_the_endpoints_of_its_service(cluster: Cluster) -> None:
    lab = cluster.lab
    lab.nodes[1].serve("my-app", PORT)
    apply(cluster, "external", "service-with-external-ips")
    record = pod("my-app", {"app.kubernetes.io/name": "MyApp"}, lab.nodes[1].name, {"http": (PORT, "TCP")})
    cluster.api.create(f"{CORE}/namespaces/external/pods", record)
    # An administrator leads the address to a node; which one does not matter.
    lab.neighbour.run(["ip", "route", "add", EXTERNAL, "via", lab.nodes[0].address])
    for place in (*lab.nodes, lab.neighbour):
        outcome(place.ask_until(EXTERNAL, 80, "my-app", deadline_s=20), 30)
    lab.neighbour.run(["ip", "route", "replace", EXTERNAL, "via", lab.nodes[1].address])
    assert lab.neighbour.ask(EXTERNAL, 80)["client"] == lab.neighbour.address
    lab.neighbour.run(["ip", "route", "delete", EXTERNAL])
    cluster.api.request("DELETE", f"{CORE}/namespaces/external")
    lab.nodes[1].stop_serving(PORT)


def test_an_external_name_is_an_alias(cluster: Cluster) -> None:
    apply(cluster, "prod", "service-with-external-name")
    name = "mi-servicio.prod.svc.cluster.local."
    for node in cluster.lab.nodes:
        outcome(node.lookup_until(name, "CNAME", DNS_ADDRESS, ["my.database.example.com."], deadline_s=20), 30)
    cluster.api.request("DELETE", f"{CORE}/namespaces/prod")


def test_a_load_balancer_without_its_address_is_reached_by_node_port(cluster: Cluster) -> None:
    lab = cluster.lab
    lab.nodes[2].serve("balanced", PORT)
    text = (MANIFESTS / "service-with-load-balancer.yaml").read_text()
    cluster.api.ensure_namespace("balancer")
    # Its address is of another range than the lab's; a status in a manifest is nobody's wish.
    cluster.applied("apply", "-n", "balancer", "-f", "-", input=text.replace("  clusterIP: 10.0.171.239\n", ""))
    record = pod("balanced", {"app": "MiApp"}, lab.nodes[2].name, {"http": (PORT, "TCP")})
    cluster.api.create(f"{CORE}/namespaces/balancer/pods", record)
    found = cluster.api.request("GET", f"{CORE}/namespaces/balancer/services/mi-servicio")
    assert found["status"]["loadBalancer"] == {}
    outcome(lab.nodes[0].ask_until(found["spec"]["clusterIP"], 80, "balanced", deadline_s=20), 30)
    port = found["spec"]["ports"][0]["nodePort"]
    outcome(lab.client.ask_until(lab.nodes[0].address, port, "balanced", deadline_s=20), 30)
    cluster.api.request("DELETE", f"{CORE}/namespaces/balancer")
    lab.nodes[2].stop_serving(PORT)
