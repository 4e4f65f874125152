"""Requests that are bent on the way: methods, media types, sizes and bodies that no client of Kubernetes should send."""

import json

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from services_app import store
from services_app.api import dispatch
from services_app.models import ApiToken
from services_app.spec import kinds

ROOT = "/api/v1/namespaces/default"
MAPS = f"{ROOT}/configmaps"
JSON, YAML = "application/json", "application/yaml"
MIB = 1024 * 1024


@pytest.fixture
def ask(db):
    store.bootstrap()
    user = get_user_model().objects.create(username="root", is_superuser=True)
    header = f"Bearer {ApiToken.issue(user, 'edges')}"
    store.create(kinds.CONFIG_MAP, {"metadata": {"name": "here"}}, namespace="default", actor=store.Actor("tester"))

    def send(method, path, body=b"", content_type=JSON, **headers):
        return Client(raise_request_exception=False).generic(
            method, path, body, content_type=content_type, headers={"Authorization": header, **headers}, secure=True
        )

    return send


def status_of(answer):
    """The Status of a failure; all its parts must agree."""
    status = json.loads(answer.content)
    assert answer["Content-Type"] == JSON
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert (status["code"], status["metadata"]) == (answer.status_code, {})
    return status


NOT_ALLOWED = "the server does not allow this method on the requested resource"
NOT_FOUND = "the server could not find the requested resource"


