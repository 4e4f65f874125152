"""The three kinds of patches, on Services and beside the RFCs' own examples."""

import json
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec import patches
from services_app.spec.errors import ApiError, BadRequest, Invalid, RequestTooLarge, UnsupportedMediaType
from services_app.spec.kinds import NODE, POD, SERVICE


def strategic(document, patch, kind=SERVICE):
    return patches.strategic_merge_patch(kind, document, patch)


def merged_ports(present, change, **more):
    """Service ports after a strategic merge patch."""
    return strategic({"spec": {"ports": present}}, {"spec": {"ports": change, **more}})["spec"]["ports"]


# --- reading


def test_a_reader_can_be_applied_to_several_documents():
    apply = patches.reader("application/merge-patch+json", SERVICE, b'{"metadata": {"labels": {"a": "b"}}}')
    assert apply({}) == {"metadata": {"labels": {"a": "b"}}}
    assert apply({"metadata": {"name": "web"}}) == {"metadata": {"name": "web", "labels": {"a": "b"}}}


def test_a_reader_knows_the_three_media_types():
    document = {"spec": {"ports": [{"port": 80, "nodePort": 30080}], "selector": {"a": "b"}}}
    change = b'{"spec": {"ports": [{"port": 80, "name": "http"}]}}'
    merge = patches.reader("application/merge-patch+json; charset=utf-8", SERVICE, change)
    assert merge(document)["spec"]["ports"] == [{"port": 80, "name": "http"}]
    strategically = patches.reader("Application/Strategic-Merge-Patch+JSON", SERVICE, change)
    assert strategically(document)["spec"]["ports"] == [{"port": 80, "nodePort": 30080, "name": "http"}]
    operations = b'[{"op": "remove", "path": "/spec/ports"}]'
    assert patches.reader("application/json-patch+json", SERVICE, operations)(document) == {
        "spec": {"selector": {"a": "b"}}
    }


@pytest.mark.parametrize("media", ["", "application/json", "application/yaml", "text/plain", patches.APPLY])
def test_other_media_types_are_unsupported(media):
    with pytest.raises(UnsupportedMediaType) as caught:
        patches.reader(media, SERVICE, b"{}")
    assert caught.value.status()["details"] == {}


@pytest.mark.parametrize("media", patches.MEDIA_TYPES)
@pytest.mark.parametrize("body", [b"", b"{", b"1", b'"a"', b"null", b"[1", b"\xff", b"NaN", b"[[" * 100_000])
def test_what_is_no_patch_is_refused_at_once(media, body):
    with pytest.raises(BadRequest):
        if media == patches.APPLY:
            patches.configuration(SERVICE, body)
        else:
            patches.reader(media, SERVICE, body)({})


def test_an_apply_is_yaml_or_json_and_tells_what_is_there_twice():
    head = b"apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
    document, twice = patches.configuration(SERVICE, head + b"spec:\n  type: NodePort\n  type: ClusterIP\n")
    assert (document["spec"], twice) == ({"type": "ClusterIP"}, ['duplicate field "spec.type"'])
    text = b'{"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80.0}], "selector": {}, "type": null}}'
    document, twice = patches.configuration(SERVICE, text, strict=True)
    assert document["spec"] == {"ports": [{"port": 80}], "selector": {}, "type": None}
    with pytest.raises(BadRequest, match="strict decoding"):
        patches.configuration(SERVICE, head + b"kind: Service\n", strict=True)


def test_list_and_object_are_not_taken_for_each_other():
    with pytest.raises(BadRequest):
        patches.reader("application/json-patch+json", SERVICE, b"{}")
    for media in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
        with pytest.raises(BadRequest):
            patches.reader(media, SERVICE, b"[]")


def test_a_patched_value_is_typed_or_refused():
    document, said = patches.typed(SERVICE, {"metadata": {"name": "web"}, "spec": {"colour": "red"}})
    assert (document["metadata"], said) == ({"name": "web"}, ['unknown field "spec.colour"'])
    for patched in ({"kind": "Pod"}, {"spec": 1}, {"spec": {"ports": [{"port": "80"}]}}, []):
        with pytest.raises(Invalid) as caught:
            patches.typed(SERVICE, patched)
        assert caught.value.status()["details"]["causes"][0]["field"] == "patch"
    with pytest.raises(Invalid):
        patches.typed(SERVICE, {"spec": {"colour": "red"}}, strict=True)


