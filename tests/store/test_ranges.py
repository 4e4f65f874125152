"""Ranges that come and go while Services are made, and the IPAddress of every cluster IP."""

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network

import pytest
from django.db import connection

from services_app import changes, models, store
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists, Invalid, NotFound
from services_app.store import ranges
from services_app.store.repair import repair
from tests.store.conftest import ACTOR

LABELS = {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
FINALIZER = "networking.k8s.io/service-cidr-finalizer"


def add(name, *cidrs):
    document = {"metadata": {"name": name}, "spec": {"cidrs": [*cidrs]}}
    return json.loads(store.create(kinds.SERVICE_CIDR, document, namespace="", actor=ACTOR).document)


def get(kind, name):
    return json.loads(store.get(kind, "", name).document)


def retire(name):
    return json.loads(store.delete(kinds.SERVICE_CIDR, "", name, actor=ACTOR).document)


def is_there(kind, name):
    try:
        store.get(kind, "", name)
    except NotFound:
        return False
    return True


def by_hand(address, **parent):
    parent = parent or {"resource": "hosts", "name": "printer"}
    document = {"metadata": {"name": address}, "spec": {"parentRef": parent}}
    return store.create(kinds.IP_ADDRESS, document, namespace="", actor=ACTOR)


def log_of(kind, after=0):
    return [(row.verb, row.name) for row in changes.read_after(after) if row.kind == kind.plural]


@pytest.fixture
def small(world, settings):
    """A cluster whose default range has room for 14."""
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/28"),)
    store.ensure_ranges()
    return world


# IPAddresses


def test_an_address_comes_changes_and_goes_with_its_service(world):
    before = changes.head()
    service = world.service(clusterIP="10.96.0.50")
    made = get(kinds.IP_ADDRESS, "10.96.0.50")
    assert made["metadata"]["labels"] == LABELS
    assert made["spec"] == {"parentRef": {"resource": "services", "namespace": "shop", "name": "web"}}
    assert int(made["metadata"]["resourceVersion"]) > int(service["metadata"]["resourceVersion"])
    world.patch_spec("web", type="ExternalName", externalName="example.org", clusterIP=None, clusterIPs=None)
    assert not is_there(kinds.IP_ADDRESS, "10.96.0.50")
    world.patch_spec("web", type="ClusterIP", externalName=None, clusterIP="10.96.0.51")
    world.delete(kinds.SERVICE, "web")
    assert log_of(kinds.IP_ADDRESS, before) == [
        ("ADDED", "10.96.0.50"),
        ("DELETED", "10.96.0.50"),
        ("ADDED", "10.96.0.51"),
        ("DELETED", "10.96.0.51"),
    ]


def test_a_failed_or_tried_create_leaves_no_address(world):
    world.service(clusterIP="10.96.0.50")
    with pytest.raises(AlreadyExists):
        world.service(clusterIP="10.96.0.51")
    document = {"metadata": {"name": "tried"}, "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.52"}}
    store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR, dry_run=True)
    assert [row.name for row in models.IPAddress.objects.all()] == ["10.96.0.50"]


def test_an_address_taken_by_hand_is_no_services(world):
    by_hand("10.96.0.50")
    with pytest.raises(Invalid, match="provided IP is already allocated"):
        world.service(clusterIP="10.96.0.50")
    with pytest.raises(AlreadyExists):
        by_hand("10.96.0.50")
    world.service(clusterIP="10.96.0.51")
    with pytest.raises(AlreadyExists):
        by_hand("10.96.0.51")
    store.delete(kinds.IP_ADDRESS, "", "10.96.0.50", actor=ACTOR)
    world.service("other", clusterIP="10.96.0.50")


def test_the_last_free_addresses_are_not_given_out_when_taken_by_hand(small):
    for number in range(1, 14):
        by_hand(f"10.96.0.{number}")
    assert small.service()["spec"]["clusterIP"] == "10.96.0.14"
    with pytest.raises(Invalid, match="no free IPv4 address"):
        small.service("full")
    store.delete(kinds.IP_ADDRESS, "", "10.96.0.7", actor=ACTOR)
    assert small.service("again")["spec"]["clusterIP"] == "10.96.0.7"


