"""Repair finds every difference between claims and Services, tells of it, and mends what can be mended."""

import json
from io import StringIO
from ipaddress import ip_network

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from services_app import store
from services_app.models import ClusterIPClaim, Event, FreeValue, NodePortClaim, RepairFinding
from services_app.plan import checks
from services_app.plan.checks import Mend
from services_app.spec import kinds
from services_app.spec.errors import Invalid
from tests.store.conftest import ACTOR


def sql(text, *values):
    with connection.cursor() as cursor:
        cursor.execute(text, values)
        return cursor.rowcount


def look():
    """One look: (reason, value, mended) of each finding."""
    return [(s.finding.reason, s.finding.value, s.mended) for s in store.repair(actor=ACTOR)]


def told(name="web"):
    """reason -> count of the Events about a Service."""
    events = [json.loads(e.document) for e in Event.objects.filter(involved_kind="Service", involved_name=name)]
    return {event["reason"]: event["count"] for event in events}


def rewrite(name, **spec):
    """Change a stored Service behind the store's back, as an operator with psql would."""
    [text] = [
        text for text in store.list(kinds.SERVICE, "shop").documents if json.loads(text)["metadata"]["name"] == name
    ]
    document = json.loads(text)
    document["spec"] |= spec
    assert sql("UPDATE services_app_service SET document = %s WHERE name = %s", json.dumps(document), name) == 1


def test_all_is_well_and_nothing_is_written(world):
    world.service(type="NodePort")
    before = store.list(kinds.SERVICE, None).revision
    assert look() == []
    assert store.list(kinds.SERVICE, None).revision == before


def test_a_missing_claim_is_made_at_once(world):
    service = world.service(type="NodePort")
    address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["nodePort"]
    sql("DELETE FROM services_app_clusteripclaim")
    sql("DELETE FROM services_app_nodeportclaim")
    assert look() == [("ClusterIPNotAllocated", address, True), ("PortNotAllocated", str(port), True)]
    assert told() == {"ClusterIPNotAllocated": 1, "PortNotAllocated": 1}
    with pytest.raises(Invalid):
        world.service("thief", clusterIP=address)
    assert look() == []
    assert not RepairFinding.objects.exists()


def test_a_leaked_claim_is_freed_when_seen_for_the_third_time(world):
    service = world.service(clusterIP="10.96.0.50")
    sql("INSERT INTO services_app_clusteripclaim VALUES ('10.96.0.77', %s)", service["metadata"]["uid"])
    sql("INSERT INTO services_app_nodeportclaim VALUES (30077, %s)", service["metadata"]["uid"])
    leaks = [("ClusterIPLeaked", "10.96.0.77"), ("PortLeaked", "30077")]
    assert look() == [(*leak, False) for leak in leaks]
    assert look() == [(*leak, False) for leak in leaks]
    with pytest.raises(Invalid):
        world.service("early", clusterIP="10.96.0.77")
    assert look() == [(*leak, True) for leak in leaks]
    assert told() == {"ClusterIPLeaked": 3, "PortLeaked": 3}
    world.service("late", clusterIP="10.96.0.77", type="NodePort", ports=[{"port": 80, "nodePort": 30077}])


def test_a_leak_that_goes_by_itself_is_counted_anew(world):
    service = world.service()
    leak = "INSERT INTO services_app_nodeportclaim VALUES (30077, %s)"
    sql(leak, service["metadata"]["uid"])
    look(), look()
    sql("DELETE FROM services_app_nodeportclaim")
    assert look() == []
    sql(leak, service["metadata"]["uid"])
    assert [look()[0][2] for _ in range(3)] == [False, False, True]