# --- JSON patch: the examples of RFC 6902, appendix A, and what Kubernetes' library makes of the rest

# name -> (document, operations, result)
OPERATIONS = {
    "add a member": ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"foo": "bar", "baz": "qux"}),
    "add an element": ({"foo": [1, 3]}, [{"op": "add", "path": "/foo/1", "value": 2}], {"foo": [1, 2, 3]}),
    "add at the end": ({"foo": [1]}, [{"op": "add", "path": "/foo/-", "value": [2]}], {"foo": [1, [2]]}),
    "add what is there": ({"foo": 1}, [{"op": "add", "path": "/foo", "value": 2}], {"foo": 2}),
    "remove a member": ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
    "remove an element": ({"foo": [1, 2, 3]}, [{"op": "remove", "path": "/foo/1"}], {"foo": [1, 3]}),
    "replace a value": ({"a": 1}, [{"op": "replace", "path": "/a", "value": {"b": 2}}], {"a": {"b": 2}}),
    "replace what is absent": ({}, [{"op": "replace", "path": "/a", "value": 1}], {"a": 1}),
    "move a value": (
        {"a": {"b": 1}, "c": {}},
        [{"op": "move", "from": "/a/b", "path": "/c/d"}],
        {"a": {}, "c": {"d": 1}},
    ),
    "move an element": ({"a": [1, 2, 3]}, [{"op": "move", "from": "/a/0", "path": "/a/2"}], {"a": [2, 3, 1]}),
    "copy a value": ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
    "test a value": (
        {"a": [1, {"b": None}]},
        [{"op": "test", "path": "/a", "value": [1, {"b": None}]}],
        {"a": [1, {"b": None}]},
    ),
    "test what is absent for null": ({}, [{"op": "test", "path": "/a", "value": None}], {}),
    "escapes": (
        {"a/b": 1, "m~n": 2},
        [{"op": "remove", "path": "/a~1b"}, {"op": "replace", "path": "/m~0n", "value": 3}],
        {"m~n": 3},
    ),
    "the whole document": ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    "one after another": (
        {},
        [{"op": "add", "path": "/a", "value": []}, {"op": "add", "path": "/a/-", "value": 1}],
        {"a": [1]},
    ),
    "nothing": ({"a": 1}, [], {"a": 1}),
}

# name -> (document, operation)
IMPOSSIBLE = {
    "remove what is absent": ({}, {"op": "remove", "path": "/a"}),
    "add below what is absent": ({}, {"op": "add", "path": "/a/b", "value": 1}),
    "add below a plain value": ({"a": 1}, {"op": "add", "path": "/a/b", "value": 1}),
    "add behind the end": ({"a": [1]}, {"op": "add", "path": "/a/2", "value": 1}),
    "an index with a leading zero": ({"a": [1, 2]}, {"op": "remove", "path": "/a/01"}),
    "a negative index": ({"a": [1, 2]}, {"op": "remove", "path": "/a/-1"}),
    "a test that fails": ({"a": 1}, {"op": "test", "path": "/a", "value": 2}),
    "true is not 1": ({"a": True}, {"op": "test", "path": "/a", "value": 1}),
    "an unknown operation": ({}, {"op": "grow", "path": "/a", "value": 1}),
    "no operation": ({}, {"path": "/a", "value": 1}),
    "no path": ({}, {"op": "add", "value": 1}),
    "a path without a slash": ({}, {"op": "add", "path": "a", "value": 1}),
    "no value": ({}, {"op": "add", "path": "/a"}),
    "move into itself": ({"a": {"b": 1}}, {"op": "move", "from": "/a", "path": "/a/b"}),
    "copy from nowhere": ({}, {"op": "copy", "from": "/a", "path": "/b"}),
}


