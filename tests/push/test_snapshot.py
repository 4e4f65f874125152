"""What a node must hold: the audit expects the digest of what a push gives."""

import pytest

from agents.state import digest
from services_app.push import snapshot
from tests.web.sample import add_node

pytestmark = pytest.mark.django_db(transaction=True)
ADDRESSES = {"n1": "192.0.2.11", "n2": "192.0.2.12"}


def test_the_expected_digest_is_that_of_a_push_of_everything(committed_world):
    world = committed_world
    for name, address in ADDRESSES.items():
        add_node(name, address)
    world.pod("p1", ip="192.0.2.11", node="n1", app="web")
    world.pod("p2", ip="192.0.2.12", node="n2", app="web")
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    world.service("web", ports=ports)
    world.service("near", ports=ports, trafficDistribution="PreferSameNode")
    world.service("local", ports=ports, type="NodePort", externalTrafficPolicy="Local")
    world.service("alone", ports=ports, selector=None)
    found = set()
    for name, address in ADDRESSES.items():
        for _ in range(2):  # worked out, and kept
            expected = snapshot.expected(name, address)
            pushed = snapshot.read_delta(name, address, None, with_base=True)
            assert expected == (pushed.revision, digest(pushed.owners), pushed.node_revision)
        found.add(expected.digest)
    assert len(found) == 2, "each node has endpoints of its own"