def test_two_holders_are_told_and_the_rightful_one_keeps_it(world):
    world.service("first", clusterIP="10.96.0.50", type="NodePort", ports=[{"port": 80, "nodePort": 30050}])
    second = world.service("second", type="NodePort")
    ports = [{**second["spec"]["ports"][0], "nodePort": 30050}]
    rewrite("second", clusterIP="10.96.0.50", clusterIPs=["10.96.0.50"], ports=ports)
    found = look()
    assert ("ClusterIPAlreadyAllocated", "10.96.0.50", False) in found
    assert ("PortAlreadyAllocated", "30050", False) in found
    assert told("first") == {}
    assert set(told("second")) >= {"ClusterIPAlreadyAllocated", "PortAlreadyAllocated"}
    for _ in range(3):
        look()
    assert str(ClusterIPClaim.objects.get(address="10.96.0.50").service) == "shop/first"
    assert str(NodePortClaim.objects.get(port=30050).service) == "shop/first"
    world.delete(kinds.SERVICE, "second")  # the remedy the Event names
    assert look() == []
    assert ClusterIPClaim.objects.filter(address="10.96.0.50").exists()


def test_a_claim_in_the_name_of_another_is_set_right(world):
    service = world.service("a", clusterIP="10.96.0.50")
    other = world.service("b")
    sql("UPDATE services_app_clusteripclaim SET service_id = %s WHERE address = '10.96.0.50'", other["metadata"]["uid"])
    assert look() == [("ClusterIPNotAllocated", "10.96.0.50", True)]
    assert str(ClusterIPClaim.objects.get(address="10.96.0.50").service_id) == service["metadata"]["uid"]


def test_what_lies_outside_every_range_is_told_and_kept(world, settings):
    world.service(type="NodePort", clusterIP="10.96.0.50", ports=[{"port": 80, "nodePort": 30050}])
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.97.0.0/16"),)
    settings.TIMONEL_NODE_PORT_RANGE = range(31000, 32000)
    for _ in range(3):
        assert [reason for reason, _, mended in look() if not mended] == ["ClusterIPOutOfRange", "PortOutOfRange"]
    assert world.get(kinds.SERVICE, "web")["spec"]["clusterIP"] == "10.96.0.50"
    world.patch_spec("web", sessionAffinity="ClientIP")  # it can still be worked with
    world.delete(kinds.SERVICE, "web")
    assert look() == []


@pytest.mark.parametrize(
    ("fault", "reason", "looks"),
    [
        ("DELETE FROM services_app_freevalue WHERE value = '10.96.1.9'", "FreeValueLost", 3),
        ("DELETE FROM services_app_freevalue WHERE value = '30100'", "FreeValueLost", 3),
        ("INSERT INTO services_app_freevalue (pool, band, value) VALUES ('10.96.0.0/16', 0, '10.96.1.1')",
         "FreeValueTaken", 1),
        ("INSERT INTO services_app_freevalue (pool, band, value) VALUES ('10.96.0.0/16', 0, '192.0.2.1')",
         "FreeValueForeign", 1),
    ],
)  # fmt: skip
def test_the_list_of_free_values_is_set_right(world, fault, reason, looks):
    world.service(type="NodePort")
    before = set(FreeValue.objects.values_list("pool", "value"))
    assert sql(fault) == 1
    for number in range(looks):
        assert [(found, mended) for found, _, mended in look()] == [(reason, number == looks - 1)]
    assert look() == []
    assert set(FreeValue.objects.values_list("pool", "value")) == before


def test_endpoints_that_differ_are_derived_anew(world):
    world.node()
    world.service(selector={"app": "x"})
    world.pod("p1", ip="10.1.0.1", app="x")
    world.service("outside")
    subsets = [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]
    store.create(kinds.ENDPOINTS, {"metadata": {"name": "outside"}, "subsets": subsets}, namespace="shop", actor=ACTOR)
    sql("DELETE FROM services_app_endpointslice")
    sql("DELETE FROM services_app_endpoints WHERE name = 'web'")
    assert {mended for _, _, mended in look()} == {True}
    assert world.endpoints() == [("10.1.0.1", 80)]
    assert world.endpoints("outside") == [("192.0.2.1", 80)]
    assert told() == {"EndpointsDiffer": 1, "EndpointSlicesDiffer": 1}


