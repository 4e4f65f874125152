"""From bytes to documents: types, unknown and duplicate fields, JSON and YAML."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec import objects, wire
from services_app.spec.errors import BadRequest, UnsupportedMediaType
from services_app.spec.kinds import ENDPOINT_SLICE, KINDS, POD, SERVICE

JSON, YAML = "application/json", "application/yaml"


def decoded(text, media=JSON, kind=SERVICE):
    return objects.decode_with_warnings(kind, text.encode(), media)


def shaped(value, kind=SERVICE):
    return objects.shaped(kind, value)[0]


MANIFEST = """
apiVersion: v1
kind: Service
metadata:
  name: my-service
spec:
  selector:
    app.kubernetes.io/name: MyApp
  ports:
    - protocol: TCP
      port: 80
      targetPort: 9376
"""


def test_the_manifest_of_the_documentation_is_read_as_yaml_and_as_json():
    from_yaml, said = decoded(MANIFEST, YAML)
    assert said == []
    assert from_yaml["spec"] == {
        "selector": {"app.kubernetes.io/name": "MyApp"},
        "ports": [{"protocol": "TCP", "port": 80, "targetPort": 9376}],
    }
    assert decoded(json.dumps(yaml.safe_load(MANIFEST)))[0] == from_yaml


def test_the_media_type_may_have_parameters_and_be_missing():
    for media in ("application/json; charset=utf-8", "Application/JSON", ""):
        assert decoded('{"metadata": {"name": "a"}}', media)[0]["metadata"] == {"name": "a"}


@pytest.mark.parametrize("media", ["text/plain", "application/xml"])
def test_other_media_types_are_unsupported(media):
    with pytest.raises(UnsupportedMediaType):
        decoded("{}", media)


def test_kind_and_version_are_filled_in_and_must_fit():
    made = shaped({})
    assert (made["kind"], made["apiVersion"]) == ("Service", "v1")
    for wrong in ({"kind": "Pod"}, {"apiVersion": "v2"}, {"kind": 1}, {"apiVersion": ["v1"]}):
        with pytest.raises(BadRequest):
            shaped(wrong)


def test_fields_stand_in_the_order_of_the_schema():
    one = shaped({"spec": {"type": "ClusterIP", "ports": []}, "metadata": {"labels": {"b": "", "a": ""}, "name": "x"}})
    other = shaped(
        {"metadata": {"name": "x", "labels": {"a": "", "b": ""}}, "spec": {"ports": [], "type": "ClusterIP"}}
    )
    assert json.dumps(one) == json.dumps(other)


# --- strictness

# name -> (JSON text, warnings)
STRICT = {
    "unknown at the top": ('{"colour": 1}', ['unknown field "colour"']),
    "unknown in the spec": ('{"spec": {"colour": 1}}', ['unknown field "spec.colour"']),
    "unknown in a list": (
        '{"spec": {"ports": [{"port": 1}, {"port": 2, "colour": 1}]}}',
        ['unknown field "spec.ports[1].colour"'],
    ),
    "another case is another field": ('{"spec": {"clusterip": "None"}}', ['unknown field "spec.clusterip"']),
    "duplicate": ('{"spec": {"type": "a", "type": "b"}}', ['duplicate field "spec.type"']),
    "duplicate three times is told once": (
        '{"spec": {"type": "a", "type": "b", "type": "c"}}',
        ['duplicate field "spec.type"'],
    ),
    "duplicate in a map": ('{"spec": {"selector": {"a": "1", "a": "2"}}}', ['duplicate field "spec.selector.a"']),
    "duplicate at the top": ('{"kind": "Service", "kind": "Service"}', ['duplicate field "kind"']),
    "several": (
        '{"one": 1, "spec": {"two": 2, "ports": [{"three": 3}]}}',
        ['unknown field "one"', 'unknown field "spec.two"', 'unknown field "spec.ports[0].three"'],
    ),
    "none": ('{"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": {}, "status": {}}', []),
}


@pytest.mark.parametrize("text, said", STRICT.values(), ids=STRICT)
def test_unknown_and_duplicate_fields_are_told(text, said):
    assert sorted(decoded(text)[1]) == sorted(said)


def test_of_a_duplicate_field_the_last_counts():
    assert decoded('{"spec": {"type": "a", "type": "b"}}')[0]["spec"]["type"] == "b"


def test_yaml_tells_unknown_and_duplicate_fields_too():
    document, said = decoded("spec:\n  type: a\n  type: b\n  colour: red\n", YAML)
    assert document["spec"]["type"] == "b"
    assert sorted(said) == ['duplicate field "spec.type"', 'unknown field "spec.colour"']


def test_strictness_makes_one_answer_of_all_sentences():
    assert objects.strict_error(["a", "b"]).message == "strict decoding error: a, b"


# --- types

WRONG = {
    "a number for a text": {"spec": {"type": 1}},
    "a text for a number": {"spec": {"ports": [{"port": "80"}]}},
    "a fraction": {"spec": {"ports": [{"port": 80.5}]}},
    "a truth for a number": {"spec": {"ports": [{"port": True}]}},
    "a number beyond 32 bits": {"spec": {"ports": [{"port": 2**31}]}},
    "a target port beyond 32 bits": {"spec": {"ports": [{"targetPort": 2**31}]}},
    "a target port that is a list": {"spec": {"ports": [{"targetPort": []}]}},
    "a text for a truth": {"spec": {"publishNotReadyAddresses": "true"}},
    "an object for a list": {"spec": {"ports": {}}},
    "a list for an object": {"spec": []},
    "a list for a map": {"spec": {"selector": []}},
    "a number in a map of texts": {"spec": {"selector": {"a": 1}}},
    "a number in a list of texts": {"spec": {"externalIPs": [1]}},
    "a time that is none": {"metadata": {"creationTimestamp": "yesterday"}},
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_value_of_a_wrong_type_is_a_bad_request(value):
    with pytest.raises(BadRequest, match="cannot be handled as a Service"):
        shaped(value)


def test_the_answer_names_the_field():
    with pytest.raises(BadRequest) as caught:
        shaped({"spec": {"ports": [{"port": "80"}]}})
    assert caught.value.message == (
        'Service in version "v1" cannot be handled as a Service: json: cannot unmarshal string into Go struct field '
        "ServicePort.spec.ports.port of type int32"
    )


def test_null_is_as_good_as_nothing():
    assert shaped({"metadata": None, "spec": {"ports": None, "selector": None, "type": None}}) == shaped({"spec": {}})
    assert shaped({"spec": {"ports": [None]}})["spec"]["ports"] == [{"port": 0, "targetPort": 0}]


def test_whole_fractions_are_numbers():
    assert decoded('{"spec": {"ports": [{"port": 80.0}]}}')[0]["spec"]["ports"][0]["port"] == 80
    assert decoded('{"spec": {"ports": [{"port": 8e1}]}}')[0]["spec"]["ports"][0]["port"] == 80


def test_empty_values_go_unless_they_mean_something():
    spec = {"type": "", "externalIPs": [], "publishNotReadyAddresses": False, "allocateLoadBalancerNodePorts": False}
    assert shaped({"spec": spec})["spec"] == {"allocateLoadBalancerNodePorts": False}


def test_a_slice_always_writes_its_lists():
    made = shaped({"addressType": "IPv4", "endpoints": []}, ENDPOINT_SLICE)
    assert (made["endpoints"], made["ports"]) == (None, None)


@pytest.mark.parametrize("text", ["1", "1.5Gi", "100m", "1e3", "+1", "0.1", 1, 1.5])
def test_quantities_are_read(text):
    pod = {"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": text}}}]}}
    assert shaped(pod, POD)["spec"]["containers"][0]["resources"]["limits"]["memory"] == str(text)


@pytest.mark.parametrize("text", ["", "1x", "Gi", "1 Gi", True, []])
def test_other_quantities_are_refused(text):
    pod = {"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": text}}}]}}
    with pytest.raises(BadRequest):
        shaped(pod, POD)


# --- texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        '"a"',
        "{}{}",
        '{"a": NaN}',
        '{"a": Infinity}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\x00",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_object_in_json_is_a_bad_request(text):
    with pytest.raises(BadRequest):
        decoded(text)


def test_what_is_no_utf8_becomes_the_sign_for_that_in_json_and_is_a_bad_request_in_yaml():
    """As Go's readers of both have it."""
    body = b'{"metadata": {"name": "\xff\xfe"}}'
    assert objects.decode(SERVICE, body, JSON)["metadata"]["name"] == "\N{REPLACEMENT CHARACTER}" * 2
    with pytest.raises(BadRequest):
        objects.decode(SERVICE, body, YAML)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [",
        "a: &x 1\nb: *x",
        "!!python/object/apply:os.getcwd []",
        "a: !!binary aGk=",
        "a: !!timestamp 2024-01-01",
        "a: !!set {b}",
        "a: b: c",
        "? [a]\n: b",
        "[" * 5_000,
        "a: 1\n---\nb: 2",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_object_in_yaml_is_a_bad_request(text):
    with pytest.raises(BadRequest):
        decoded(text, YAML)


def test_yaml_dates_stay_texts_and_keys_become_texts():
    document, _ = decoded("metadata:\n  labels: {day: 2024-01-01, 1: a, true: b}\n", YAML)
    assert document["metadata"]["labels"] == {"day": "2024-01-01", "1": "a", "true": "b"}


def test_a_json_body_is_also_yaml():
    text = '{"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}'
    assert decoded(text, YAML) == decoded(text, JSON)


# --- anything at all

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["port", "name", "a", "clientIP"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_fields = ["ports", "selector", "type", "clusterIP", "clusterIPs", "sessionAffinityConfig", "healthCheckNodePort"]
_documents = st.fixed_dictionaries(
    {},
    optional={
        "metadata": _json
        | st.dictionaries(st.sampled_from(["name", "labels", "finalizers", "generation"]), _json, max_size=3),
        "spec": _json | st.dictionaries(st.sampled_from(_fields), _json, max_size=4),
        "status": _json,
        "extra": _json,
    },
)


@given(_documents, st.sampled_from(KINDS))
def test_decoding_twice_is_the_same_as_once(value, kind):
    try:
        document, _ = objects.shaped(kind, value)
    except BadRequest:
        return
    again, said = objects.shaped(kind, json.loads(json.dumps(document)))
    assert (again, said) == (document, [])


@given(
    st.binary(max_size=40) | st.text("{}[]\":,ab1\\ \n-&*!?|>'%", max_size=30).map(str.encode),
    st.sampled_from([JSON, YAML]),
)
def test_any_bytes_are_a_document_or_a_bad_request(body, media):
    try:
        objects.decode(SERVICE, body, media)
    except BadRequest:
        pass


def test_a_text_of_several_documents_gives_each_and_passes_empty_ones_over():
    assert wire.parse_documents("---\na: 1\n---\n---\n[2]\n") == [{"a": 1}, [2]]
    for text in ("a: &x 1\nb: *x\n", "a: [", "\tb"):
        with pytest.raises(BadRequest, match="error converting YAML to JSON"):
            wire.parse_documents(text)
