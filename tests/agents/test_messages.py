"""What is read is what `json.loads` reads, and nothing else is taken for JSON."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents import messages

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
RESOURCES = st.lists(st.lists(st.sampled_from(["nft4", "dns", "a . b", "ü", ""]), min_size=3, max_size=3), max_size=4)
OWNERS = st.dictionaries(st.text(max_size=5), RESOURCES | VALUES, max_size=4)
MESSAGES = st.dictionaries(st.sampled_from(["op", "owners", "id", 'a"b', ""]), VALUES | OWNERS, max_size=4)


def as_lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [as_lists(one) for one in value]
    return {key: as_lists(one) for key, one in value.items()} if isinstance(value, dict) else value


@given(MESSAGES, st.sampled_from([None, 1, "\t"]), st.booleans())
@example({"owners": {"a": [["x", "y", "z"], {"x": None, "y": None, "z": None}]}}, None, True)
@example({"owners": {"a": ["xyz"]}}, None, True)
def test_any_object_is_read_as_json_reads_it(message: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(message, indent=indent, ensure_ascii=ascii_only)
    assert as_lists(messages.read(f" \n{text}\r\t")) == json.loads(text)
    compact = json.dumps(message, separators=(",", ":"))
    assert as_lists(messages.read(compact)) == json.loads(compact)


@given(MESSAGES, st.data())
@example({"owners": {"a": [["x", "y", "z"]]}}, None)
def test_a_spoilt_text_is_refused_as_json_refuses_it(message: Any, data: Any) -> None:
    text = json.dumps(message)
    ways = [(at, piece) for at in range(len(text) + 1) for piece in ("", "{", '"', ",", ":", "]", "x", " ", "\\")]
    for at, piece in ways if data is None else [data.draw(st.sampled_from(ways))]:
        spoilt = text[:at] + piece + text[at + 1 :]
        try:
            expected = json.loads(spoilt)
        except ValueError:
            expected = None
        if isinstance(expected, dict):
            assert as_lists(messages.read(spoilt)) == expected
        else:
            with pytest.raises(ValueError):
                messages.read(spoilt)


@pytest.mark.parametrize(
    "text", ["", " ", "[]", '"a"', "1", "null", '{"a":1}{', '{"a":1} x', '{"owners":{"a":[],}}', "{,}"]
)
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        messages.read(text)


def test_equal_values_of_owners_are_one_text() -> None:
    owners = {f"shop/{n}": [["nft4", f"slots {n}", "10.1.0.1 . 8080"]] for n in range(3)}
    read = messages.read(json.dumps({"op": "apply", "owners": owners}))["owners"]
    assert read == {owner: [tuple(resource) for resource in resources] for owner, resources in owners.items()}
    assert len({id(value) for resources in read.values() for _, _, value in resources}) == 1
