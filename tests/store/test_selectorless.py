"""Services without selector: endpoints written by hand, as Endpoints or as slices."""

import json
import threading

import pytest
from django.db import connection

from services_app import changes, store
from services_app.models import Event
from services_app.plan.mirroring import MIRROR_CONTROLLER
from services_app.spec import kinds
from services_app.spec.errors import Invalid
from tests.store.conftest import ACTOR, World


def by_hand(world, *addresses, name="web", port=9376, **metadata):
    subsets = [{"addresses": [{"ip": ip} for ip in addresses], "ports": [{"port": port}]}]
    document = {"metadata": {"name": name, **metadata}, "subsets": subsets}
    return json.loads(store.create(kinds.ENDPOINTS, document, namespace=world.namespace, actor=ACTOR).document)


def slice_by_hand(world, *addresses, name="extra", service="web", port=80, family="IPv4"):
    document = {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in addresses],
        "ports": [{"name": "", "port": port}],
    }
    store.create(kinds.ENDPOINT_SLICE, document, namespace=world.namespace, actor=ACTOR)


def managers(world, name="web"):
    return [s["metadata"]["labels"].get("endpointslice.kubernetes.io/managed-by") for s in world.slices(name)]


def test_endpoints_are_mirrored_in_the_transaction_that_writes_them(world):
    world.service()
    before = changes.head()
    by_hand(world, "192.0.2.42")
    written = changes.read_after(before)
    assert [(row.kind, row.owner) for row in written] == [("endpoints", None), ("endpointslices", "shop/web")]
    assert world.endpoints() == [("192.0.2.42", 9376)]
    assert managers(world) == [MIRROR_CONTROLLER]


def test_the_order_does_not_matter(world):
    by_hand(world, "192.0.2.42")
    assert world.slices() == []
    world.service()
    assert world.endpoints() == [("192.0.2.42", 9376)]


def test_changes_and_deletion_are_mirrored(world):
    world.service()
    by_hand(world, "192.0.2.1")

    def move(document):
        document["subsets"][0]["addresses"] = [{"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]
        return document

    world.update(kinds.ENDPOINTS, "web", move)
    assert world.endpoints() == [("192.0.2.2", 9376), ("2001:db8::2", 9376)]
    world.delete(kinds.ENDPOINTS, "web")
    assert world.slices() == []


def test_a_selector_takes_over_and_its_end_gives_back(world):
    world.node()
    world.service()
    by_hand(world, "192.0.2.1")
    world.pod("p1", ip="10.1.0.1", app="x")
    world.patch_spec("web", selector={"app": "x"})
    assert world.endpoints() == [("10.1.0.1", 80)]
    assert managers(world) == ["endpointslice-controller.k8s.io"]
    world.patch_spec("web", selector=None)
    # As in Kubernetes: what was derived stays until somebody writes Endpoints anew, and is mirrored.
    assert sorted(managers(world)) == ["endpointslice-controller.k8s.io", MIRROR_CONTROLLER]


@pytest.mark.parametrize("propagation", [None, "Orphan"])
def test_the_mirror_goes_with_its_service(world, propagation):
    world.service()
    by_hand(world, "192.0.2.1")
    world.delete(kinds.SERVICE, "web", propagation=propagation)
    assert world.slices() == []


def test_what_someone_does_to_a_mirrored_slice_is_mended(world):
    world.service()
    by_hand(world, "192.0.2.1")
    name = world.slices()[0]["metadata"]["name"]

    def redirect(document):
        document["endpoints"][0]["addresses"] = ["192.0.2.66"]
        return document

    world.update(kinds.ENDPOINT_SLICE, name, redirect)
    assert world.endpoints() == [("192.0.2.1", 9376)]
    world.delete(kinds.ENDPOINT_SLICE, name)
    assert world.endpoints() == [("192.0.2.1", 9376)]


def test_slices_written_by_hand_are_used_as_they_are(world):
    world.service()
    slice_by_hand(world, "192.0.2.7", port=8080)
    assert world.endpoints() == [("192.0.2.7", 8080)]
    world.delete(kinds.SERVICE, "web")
    assert len(world.slices()) == 1  # nobody owns it but who wrote it


def test_more_than_a_thousand_addresses_are_told_of(world):
    world.service()
    by_hand(world, *(f"10.9.{n // 250}.{n % 250}" for n in range(1001)))
    assert len(world.endpoints()) == 1000
    event = Event.objects.get()
    assert (event.involved_kind, event.involved_name, event.reason) == ("Endpoints", "web", "TooManyAddressesToMirror")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "169.254.1.1",
        "fe80::1",
        "224.0.0.5",
        "ff02::5",
        "0.0.0.0",
        "::",
        "10.96.0.10",
        "name.example.org",
    ],
)
def test_addresses_that_lead_nowhere_are_refused_in_both_kinds(world, address):
    with pytest.raises(Invalid) as refused:
        by_hand(world, address)
    assert refused.value.status()["details"]["causes"][0]["field"] == "subsets[0].addresses[0].ip"
    with pytest.raises(Invalid) as refused:
        slice_by_hand(world, address, family="IPv6" if ":" in address else "IPv4")
    assert refused.value.status()["details"]["causes"][0]["field"].startswith("endpoints[0].addresses")