def test_an_endpoint_that_became_a_cluster_ip_is_told(world, settings):
    world.service()
    subsets = [{"addresses": [{"ip": "10.97.0.1"}], "ports": [{"port": 80}]}]
    store.create(kinds.ENDPOINTS, {"metadata": {"name": "web"}, "subsets": subsets}, namespace="shop", actor=ACTOR)
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/16"), ip_network("10.97.0.0/16"))
    assert look() == [("EndpointIsClusterIP", "10.97.0.1", False)]
    assert told() == {"EndpointIsClusterIP": 1}
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/16"),)


def test_the_command_looks_and_mends(world):
    service = world.service()
    sql("DELETE FROM services_app_clusteripclaim")
    with pytest.raises(CommandError, match="1 things are not as they should be"):
        call_command("repair", "--check", stdout=StringIO())
    assert not Event.objects.exists() and not RepairFinding.objects.exists()
    said = StringIO()
    call_command("repair", stdout=said)
    assert f"mended: shop/web: Cluster IP {service['spec']['clusterIP']} is not allocated; repairing" in said.getvalue()
    said = StringIO()
    call_command("repair", "--check", stdout=said)
    assert said.getvalue() == "everything is as it should be\n"


def test_what_takes_away_waits_and_what_restores_does_not():
    late = {mend for mend in Mend if checks.Finding("r", "m", "v", mend=mend).is_due(2) is False}
    assert late == {Mend.NOTHING, Mend.RELEASE, Mend.LIST, Mend.REMOVE}


# Ranges


def test_a_service_takes_from_any_range_of_its_family_with_room(world, settings):
    ranges = (ip_network("10.96.0.0/28"), ip_network("fd00:10:96::/120"), ip_network("10.98.0.0/28"))
    settings.TIMONEL_SERVICE_CIDRS = ranges
    given = [world.service(f"s{n}")["spec"]["clusterIP"] for n in range(28)]
    assert len(set(given)) == 28
    assert [ip.rpartition(".")[0] for ip in given] == ["10.96.0"] * 14 + ["10.98.0"] * 14
    with pytest.raises(Invalid, match=r"every one of 10\.96\.0\.0/28, 10\.98\.0\.0/28 is in use"):
        world.service("full")
    both = world.service("v6", ipFamilies=["IPv6"])
    assert both["spec"]["clusterIP"].startswith("fd00:10:96::")
    world.service("chosen", clusterIP="fd00:10:96:0:0:0:0:0042")
    assert ClusterIPClaim.objects.filter(address="fd00:10:96::42").exists()
    world.delete(kinds.SERVICE, "s3")
    assert world.service("again")["spec"]["clusterIP"] == given[3]
    assert look() == []
    for text in store.list(kinds.SERVICE, "shop").documents:
        world.delete(kinds.SERVICE, json.loads(text)["metadata"]["name"])


def test_a_node_port_belongs_to_one_service_for_every_protocol(world):
    """As recorded from a real server (services-validation/node-port-taken-other-protocol)."""
    both = [{"name": p.lower(), "port": 53, "protocol": p, "nodePort": 30053} for p in ("TCP", "UDP", "SCTP")]
    world.service("dns", type="NodePort", ports=both)
    assert NodePortClaim.objects.count() == 1
    with pytest.raises(Invalid, match="provided port is already allocated"):
        world.service("other", type="NodePort", ports=[{"port": 80, "protocol": "SCTP", "nodePort": 30053}])
    world.patch_spec("dns", ports=both[:2])  # one protocol goes, the number stays
    with pytest.raises(Invalid):
        world.service("other", type="NodePort", ports=[{"port": 80, "protocol": "SCTP", "nodePort": 30053}])
    world.delete(kinds.SERVICE, "dns")
    world.service("other", type="NodePort", ports=[{"port": 80, "protocol": "SCTP", "nodePort": 30053}])
