"""Bands, pools and what a Service still lacks."""

from ipaddress import ip_address, ip_network

import pytest

from services_app.plan import allocation


@pytest.mark.parametrize(
    ("cidr", "first", "size", "static"),
    [
        ("10.96.0.0/16", "10.96.0.1", 65534, 256),
        ("10.96.0.0/20", "10.96.0.1", 4094, 255),
        ("10.96.0.0/24", "10.96.0.1", 254, 16),
        ("10.96.0.0/28", "10.96.0.1", 14, 14),
        ("fd00:10:96::/112", "fd00:10:96::1", 65535, 256),
    ],
)
def test_bands_of_address_ranges(cidr, first, size, static):
    pool = allocation.address_pool(ip_network(cidr))
    assert (str(ip_address(pool.first)), pool.size, pool.static_size) == (first, size, static)


def test_the_default_node_ports_keep_86_for_explicit_use():
    pool = allocation.port_pool(range(30000, 32768))
    assert (pool.first, pool.size, pool.static_size) == (30000, 2768, 86)


def test_the_dynamic_band_is_given_out_before_the_static_one():
    pool = allocation.port_pool(range(30000, 32768))
    assert pool.offset_of(30086) == 0 and pool.band_at(0) == allocation.DYNAMIC_BAND
    assert pool.offset_of(30000) == 2682 and pool.band_at(2682) == allocation.STATIC_BAND
    assert sorted(pool.offset_of(p) for p in range(30000, 32768)) == list(range(2768))
    assert pool.offset_of(29999) is None and pool.offset_of(32768) is None


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        ({"ipFamilies": ["IPv4"]}, [(0, "IPv4")]),
        ({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.5"]}, [(1, "IPv6")]),
        ({"ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.5"]}, []),
        ({"ipFamilies": ["IPv4"], "clusterIP": "None", "clusterIPs": ["None"]}, []),
        ({"type": "ExternalName"}, []),
    ],
)
def test_families_that_still_need_an_address(spec, missing):
    assert allocation.missing_families({"spec": spec}) == missing


@pytest.mark.parametrize(
    ("kind", "ports", "missing"),
    [
        ("ClusterIP", [{"port": 80}], []),
        ("NodePort", [{"port": 80}, {"port": 81, "nodePort": 30001}], [(0, None)]),
        ("NodePort", [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], [(0, None), (1, 0)]),
        ("NodePort", [{"port": 53}, {"port": 53, "protocol": "UDP", "nodePort": 30053}], [(0, 1)]),
        ("LoadBalancer", [{"port": 80}], [(0, None)]),
    ],
)
def test_ports_that_still_need_a_node_port(kind, ports, missing):
    assert allocation.missing_node_ports({"spec": {"type": kind, "ports": ports}}) == missing


def test_no_node_ports_are_given_out_when_switched_off():
    service = {"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": 80}]}}
    assert allocation.missing_node_ports(service) == []
