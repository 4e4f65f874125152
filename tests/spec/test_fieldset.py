"""Sets of fields: the wire form is the set, and reckoning with it is reckoning with its members."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec import fieldset

STEPS = st.sampled_from(
    ["f:a", "f:b", 'k:{"port":80,"protocol":"TCP"}', 'k:{"port":80,"protocol":"UDP"}', 'v:"example.org/x"', "v:3"]
)
WAYS = st.lists(st.lists(STEPS, min_size=1, max_size=4).map(tuple), max_size=8).map(frozenset)


def made(ways):
    """The set of these members, each a tuple of steps."""
    found = {}
    for way in ways:
        alone = {}
        for step in reversed(way):
            alone = {step: alone}
        found = fieldset.union(found, alone)
    return found


def members(fields, way=()):
    """What a set holds, found by a way of its own: every node that is empty or has a dot."""
    found = set()
    for step, below in fields.items():
        if step == ".":
            continue
        if not below or "." in below:
            found.add((*way, step))
        found |= members(below, (*way, step))
    return found


@given(WAYS)
def test_a_set_holds_what_was_put_into_it(ways):
    assert members(made(ways)) == ways


@given(WAYS, WAYS)
def test_union_difference_and_intersection_are_those_of_their_members(left, right):
    assert members(fieldset.union(made(left), made(right))) == left | right
    assert members(fieldset.difference(made(left), made(right))) == left - right
    assert members(fieldset.intersection(made(left), made(right))) == left & right


@given(WAYS, WAYS)
def test_equal_sets_are_equal_texts(left, right):
    one = fieldset.union(made(left), made(right))
    other = fieldset.union(made(right), made(left))
    assert json.dumps(fieldset.in_order(one)) == json.dumps(fieldset.in_order(other))
    assert fieldset.difference(one, other) == {}


@given(WAYS)
def test_the_wire_form_round_trips(ways):
    fields = fieldset.in_order(made(ways))
    assert fieldset.parse(json.loads(json.dumps(fields))) == fields


@given(WAYS)
def test_every_member_has_a_path_of_its_own(ways):
    assert len(set(fieldset.paths(made(ways)))) == len(ways)


def test_arguments_stay_as_they_are():
    left = {"f:a": {".": {}, "f:b": {}}, "f:c": {}}
    right = {"f:a": {"f:b": {}, "f:d": {}}}
    before = json.dumps([left, right])
    for reckon in (fieldset.union, fieldset.difference, fieldset.intersection):
        reckon(left, right)
    assert json.dumps([left, right]) == before


def test_foreign_spellings_of_steps_become_ours():
    text = '{"f:ports": {"k:{\\"protocol\\": \\"TCP\\", \\"port\\": 80}": {".": {}}, "v: 1": {}}, ".": {}}'
    assert fieldset.parse(json.loads(text)) == {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {}, "v:1": {}}}


@pytest.mark.parametrize(
    "value",
    [None, [], "f:a", {"a": {}}, {"f:a": 1}, {"k:80": {}}, {"k:{": {}}, {"v:": {}}, {"i:x": {}}, {"f:\ud800": {}}],
    ids=str,
)
def test_what_is_no_set_is_refused(value):
    with pytest.raises(ValueError):
        fieldset.parse(value)


def test_paths_read_as_those_of_kubernetes():
    fields = {
        "f:metadata": {"f:finalizers": {'v:"example.org/x"': {}}, "f:labels": {".": {}, "f:example.org/app": {}}},
        "f:spec": {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:name": {}}}},
        "f:list": {"i:3": {}},
    }
    assert [*fieldset.paths(fields)] == [
        ".list[3]",
        '.metadata.finalizers[="example.org/x"]',
        ".metadata.labels",
        ".metadata.labels.example.org/app",
        '.spec.ports[port=80,protocol="TCP"]',
        '.spec.ports[port=80,protocol="TCP"].name',
    ]