def test_an_address_deleted_by_hand_is_made_anew_while_its_service_has_it(world):
    world.service(clusterIP="10.96.0.50")
    first = get(kinds.IP_ADDRESS, "10.96.0.50")["metadata"]["uid"]
    before = changes.head()
    store.delete(kinds.IP_ADDRESS, "", "10.96.0.50", actor=ACTOR)
    assert log_of(kinds.IP_ADDRESS, before) == [("DELETED", "10.96.0.50"), ("ADDED", "10.96.0.50")]
    assert get(kinds.IP_ADDRESS, "10.96.0.50")["metadata"]["uid"] != first
    with pytest.raises(Invalid, match="already allocated"):
        world.service("other", clusterIP="10.96.0.50")


@pytest.mark.parametrize(
    ("fault", "reason", "looks"),
    [
        ("DELETE FROM services_app_ipaddress WHERE name = '10.96.0.50'", "IPAddressMissing", 1),
        ("UPDATE services_app_ipaddress SET document = replace(document, '\"web\"', '\"other\"')"
         " WHERE name = '10.96.0.50'", "IPAddressWrongReference", 1),
        ("DELETE FROM services_app_clusteripclaim WHERE service_id IS NULL", "ClusterIPNotAllocated", 1),
        ("DELETE FROM services_app_ipaddress WHERE name = '10.96.0.60'", "ClusterIPLeaked", 3),
    ],
)  # fmt: skip
def test_repair_sets_addresses_right(world, fault, reason, looks):
    world.service(clusterIP="10.96.0.50")
    by_hand("10.96.0.60")
    with connection.cursor() as cursor:
        cursor.execute(fault)
        assert cursor.rowcount == 1
    for number in range(looks):
        (sighting,) = repair(actor=ACTOR)
        assert (sighting.finding.reason, sighting.mended) == (reason, number == looks - 1)
    assert repair(actor=ACTOR) == []
    assert get(kinds.IP_ADDRESS, "10.96.0.50")["spec"]["parentRef"]["name"] == "web"


def test_an_address_that_claims_to_be_a_services_goes_when_seen_so_thrice(world):
    labelled = {"metadata": {"name": "10.96.0.50", "labels": LABELS}}
    labelled["spec"] = {"parentRef": {"resource": "services", "namespace": "shop", "name": "nobody"}}
    store.create(kinds.IP_ADDRESS, labelled, namespace="", actor=ACTOR)
    by_hand("10.96.0.60", resource="services", namespace="shop", name="nobody")  # somebody's own: it stays
    for number in range(3):
        (sighting,) = repair(actor=ACTOR)
        assert (sighting.finding.reason, sighting.mended) == ("IPAddressNotAllocated", number == 2)
    assert [row.name for row in models.IPAddress.objects.all()] == ["10.96.0.60"]
    world.service(clusterIP="10.96.0.50")


def test_addresses_of_services_from_before_are_written_at_the_start(world):
    given = {world.service(f"s{number}")["spec"]["clusterIP"] for number in range(3)}
    models.IPAddress.objects.all().delete()
    store.bootstrap()
    made = {row.name: row.parent for row in models.IPAddress.objects.all()}
    assert made.keys() == given | {"10.96.0.1"}
    assert made["10.96.0.1"] == "services/default/kubernetes"


# Ranges


def test_a_new_range_is_protected_and_ready_at_once(world):
    answered = add("more", "10.97.0.0/16")
    assert (answered["metadata"].get("finalizers"), answered["status"]) == (None, {})
    found = get(kinds.SERVICE_CIDR, "more")
    assert found["metadata"]["finalizers"] == [FINALIZER]
    assert [(c["type"], c["status"]) for c in found["status"]["conditions"]] == [("Ready", "True")]

    def bare(document):
        del document["metadata"]["finalizers"]
        return document

    store.update(kinds.SERVICE_CIDR, "", "more", bare, actor=ACTOR)
    assert get(kinds.SERVICE_CIDR, "more")["metadata"]["finalizers"] == [FINALIZER]


def test_services_take_from_an_added_range_as_soon_as_the_default_is_full(small):
    given = [small.service(f"s{number}")["spec"]["clusterIP"] for number in range(14)]
    with pytest.raises(Invalid, match=r"every one of 10\.96\.0\.0/28 is in use"):
        small.service("full")
    add("more", "10.98.0.0/28")
    more = [small.service(f"t{number}")["spec"]["clusterIP"] for number in range(14)]
    assert {ip.rpartition(".")[0] for ip in given} == {"10.96.0"}
    assert {ip.rpartition(".")[0] for ip in more} == {"10.98.0"}
    small.delete(kinds.SERVICE, "s3")
    assert small.service("again")["spec"]["clusterIP"] == given[3]
    small.service("v6-no", clusterIP="None")
    assert repair(actor=ACTOR) == []


