"""What a node is sent for Services, as text one can read: tests/render/golden/<case>.txt."""

import pathlib
from ipaddress import ip_network

import pytest

from services_app.render.node import Cluster, OwnerState, render_base, render_owner, reverse_zones

GOLDEN = pathlib.Path(__file__).parent / "golden"
CLUSTER = Cluster((ip_network("10.96.0.0/16"),), "cluster.local")
READY = {"ready": True, "serving": True, "terminating": False}


def a_service(**spec):
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], **spec}
    return {"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


def a_slice(ports, *endpoints):
    return {
        "addressType": "IPv4",
        "ports": [{"name": name, "port": number, "protocol": protocol} for name, protocol, number in ports],
        "endpoints": [{"addresses": [ip], "nodeName": node, "conditions": READY} for ip, node in endpoints],
    }


HTTP = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]
CASES = {
    "cluster-ip": OwnerState(
        "shop/web",
        a_service(ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1"), ("10.1.0.12", "n2")),),
        {"TCP/80": 1},
    ),
    "node-port": OwnerState(
        "shop/web",
        a_service(type="NodePort", ports=[{**HTTP[0], "nodePort": 30007}]),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
        {"TCP/80": 2},
    ),
    "without-endpoints": OwnerState("shop/web", a_service(ports=HTTP), (a_slice([]),), {"TCP/80": 3}),
    "two-ports-two-protocols": OwnerState(
        "shop/web",
        a_service(
            ports=[
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]
        ),
        (a_slice([("dns", "UDP", 5353), ("dns-tcp", "TCP", 5353)], ("172.20.1.2", "n1")),),
        {"UDP/53": 4, "TCP/53": 5},
    ),
    "headless": OwnerState(
        "shop/web",
        a_service(clusterIP="None", clusterIPs=["None"], ports=HTTP),
        (a_slice([("http", "TCP", 8080)], ("10.1.0.11", "n1")),),
    ),
    "external-name": OwnerState("shop/web", a_service(type="ExternalName", externalName="db.example.org")),
    "deleted": OwnerState("shop/web", None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_service_on_a_node(case, request):
    state = CASES[case]
    rendered = render_owner(state, CLUSTER)
    lines = [" | ".join(r) for r in rendered.shared]
    lines += [f"only on n1: {' | '.join(r)}" for r in rendered.local.get("n1", ())]
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


def test_the_base_holds_address_zone_and_routes():
    assert render_base(CLUSTER, "10.1.0.11") == [
        ("host", "node-address", "10.1.0.11"),
        ("host", "zone", "cluster.local"),
        ("host", "dns-listen", "169.254.20.10"),
        ("host", "route 10.96.0.0/16", ""),
        ("host", "reverse 96.10.in-addr.arpa.", ""),
    ]


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