@pytest.mark.parametrize("document, operations, result", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_do_what_the_rfc_says(document, operations, result):
    before = deepcopy((document, operations))
    assert patches.json_patch(document, operations) == result
    assert (document, operations) == before


@pytest.mark.parametrize("document, operation", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_operation_that_does_not_apply_is_invalid(document, operation):
    with pytest.raises(Invalid):
        patches.json_patch(document, [operation])


def test_a_failed_operation_takes_those_before_it_back():
    document = {"a": 1}
    with pytest.raises(Invalid):
        patches.json_patch(document, [{"op": "remove", "path": "/a"}, {"op": "remove", "path": "/b"}])
    assert document == {"a": 1}


def test_operations_are_counted():
    operation = {"op": "test", "path": "/a", "value": 1}
    patches.json_patch({"a": 1}, [operation] * patches.MAX_OPERATIONS)
    with pytest.raises(RequestTooLarge):
        patches.json_patch({"a": 1}, [operation] * (patches.MAX_OPERATIONS + 1))


# --- merge patch: the table of RFC 7386, appendix A, as far as objects go

MERGES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ({"a": 1}, {"a": {"b": None}}, {"a": {}}),
]


@pytest.mark.parametrize("document, patch, result", MERGES)
def test_a_merge_patch_does_what_the_rfc_says(document, patch, result):
    before = deepcopy((document, patch))
    assert patches.merge_patch(document, patch) == result
    assert (document, patch) == before


_plain = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab~/", max_size=3)
_json = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
)
_objects = st.dictionaries(st.text("abc~/", max_size=2), _json, max_size=4)


def _without_nulls(value):
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(_objects, _objects)
def test_a_merge_patch_twice_is_the_same_as_once(document, patch):
    once = patches.merge_patch(document, patch)
    assert patches.merge_patch(once, patch) == once


@given(_objects)
def test_a_document_without_nulls_is_its_own_merge_patch(document):
    document = _without_nulls(document)
    assert patches.merge_patch({}, document) == document
    assert patches.merge_patch(document, document) == document


@given(_objects, _objects)
def test_a_difference_spelled_as_operations_leads_there(old, new):
    def pointer(key):
        return "/" + key.replace("~", "~0").replace("/", "~1")

    operations = [{"op": "remove", "path": pointer(key)} for key in old if key not in new]
    operations += [{"op": "add", "path": pointer(key), "value": value} for key, value in new.items()]
    assert patches.json_patch(old, operations) == new
    assert patches.json_patch(old, [{"op": "test", "path": pointer(key), "value": old[key]} for key in old]) == old