def test_a_service_may_choose_from_any_range_that_is_ready(small):
    with pytest.raises(Invalid, match="not in the valid range"):
        small.service(clusterIP="10.98.0.5")
    add("more", "10.98.0.0/28")
    assert small.service(clusterIP="10.98.0.5")["spec"]["clusterIP"] == "10.98.0.5"
    retire("more")
    with pytest.raises(Invalid, match="not in the valid range"):
        small.service("late", clusterIP="10.98.0.6")


def test_ranges_may_overlap_and_no_address_is_given_out_twice(small):
    add("same", "10.96.0.0/28")
    add("wider", "10.96.0.0/27")
    given = [small.service(f"s{number}")["spec"]["clusterIP"] for number in range(30)]
    assert sorted(given, key=ip_address) == [f"10.96.0.{number}" for number in range(1, 31)]
    with pytest.raises(Invalid, match="no free IPv4 address"):
        small.service("full")
    assert repair(actor=ACTOR) == []
    for number in range(30):
        small.delete(kinds.SERVICE, f"s{number}")
    assert repair(actor=ACTOR) == []
    assert {small.service(f"t{number}")["spec"]["clusterIP"] for number in range(30)} == set(given)


def test_the_broadcast_address_of_one_range_may_be_an_ordinary_one_of_another(small):
    with pytest.raises(Invalid, match="network and broadcast"):
        small.service(clusterIP="10.96.0.15")
    add("wider", "10.96.0.0/27")
    small.service(clusterIP="10.96.0.15")


