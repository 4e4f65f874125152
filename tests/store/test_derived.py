"""Endpoints are never behind: they change in the transaction that changes their cause."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction
from django.db.models import F

from services_app import changes, store
from services_app.models import Change, EndpointGroup, Node, NodeSync
from services_app.push import reports, snapshot
from services_app.spec import kinds
from services_app.spec.errors import NotFound
from tests.conformance.player import wait_until


def test_pods_become_endpoints_and_stop_being_it(world):
    world.node()
    world.service(selector={"app": "x"})
    assert world.endpoints() == []
    world.pod("p1", ip="10.1.0.1", app="x")
    world.pod("p2", ip="10.1.0.2", app="y")
    assert world.endpoints() == [("10.1.0.1", 80)]
    world.pod_status("p1", ready=False)
    assert world.endpoints() == []
    world.pod_status("p1", ready=True)
    world.delete(kinds.POD, "p1")
    assert world.endpoints() == []
    world.delete(kinds.POD, "p1", grace_period_s=0)
    assert [s["endpoints"] for s in world.slices()] == [None]


def test_a_label_change_moves_a_pod_between_services(world):
    world.node()
    world.service("a", selector={"app": "a"})
    world.service("b", selector={"app": "b"})
    world.pod("p1", ip="10.1.0.1", app="a")

    def relabel(pod):
        pod["metadata"]["labels"] = {"app": "b"}
        return pod

    world.update(kinds.POD, "p1", relabel)
    assert (world.endpoints("a"), world.endpoints("b")) == ([], [("10.1.0.1", 80)])


def test_named_target_ports_differ_per_pod(world):
    world.node()
    world.service(selector={"app": "x"}, ports=[{"port": 80, "targetPort": "web"}])
    world.pod("p1", ip="10.1.0.1", app="x", ports=[{"name": "web", "containerPort": 8080}])
    world.pod("p2", ip="10.1.0.2", app="x", ports=[{"name": "web", "containerPort": 9090}])
    assert world.endpoints() == [("10.1.0.1", 8080), ("10.1.0.2", 9090)]


def test_a_node_that_comes_later_completes_its_pods(world):
    world.service(selector={"app": "x"})
    world.pod("p1", ip="10.1.0.1", app="x", node="late")
    assert world.endpoints() == []
    world.node("late")
    assert world.endpoints() == [("10.1.0.1", 80)]


def test_what_someone_does_to_a_derived_slice_is_mended(world):
    world.node()
    world.service(selector={"app": "x"})
    world.pod("p1", ip="10.1.0.1", app="x")
    world.delete(kinds.ENDPOINT_SLICE, world.slices()[0]["metadata"]["name"])
    world.delete(kinds.ENDPOINTS, "web")
    assert world.endpoints() == [("10.1.0.1", 80)]
    assert world.get(kinds.ENDPOINTS, "web")["subsets"][0]["addresses"][0]["ip"] == "10.1.0.1"


def test_a_service_without_selector_has_no_endpoints_of_its_own(world):
    world.service()
    assert world.slices() == []
    with pytest.raises(NotFound):
        world.get(kinds.ENDPOINTS, "web")


def test_a_heartbeat_of_a_pod_touches_nothing_else(world):
    world.node()
    world.service(selector={"app": "x"})
    world.pod("p1", ip="10.1.0.1", app="x")
    before = changes.head()
    world.update(
        kinds.POD, "p1", lambda pod: {**pod, "status": {**pod["status"], "message": "busy"}}, subresource="status"
    )
    assert [row.kind for row in changes.read_after(before)] == ["pods"]


def test_each_port_keeps_its_group_while_it_is_there(world):
    world.service(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}])
    before = dict(EndpointGroup.objects.values_list("port", "id"))
    world.patch_spec("web", ports=[{"name": "b", "port": 81}, {"name": "c", "port": 82}])
    after = dict(EndpointGroup.objects.values_list("port", "id"))
    assert after["TCP/81"] == before["TCP/81"] and set(after) == {"TCP/81", "TCP/82"}


def test_owners_tell_whom_nodes_must_hear_about(world):
    world.node()
    world.service(selector={"app": "x"})
    before = changes.head()
    world.pod("p1", ip="10.1.0.1", app="x")
    assert changes.owners_changed(before) == {"shop/web"}
    before = changes.head()
    world.update(
        kinds.SERVICE, "web", lambda s: {**s, "status": {"loadBalancer": {}, "conditions": []}}, subresource="status"
    )
    assert changes.owners_changed(before) == set()


def test_a_service_and_a_pod_created_at_the_same_moment_do_not_miss_each_other(committed_world):
    """The race of two writers: without one order of writes each reads before the other commits (lost in READ COMMITTED)."""
    world = committed_world
    world.node()
    for round_ in range(15):
        name = f"web{round_}"
        barrier = threading.Barrier(2)

        def make_service(name=name, barrier=barrier):
            barrier.wait()
            world.service(name, selector={"app": name})
            connection.close()

        def make_pod(name=name, barrier=barrier, round_=round_):
            barrier.wait()
            world.pod(name, ip=f"10.1.0.{round_ + 1}", app=name)
            connection.close()

        threads = [threading.Thread(target=make_service), threading.Thread(target=make_pod)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert world.endpoints(name) == [(f"10.1.0.{round_ + 1}", 80)], f"round {round_}"
    revisions = [*Change.objects.order_by("revision").values_list("revision", flat=True)]
    assert revisions == [*range(1, len(revisions) + 1)]


def groups_of(service):
    return {
        (group.port, group.policy): group.id
        for group in EndpointGroup.objects.filter(service__uid=service["metadata"]["uid"])
    }


def test_a_policy_has_a_group_as_long_as_it_is_local(world):
    service = world.service(type="NodePort", ports=[{"port": 80}])
    before = groups_of(service)
    assert {*before} == {("TCP/80", "Cluster")}
    world.patch_spec("web", externalTrafficPolicy="Local")
    local = groups_of(service)
    assert {*local} == {("TCP/80", "Cluster"), ("TCP/80", "Local")}
    world.patch_spec("web", internalTrafficPolicy="Local", ports=[{"port": 81}])
    assert {*groups_of(service)} == {("TCP/81", "Cluster"), ("TCP/81", "Local")}
    world.patch_spec("web", internalTrafficPolicy="Cluster", externalTrafficPolicy="Cluster", ports=[{"port": 80}])
    after = groups_of(service)
    assert {*after} == {("TCP/80", "Cluster")}
    assert after != before  # a number is never given twice: a client's memory of the old group is no memory of this one


def test_a_nodes_addresses_and_networks_are_pushed_to_it_alone(world, monkeypatch, django_capture_on_commit_callbacks):
    for name in ("n1", "n2"):
        world.node(name)
        world.enrol(name, full_wanted=False)
    told = []
    monkeypatch.setattr(changes, "announce", lambda head, *, for_nodes: told.append(for_nodes))

    def wanted(change, subresource=""):
        """Who gets everything after a change of n1; nobody hears of it as an owner's."""
        NodeSync.objects.update(full_wanted=False)
        told.clear()
        since = changes.head()
        with django_capture_on_commit_callbacks(execute=True):
            store.update(kinds.NODE, "", "n1", change, subresource=subresource, actor=store.Actor("tester"))
        assert changes.owners_changed(since) == set()
        found = [*NodeSync.objects.filter(full_wanted=True).values_list("node_id", flat=True)]
        assert told == [bool(found)]
        return found

    def address(node):
        node["status"]["addresses"] = [{"type": "InternalIP", "address": "192.0.2.1"}]
        return node

    def network(node):
        node["spec"]["podCIDR"] = "198.51.100.0/24"
        return node

    def label(node):
        node["metadata"]["labels"] = {"a": "b"}
        return node

    assert wanted(address, "status") == ["n1"]
    assert wanted(network) == ["n1"]
    assert wanted(label) == []


