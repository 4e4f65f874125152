"""Routes and names of a Service."""

import pytest

from services_app.plan import routing
from services_app.plan.routing import Backend, Record


def a_service(**spec):
    ports = spec.pop("ports", [{"name": "http", "port": 80, "protocol": "TCP"}])
    return {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": ports, **spec},
    }


def a_slice(*endpoints, port=8080, name="http"):
    return {
        "addressType": "IPv4",
        "ports": [{"name": name, "port": port, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [ip], "nodeName": node, "conditions": conditions} for ip, node, conditions in endpoints
        ],
    }


READY = {"ready": True, "serving": True, "terminating": False}
UNREADY = {"ready": False, "serving": False, "terminating": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
GROUPS = {("TCP/80", "Cluster"): 7, ("TCP/80", "Local"): 8}


@pytest.mark.parametrize(
    ("endpoints", "chosen"),
    [
        ([("10.0.0.1", "a", READY), ("10.0.0.2", "b", UNREADY)], ["10.0.0.1"]),
        ([("10.0.0.1", "a", READY), ("10.0.0.2", "b", DRAINING)], ["10.0.0.1"]),
        ([("10.0.0.1", "a", UNREADY), ("10.0.0.2", "b", DRAINING)], ["10.0.0.2"]),
        ([("10.0.0.1", "a", UNREADY)], []),
        ([("10.0.0.2", "a", {}), ("10.0.0.1", "a", {})], ["10.0.0.1", "10.0.0.2"]),
        ([("10.0.0.1", "a", READY), ("10.0.0.1", "", READY)], ["10.0.0.1"]),
    ],
    ids=["only ready", "ready before draining", "draining when none is ready", "none", "unknown is ready", "once each"],
)
def test_backends_of_a_route(endpoints, chosen):
    (route,) = routing.plan_routes(a_service(), [a_slice(*endpoints)], GROUPS)
    assert [b.address for b in route.cluster.backends] == chosen


POLICIES = {
    # spec, endpoints -> (cluster, local on a, local on b, has endpoints)
    "cluster only": (
        {},
        [("10.0.0.1", "a", READY), ("10.0.0.2", "b", READY)],
        (["10.0.0.1", "10.0.0.2"], None, None, True),
    ),
    "internal local": (
        {"internalTrafficPolicy": "Local"},
        [("10.0.0.1", "a", READY), ("10.0.0.2", "b", READY)],
        (None, ["10.0.0.1"], ["10.0.0.2"], True),
    ),
    "internal local, reachable from outside": (
        {"internalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
        [("10.0.0.1", "a", READY), ("10.0.0.2", "b", READY)],
        (["10.0.0.1", "10.0.0.2"], ["10.0.0.1"], ["10.0.0.2"], True),
    ),
    "external local means nothing without an outside": (
        {"externalTrafficPolicy": "Local"},
        [("10.0.0.1", "a", READY)],
        (["10.0.0.1"], None, None, True),
    ),
    "external local": (
        {"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
        [("10.0.0.1", "a", READY), ("10.0.0.2", "", READY)],
        (["10.0.0.1", "10.0.0.2"], ["10.0.0.1"], [], True),
    ),
    "each policy ends by itself": (
        {"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
        [("10.0.0.1", "a", DRAINING), ("10.0.0.2", "b", READY), ("10.0.0.3", "b", DRAINING)],
        (["10.0.0.2"], ["10.0.0.1"], ["10.0.0.2"], True),
    ),
    "all end": (
        {"internalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
        [("10.0.0.1", "a", DRAINING), ("10.0.0.2", "a", UNREADY)],
        (["10.0.0.1"], ["10.0.0.1"], [], True),
    ),
    "none": ({"internalTrafficPolicy": "Local"}, [("10.0.0.1", "a", UNREADY)], (None, [], [], False)),
}


@pytest.mark.parametrize(("spec", "endpoints", "expected"), POLICIES.values(), ids=POLICIES)
def test_endpoints_of_each_policy(spec, endpoints, expected):
    (route,) = routing.plan_routes(a_service(**spec), [a_slice(*endpoints)], GROUPS)
    addresses = [None if g is None else [b.address for b in g.backends] for g in [route.cluster]]
    for node in ("a", "b"):
        addresses.append([b.address for b in route.local.nodes.get(node, ())] if route.local else None)
    assert (*addresses, route.has_endpoints) == expected


def test_a_port_has_a_route_in_each_family_of_the_service():
    service = a_service(clusterIPs=["10.96.0.9", "fd00::9"], externalIPs=["192.0.2.1", "2001:DB8::1"])
    four = a_slice(("10.0.0.1", "a", READY))
    six = {**a_slice(("FD00:0::1", "a", READY), ("no address", "a", READY)), "addressType": "IPv6"}
    routes = routing.plan_routes(service, [four, six], GROUPS)
    assert [(r.version, r.cluster_ip, r.external_ips) for r in routes] == [
        (4, "10.96.0.9", ("192.0.2.1",)),
        (6, "fd00::9", ("2001:db8::1",)),
    ]
    assert [[b.address for b in r.cluster.backends] for r in routes] == [["10.0.0.1"], ["fd00::1"]]


@pytest.mark.parametrize(
    ("spec", "timeout_s"),
    [
        ({}, None),
        ({"sessionAffinity": "None"}, None),
        ({"sessionAffinity": "ClientIP"}, 10800),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, 5),
    ],
)
def test_how_long_a_client_keeps_its_endpoint(spec, timeout_s):
    (route,) = routing.plan_routes(a_service(**spec), [], GROUPS)
    assert route.affinity_s == timeout_s


def test_addresses_of_balancers_that_end_the_connection_are_not_ours():
    service = a_service(type="LoadBalancer")
    ingress = [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]
    service["status"] = {"loadBalancer": {"ingress": [*ingress, {"hostname": "lb.example.org"}]}}
    (route,) = routing.plan_routes(service, [], GROUPS)
    assert route.external_ips == ("192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize(
    ("texts", "four", "six"),
    [
        ([], None, None),
        (["192.0.2.0/24"], ("192.0.2.0/24",), None),
        ([" 192.0.2.0/25 ", "192.0.2.128/25", "192.0.2.7/32"], ("192.0.2.0/24",), None),
        (["192.0.2.9/24", "2001:DB8::/64"], ("192.0.2.0/24",), ("2001:db8::/64",)),
        (["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/64"], None, ("2001:db8::/64",)),
        (["192.0.2.0/99"], (), None),
    ],
    ids=["none", "one family", "collapsed", "canonical", "everywhere", "not a network"],
)
def test_clients_of_a_load_balancers_addresses(texts, four, six):
    service = a_service(type="LoadBalancer", clusterIPs=["10.96.0.9", "fd00::9"], externalIPs=["192.0.2.1"])
    service["spec"]["loadBalancerSourceRanges"] = texts
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]}}
    routes = routing.plan_routes(service, [], GROUPS)
    for route, ranges, own in zip(routes, (four, six), (("192.0.2.1", "192.0.2.2"), ("2001:db8::2",)), strict=True):
        assert route.source_ranges == (ranges or ())
        assert (route.external_ips, route.restricted_ips) == ((own, ()) if ranges is None else ((), own))


def test_a_health_check_counts_ready_endpoints_on_each_node_once():
    service = a_service(
        type="LoadBalancer",
        healthCheckNodePort=32000,
        ports=[{"name": name, "port": port, "protocol": "TCP"} for name, port in (("http", 80), ("more", 81))],
    )
    endpoints = [
        ("10.0.0.1", "a", READY),
        ("10.0.0.2", "a", DRAINING),
        ("10.0.0.3", "b", DRAINING),
        ("10.0.0.4", "c", UNREADY),
        ("10.0.0.5", "", READY),
        ("10.0.0.6", "d", READY),
        ("10.0.0.7", "d", {}),
    ]
    six = {**a_slice(("fd00::1", "b", READY)), "addressType": "IPv6"}
    slices = [a_slice(*endpoints), a_slice(*endpoints, port=8081, name="more"), six]
    check = routing.plan_health_check(service, slices)
    assert (check.port, check.endpoints) == (32000, {"a": 1, "d": 2})
    assert routing.plan_health_check(a_service(), slices) is None
    service["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    assert routing.plan_health_check(service, slices) is None


def test_two_numbers_behind_one_port_name_are_both_reached():
    slices = [a_slice(("10.0.0.1", "a", READY), port=8080), a_slice(("10.0.0.2", "a", READY), port=9090)]
    (route,) = routing.plan_routes(a_service(), slices, GROUPS)
    assert route.cluster.backends == (Backend("10.0.0.1", 8080, "a"), Backend("10.0.0.2", 9090, "a"))


def test_a_slice_of_another_protocol_is_of_no_use():
    service = a_service(ports=[{"name": "http", "port": 80, "protocol": "UDP"}])
    (route,) = routing.plan_routes(service, [a_slice(("10.0.0.1", "a", READY))], {("UDP/80", "Cluster"): 7})
    assert not route.has_endpoints


def test_two_pods_may_share_their_nodes_address():
    slices = [a_slice(("10.0.0.1", "a", READY), port=8080), a_slice(("10.0.0.1", "a", READY), port=9090)]
    (route,) = routing.plan_routes(a_service(), slices, GROUPS)
    assert [(b.address, b.port) for b in route.cluster.backends] == [("10.0.0.1", 8080), ("10.0.0.1", 9090)]


@pytest.mark.parametrize(
    "service",
    [
        a_service(clusterIP="None", clusterIPs=["None"]),
        a_service(type="ExternalName", externalName="a.example.org"),
        {**a_service(), "metadata": {"name": "w", "namespace": "d", "labels": {routing.SERVICE_PROXY_NAME: "mine"}}},
    ],
    ids=["headless", "external name", "another proxy's"],
)
def test_services_that_are_not_ours_to_route(service):
    assert routing.plan_routes(service, [], GROUPS) == ()


def test_names_of_a_service_with_an_address():
    assert routing.plan_records(a_service(), [], "cluster.local") == [
        Record("9.0.96.10.in-addr.arpa.", "PTR", "web.shop.svc.cluster.local."),
        Record("_http._tcp.web.shop.svc.cluster.local.", "SRV", "0 100 80 web.shop.svc.cluster.local."),
        Record("web.shop.svc.cluster.local.", "A", "10.96.0.9"),
    ]


def test_an_unnamed_port_has_no_srv_record():
    records = routing.plan_records(a_service(ports=[{"port": 80, "protocol": "TCP"}]), [], "cluster.local")
    assert {r.type for r in records} == {"A", "PTR"}


def test_names_of_a_headless_service_lead_to_its_endpoints():
    service = a_service(clusterIP="None", clusterIPs=["None"])
    slices = [a_slice(("10.0.0.1", "a", READY), ("10.0.0.2", "b", UNREADY))]
    assert routing.plan_records(service, slices, "cluster.local") == [
        Record("10-0-0-1.web.shop.svc.cluster.local.", "A", "10.0.0.1"),
        Record("_http._tcp.web.shop.svc.cluster.local.", "SRV", "0 100 8080 10-0-0-1.web.shop.svc.cluster.local."),
        Record("web.shop.svc.cluster.local.", "A", "10.0.0.1"),
    ]


def test_an_external_name_is_a_cname():
    service = a_service(type="ExternalName", externalName="db.example.org")
    assert routing.plan_records(service, [], "cluster.local") == [
        Record("web.shop.svc.cluster.local.", "CNAME", "db.example.org.")
    ]


def hinted(item, **hints):
    """The same slice with hints: address -> (nodes, zones)."""
    for endpoint in item["endpoints"]:
        key = endpoint["addresses"][0].replace(".", "_")
        nodes, zones = hints.get(f"e{key}", ("", ""))
        endpoint["hints"] = {"forNodes": [{"name": n} for n in nodes], "forZones": [{"name": z} for z in zones]}
    return item


def test_hints_are_taken_when_every_ready_endpoint_has_some():
    def chosen(**hints):
        endpoints = [("10.0.0.1", "a", READY), ("10.0.0.2", "b", READY), ("10.0.0.3", "b", UNREADY)]
        (route,) = routing.plan_routes(a_service(), [hinted(a_slice(*endpoints), **hints)], GROUPS)
        group = route.cluster
        assert len(group.backends) == 2, "for whoever is meant by none"
        return tuple({k: [b.address[-1] for b in found] for k, found in m.items()} for m in (group.nodes, group.zones))

    assert chosen() == ({}, {})
    assert chosen(e10_0_0_1=("", "x"), e10_0_0_2=("", "xy")) == ({}, {"x": ["1", "2"], "y": ["2"]})
    assert chosen(e10_0_0_1=("a", "x"), e10_0_0_2=("", "y")) == ({}, {"x": ["1"], "y": ["2"]})
    assert chosen(e10_0_0_1=("a", ""), e10_0_0_2=("b", "y")) == ({"a": ["1"], "b": ["2"]}, {})


def test_an_endpoint_of_weight_0_is_kept_and_counts_for_nothing():
    item = a_slice(("10.0.0.1", "a", READY), ("10.0.0.2", "b", READY))
    item["metadata"] = {"annotations": {"timonel.io/weights": "10.0.0.1=0,10.0.0.2=7"}}
    service = a_service(internalTrafficPolicy="Local", externalIPs=["203.0.113.9"], healthCheckNodePort=32000)
    (route,) = routing.plan_routes(service, [item], GROUPS)
    kept, taking = Backend("10.0.0.1", 8080, "a", 0), Backend("10.0.0.2", 8080, "b", 7)
    assert (route.cluster.backends, route.cluster.kept) == ((taking,), (kept,))
    assert (route.local.nodes, route.local.kept) == ({"b": (taking,)}, {"a": (kept,)})
    assert routing.plan_health_check(service, [item]).endpoints == {"b": 1}
    item["metadata"]["annotations"]["timonel.io/weights"] = "10.0.0.1=0,10.0.0.2=0"
    (route,) = routing.plan_routes(service, [item], GROUPS)
    assert not route.has_endpoints
