"""What a node is sent for Services, as text one can read: tests/render/golden/<case>.txt."""

import pathlib
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace

import pytest

from agents.node import judge
from agents.state import digest, digest_of_sums
from services_app.plan.routing import Backend
from services_app.render.nftables import Choice, hash_slots, lasting_slots, weighted
from services_app.render.node import (
    Cluster,
    OwnerState,
    Rendered,
    network_of,
    render_base,
    render_owner,
    reverse_zones,
)
from services_app.spec.kube_proxy import Configuration

GOLDEN = pathlib.Path(__file__).parent / "golden"
CLUSTER = Cluster((ip_network("10.96.0.0/16"),), "cluster.local")
READY = {"ready": True, "serving": True, "terminating": False}


def a_service(**spec):
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], **spec}
    return {"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


def a_slice(ports, *endpoints, conditions=READY):
    is_ipv6 = endpoints and ":" in endpoints[0][0]
    return {
        "addressType": "IPv6" if is_ipv6 else "IPv4",
        "ports": [{"name": name, "port": number, "protocol": protocol} for name, protocol, number in ports],
        "endpoints": [{"addresses": [ip], "nodeName": node, "conditions": conditions} for ip, node in endpoints],
    }


def hinted(item, zones):
    """Each endpoint is meant for its own node and zone."""
    for endpoint, zone in zip(item["endpoints"], zones, strict=True):
        endpoint["hints"] = {"forNodes": [{"name": endpoint["nodeName"]}], "forZones": [{"name": zone}]}
    return item


DRAINING = {"ready": False, "serving": True, "terminating": True}
CLUSTER_AND_LOCAL = {("TCP/80", "Cluster"): 5, ("TCP/80", "Local"): 6}
HTTP = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]
CASES = {
    "cluster-ip": OwnerState(
        "shop/web",
        a_service(ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),),
        {("TCP/80", "Cluster"): 1},
    ),
    "node-port": OwnerState(
        "shop/web",
        a_service(type="NodePort", ports=[{**HTTP[0], "nodePort": 30007}]),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
        {("TCP/80", "Cluster"): 2},
    ),
    "without-endpoints": OwnerState("shop/web", a_service(ports=HTTP), (a_slice([]),), {("TCP/80", "Cluster"): 3}),
    "two-ports-two-protocols": OwnerState(
        "shop/web",
        a_service(
            ports=[
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]
        ),
        (a_slice([("dns", "UDP", 5353), ("dns-tcp", "TCP", 5353)], ("172.20.1.2", "n1")),),
        {("UDP/53", "Cluster"): 4, ("TCP/53", "Cluster"): 5},
    ),
    "headless": OwnerState(
        "shop/web",
        a_service(clusterIP="None", clusterIPs=["None"], ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
    ),
    "external-name": OwnerState("shop/web", a_service(type="ExternalName", externalName="db.example.org")),
    "dual-stack": OwnerState(
        "shop/web",
        a_service(type="NodePort", clusterIPs=["10.96.0.9", "fd00:10:96::9"], ports=[{**HTTP[0], "nodePort": 30007}]),
        (
            a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),
            a_slice([("http", "TCP", 8080)], ("fd00:1::11", "n1")),
        ),
        CLUSTER_AND_LOCAL,
    ),
    "zones": OwnerState(
        "shop/web",
        a_service(trafficDistribution="PreferSameNode", ports=HTTP),
        (
            hinted(
                a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2"), ("10.1.0.13", "n3")), "aab"
            ),
        ),
        CLUSTER_AND_LOCAL,
    ),
    "internal-local": OwnerState(
        "shop/web",
        a_service(internalTrafficPolicy="Local", ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),),
        CLUSTER_AND_LOCAL,
    ),
    "external-local": OwnerState(
        "shop/web",
        a_service(
            type="NodePort",
            externalTrafficPolicy="Local",
            externalIPs=["203.0.113.9", "2001:db8::9"],
            ports=[{**HTTP[0], "nodePort": 30007}],
        ),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),),
        CLUSTER_AND_LOCAL,
    ),
    "external-local-without-endpoints": OwnerState(
        "shop/web",
        a_service(type="NodePort", externalTrafficPolicy="Local", ports=[{**HTTP[0], "nodePort": 30007}]),
        (),
        CLUSTER_AND_LOCAL,
    ),
    "external-local-draining": OwnerState(
        "shop/web",
        a_service(type="NodePort", externalTrafficPolicy="Local", ports=[{**HTTP[0], "nodePort": 30007}]),
        (
            a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), conditions=DRAINING),
            a_slice([("http", "TCP", 8080)], ("10.1.0.12", "n2")),
        ),
        CLUSTER_AND_LOCAL,
    ),
    "affinity": OwnerState(
        "shop/web",
        a_service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}}, ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),),
        CLUSTER_AND_LOCAL,
    ),
    "source-ranges": OwnerState(
        "shop/web",
        {
            **a_service(
                type="LoadBalancer",
                externalTrafficPolicy="Local",
                externalIPs=["203.0.113.9"],
                healthCheckNodePort=32000,
                loadBalancerSourceRanges=["192.0.2.0/25", "192.0.2.128/25", "198.51.100.7/32"],
                ports=[{**HTTP[0], "nodePort": 30007}],
            ),
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.10", "ipMode": "VIP"}]}},
        },
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
        CLUSTER_AND_LOCAL,
    ),
    "load-balancer": OwnerState(
        "shop/web",
        {
            **a_service(type="LoadBalancer", ports=[{**HTTP[0], "nodePort": 30007}]),
            "status": {
                "loadBalancer": {
                    "ingress": [
                        {"ip": "203.0.113.1", "ipMode": "VIP"},
                        {"ip": "203.0.113.2"},
                        {"ip": "203.0.113.3", "ipMode": "Proxy"},
                        {"hostname": "lb.example.org"},
                    ]
                }
            },
        },
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
        CLUSTER_AND_LOCAL,
    ),
    "headless-dual-stack": OwnerState(
        "shop/web",
        a_service(clusterIP="None", clusterIPs=["None"], ports=HTTP),
        (
            a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),
            a_slice([("http", "TCP", 8080)], ("fd00:1::11", "n1"), ("fd00::", "n1")),
        ),
    ),
    "deleted": OwnerState("shop/web", None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_service_on_a_node(case, request):
    state = CASES[case]
    rendered = render_owner(state, CLUSTER)
    lines = [" | ".join(r) for r in rendered.shared]
    lines += [f"only on n1: {' | '.join(r)}" for r in rendered.local.get("n1", ())]
    lines += [f"on other nodes: {' | '.join(r)}" for r in rendered.elsewhere]
    for choice in rendered.nearby:
        lines += [f"only on {node}: {' | '.join(r)}" for node, found in choice.nodes.items() for r in found]
        lines += [f"in zone {zone}: {' | '.join(r)}" for zone, found in choice.zones.items() for r in found]
        lines += [f"otherwise: {' | '.join(r)}" for r in choice.otherwise]
    text = "".join(f"{line}\n" for line in lines)
    path = GOLDEN / f"{case}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_a_change_of_endpoints_leaves_frontends_alone():
    before, after = CASES["cluster-ip"], CASES["cluster-ip"]
    more = a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2"), ("10.1.0.13", "n3"))
    after = OwnerState(after.owner, after.service, (more,), after.groups)
    old, new = set(render_owner(before, CLUSTER).shared), set(render_owner(after, CLUSTER).shared)
    assert {r[1].split()[0] for r in old ^ new} == {"groups", "slots"}


def test_a_client_is_remembered_by_a_number_that_other_endpoints_do_not_change():
    few, more = (
        {b.address: slot for b, slot in zip(backends, lasting_slots(backends), strict=True)}
        for backends in ([Backend(f"10.1.0.{n}", 80) for n in numbers] for numbers in ((7, 9), range(200)))
    )
    assert few.items() <= more.items()
    assert len(set(more.values())) == 200
    assert all(0 < slot < 2**32 - 1 for slot in more.values())


def test_two_endpoints_with_the_same_hash_are_kept_apart(monkeypatch):
    monkeypatch.setattr("hashlib.sha256", lambda _: SimpleNamespace(digest=lambda: b"\xff" * 32))
    assert lasting_slots([Backend("10.1.0.1", 80), Backend("10.1.0.2", 80)]) == [1, 2]


def test_a_scheduler_of_ipvs_belongs_to_each_group():
    state = CASES["cluster-ip"]
    chosen = {**state.service["metadata"], "annotations": {"timonel.io/ipvs-scheduler": "lc"}}
    told = render_owner(replace(state, service={**state.service, "metadata": chosen}), CLUSTER).on("n1")
    assert {*told} - {*render_owner(state, CLUSTER).on("n1")} == {
        ("ipvs", f"scheduler 0x{group:08x}", "lc") for group in state.groups.values()
    }
    assert judge({"shop/web": [list(resource) for resource in told]}) == {}
    base = render_base(CLUSTER, network_of(None, "192.0.2.11"), Configuration("ipvs", ipvs_scheduler="sh"))
    assert {*base} >= {("host", "mode", "ipvs"), ("ipvs", "scheduler", "sh")}


def test_a_base_of_both_families():
    node = {
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "fd00:1::11"},
                {"type": "InternalIP", "address": "10.1.0.11"},
                {"type": "InternalIP", "address": "10.9.0.11"},
                {"type": "Hostname", "address": "n1"},
            ]
        },
    }
    cluster = Cluster((ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112")), "cluster.local")
    assert render_base(cluster, network_of(node, "n1.example.org")) == [
        ("host", "node-address", "10.1.0.11"),
        ("host", "node-address6", "fd00:1::11"),
        ("host", "zone", "cluster.local"),
        ("host", "dns-listen", "169.254.20.10"),
        ("host", "route 10.96.0.0/16", ""),
        ("host", "route fd00:10:96::/112", ""),
        ("host", "reverse 0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", ""),
        ("host", "reverse 96.10.in-addr.arpa.", ""),
        ("nft4", "pod_cidrs 10.244.1.0/24", ""),
        ("nft6", "pod_cidrs fd00:244:1::/64", ""),
    ]


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_can_be_read_by_the_agent(case):
    rendered = render_owner(CASES[case], CLUSTER)
    for node in ("n1", "n2", "n3"):
        assert judge({"o": [list(r) for r in rendered.on(node)]}) == {}
        keys = [r[:2] for r in rendered.on(node)]
        assert len(keys) == len(set(keys))


def test_the_sum_of_what_a_node_holds_is_that_of_its_resources():
    """Also of an element that it is given twice."""
    one, two, three = (("nft4", f"cluster_ips 10.96.0.{n}", "") for n in (1, 2, 3))
    other = (*one[:2], "another value")
    rendered = Rendered((one,), {"n1": (two, other, two), "n2": ()}, (three,), (), "shop/web")
    near = replace(rendered, nearby=(Choice({"n1": (three,)}, {"east": (two,)}, ()),))
    for owner in (rendered, near, replace(rendered, owner="shop/db"), Rendered()):
        for node in ("n1", "n2", "n3", "n1"):
            for zone in ("", "east"):
                assert digest_of_sums([owner.sum_on(node, zone)]) == digest({owner.owner: owner.on(node, zone)})


def test_the_base_holds_address_zone_and_routes():
    assert render_base(CLUSTER, network_of(None, "10.1.0.11")) == [
        ("host", "node-address", "10.1.0.11"),
        ("host", "zone", "cluster.local"),
        ("host", "dns-listen", "169.254.20.10"),
        ("host", "route 10.96.0.0/16", ""),
        ("host", "reverse 96.10.in-addr.arpa.", ""),
    ]


def test_the_base_holds_what_the_configuration_asks_for():
    def asked(**node):
        configuration = Configuration(conntrack=(("udp", "25"),), healthz="[::]:10256")
        base = render_base(CLUSTER, network_of(node, "10.1.0.11"), configuration)
        assert judge({"": [list(resource) for resource in base]}) == {}
        return [r for r in base if r not in render_base(CLUSTER, network_of(node, "10.1.0.11"))]

    fit = [("host", "conntrack udp", "25"), ("health", "healthz [::]:10256", "eligible")]
    leaving = [fit[0], ("health", "healthz [::]:10256", "leaving")]
    assert asked() == asked(spec={"unschedulable": True, "taints": [{"key": "maintenance"}]}) == fit
    assert asked(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}) == leaving
    assert asked(spec={"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}) == leaving


@pytest.mark.parametrize(
    ("cidr", "zone"),
    [
        ("10.96.0.0/16", "96.10.in-addr.arpa."),
        ("10.96.0.0/20", "96.10.in-addr.arpa."),
        ("10.0.0.0/8", "10.in-addr.arpa."),
        ("fd00:10:96::/112", "0." * 16 + "6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa."),
    ],
)
def test_reverse_zones_are_cut_at_the_label(cidr, zone):
    assert reverse_zones([ip_network(cidr)]) == [zone]


def of_weights(*weights):
    return tuple(Backend(f"10.1.0.{number}", 80, "", weight) for number, weight in enumerate(weights, start=1))


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((100, 100, 100), (1, 1, 1)),
        ((100, 50, 25), (4, 2, 1)),
        ((7,), (1,)),
        ((100, 99), (100, 99)),
        ((*(100,) * 20, 1), (*(51,) * 20, 1)),
        ((*(100,) * 2000, 1), (1,) * 2001),
    ],
    ids=["the same", "lowest terms", "alone", "exactly", "as near as slots allow", "more endpoints than slots"],
)
def test_weights_become_slots(weights, counts):
    backends = of_weights(*weights)
    found = weighted(backends)
    assert tuple(found.count(backend) for backend in dict.fromkeys(backends)) == counts


def test_a_slot_by_source_hash_changes_its_owner_only_for_one_that_comes_or_goes():
    few = of_weights(*(100,) * 9)
    more = (*few, Backend("10.1.0.99", 80))
    for old, new in zip(hash_slots(few), hash_slots(more), strict=True):
        assert new == old or new == more[-1]
    shares = [hash_slots(more).count(backend) for backend in more]
    assert 60 < min(shares) <= max(shares) < 150, "of 1024, ten times 102"


def test_shares_by_source_hash_follow_weights_and_only_the_changed_one_gives_or_takes():
    old, new = of_weights(100, 100, 100), of_weights(100, 50, 100)
    before, after = hash_slots(old), hash_slots(new)
    moved = [(a.address, b.address) for a, b in zip(before, after, strict=True) if a.address != b.address]
    assert {address for address, _ in moved} == {old[1].address}
    assert 150 < sum(backend == new[1] for backend in after) < 260, "a fifth of 1024"
