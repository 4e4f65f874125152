"""The pages of nodes: the list, one node, and what a person may do to one."""

import json
import re

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from services_app import store
from services_app.models import ApiToken, Event, Grant, Node, NodeAccess, NodeOperation, NodeSync
from services_app.plan.endpoints import ZONE
from services_app.push import enroll
from services_app.push.errors import HostKeyChanged, NodeError
from services_app.push.keys import fingerprint, from_line
from services_app.spec import kinds
from services_app.web.nodes import PER_PAGE
from tests.web import sample
from tests.web.conftest import PASSWORD

OLD_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
NEW_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def operator(db) -> Client:
    """A logged-in person who may change nodes."""
    store.bootstrap()
    client = Client()
    user = get_user_model().objects.create_user("olga", password=PASSWORD)
    Grant.objects.create(role="admin", user=user)
    client.force_login(user)
    return client


def label(name: str, **labels: str) -> None:
    def change(document):
        document["metadata"].setdefault("labels", {}).update(labels)
        return document

    store.update(kinds.NODE, "", name, change, actor=sample.ACTOR)


def text_of(answer) -> str:
    return re.sub(r"\s+", " ", answer.content.decode())


# The list


def test_the_list_shows_state_address_login_zone_and_lag(page):
    sample.add_node("node-1", "192.0.2.1")
    label("node-1", **{ZONE: "lyon"})
    sample.add_service("shop", "web")
    body = text_of(page.get("/ui/nodes/"))
    for words in ("node-1", "192.0.2.1", "root@192.0.2.1", "lyon", "behind by ", "11.4 ms", "0.1.0"):
        assert words in body, words


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"q": "node-2"}, ["node-2"]),
        ({"q": "198.51"}, ["node-2"]),
        ({"q": "refused"}, ["node-2"]),
        ({"state": "Live"}, ["node-1"]),
        ({"state": "NotEnrolled"}, ["node-3"]),
        ({"zone": "lyon"}, ["node-1"]),
        ({"zone": "lyon", "state": "Unreachable"}, []),
        ({}, ["node-2", "node-3", "node-1"]),
    ],
    ids=str,
)
def test_filters_narrow_the_list(page, query, names):
    sample.add_node("node-1", "192.0.2.1")
    label("node-1", **{ZONE: "lyon"})
    sample.add_node("node-2", "198.51.100.2", state="Unreachable", reason="ConnectionRefused")
    sample.add_api_node("node-3", "192.0.2.3")
    sample.catch_up()
    answer = page.get("/ui/nodes/", query)
    assert [row.report.name for row in answer.context["nodes"].page] == names
    if not names:
        assert "No node matches" in text_of(answer)


def test_the_list_has_pages_and_a_constant_number_of_queries(page):
    def queries() -> int:
        with CaptureQueriesContext(connection) as caught:
            assert page.get("/ui/nodes/").status_code == 200
        return len(caught)

    sample.add_node("node-0", "192.0.2.200")
    few = queries()
    for number in range(1, PER_PAGE + 2):
        sample.add_node(f"node-{number}", f"192.0.2.{number}")
    assert queries() == few
    assert len(page.get("/ui/nodes/").context["nodes"].page) == PER_PAGE
    assert len(page.get("/ui/nodes/", {"page": 2}).context["nodes"].page) == 2
    fragment = page.get("/ui/nodes/", headers={"HX-Request": "true", "HX-Target": "nodes"}).content.decode()
    assert fragment.lstrip().startswith('<section id="nodes"')


# One node


def test_a_node_shows_its_reason_with_the_remedy_its_facts_and_what_it_lacks(page):
    sample.add_node(
        "node-1",
        "192.0.2.1",
        state="Failed",
        reason="NftMissing",
        message="cannot read the kernel's table",
        problems=[{"reason": "UnboundMissing", "message": "unbound is not installed"}],
        rejected={"shop/odd": {"reason": "InvalidResource", "message": HOSTILE}},
        facts={"kernel": "6.1.0-18", "os": "Debian GNU/Linux 12"},
    )
    label("node-1", **{ZONE: "lyon", "example.org/rack": "7"})
    sample.add_service("shop", "web")
    sample.add_service("shop", "odd")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    answer = page.get("/ui/nodes/node-1/")
    body = text_of(answer)
    for words in (
        "NftMissing", "cannot read the kernel", "Install the package nftables", "UnboundMissing",
        "Install the package unbound", "6.1.0-18", "Debian GNU/Linux 12", "lyon", "example.org/rack=7", "shop/web-1",
        "InvalidResource", "root@192.0.2.1", "&lt;script&gt;",
    ):  # fmt: skip
        assert words in body, words
    assert HOSTILE not in body
    assert [service.name for service in answer.context["node"].behind] == ["web", "odd"]


