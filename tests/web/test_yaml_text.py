"""Objects as YAML for people, and how they differ."""

import html
import re

import pytest
import yaml

from services_app.web.yaml_text import changed_paths, differences, highlighted, to_yaml, writable


@pytest.mark.parametrize(
    "value",
    [
        "None",
        "null",
        "yes",
        "1e3",
        "0x10",
        "12:30",
        "2026-11-25T07:51:49Z",
        "",
        " a",
        "a: b",
        "# no",
        "é\n",
        "<b>",
        "'\"",
    ],
)
def test_a_text_stays_a_text(value):
    document = {"metadata": {"annotations": {"a": value}}, "spec": {"ports": [{"port": 80, "name": value}]}}
    assert yaml.safe_load(to_yaml(document)) == document
    shown = html.unescape(re.sub(r"</?span[^>]*>", "", highlighted(to_yaml(document))))
    assert yaml.safe_load(shown) == document


def test_colours_never_let_markup_through():
    assert "<b>" not in highlighted("<b>: <b>\n- <b>\n'<b>': 1")


def test_what_a_person_decides_is_all_but_status_and_the_servers_fields():
    document = {
        "kind": "Service",
        "metadata": {"name": "a", "uid": "1", "resourceVersion": "2", "creationTimestamp": "", "labels": {"a": "b"}},
        "spec": {},
        "status": {},
    }
    assert writable(document) == {"kind": "Service", "metadata": {"name": "a", "labels": {"a": "b"}}, "spec": {}}
    assert "status" in document, "the argument stays as it is"


def test_a_difference_has_signs_context_and_gaps():
    before = {f"k{number}": number for number in range(30)}
    lines = [(line.sign, line.text) for line in differences(before, {**before, "k1": "x", "k9": "y"})]
    assert ("-", "k1: 1") in lines
    assert ("+", "k1: x") in lines
    assert ("…", "") in lines
    assert ("+", "k9: y") in lines
    assert (" ", "k4: 4") not in lines
    assert differences(before, before) == []
    assert {line.sign for line in differences(None, before)} == {"+"}
    assert {line.sign for line in differences(before, None)} == {"-"}


def test_changed_fields_are_named_two_levels_deep():
    before = {"spec": {"a": 1, "b": {"c": 1}}, "status": {"x": 1}}
    assert changed_paths(before, {"spec": {"a": 1, "b": {"c": 2}, "d": 0}}) == ["spec.b", "spec.d", "status.x"]
    assert changed_paths(before, before) == []
    assert changed_paths(None, {"kind": "a"}) == ["kind"]