@pytest.mark.parametrize(
    ("method", "path", "code", "reason", "message"),
    [
        ("PUT", MAPS, 405, "MethodNotAllowed", NOT_ALLOWED),
        ("PATCH", MAPS, 405, "MethodNotAllowed", NOT_ALLOWED),
        ("POST", f"{MAPS}/here", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("POST", "/api/v1/configmaps", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("DELETE", "/api/v1/namespaces", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("DELETE", f"{ROOT}/services/web/status", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("OPTIONS", MAPS, 405, "MethodNotAllowed", NOT_ALLOWED),
        ("TRACE", MAPS, 405, "MethodNotAllowed", NOT_ALLOWED),
        ("PROPFIND", MAPS, 405, "MethodNotAllowed", NOT_ALLOWED),
        ("OPTIONS", "/api/v1", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("POST", "/apis", 405, "MethodNotAllowed", NOT_ALLOWED),
        ("GET", "/api/v1/nothings", 404, "NotFound", NOT_FOUND),
        ("GET", "/apis/nothing.example.org/v1/things", 404, "NotFound", NOT_FOUND),
        ("GET", f"{MAPS}/here/status", 404, "NotFound", NOT_FOUND),
        ("GET", f"{ROOT}/nodes", 404, "NotFound", NOT_FOUND),
        ("GET", "/api/v1/configmaps/here", 404, "NotFound", NOT_FOUND),
        ("GET", f"{MAPS}/there", 404, "NotFound", 'configmaps "there" not found'),
        ("GET", f"{MAPS}/a%00b", 404, "NotFound", None),
        ("GET", f"{MAPS}/%ff%fe", 404, "NotFound", None),
        ("GET", f"{MAPS}?labelSelector=a%00", 400, "BadRequest", None),
        ("GET", f"{MAPS}?limit=many", 400, "BadRequest", None),
        ("GET", f"{MAPS}?resourceVersion=x", 400, "BadRequest", None),
        ("GET", f"{MAPS}?continue=x", 400, "BadRequest", None),
    ],
)
def test_a_path_or_method_that_is_not_served(ask, method, path, code, reason, message):
    status = status_of(ask(method, path, b"{}" if method in ("PUT", "PATCH", "POST") else b""))
    assert (status["code"], status["reason"]) == (code, reason)
    assert message is None or status["message"] == message


def test_head_is_no_method_of_objects_and_health_answers_it(ask):
    for path in (MAPS, f"{MAPS}/here", "/api", "/api/v1"):
        assert ask("HEAD", path).status_code == 405, path
    for path in ("/healthz", "/livez", "/readyz", "/version"):
        assert ask("HEAD", path).status_code == 200, path


@pytest.mark.parametrize(
    "query", ["nothing=1", "pretty=true", "limit=", "dryRunn=All", "timeout=30s", "%00=%ff", "a;b"]
)
def test_unknown_options_are_no_fault(ask, query):
    assert ask("GET", f"{MAPS}?{query}").status_code == 200
    named = json.dumps({"metadata": {"name": "new"}}).encode()
    assert ask("POST", f"{MAPS}?{query}", named).status_code == 201


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("text/html", 406),
        ("application/xml, text/plain;q=0.5", 406),
        ("application/vnd.kubernetes.protobuf", 406),
        ("application/json;as=Nothing;g=meta.k8s.io;v=v1", 406),
        ("application/vnd.kubernetes.protobuf, application/json", 200),
        ("*/*", 200),
        ("application/*", 406),
        ("text/html, application/yaml;q=0.1, application/json;q=0.9", 200),
        ("", 200),
    ],
)
def test_what_can_be_accepted(ask, accept, code):
    answer = ask("GET", f"{MAPS}/here", Accept=accept)
    assert answer.status_code == code
    if code == 200:
        assert answer["Content-Type"] == JSON
    if code == 406:
        status = status_of(answer)
        assert status["reason"] == "NotAcceptable"
        assert status["message"].startswith("only the following media types are accepted: application/json")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_in_another_form_is_told_which_forms_there_are(ask, content_type):
    status = status_of(ask("POST", MAPS, b"a=b", content_type))
    assert (status["code"], status["reason"]) == (415, "UnsupportedMediaType")
    assert "accepted media types include: application/json" in status["message"]
    status = status_of(ask("PATCH", f"{MAPS}/here", b"{}", content_type))
    assert (status["code"], status["reason"]) == (415, "UnsupportedMediaType")
    assert "application/strategic-merge-patch+json" in status["message"]


DEEP = b'{"metadata":{"name":"deep","annotations":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_002
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b"[]", JSON),
        (b"null", JSON),
        (b'"text"', JSON),
        (b"NaN", JSON),
        (b'{"metadata": {"name": "a"}} {}', JSON),
        (b'{"metadata": {"name": "a"},}', JSON),
        (b"{'metadata': {}}", JSON),
        (b'{"metadata": {"name": "a\nb"}}', JSON),
        (b'{"metadata": {"name": 1}}', JSON),
        (b'{"metadata": []}', JSON),
        (b'{"data": {"a": 1}}', JSON),
        (b'{"apiVersion": "v1", "kind": "Secret"}', JSON),
        (b'{"apiVersion": "v2", "kind": "ConfigMap"}', JSON),
        (b'{"apiVersion": 1}', JSON),
        (b"\x00", JSON),
        (b"\xff\xfe{}", JSON),
        (DEEP, JSON),
        (b"[" * 100_000, JSON),
        (b'{"metadata": {"generation": 1' + b"0" * 400 + b"}}", JSON),
        (b"a: [", YAML),
        (b"a: *nowhere", YAML),
        (b"- a\n- b", YAML),
        (b"\tmetadata: {}", YAML),
        (b"metadata: {name: a}\n---\nmetadata: {name: b}", YAML),
        (b"!!python/object/apply:os.system ['true']", YAML),
        (b"metadata: \x00", YAML),
        (b"\xff\xff", YAML),
        (b"{" * 20_000, YAML),
        (LAUGHS.encode(), YAML),
        (b"? {a: b}\n: c", YAML),
    ],
    ids=lambda value: repr(value[:36]) if isinstance(value, bytes) else value.rpartition("/")[2],
)
def test_a_body_that_cannot_be_read_is_a_bad_request(ask, body, content_type):
    status = status_of(ask("POST", MAPS, body, content_type))
    assert (status["code"], status["reason"]) == (400, "BadRequest")
    assert 0 < len(status["message"]) < 2000


PATCHES = ["application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml"]


@pytest.mark.parametrize("content_type", PATCHES)
@pytest.mark.parametrize("body", [b" ", b"{", b"\x00", b"\xff", b"1", b'"a"', b"[" * 100_000, b'[{"op": "dance"}]'])
def test_a_patch_that_cannot_be_read_is_the_callers_fault(ask, body, content_type):
    answer = ask("PATCH", f"{MAPS}/here?fieldManager=m", body, content_type)
    assert answer.status_code in (400, 422), answer.content
    status_of(answer)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"\\u0001\\u00e9", "\u0001é"),
        (b"a\\u0000b", "a\0b"),
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
        (b"a\\ud800b", "a\N{REPLACEMENT CHARACTER}b"),
        (b"\\ud83d\\ude00", "\U0001f600"),
    ],
)
def test_text_is_taken_as_go_takes_it(ask, value, stored):
    answer = ask("POST", MAPS, b' \n{"metadata": {"name": "a"}, "data": {"k": "' + value + b'"}} ')
    assert answer.status_code == 201
    assert json.loads(answer.content)["data"]["k"] == stored
    assert json.loads(ask("GET", f"{MAPS}/a").content)["data"]["k"] == stored


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_json_in_another_encoding_is_none(ask, encoding):
    status = status_of(ask("POST", MAPS, '{"metadata": {"name": "a"}}'.encode(encoding)))
    assert (status["code"], status["reason"]) == (400, "BadRequest")