def test_a_node_that_is_nobodys_is_not_found_and_a_fragment_says_it_was_removed(page):
    assert page.get("/ui/nodes/nowhere/").status_code == 404
    assert page.get("/ui/nodes/no%00where/").status_code == 404
    gone = page.get("/ui/nodes/nowhere/", headers={"HX-Request": "true", "HX-Target": "node"})
    assert "This node was removed" in text_of(gone)


def test_a_node_of_the_api_alone_may_be_enrolled(operator):
    sample.add_api_node("node-9", "192.0.2.9")
    body = text_of(operator.get("/ui/nodes/node-9/"))
    assert "Not enrolled" in body
    form = text_of(operator.get("/ui/enrolment/?node=node-9"))
    assert 'value="node-9"' in form
    assert 'value="192.0.2.9"' in form


def test_a_node_is_read_with_a_constant_number_of_queries(page):
    sample.add_node("node-1", "192.0.2.1")

    def queries() -> int:
        with CaptureQueriesContext(connection) as caught:
            assert page.get("/ui/nodes/node-1/").status_code == 200
        return len(caught)

    few = queries()
    for number in range(30):
        sample.add_service("shop", f"web-{number}")
        sample.add_pod("shop", f"web-{number}", app=f"web-{number}", ip=f"10.1.0.{number}")
    assert queries() == few


# Rights


ACTIONS = [
    ("get", "/ui/enrolment/"),
    ("post", "/ui/enrolment/"),
    ("post", "/ui/enrolment/run/"),
    ("post", "/ui/nodes/node-1/push/"),
    ("get", "/ui/nodes/node-1/host-key/"),
    ("post", "/ui/nodes/node-1/host-key/"),
    ("get", "/ui/nodes/node-1/remove/"),
    ("post", "/ui/nodes/node-1/remove/"),
]


@pytest.mark.parametrize(("method", "path"), ACTIONS, ids=[" ".join(action) for action in ACTIONS])
def test_only_who_may_change_nodes_gets_to_an_action(page, client, method, path):
    sample.add_node("node-1", "192.0.2.1")
    refused = getattr(page, method)(path, {"forget": "yes"} if method == "post" else {})
    assert refused.status_code == 403
    assert "may look at nodes, not change them" in text_of(refused)
    stranger = getattr(client, method)(path)
    assert stranger.status_code == 302
    assert stranger["Location"].startswith("/ui/login/")
    assert NodeAccess.objects.filter(node="node-1").exists()
    assert not NodeOperation.objects.exists()


def test_who_may_not_sees_no_buttons(page, operator):
    sample.add_node("node-1", "192.0.2.1")
    assert "Remove" not in text_of(page.get("/ui/nodes/node-1/"))
    assert "Remove" in text_of(operator.get("/ui/nodes/node-1/"))
    assert "Enrol a node" not in text_of(page.get("/ui/nodes/"))


def test_forms_are_protected_against_forgery(db):
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.create_user("eva", is_staff=True))
    assert client.post("/ui/nodes/node-1/push/").status_code == 403


# Actions


def test_push_everything_asks_for_a_full_push_and_is_recorded(operator):
    sample.add_node("node-1", "192.0.2.1", full_wanted=False, failures=3)
    answer = operator.post("/ui/nodes/node-1/push/", follow=True)
    assert "node-1 gets everything with the next push" in text_of(answer)
    sync = NodeSync.objects.get()
    assert (sync.full_wanted, sync.failures) == (True, 0)
    event = json.loads(Event.objects.get(involved_name="node-1").document)
    assert (event["reason"], event["message"]) == ("PushedAgain", "olga asked for a push of everything")
    operation = NodeOperation.objects.get()
    assert (operation.verb, operation.by, operation.state) == ("PushAgain", "olga", "Done")
    assert "PushedAgain" in text_of(answer)
    assert operator.post("/ui/nodes/nowhere/push/", follow=True).status_code == 404


