"""What the options of a list, watch or delete may say, and what is answered when they may not."""

import json

import pytest

from services_app.spec import kinds, options
from services_app.spec.errors import BadRequest, Invalid


def read(query: str, *, is_watch: bool = False) -> options.ListOptions:
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return options.read(kinds.SERVICE, found, is_watch=is_watch)


@pytest.mark.parametrize(
    "query, at, limit",
    [
        ("", None, 0),
        ("limit=5", None, 5),
        ("limit=-1", None, 0),
        ("resourceVersion=0&limit=5", None, 0),
        ("resourceVersion=7", None, 0),
        ("resourceVersion=7&limit=5", 7, 5),
        ("resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan", None, 5),
        ("resourceVersion=7&resourceVersionMatch=Exact", 7, 0),
        ("resourceVersion=0&continue=x&limit=2", None, 2),
    ],
)
def test_which_state_and_how_much_of_it(query, at, limit):
    asked = read(query)
    assert (asked.at, asked.limit) == (at, limit)


@pytest.mark.parametrize(
    "query, fields",
    [
        ("resourceVersionMatch=Exact", ["resourceVersionMatch"]),
        ("resourceVersionMatch=Exact&resourceVersion=0", ["resourceVersionMatch"]),
        ("resourceVersionMatch=Newest&resourceVersion=1", ["resourceVersionMatch"]),
        ("resourceVersionMatch=Exact&resourceVersion=1&continue=x", ["resourceVersionMatch"]),
        ("sendInitialEvents=false", ["sendInitialEvents"]),
    ],
)
def test_lists_refuse(query, fields):
    with pytest.raises(Invalid) as refusal:
        read(query)
    assert [error.field for error in refusal.value.errors] == fields


@pytest.mark.parametrize(
    "query, types",
    [
        ("sendInitialEvents=true", ["Forbidden"]),
        ("resourceVersionMatch=NotOlderThan&resourceVersion=1", ["Forbidden"]),
        ("sendInitialEvents=true&resourceVersionMatch=Exact", ["Forbidden", "NotSupported"]),
        ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=x", ["Forbidden"]),
    ],
)
def test_watches_refuse(query, types):
    with pytest.raises(Invalid) as refusal:
        read(query, is_watch=True)
    assert [error.type for error in refusal.value.errors] == types


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=1_0",
        f"limit={2**63}",
        "timeoutSeconds=1.5",
        "resourceVersion=abc",
        "resourceVersion=-1",
        "resourceVersion=" + "9" * 5000,
        "resourceVersion=5&continue=x",
        "fieldSelector=spec.ports%3D1",
        "labelSelector=a in b",
    ],
)
def test_what_cannot_be_read_is_a_bad_request(query):
    with pytest.raises(BadRequest):
        read(query)


@pytest.mark.parametrize(
    "value, is_on",
    [("true", True), ("1", True), ("", True), ("yes", True), ("false", False), ("False", False), ("0", False)],
)
def test_flags_are_on_unless_they_say_no(value, is_on):
    assert read(f"allowWatchBookmarks={value}", is_watch=True).bookmarks is is_on
    assert read(f"allowWatchBookmarks={value}&allowWatchBookmarks=x", is_watch=True).bookmarks is is_on


def test_initial_events_may_be_declined_or_not_mentioned():
    asked = "resourceVersionMatch=NotOlderThan&sendInitialEvents="
    assert read(asked + "false", is_watch=True).sends_initial is False
    assert read(asked + "true", is_watch=True).sends_initial is True
    assert read("", is_watch=True).sends_initial is None


def read_delete(body: object = None, **query: str):
    text = b"" if body is None else json.dumps(body).encode()
    return options.read_delete(text, "application/json", {name: [value] for name, value in query.items()})


@pytest.mark.parametrize(
    "body, query, policy, grace_s",
    [
        (None, {}, None, None),
        ({"kind": "DeleteOptions", "apiVersion": "discovery.k8s.io/v1"}, {}, None, None),
        ({"gracePeriodSeconds": 0}, {}, None, 0),
        ({"gracePeriodSeconds": -5}, {}, None, 1),
        ({"orphanDependents": False}, {}, "Background", None),
        (None, {"orphanDependents": "true"}, "Orphan", None),
        (None, {"propagationPolicy": "Foreground", "gracePeriodSeconds": "7"}, "Foreground", 7),
    ],
)
def test_how_something_is_deleted(body, query, policy, grace_s):
    asked = read_delete(body, **query)
    assert (asked.get("propagationPolicy"), asked.get("gracePeriodSeconds")) == (policy, grace_s)


@pytest.mark.parametrize("body", [[], "x", 5, {"kind": "Service"}, {"preconditions": []}, {"gracePeriodSeconds": "1"}])
def test_a_body_that_is_no_delete_options_is_a_bad_request(body):
    with pytest.raises(BadRequest):
        read_delete(body)


@pytest.mark.parametrize(
    "body", [{"propagationPolicy": "Sideways"}, {"propagationPolicy": "Orphan", "orphanDependents": True}]
)
def test_policies_that_are_none_or_contradict(body):
    with pytest.raises(Invalid) as refusal:
        read_delete(body)
    assert [error.field for error in refusal.value.errors] == ["propagationPolicy"]