def test_three_mebibytes_are_read_and_not_a_byte_more(ask):
    def sized(count):
        head, tail = b'{"metadata": {"name": "big"}, "data": {"k": "', b'"}}'
        return head + b"x" * (count - len(head) - len(tail)) + tail

    assert status_of(ask("POST", MAPS, sized(3 * MIB)))["code"] == 422, "read, and too long for a ConfigMap"
    for method, path in (
        ("POST", MAPS),
        ("PUT", f"{MAPS}/here"),
        ("DELETE", f"{MAPS}/here"),
        ("PATCH", f"{MAPS}/here"),
    ):
        content_type = "application/merge-patch+json" if method == "PATCH" else JSON
        status = status_of(ask(method, path, sized(3 * MIB + 1), content_type))
        assert (status["code"], status["reason"]) == (413, "RequestEntityTooLarge"), method
        assert status["message"] == "Request entity too large: limit is 3145728"


TWICE = b'{"metadata": {"name": "a", "name": "b"}, "data": {"x": "1", "x": "2"}, "nothing": 1}'


@pytest.mark.parametrize(
    ("mode", "code", "warnings"), [("Strict", 400, 0), ("Warn", 201, 2), ("", 201, 2), ("Ignore", 201, 0)]
)
def test_fields_twice_and_unknown_are_told_as_is_asked(ask, mode, code, warnings):
    answer = ask("POST", f"{MAPS}?fieldValidation={mode}", TWICE)
    assert answer.status_code == code
    told = answer.headers.get("Warning", "")
    assert told.count("299 - ") >= warnings
    assert bool(told) is bool(warnings)
    if code == 201:
        made = json.loads(answer.content)
        assert (made["metadata"]["name"], made["data"]) == ("b", {"x": "2"}), "the last one counts"
    else:
        message = json.loads(answer.content)["message"]
        assert 'duplicate field "metadata.name"' in message
        assert 'unknown field "nothing"' in message


def test_a_mode_of_validation_that_is_none_is_refused(ask):
    status = status_of(ask("POST", f"{MAPS}?fieldValidation=Maybe", TWICE))
    assert status["code"] == 422
    assert "fieldValidation" in status["message"]


def test_a_query_in_no_encoding_is_read_all_the_same():
    assert dispatch._asks({"query_string": b"watch=1&labelSelector=\xff"})
    assert not dispatch._asks({"query_string": b"\xff\xfewatch"})


def test_answers_are_indented_for_people_who_ask(ask):
    plain = ask("GET", f"{MAPS}/here")
    pretty = ask("GET", f"{MAPS}/here?pretty=true")
    assert json.loads(pretty.content) == json.loads(plain.content)
    assert pretty.content.startswith(b'{\n  "kind": "ConfigMap",\n')
    assert ask("GET", f"{MAPS}/here?pretty=0").content == plain.content
    assert ask("GET", f"{MAPS}/none?pretty=1").content.startswith(b'{\n  "kind": "Status",\n')


def test_a_collection_is_deleted_a_page_at_a_time_when_there_is_a_limit(ask):
    for name in ("a", "b", "c"):
        store.create(kinds.CONFIG_MAP, {"metadata": {"name": name}}, namespace="default", actor=store.Actor("tester"))
    page = json.loads(ask("DELETE", f"{MAPS}?limit=2").content)
    assert [item["metadata"]["name"] for item in page["items"]] == ["a", "b"]
    rest = json.loads(ask("DELETE", f"{MAPS}?limit=5&continue={page['metadata']['continue']}").content)
    assert [item["metadata"]["name"] for item in rest["items"]] == ["c", "here"]
    assert "continue" not in rest["metadata"]