@given(
    _objects,
    st.lists(
        st.fixed_dictionaries(
            {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"])},
            optional={"path": st.text("/ab01-~", max_size=5), "from": st.text("/ab01", max_size=4), "value": _json},
        ),
        max_size=4,
    ),
)
def test_any_operations_give_a_value_or_an_answer(document, operations):
    before = deepcopy(document)
    try:
        json.dumps(patches.json_patch(document, operations))
    except ApiError:
        pass
    assert document == before


# --- strategic merge patch: Service ports


def test_ports_are_merged_by_their_number():
    present = [
        {"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30080},
        {"name": "b", "port": 81, "protocol": "TCP"},
    ]
    assert merged_ports(present, [{"port": 81, "targetPort": 8081}]) == [
        present[0],
        {"name": "b", "port": 81, "protocol": "TCP", "targetPort": 8081},
    ]


def test_a_new_port_is_added():
    present = [{"name": "a", "port": 80, "protocol": "TCP"}]
    added = {"name": "b", "port": 81}
    assert sorted(port["port"] for port in merged_ports(present, [added])) == [80, 81]


def test_two_protocols_of_one_number_stay_two_ports():
    present = [{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53, "protocol": "TCP"}]
    change = [{"port": 53, "protocol": "UDP", "targetPort": 5353}, {"port": 53, "protocol": "TCP", "targetPort": 5354}]
    made = merged_ports(present, change)
    assert [(p["name"], p["protocol"], p["targetPort"]) for p in made] == [("u", "UDP", 5353), ("t", "TCP", 5354)]
    assert merged_ports(made, change) == made


def test_a_changed_protocol_stays_a_change():
    present = [{"port": 53, "protocol": "TCP", "nodePort": 30053}]
    made = merged_ports(present, [{"port": 53, "protocol": "UDP"}], **{"$setElementOrder/ports": [{"port": 53}]})
    assert made == [{"port": 53, "protocol": "UDP", "nodePort": 30053}]


def test_a_port_is_deleted_by_directive():
    present = [{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 81, "protocol": "TCP"}]
    assert merged_ports(present, [{"$patch": "delete", "port": 80}]) == present[1:]
    assert merged_ports(present, [{"$patch": "delete", "port": 99}]) == present


def test_ports_are_replaced_by_directive():
    present = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    assert merged_ports(present, [{"$patch": "replace"}, {"port": 9}]) == [{"port": 9}]
    assert merged_ports(present, [{"$patch": "replace"}]) == []


def test_the_order_of_ports_is_set_by_directive():
    present = [{"name": name, "port": port, "protocol": "TCP"} for name, port in (("a", 1), ("b", 2), ("c", 3))]
    order = {"$setElementOrder/ports": [{"port": 3}, {"port": 1}, {"port": 2}]}
    assert [port["name"] for port in merged_ports(present, [{"port": 2, "targetPort": 9}], **order)] == ["c", "a", "b"]
    alone = strategic({"spec": {"ports": present}}, {"spec": order})
    assert [port["name"] for port in alone["spec"]["ports"]] == ["c", "a", "b"]


def test_a_port_without_its_number_is_an_internal_error():
    with pytest.raises(ApiError) as caught:
        merged_ports([{"port": 80}], [{"name": "a"}])
    assert (caught.value.code, caught.value.reason) == (500, "")


# --- strategic merge patch: everything else

_SERVICE = {
    "metadata": {"name": "web", "labels": {"a": "1", "b": "2"}, "finalizers": ["example.com/a", "example.com/b"]},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}], "externalIPs": ["192.0.2.1"], "type": "NodePort"},
}

# name -> (patch, path, value there; absent when None)
STRATEGIC = {
    "maps are merged": ({"metadata": {"labels": {"c": "3"}}}, "metadata.labels", {"a": "1", "b": "2", "c": "3"}),
    "null removes": ({"metadata": {"labels": {"a": None}}}, "metadata.labels", {"b": "2"}),
    "null removes a map": ({"metadata": {"labels": None}}, "metadata.labels", None),
    "a map is replaced": ({"spec": {"selector": {"$patch": "replace", "x": "y"}}}, "spec.selector", {"x": "y"}),
    "a map is deleted": ({"spec": {"selector": {"$patch": "delete"}}}, "spec.selector", {}),
    "plain lists are replaced": ({"spec": {"externalIPs": ["192.0.2.2"]}}, "spec.externalIPs", ["192.0.2.2"]),
    "finalizers are merged": (
        {"metadata": {"finalizers": ["example.com/c"]}},
        "metadata.finalizers",
        ["example.com/c", "example.com/a", "example.com/b"],
    ),
    "finalizers are taken out": (
        {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a", "example.com/x"]}},
        "metadata.finalizers",
        ["example.com/b"],
    ),
    "finalizers are put in order": (
        {"metadata": {"$setElementOrder/finalizers": ["example.com/b", "example.com/a"]}},
        "metadata.finalizers",
        ["example.com/b", "example.com/a"],
    ),
    "a scalar is replaced": ({"spec": {"type": "ClusterIP"}}, "spec.type", "ClusterIP"),
    "unknown fields are kept for decoding to notice": (
        {"spec": {"colour": {"a": None, "b": 1}}},
        "spec.colour",
        {"b": 1},
    ),
    "nothing of a delete stays where there was nothing": (
        {"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"], "$setElementOrder/ports": [{"port": 80}]}},
        "spec.ports",
        [{"port": 80}],
    ),
}


@pytest.mark.parametrize("patch, path, value", STRATEGIC.values(), ids=STRATEGIC)
def test_a_strategic_merge_patch_knows_the_schema(patch, path, value):
    before = deepcopy((_SERVICE, patch))
    here = strategic(_SERVICE, patch)
    for step in path.split("."):
        here = here.get(step)
    assert here == value
    assert (_SERVICE, patch) == before


