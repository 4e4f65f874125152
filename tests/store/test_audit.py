"""What an auditor finds: every write for as long as it is kept, never a Secret's value."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from services_app import audit, changes, models
from services_app.models import AuditEntry, AuditRecord, Change
from services_app.push import tasks
from services_app.spec import kinds
from services_app.store.deletion import delete, finish_namespace
from services_app.store.objects import Actor, create, update

ANA = Actor("ana", "request-1")
EVA = Actor("eva", "request-2")


def history():
    """Service, write, who, request, what its port was and is; the oldest first."""
    found = []
    for row in AuditEntry.objects.filter(kind="services", namespace="shop").order_by("revision"):
        port = [json.loads(text)["spec"]["ports"][0]["port"] if text else None for text in (row.previous, row.document)]
        found.append((row.verb, row.user, row.request_id, *port))
    return found


@pytest.fixture
def written(committed_world):
    """A Service that one makes, another changes and deletes."""
    service = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    create(kinds.SERVICE, service, namespace="shop", actor=ANA)

    def change(document):
        document["spec"]["ports"][0]["port"] = 81
        return document

    update(kinds.SERVICE, "shop", "web", change, actor=EVA)
    delete(kinds.SERVICE, "shop", "web", actor=EVA)
    return committed_world


EXPECTED = [
    ("ADDED", "ana", "request-1", None, 80),
    ("MODIFIED", "eva", "request-2", 80, 81),
    ("DELETED", "eva", "request-2", 81, 81),
]


def test_a_write_is_found_before_and_after_it_leaves_the_log(written):
    assert history() == EXPECTED
    before = [*AuditEntry.objects.order_by("revision").values()]
    changes.compact(keep=timedelta(0))
    assert not Change.objects.exists()
    assert history() == EXPECTED
    assert [*AuditEntry.objects.order_by("revision").values()] == before, "the same records by the same ids"


def test_what_is_newer_than_the_log_keeps_stays_in_it(written):
    Change.objects.filter(verb="ADDED").update(at=timezone.now() - timedelta(hours=2))
    gone = Change.objects.filter(verb="ADDED").order_by("revision").last().revision
    changes.compact()
    assert Change.objects.order_by("revision").first().revision == gone + 1
    assert history() == EXPECTED


def test_records_are_dropped_when_their_time_is_over(written, settings):
    changes.compact(keep=timedelta(0))
    settings.TIMONEL_AUDIT_KEPT = timedelta(days=7)
    AuditRecord.objects.filter(verb="ADDED").update(at=timezone.now() - timedelta(days=8))
    tasks.compact()
    assert history() == EXPECTED[1:]


def test_dropping_goes_on_until_nothing_old_is_left(written, monkeypatch):
    monkeypatch.setattr(audit, "DROPPED_AT_ONCE", 2)
    changes.compact(keep=timedelta(0))
    count = AuditRecord.objects.count()
    assert count > 2
    assert audit.drop_old(keep=timedelta(0)) == count
    assert not AuditRecord.objects.exists()


def test_the_value_of_a_secret_is_in_no_record(committed_world):
    secret = {"metadata": {"name": "key"}, "stringData": {"password": "correct horse"}}
    create(kinds.SECRET, secret, namespace="shop", actor=ANA)
    changes.compact(keep=timedelta(0))
    delete(kinds.SECRET, "shop", "key", actor=ANA)
    told = exported()
    assert [(line["kind"], line["verb"]) for line in told if line["kind"] == "secrets"] == [
        ("secrets", "ADDED"),
        ("secrets", "DELETED"),
    ]
    assert "correct horse" not in json.dumps(told)
    assert "Y29ycmVjdCBob3JzZQ" not in json.dumps(told)


def exported(*options):
    out = StringIO()
    call_command("audit", "export", *options, stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_export_has_who_when_what_before_and_after(written):
    changes.compact(keep=timedelta(0))
    audit.refused("services", "web", "no", user="dev", request_id="request-3", namespace="shop")
    added, changed, deleted, refused = exported("--kind", "services", "--namespace", "shop")
    assert (changed["user"], changed["requestId"], changed["verb"]) == ("eva", "request-2", "MODIFIED")
    assert changed["before"]["spec"]["ports"][0]["port"] == 80
    assert changed["after"]["spec"]["ports"][0]["port"] == 81
    assert added["before"] is None
    assert deleted["at"] >= added["at"]
    assert (refused["verb"], refused["message"], refused["after"]) == ("REFUSED", "no", None)
    assert refused["revision"] == changes.head(), "it is told after what was written before it"


def test_an_export_is_narrowed(written):
    now = timezone.now()
    assert [line["verb"] for line in exported("--user", "eva", "--kind", "services")] == ["MODIFIED", "DELETED"]
    assert [line["verb"] for line in exported("--request-id", "request-1", "--kind", "services")] == ["ADDED"]
    assert exported("--until", (now - timedelta(days=1)).isoformat()) == []
    assert exported("--since", (now + timedelta(days=1)).isoformat()) == []
    with pytest.raises(CommandError, match="'yesterday' is no moment"):
        exported("--since", "yesterday")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "abc"}, "abc"),
        ({"Audit-ID": "first", "X-Request-Id": "second"}, "first"),
        ({"X-Request-Id": "x" * 5000}, "x" * 128),
        ({"X-Request-Id": "a\x00b\n"}, "ab"),
    ],
)
def test_a_request_is_known_by_the_id_it_brings(headers, expected):
    assert audit.request_id(headers) == expected


def test_a_request_without_an_id_gets_one():
    assert len(audit.request_id({})) == 36
    assert audit.request_id({}) != audit.request_id({"X-Request-Id": "\n"})


def test_grants_go_with_their_namespace(committed_world):
    for namespace in ("shop", "other"):
        models.Grant.objects.create(role="view", everyone=True, namespace=namespace)
    delete(kinds.NAMESPACE, "", "shop", actor=ANA)
    if models.Namespace.objects.filter(name="shop").exists():
        assert finish_namespace("shop", actor=ANA, at_most=100)
    assert [grant.namespace for grant in models.Grant.objects.all()] == ["other"]
    (record,) = AuditRecord.objects.filter(kind="grants")
    assert (record.verb, record.namespace, record.user) == ("DELETED", "shop", "ana")
