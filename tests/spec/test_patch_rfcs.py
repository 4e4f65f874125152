"""The examples of RFC 6902 and RFC 7386, word for word."""

import json
from typing import Any

import pytest

from services_app.spec import patches
from services_app.spec.errors import ApiError
from services_app.spec.kinds import CONFIG_MAP

REFUSED = object()

# RFC 6902, appendix A: (document, patch, result)
JSON_PATCHES: dict[str, tuple[str, str, Any]] = {
    "A.1 adding an object member": (
        '{"foo": "bar"}', '[{"op": "add", "path": "/baz", "value": "qux"}]', {"baz": "qux", "foo": "bar"},
    ),
    "A.2 adding an array element": (
        '{"foo": ["bar", "baz"]}', '[{"op": "add", "path": "/foo/1", "value": "qux"}]', {"foo": ["bar", "qux", "baz"]},
    ),
    "A.3 removing an object member": (
        '{"baz": "qux", "foo": "bar"}', '[{"op": "remove", "path": "/baz"}]', {"foo": "bar"},
    ),
    "A.4 removing an array element": (
        '{"foo": ["bar", "qux", "baz"]}', '[{"op": "remove", "path": "/foo/1"}]', {"foo": ["bar", "baz"]},
    ),
    "A.5 replacing a value": (
        '{"baz": "qux", "foo": "bar"}', '[{"op": "replace", "path": "/baz", "value": "boo"}]', {"baz": "boo", "foo": "bar"},
    ),
    "A.6 moving a value": (
        '{"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}',
        '[{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]',
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    "A.7 moving an array element": (
        '{"foo": ["all", "grass", "cows", "eat"]}',
        '[{"op": "move", "from": "/foo/1", "path": "/foo/3"}]',
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    "A.8 testing a value, success": (
        '{"baz": "qux", "foo": ["a", 2, "c"]}',
        '[{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]',
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    "A.9 testing a value, error": ('{"baz": "qux"}', '[{"op": "test", "path": "/baz", "value": "bar"}]', REFUSED),
    "A.10 adding a nested member object": (
        '{"foo": "bar"}',
        '[{"op": "add", "path": "/child", "value": {"grandchild": {}}}]',
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    "A.11 ignoring unrecognized elements": (
        '{"foo": "bar"}', '[{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}]', {"foo": "bar", "baz": "qux"},
    ),
    "A.12 adding to a nonexistent target": (
        '{"foo": "bar"}', '[{"op": "add", "path": "/baz/bat", "value": "qux"}]', REFUSED,
    ),
    "A.13 invalid JSON patch document": (
        '{"foo": "bar"}', '[{"op": "add", "path": "/baz", "value": "qux", "op": "remove"}]', REFUSED,
    ),
    "A.14 escape ordering": ('{"/": 9, "~1": 10}', '[{"op": "test", "path": "/~01", "value": 10}]', {"/": 9, "~1": 10}),
    "A.15 comparing strings and numbers": (
        '{"/": 9, "~1": 10}', '[{"op": "test", "path": "/~01", "value": "10"}]', REFUSED,
    ),
    "A.16 adding an array value": (
        '{"foo": ["bar"]}', '[{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]', {"foo": ["bar", ["abc", "def"]]},
    ),
}  # fmt: skip

# RFC 7386, appendix A: (original, patch, result)
MERGE_PATCHES = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b", "b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b", "b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a": {"b": "c"}}', '{"a": {"b": "d", "c": null}}', '{"a": {"b": "d"}}'),
    ('{"a": [{"b":"c"}]}', '{"a": [1]}', '{"a": [1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null, "a":1}'),
    ("[1,2]", '{"a":"b", "c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


@pytest.mark.parametrize("document, patch, result", JSON_PATCHES.values(), ids=[*JSON_PATCHES])
def test_json_patches(document: str, patch: str, result: Any) -> None:
    apply = patches.reader("application/json-patch+json", CONFIG_MAP, patch.encode())
    if result is REFUSED:
        with pytest.raises(ApiError) as refusal:
            apply(json.loads(document))
        assert refusal.value.code in (400, 422)
    else:
        assert apply(json.loads(document)) == result


@pytest.mark.parametrize("original, patch, result", MERGE_PATCHES)
def test_merge_patches(original: str, patch: str, result: str) -> None:
    """One level down: a patch of an object is an object, and null there takes the member away."""
    apply = patches.reader("application/merge-patch+json", CONFIG_MAP, f'{{"x": {patch}}}'.encode())
    expected = {} if result == "null" else {"x": json.loads(result)}
    assert apply({"x": json.loads(original)}) == expected