def test_everything_is_sent_again_when_the_node_changed_meanwhile(committed_world):
    committed_world.node()
    committed_world.enrol("n1", full_wanted=True, state=NodeSync.State.LIVE)
    delta = snapshot.read_delta("n1", "192.0.2.1", None, with_base=True)

    def network(node):
        node["spec"]["podCIDR"] = "198.51.100.0/24"
        return node

    store.update(kinds.NODE, "", "n1", network, actor=store.Actor("tester"))
    answer = {"revision": delta.revision, "digest": ""}
    reports.note_success("n1", answer, full_of=delta.node_revision)
    assert NodeSync.objects.get().full_wanted
    again = snapshot.read_delta("n1", "192.0.2.1", None, with_base=True)
    reports.note_success("n1", {**answer, "revision": again.revision}, full_of=again.node_revision)
    assert not NodeSync.objects.get().full_wanted


def test_a_change_of_the_node_while_its_report_is_written_is_not_lost(committed_world):
    """The report waits for the row that the change holds, and then knows the change."""
    committed_world.node()
    committed_world.enrol("n1", full_wanted=True, state=NodeSync.State.LIVE)
    delta = snapshot.read_delta("n1", "192.0.2.1", None, with_base=True)
    with ThreadPoolExecutor(1) as reporter:
        with transaction.atomic():
            Node.objects.filter(name="n1").update(revision=F("revision") + 1)
            NodeSync.objects.update(full_wanted=True)
            said = reporter.submit(reported, "n1", {"revision": delta.revision}, delta.node_revision)
            wait_until(lambda: waiting_for_us() == 1)
        said.result(10)
    assert NodeSync.objects.get().full_wanted


def reported(node, answer, full_of):
    try:
        reports.note_success(node, answer, full_of=full_of)
    finally:
        connection.close()


def waiting_for_us():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        return cursor.fetchone()[0]
