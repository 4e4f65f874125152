"""`timonel explain`."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from services_app.spec import kinds
from tests.store.conftest import World
from tests.web.sample import add_node

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def service(transactional_db, fresh_snapshots):
    world = World()
    world.namespace_exists()
    add_node("n1", "192.0.2.11")
    add_node("n2", "192.0.2.12")
    world.pod("p1", ip="192.0.2.11", node="n1", app="web")
    world.pod("p2", ip="192.0.2.12", node="n2", app="web")
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return world.service("web", selector={"app": "web"}, type="NodePort", externalTrafficPolicy="Local", ports=ports)


def explained(*arguments: str) -> list[str]:
    said = StringIO()
    call_command("explain", *arguments, stdout=said)
    return said.getvalue().splitlines()


def test_each_node_says_where_its_connections_go(service):
    address = service["spec"]["clusterIP"]
    lines = explained("shop/web:80")
    assert lines[0] == f"n1: 192.0.2.11 -> {address} tcp 80: delivered to one of 2"
    assert lines[1:3] == ["  192.0.2.11 8080  sees the client", "  192.0.2.12 8080  sees the client"]
    assert lines[3].startswith(f"  | frontends {address} . tcp . 80 -> 0x")
    assert lines[3].endswith("  (shop/web)")
    assert [line for line in lines if line.startswith("n")][1].startswith("n2: 192.0.2.12 -> ")


def test_a_client_outside_stays_on_the_node(service):
    port = service["spec"]["ports"][0]["nodePort"]
    lines = explained(f"192.0.2.11:{port}", "--from", "203.0.113.9", "--node", "n1")
    assert lines[:2] == [f"n1: 203.0.113.9 -> 192.0.2.11 tcp {port}: delivered", "  192.0.2.11 8080  sees the client"]


def test_what_nobody_answers(service):
    assert explained("shop/web:81", "--node", "n1")[0].endswith("tcp 81: refused")
    assert explained("198.51.100.1:80", "--node", "n1")[0].endswith("untouched")
    assert explained("[fd00::1]:80", "--node", "n1") == ["n1: has no address of the family of fd00::1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shop/web"], "it ends with :PORT"),
        (["shop/none:80"], 'services "none" not found'),
        (["nowhere:80"], "'nowhere': not an IP address"),
        (["10.96.0.1:80", "--from", "x"], "--from 'x': not an IP address"),
        (["10.96.0.1:80", "--from", "::1"], "another address family"),
        (["10.96.0.1:80", "--node", "n9"], "no enrolled node 'n9'"),
    ],
)
def test_what_cannot_be_asked_is_told(service, arguments, words):
    with pytest.raises(CommandError) as told:
        explained(*arguments)
    assert words in str(told.value)


def test_shares_are_told_where_they_differ(service):
    def change(pod):
        return {**pod, "metadata": {**pod["metadata"], "annotations": {"timonel.io/weight": "25"}}}

    World().update(kinds.POD, "p2", change)
    lines = explained("shop/web:80", "--node", "n1")
    assert lines[0].endswith("delivered to one of 2")
    assert [line.partition("client")[2] for line in lines[1:3]] == [", 80.0% of connections", ", 20.0% of connections"]
