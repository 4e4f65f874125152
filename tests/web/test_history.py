"""The page of the history: what it shows, to whom, and how it is searched."""

import json
import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from services_app import audit, changes, store
from services_app.models import AuditEntry, Grant
from services_app.spec import kinds
from services_app.web.history import PER_PAGE
from tests.web import sample

ANA, EVA = store.Actor("ana", "request-1"), store.Actor("eva", "request-2")


@pytest.fixture
def past(db):
    """Some history in two namespaces."""
    store.bootstrap()
    sample.add_service("shop", "web")
    sample.add_service("other", "api")

    def change(document):
        document["metadata"]["labels"] = {"tier": "gold"}
        return document

    store.update(kinds.SERVICE, "shop", "web", change, actor=EVA)
    secret = {"metadata": {"name": "key"}, "stringData": {"password": "correct horse"}}
    store.create(kinds.SECRET, secret, namespace="shop", actor=ANA)
    audit.refused("services", "web", "services is forbidden: no", user="dev", request_id="request-3", namespace="shop")
    audit.record("ADDED", "grants", "edit for user dev in shop", namespace="shop", user="ana", request_id="request-4")


def rows(client, **query):
    answer = client.get("/ui/history/", query)
    assert answer.status_code == 200
    return [(row.entry.user, row.verb, row.object) for row in answer.context["rows"]]


def browser(role=None, namespace=""):
    user = get_user_model().objects.create_user(f"{role}-{namespace}")
    if role:
        Grant.objects.create(role=role, namespace=namespace, user=user)
    client = Client()
    client.force_login(user)
    return client


def test_a_change_is_shown_with_its_difference_before_and_after_it_leaves_the_log(page, past):
    for _ in range(2):
        body = unescape(page.get("/ui/history/", {"request": "request-2"}).content.decode())
        assert "metadata.labels" in body
        assert "tier: gold" in body
        changes.compact(keep=timedelta(0))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"request": "request-2", "kind": "services"}, [("eva", "changed", "services/shop/web")]),
        ({"user": "dev"}, [("dev", "was refused", "services/shop/web")]),
        ({"verb": "REFUSED"}, [("dev", "was refused", "services/shop/web")]),
        (
            {"kind": "services", "namespace": "shop", "name": "web", "user": "eva"},
            [("eva", "changed", "services/shop/web")],
        ),
        ({"kind": "secrets"}, [("ana", "created", "secrets/shop/key")]),
        ({"kind": "grants"}, [("ana", "created", "grants/shop/edit for user dev in shop")]),
        ({"namespace": "nowhere"}, []),
        ({"since": "2999-01-01"}, []),
        ({"until": "2001-01-01 10:00"}, []),
        ({"name": "a\x00b"}, []),
        ({"before": "x.y", "request": "request-2", "kind": "services"}, [("eva", "changed", "services/shop/web")]),
    ],
)
def test_it_is_searched(administrator, past, query, expected):
    assert rows(administrator, **query) == expected


def test_a_moment_that_is_none_is_told(administrator, past):
    body = unescape(administrator.get("/ui/history/", {"since": "yesterday"}).content.decode())
    assert "Since 'yesterday' is no moment" in body


def test_the_values_of_a_secret_are_on_no_page(administrator, past):
    body = administrator.get("/ui/history/", {"kind": "secrets"}).content.decode()
    assert "values are sealed" in body
    assert "correct horse" not in body
    sealed = json.loads(AuditEntry.objects.get(kind="secrets").document)["sealed"]
    assert sealed not in body


@pytest.mark.parametrize(
    ("role", "namespace", "kinds_seen"),
    [
        (None, "", set()),
        ("view", "shop", {"services"}),
        ("edit", "shop", {"services", "secrets"}),
        ("admin", "shop", {"services", "secrets", "grants"}),
        ("view", "other", {"services"}),
    ],
)
def test_who_sees_what_is_who_may_list_it(past, role, namespace, kinds_seen):
    seen = browser(role, namespace).get("/ui/history/").context["rows"]
    assert {row.entry.namespace for row in seen} <= {namespace}
    found = {row.entry.kind for row in seen} - {"endpoints", "endpointslices", "events"}
    assert found == kinds_seen


def test_cluster_wide_records_are_for_those_who_see_everything(past):
    sample.add_node("node-1", "192.0.2.1")
    assert rows(browser("view"), kind="nodes")
    assert rows(browser("view", "shop"), kind="nodes") == []
    audit.record("MODIFIED", "users", "ana", user="root", request_id="r")
    assert rows(browser("edit"), kind="users") == []
    assert len(rows(browser("admin"), kind="users")) == 1


def test_older_pages_follow_without_a_gap_or_a_repetition(administrator, past):
    for number in range(PER_PAGE + 10):
        audit.record("ADDED", "grants", f"g-{number}", user="root", request_id="many")
    changes.compact(keep=timedelta(0))
    path, seen = "/ui/history/", []
    while path:
        answer = administrator.get(path)
        seen += [row.entry.pk for row in answer.context["rows"]]
        found = re.search(r'href="(\?[^"]*before=[^"]*)"', answer.content.decode())
        path = f"/ui/history/{unescape(found.group(1))}" if found else ""
    assert seen == [*AuditEntry.objects.values_list("pk", flat=True)]
    assert len(seen) > PER_PAGE + 10
    assert len(set(seen)) == len(seen)


def test_a_moment_is_utc_and_ends_are_left_out(administrator, past):
    at = AuditEntry.objects.get(request_id="request-2", kind="services").at
    assert rows(administrator, request="request-2", since=at.isoformat()) != []
    assert rows(administrator, request="request-2", until=at.isoformat()) == []
    later = (timezone.now() + timedelta(minutes=1)).strftime("%Y-%m-%d %H:%M:%S")
    assert rows(administrator, request="request-2", until=later) != []