@pytest.fixture
def quarantined(operator, monkeypatch):
    """A node that shows another host key than the confirmed one."""
    sample.add_node("node-1", "192.0.2.1", state="Quarantined", reason="HostKeyChanged", message="another key")
    NodeAccess.objects.update(host_key=OLD_KEY)
    shown = {"line": NEW_KEY}
    monkeypatch.setattr(enroll.ssh, "host_key", lambda *_: from_line(shown["line"]))
    return shown


def test_a_changed_host_key_is_shown_beside_the_confirmed_one_and_confirmed(operator, quarantined):
    assert "Compare the host keys" in text_of(operator.get("/ui/nodes/node-1/"))
    old, new = fingerprint(from_line(OLD_KEY)), fingerprint(from_line(NEW_KEY))
    body = text_of(operator.get("/ui/nodes/node-1/host-key/"))
    assert old in body
    assert new in body
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in body
    answer = operator.post("/ui/nodes/node-1/host-key/", {"fingerprint": new}, follow=True)
    assert "The host key of node-1 is confirmed" in text_of(answer)
    assert NodeAccess.objects.get().host_key == NEW_KEY
    sync = NodeSync.objects.get()
    assert (sync.state, sync.full_wanted) == ("Pending", True)
    assert (
        json.loads(Event.objects.get(involved_name="node-1").document)["message"]
        == f"olga confirmed the host key {new}"
    )


def test_a_key_that_changed_again_meanwhile_is_not_confirmed(operator, quarantined):
    new = fingerprint(from_line(NEW_KEY))
    quarantined["line"] = OLD_KEY
    answer = operator.post("/ui/nodes/node-1/host-key/", {"fingerprint": new})
    assert "HostKeyNotConfirmed" in text_of(answer)
    assert NodeAccess.objects.get().host_key == OLD_KEY
    assert NodeSync.objects.get().state == "Quarantined"
    assert NodeOperation.objects.get().reason == "HostKeyNotConfirmed"


def test_a_host_that_does_not_answer_says_why_its_key_is_not_shown(operator, quarantined, monkeypatch):
    def refuse(*_):
        raise NodeError("ConnectionRefused", "node-1 refuses the connection")

    monkeypatch.setattr(enroll.ssh, "host_key", refuse)
    body = text_of(operator.get("/ui/nodes/node-1/host-key/"))
    assert "ConnectionRefused" in body
    assert "Start sshd on the host" in body


def test_removal_states_first_what_it_will_undo(operator):
    sample.add_node("node-1", "192.0.2.1")
    NodeAccess.objects.update(user="operator")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    body = text_of(operator.get("/ui/nodes/node-1/remove/"))
    for words in ("nftables", "169.254.20.10", "/etc/sudoers.d/timonel of operator", "~operator/.ssh/authorized_keys",
                  "1 Pod of node-1 stays", "operator@192.0.2.1"):  # fmt: skip
        assert words in body, words
    assert NodeAccess.objects.exists()


def test_forgetting_drops_the_records_and_says_what_stays(operator):
    sample.add_node("node-1", "192.0.2.1")
    answer = operator.post("/ui/nodes/node-1/remove/", {"forget": "yes"}, follow=True)
    assert "node-1 is forgotten. Its host was not cleaned up" in text_of(answer)
    assert not NodeAccess.objects.exists()
    assert not Node.objects.exists()
    assert json.loads(Event.objects.get().document)["reason"] == "Forgotten"


def test_a_node_of_the_api_alone_is_deleted(operator):
    sample.add_api_node("node-9", "192.0.2.9")
    assert "only the Node object is deleted" in text_of(operator.get("/ui/nodes/node-9/remove/"))
    operator.post("/ui/nodes/node-9/remove/", {"forget": "yes"})
    assert not Node.objects.exists()


def test_one_thing_at_a_time_is_done_to_a_node(operator):
    sample.add_node("node-1", "192.0.2.1")
    NodeOperation.objects.create(node="node-1", verb="Remove", by="eva")
    body = text_of(operator.post("/ui/nodes/node-1/remove/", {"forget": "yes"}))
    assert "OperationRunning" in body
    assert "eva began the removal of node-1 already" in body
    assert NodeAccess.objects.exists()


def test_a_changed_key_has_a_remedy():
    assert "confirm-key" in HostKeyChanged("node-1", "SHA256:a", "SHA256:b").message


def test_tokens_do_not_log_in_to_pages(client, db):
    user = get_user_model().objects.create_user("robot", is_staff=True)
    plain = ApiToken.issue(user, "robot")
    assert client.get("/ui/nodes/", headers={"Authorization": f"Bearer {plain}"}).status_code == 302
