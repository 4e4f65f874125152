"""Which flows are forgotten after a change; that the kernel forgets them is in test_node.py."""

import pytest

from agents.conntrack import UdpFlows, is_udp_frontend
from agents.state import Change

FAMILY = ["-f", "ipv4"]
DNS, WEB = "frontends 10.96.0.10 . udp . 53", "frontends 10.96.0.10 . tcp . 53"
NODE_PORT = "nodeports udp . 30053"
SLOTS = {
    "slots 0x00000001 . 0": "10.1.0.11 . 5353",
    "slots 0x00000001 . 1": "10.1.0.12 . 5353",
    "slots 0x00000002 . 0": "10.1.0.11 . 5353",
}
ELEMENTS = {DNS: "0x00000001", NODE_PORT: "0x00000001", WEB: "0x00000002", **SLOTS}


def to(group: str, address: str, port: int) -> list[str]:
    return [*FAMILY, "--mark", group, "--reply-src", address, "--reply-port-src", str(port)]


@pytest.fixture
def flows() -> UdpFlows:
    flows = UdpFlows("ipv4")
    flows.refill(ELEMENTS.items())
    return flows


def test_flows_to_a_lost_endpoint_are_forgotten(flows: UdpFlows):
    change = Change({"slots 0x00000001 . 1": "10.1.0.12 . 5353"}, {})
    assert flows.follow(change) == [to("0x00000001", "10.1.0.12", 5353)]


def test_an_endpoint_that_moves_to_another_slot_is_not_lost(flows: UdpFlows):
    change = Change(
        {"slots 0x00000001 . 0": "10.1.0.11 . 5353", "slots 0x00000001 . 1": "10.1.0.12 . 5353"},
        {"slots 0x00000001 . 0": "10.1.0.12 . 5353"},
    )
    assert flows.follow(change) == [to("0x00000001", "10.1.0.11", 5353)]


def test_an_endpoint_of_several_slots_is_lost_with_the_last_one(flows: UdpFlows):
    """A smaller weight is no reason to end a flow."""
    more = {f"slots 0x00000001 . {slot}": "10.1.0.11 . 5353" for slot in (7, 8)}
    assert flows.follow(Change({}, more)) == []
    assert flows.follow(Change(more, {})) == []
    assert flows.follow(Change({"slots 0x00000001 . 0": "10.1.0.11 . 5353"}, {})) == [
        to("0x00000001", "10.1.0.11", 5353)
    ]
    frontend, first, second = "frontends 10.96.0.8 . udp . 53", "slots 0x00000008 . 0", "slots 0x00000008 . 1"
    flows.follow(Change({}, {frontend: "0x00000008", first: "10.1.0.11 . 5353"}))
    flows.follow(Change({}, {second: "10.1.0.11 . 5353"}))
    assert flows.follow(Change({second: "10.1.0.11 . 5353"}, {})) == [], "counted also as a Service that is new"


def test_tcp_groups_are_left_alone(flows: UdpFlows):
    assert flows.follow(Change({"slots 0x00000002 . 0": "10.1.0.11 . 5353"}, {})) == []


def test_another_port_of_the_same_address_is_another_endpoint(flows: UdpFlows):
    change = Change({"slots 0x00000001 . 0": "10.1.0.11 . 5353"}, {"slots 0x00000001 . 0": "10.1.0.11 . 5354"})
    assert flows.follow(change) == [to("0x00000001", "10.1.0.11", 5353)]


def test_a_removed_service_takes_its_flows_with_it(flows: UdpFlows):
    gone = {key: value for key, value in ELEMENTS.items() if value == "0x00000001" or "0x00000001" in key}
    commands = flows.follow(Change(gone, {}))
    assert [*FAMILY, "--orig-dst", "10.96.0.10", "--orig-port-dst", "53", "--mark", "0x00000001"] in commands
    assert [*FAMILY, "--orig-port-dst", "30053", "--mark", "0x00000001"] in commands
    assert commands[2:] == [to("0x00000001", "10.1.0.11", 5353), to("0x00000001", "10.1.0.12", 5353)]
    # Nothing is known of the group any longer.
    assert flows.follow(Change({"slots 0x00000001 . 0": "10.1.0.11 . 5353"}, {})) == []