def test_a_range_stays_as_long_as_a_service_needs_it(small):
    add("more", "10.98.0.0/28")
    small.service(clusterIP="10.98.0.5")
    answered = retire("more")
    assert answered["metadata"]["deletionTimestamp"]
    held = get(kinds.SERVICE_CIDR, "more")
    (condition,) = held["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "Terminating")
    assert ip_network("10.98.0.0/28") in store.cluster_settings().virtual_cidrs
    small.patch_spec("web", sessionAffinity="ClientIP")  # what has its address can still be worked with
    before = changes.head()
    assert store.finish_retirements(actor=ACTOR) == 0
    assert changes.head() == before  # nothing is said twice
    small.delete(kinds.SERVICE, "web")
    assert store.finish_retirements(actor=ACTOR) == 1
    assert not is_there(kinds.SERVICE_CIDR, "more")
    assert not models.FreeValue.objects.filter(pool="10.98.0.0/28").exists()
    assert store.cluster_settings().virtual_cidrs == (ip_network("10.96.0.0/28"),)
    add("more", "10.98.0.0/28")
    small.service(clusterIP="10.98.0.5")


def test_a_range_goes_at_once_when_another_has_its_addresses(small):
    small.service(clusterIP="10.96.0.5")
    add("wider", "10.96.0.0/27")
    retire("kubernetes")
    assert not is_there(kinds.SERVICE_CIDR, "kubernetes")
    retire("wider")
    assert is_there(kinds.SERVICE_CIDR, "wider")
    add("back", "10.96.0.0/26")
    store.finish_retirements(actor=ACTOR)
    assert not is_there(kinds.SERVICE_CIDR, "wider")


def test_an_address_made_by_hand_does_not_hold_a_range(small):
    add("more", "10.98.0.0/28")
    by_hand("10.98.0.5")
    retire("more")
    assert not is_there(kinds.SERVICE_CIDR, "more")
    assert is_there(kinds.IP_ADDRESS, "10.98.0.5")


def test_other_finalizers_hold_a_range_as_well(small):
    add("more", "10.98.0.0/28")

    def mark(document):
        document["metadata"]["finalizers"].append("example.org/mine")
        return document

    store.update(kinds.SERVICE_CIDR, "", "more", mark, actor=ACTOR)
    retire("more")
    assert get(kinds.SERVICE_CIDR, "more")["metadata"]["finalizers"] == ["example.org/mine"]

    def free(document):
        del document["metadata"]["finalizers"]
        return document

    store.update(kinds.SERVICE_CIDR, "", "more", free, actor=ACTOR)
    assert not is_there(kinds.SERVICE_CIDR, "more")


def test_what_another_process_changed_is_noticed(small):
    """As when this process' ranges are old: what was refused or given out by them is judged again."""
    old = ranges.known()
    add("more", "10.98.0.0/28")
    ranges._kept = (old.service_cidrs, (), old.revision)
    assert small.service("a", clusterIP="10.98.0.5")["spec"]["clusterIP"] == "10.98.0.5"
    new = ranges.known()
    small.delete(kinds.SERVICE, "a")
    retire("more")
    ranges._kept = (new.service_cidrs, (), new.revision)
    with pytest.raises(Invalid, match="not in the valid range"):
        small.service("b", clusterIP="10.98.0.6")
    ranges._kept = (old.service_cidrs, (), old.revision)
    add("more", "10.98.0.0/28")
    ranges._kept = (old.service_cidrs, (), old.revision)
    slices = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.98.0.9"]}]}
    with pytest.raises(Invalid, match="range of cluster IPs"):
        store.create(kinds.ENDPOINT_SLICE, slices, namespace="shop", actor=ACTOR)


def test_a_range_where_something_real_is_is_refused(small, settings):
    document = {"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
    store.create(kinds.NODE, document, namespace="", actor=ACTOR)

    def located(node):
        node["status"]["addresses"] = [{"type": "InternalIP", "address": "192.0.2.11"}]
        return node

    store.update(kinds.NODE, "", "n1", located, subresource="status", actor=ACTOR)
    small.pod("p1", ip="10.1.0.7")
    settings.TIMONEL_POD_CIDRS = (ip_network("10.250.0.0/16"),)
    for cidr, found in (
        ("192.0.2.0/24", "192.0.2.11 is Node n1"),
        ("10.1.0.0/16", "10.1.0.7 is Pod shop/p1"),
        ("10.244.0.0/16", "the containers of Node n1 are in 10.244.1.0/24"),
        ("10.250.7.0/24", "must not overlap the network of containers 10.250.0.0/16"),
    ):
        with pytest.raises(Invalid, match=found):
            add("bad", cidr)
    add("good", "10.99.0.0/24")


def test_large_ranges_give_out_addresses(small, settings):
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/28"), ip_network("fd00:10:96::/112"))
    store.ensure_ranges()
    assert get(kinds.SERVICE_CIDR, "kubernetes")["spec"]["cidrs"] == ["10.96.0.0/28", "fd00:10:96::/112"]
    add("wide", "fd00:99::/64")
    given = small.service(clusterIP="fd00:99::5", ipFamilies=["IPv6"])["spec"]["clusterIP"]
    assert given == "fd00:99::5"
    retire("kubernetes")
    given = small.service("next", ipFamilies=["IPv6"])["spec"]["clusterIP"]
    assert ip_address(given) in ip_network("fd00:99::/64")
    assert get(kinds.IP_ADDRESS, given)["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"] == "IPv6"


def test_the_settings_make_objects_once_and_objects_count_from_then_on(world, settings):
    settings.TIMONEL_SERVICE_CIDRS = tuple(map(ip_network, ("10.96.0.0/16", "fd00:10:96::/112", "10.98.0.0/16")))
    store.bootstrap()
    assert {row.name: row.cidrs for row in models.ServiceCIDR.objects.all()} == {
        "kubernetes": ["10.96.0.0/16", "fd00:10:96::/112"],
        "10.98.0.0-16": ["10.98.0.0/16"],
    }
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.99.0.0/16"),)
    store.bootstrap()
    assert store.cluster_settings().service_cidrs[0] == ip_network("10.96.0.0/16")
    assert models.Event.objects.get().reason == "KubernetesDefaultServiceCIDRInconsistent"


@pytest.mark.slow
def test_no_service_is_left_in_a_range_that_went(committed_world, settings):
    """Clients take addresses of a range while it is retired, again and again: it goes empty, or not at all."""
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/28"),)
    store.ensure_ranges()

    def create(job):
        turn, number = job
        try:
            return committed_world.service(f"s{turn}-{number}", clusterIP=f"10.98.{turn}.{number}")
        except Invalid:
            return None
        finally:
            connection.close()

    def retired(turn):
        try:
            return retire(f"r{turn}")
        finally:
            connection.close()

    made = 0
    for turn in range(8):
        add(f"r{turn}", f"10.98.{turn}.0/24")
        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(create, (turn, number)) for number in range(1, 9)]
            going = pool.submit(retired, turn)
            jobs += [pool.submit(create, (turn, number)) for number in range(9, 17)]
            going.result()
            services = [job.result() for job in jobs]
        held = models.ClusterIPClaim.objects.filter(address__startswith=f"10.98.{turn}.").count()
        assert held == sum(service is not None for service in services)
        assert is_there(kinds.SERVICE_CIDR, f"r{turn}") == (held > 0)
        made += held
    assert made  # else nothing was tried
