"""The addresses a node is enrolled with, judged before the host is touched."""

import pytest

from services_app.push.enroll import Host, enroll
from services_app.push.errors import NodeError


@pytest.mark.parametrize(
    ("address", "node_ip", "words"),
    [
        ("web-1.example.org", "", "--node-ip"),
        ("192.0.2.11", "192.0.2.11,192.0.2.12", "two addresses of one family"),
        ("192.0.2.11", "192.0.2.11,", "cannot read --node-ip"),
        ("192.0.2.11", "web-1", "cannot read --node-ip"),
    ],
)
def test_a_node_has_one_address_of_each_family(address: str, node_ip: str, words: str) -> None:
    steps = enroll(Host("web-1", address, node_ip=node_ip), lambda _: False, by="tester")
    with pytest.raises(NodeError, match=words) as refused:
        next(steps)
    assert refused.value.reason == "AddressUnknown"