def test_what_went_to_an_address_before_it_was_a_services_is_forgotten(flows: UdpFlows):
    change = Change({}, {"frontends 10.96.0.11 . udp . 53": "0x00000003", "slots 0x00000003 . 0": "10.1.0.11 . 5353"})
    assert flows.follow(change) == [[*FAMILY, "--orig-dst", "10.96.0.11", "--orig-port-dst", "53", "--mark", "0"]]
    lost = Change({"slots 0x00000003 . 0": "10.1.0.11 . 5353"}, {})
    assert flows.follow(lost) == [to("0x00000003", "10.1.0.11", 5353)]


def test_a_frontend_that_changes_its_group_loses_the_flows_of_the_old_one(flows: UdpFlows):
    commands = flows.follow(Change({DNS: "0x00000001"}, {DNS: "0x00000007"}))
    assert commands == [[*FAMILY, "--orig-dst", "10.96.0.10", "--orig-port-dst", "53", "--mark", "0x00000001"]]
    # The node port still leads to the old group, the frontend to the new one.
    change = Change({"slots 0x00000001 . 0": "10.1.0.11 . 5353", "slots 0x00000007 . 0": "10.1.0.13 . 5353"}, {})
    assert flows.follow(change) == [to("0x00000001", "10.1.0.11", 5353), to("0x00000007", "10.1.0.13", 5353)]


def test_clients_of_a_range_that_is_let_in_no_longer_are_forgotten(flows: UdpFlows):
    balancer, mark = "frontends 203.0.113.10 . udp . 53", "0x60000001"
    here = {balancer: mark, f"to_cluster {mark}": "0x00000001", f"source_ranges {mark} . 192.0.2.0/24": ""}
    flows.refill({**ELEMENTS, **here}.items())
    change = Change({f"source_ranges {mark} . 192.0.2.0/24": ""}, {f"source_ranges {mark} . 192.0.2.128/25": ""})
    to_it = [*FAMILY, "--orig-dst", "203.0.113.10", "--orig-port-dst", "53"]
    assert flows.follow(change) == [[*to_it, "--mark", "0x00000001", "--orig-src", "192.0.2.0/24"]]


def test_no_change_is_no_command(flows: UdpFlows):
    assert flows.follow(Change()) == []


@pytest.mark.parametrize(
    "key, is_one",
    [(DNS, True), (NODE_PORT, True), (WEB, False), ("slots 0x00000001 . 0", False), ("groups 0x00000001", False)],
)
def test_udp_frontends_are_told_by_their_key(key: str, is_one: bool):
    assert is_udp_frontend(key) == is_one


def test_a_local_policy_leads_to_two_groups():
    """By its own mark, and for clients on the node by that of all endpoints."""
    flows = UdpFlows("ipv6")
    local, group, everywhere = "0x40000006", "0x00000006", "0x00000005"
    key = "frontends 2001:db8::1 . udp . 53"
    flows.refill({key: local, f"to_cluster {local}": everywhere}.items())
    lost = Change({f"slots {group} . 0": "fd00::1 . 53", f"slots {everywhere} . 3": "fd00::2 . 53"}, {})
    assert flows.follow(lost) == [
        ["-f", "ipv6", "--mark", everywhere, "--reply-src", "fd00::2", "--reply-port-src", "53"],
        ["-f", "ipv6", "--mark", group, "--reply-src", "fd00::1", "--reply-port-src", "53"],
    ]
    commands = flows.follow(Change({key: local, f"to_cluster {local}": everywhere}, {}))
    to = ["-f", "ipv6", "--orig-dst", "2001:db8::1", "--orig-port-dst", "53"]
    assert commands == [[*to, "--mark", everywhere], [*to, "--mark", group]]
    assert flows.follow(lost) == []


def test_a_policy_that_becomes_local_loses_the_flows_to_other_nodes(flows: UdpFlows):
    local = "0x40000008"
    commands = flows.follow(
        Change({NODE_PORT: "0x00000001"}, {NODE_PORT: local, f"to_cluster {local}": "0x00000001"}),
    )
    assert commands == [[*FAMILY, "--orig-port-dst", "30053", "--mark", "0x00000001"]]