def test_a_cluster_ip_is_no_endpoint_of_a_pod_either(world):
    with pytest.raises(Invalid, match="virtual address is no valid destination"):
        document = {
            "metadata": {"name": "p", "annotations": {"timonel.io/pod-ip": "10.96.0.10"}},
            "spec": {"containers": [{"name": "c", "image": "app"}]},
        }
        store.create(kinds.POD, document, namespace="shop", actor=ACTOR)
    world.node()
    with pytest.raises(Invalid, match="virtual address is no valid destination"):
        world.pod("p1", ip="10.96.0.10")


def test_a_name_of_endpoints_is_a_subdomain(world):
    with pytest.raises(Invalid) as refused:
        by_hand(world, "192.0.2.1", name="Bad_name")
    assert refused.value.status()["details"]["causes"][0]["field"] == "metadata.name"


@pytest.mark.slow
def test_a_service_and_its_endpoints_written_at_the_same_moment_meet(committed_world):
    """Without the counter row before the reading, each would miss the other."""
    for number in range(60):
        barrier = threading.Barrier(2)
        name = f"s{number}"

        def together(write, barrier=barrier):
            barrier.wait()
            try:
                write()
            finally:
                connection.close()

        writes = (
            lambda name=name: committed_world.service(name),
            lambda name=name: by_hand(committed_world, "192.0.2.1", name=name),
        )
        threads = [threading.Thread(target=together, args=(write,)) for write in writes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert committed_world.endpoints(name) == [("192.0.2.1", 9376)]


# What Services without selector are for (the three uses Kubernetes' documentation names)


def test_a_database_outside_in_production_and_an_own_one_in_test(world):
    """Clients say `db` in both namespaces."""
    production, test = World("production"), World("test")
    for each in (production, test):
        each.namespace_exists()
    world.node()
    production.service("db", ports=[{"port": 5432}])
    by_hand(production, "192.0.2.42", name="db", port=5432)
    test.service("db", ports=[{"port": 5432}], selector={"app": "postgres"})
    test.pod("postgres-0", ip="10.1.0.1", app="postgres")
    assert production.endpoints("db") == [("192.0.2.42", 5432)]
    assert test.endpoints("db") == [("10.1.0.1", 5432)]


def test_a_service_of_another_namespace_or_cluster(world):
    """By its name where DNS is enough; by the node ports of the other cluster where an address is wanted."""
    near = world.service(
        "catalog", type="ExternalName", externalName="catalog.other.svc.cluster.local", ports=[{"port": 80}]
    )
    assert "clusterIP" not in near["spec"]
    far = world.service("billing", ports=[{"port": 80}])
    by_hand(world, "198.51.100.1", "198.51.100.2", name="billing", port=30080)
    assert far["spec"]["clusterIP"]
    assert world.endpoints("billing") == [("198.51.100.1", 30080), ("198.51.100.2", 30080)]


def test_a_workload_on_its_way_here(world):
    """Part of the backends are Pods, the others still elsewhere: a slice by hand beside the derived ones, until it goes."""
    world.node()
    world.service(selector={"app": "web"})
    world.pod("web-1", ip="10.1.0.1", app="web")
    slice_by_hand(world, "192.0.2.7", name="web-old")
    assert world.endpoints() == [("10.1.0.1", 80), ("192.0.2.7", 80)]
    world.pod("web-2", ip="10.1.0.2", app="web")
    world.delete(kinds.ENDPOINT_SLICE, "web-old")
    assert world.endpoints() == [("10.1.0.1", 80), ("10.1.0.2", 80)]