def test_where_there_was_nothing_no_directive_stays():
    made = strategic({}, {"spec": {"ports": [{"port": 80}, {"$patch": "delete", "port": 81}], "selector": {"a": None}}})
    assert made == {"spec": {"ports": [{"port": 80}], "selector": {}}}


def test_conditions_are_merged_by_type():
    present = {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Other", "status": "True"}]}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    for kind in (SERVICE, POD, NODE):
        made = strategic(present, patch, kind)["status"]["conditions"]
        assert sorted((c["type"], c["status"]) for c in made) == [("Other", "True"), ("Ready", "True")]


def test_containers_and_their_lists_are_merged_by_name():
    pod = {"spec": {"containers": [{"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}]}, {"name": "b"}]}}
    patch = {"spec": {"containers": [{"name": "a", "env": [{"name": "F", "value": "2"}], "image": "y"}]}}
    first = strategic(pod, patch, POD)["spec"]["containers"][0]
    assert (first["name"], first["image"]) == ("a", "y")
    assert {entry["name"]: entry["value"] for entry in first["env"]} == {"E": "1", "F": "2"}


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"$patch": "grow"}},
        {"spec": {"$setElementOrder/ports": {}}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}},
        {"spec": {"$retainKeys": "a"}},
        {"spec": {"ports": [1]}},
        {"spec": {"ports": [[]]}},
        {"spec": {"$setElementOrder/ports": [1]}},
        {"spec": {"ports": [{"$patch": "delete"}]}},
        {"spec": {"ports": [{"port": {}, "protocol": []}]}},
        {"metadata": {"finalizers": [{}, 1, None]}},
        {"metadata": {"$setElementOrder/finalizers": [{}]}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": [{}]}},
    ],
    ids=json.dumps,
)
def test_a_malformed_strategic_patch_is_an_answer(patch):
    try:
        patches.typed(SERVICE, strategic(_SERVICE, patch))
    except ApiError:
        pass


_ports = st.lists(
    st.fixed_dictionaries(
        {
            "port": st.integers(1, 4),
            "protocol": st.sampled_from(["TCP", "UDP"]),
            "name": st.text("ab", min_size=1, max_size=3),
        }
    ),
    max_size=4,
    unique_by=lambda port: (port["port"], port["protocol"]),
)


@given(_ports, _ports)
def test_merged_ports_are_those_of_both_each_once(present, change):
    made = merged_ports(present, change)
    keys = [(port["port"], port["protocol"]) for port in made]
    assert sorted(keys) == sorted({(port["port"], port["protocol"]) for port in [*present, *change]})
    assert all(port in made for port in change)
    assert merged_ports(made, change) == made


@given(_ports, _ports)
def test_what_kubectl_apply_sends_leads_from_one_list_to_the_other(present, wanted):
    key = ("port", "protocol")
    gone = [p for p in present if all(any(p[k] != w[k] for k in key) for w in wanted)]
    change = [*wanted, *({"$patch": "delete", "port": p["port"], "protocol": p["protocol"]} for p in gone)]
    order = [{"port": port["port"], "protocol": port["protocol"]} for port in wanted]
    assert merged_ports(present, change, **{"$setElementOrder/ports": order}) == wanted


_directives = st.dictionaries(
    st.sampled_from(
        [
            "ports",
            "selector",
            "finalizers",
            "$patch",
            "$retainKeys",
            "$setElementOrder/ports",
            "$deleteFromPrimitiveList/ports",
            "port",
            "a",
        ]
    ),
    st.recursive(
        _plain | st.sampled_from(["replace", "delete", "merge"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["port", "protocol", "$patch", "a"]), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@given(_directives, _directives)
def test_any_strategic_patch_gives_a_document_or_an_answer(spec, metadata):
    before = deepcopy(_SERVICE)
    try:
        json.dumps(strategic(_SERVICE, {"spec": spec, "metadata": metadata}))
    except ApiError:
        pass
    assert before == _SERVICE
