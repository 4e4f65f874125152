"""Documents beside their schema: fields, differences, merges, as structured-merge-diff has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec import fieldset, merging, schema
from services_app.spec.kinds import STORED

HTTP, DNS = 'k:{"port":80,"protocol":"TCP"}', 'k:{"port":53,"protocol":"UDP"}'


@pytest.mark.parametrize(
    ("type_name", "document", "fields"),
    [
        pytest.param(
            "Service",
            {"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"a": "b"}, "clusterIPs": ["10.96.0.1"]}},
            {"f:spec": {"f:selector": {}, "f:clusterIPs": {}}},
            id="an atomic map and an atomic list are one field",
        ),
        pytest.param(
            "Service",
            {"metadata": {"labels": {"a": "b"}, "annotations": {}}},
            {"f:metadata": {"f:labels": {"f:a": {}}, "f:annotations": {}}},
            id="a granular map is its entries, an empty one itself",
        ),
        pytest.param(
            "Service",
            {"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 53, "protocol": "UDP"}]}},
            {
                "f:spec": {
                    "f:ports": {
                        HTTP: {".": {}, "f:port": {}, "f:name": {}},
                        DNS: {".": {}, "f:port": {}, "f:protocol": {}},
                    }
                }
            },
            id="ports are keyed by number and protocol, TCP when it is left out",
        ),
        pytest.param("Service", {"spec": {"ports": []}}, {}, id="an empty keyed list is no field"),
        pytest.param("Service", {"spec": {"type": None}}, {"f:spec": {"f:type": {}}}, id="null is a value"),
        pytest.param(
            "Service",
            {"metadata": {"finalizers": ["example.org/x"], "ownerReferences": [{"uid": "1", "name": "o"}]}},
            {
                "f:metadata": {
                    "f:finalizers": {'v:"example.org/x"': {}},
                    "f:ownerReferences": {'k:{"uid":"1"}': {".": {}, "f:uid": {}, "f:name": {}}},
                }
            },
            id="finalizers are a set, owners keyed by uid",
        ),
        pytest.param(
            "Service",
            {"status": {"conditions": [{"type": "Ready", "status": "True"}], "loadBalancer": {"ingress": [{}]}}},
            {
                "f:status": {
                    "f:conditions": {'k:{"type":"Ready"}': {".": {}, "f:type": {}, "f:status": {}}},
                    "f:loadBalancer": {"f:ingress": {}},
                }
            },
            id="conditions are keyed by type, ingress is atomic",
        ),
        pytest.param(
            "EndpointSlice",
            {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": None},
            {"f:addressType": {}, "f:endpoints": {}, "f:ports": {}},
            id="endpoints of a slice are atomic",
        ),
        pytest.param("Endpoints", {"subsets": [{}]}, {"f:subsets": {}}, id="subsets are atomic"),
        pytest.param(
            "Event",
            {"involvedObject": {"name": "x"}, "source": {"component": "c"}},
            {"f:involvedObject": {}, "f:source": {"f:component": {}}},
            id="an object reference is atomic, a source granular",
        ),
        pytest.param(
            "Pod",
            {
                "spec": {
                    "nodeSelector": {"a": "b"},
                    "containers": [{"name": "c", "ports": [{"containerPort": 80}], "args": ["x"]}],
                    "topologySpreadConstraints": [{"topologyKey": "z", "whenUnsatisfiable": "w", "labelSelector": {}}],
                }
            },
            {
                "f:spec": {
                    "f:nodeSelector": {},
                    "f:containers": {
                        'k:{"name":"c"}': {
                            ".": {},
                            "f:name": {},
                            "f:args": {},
                            "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                        }
                    },
                    "f:topologySpreadConstraints": {
                        'k:{"topologyKey":"z","whenUnsatisfiable":"w"}': {
                            ".": {},
                            "f:topologyKey": {},
                            "f:whenUnsatisfiable": {},
                            "f:labelSelector": {},
                        }
                    },
                }
            },
            id="of a Pod",
        ),
        pytest.param(
            "Node",
            {"spec": {"podCIDRs": ["192.0.2.0/24"], "taints": [{"key": "x"}]}, "status": {"capacity": {"cpu": "1"}}},
            {
                "f:spec": {"f:podCIDRs": {'v:"192.0.2.0/24"': {}}, "f:taints": {}},
                "f:status": {"f:capacity": {"f:cpu": {}}},
            },
            id="of a Node",
        ),
    ],
)
def test_fields_of_a_document(type_name, document, fields):
    assert merging.fields_of(type_name, document) == fields


def test_what_holds_fields_is_a_member_when_asked_for():
    document = {"metadata": {"labels": {"a": "b"}}, "spec": {"ports": [{"port": 80}]}}
    assert merging.fields_of("Service", document, containers=True) == {
        "f:metadata": {".": {}, "f:labels": {".": {}, "f:a": {}}},
        "f:spec": {".": {}, "f:ports": {".": {}, HTTP: {".": {}, "f:port": {}}}},
    }


def test_elements_that_cannot_be_told_apart_are_named():
    pod = {
        "metadata": {"finalizers": ["a.example/b", "a.example/b"]},
        "spec": {"containers": [{"name": "c", "env": [{"name": "X"}, {"name": "X"}, {"value": "y"}]}]},
    }
    assert merging.untold("Pod", pod) == [
        '.metadata.finalizers: duplicate entries for key [="a.example/b"]',
        '.spec.containers[name="c"].env: duplicate entries for key [name="X"]',
        ".spec.containers[name=\"c\"].env: element omits its key 'name'",
    ]
    assert merging.fields_of("PodSpec", {"imagePullSecrets": [{}]}) == {"f:imagePullSecrets": {"k:{}": {}}}


@pytest.mark.parametrize(
    ("old", "new", "taken", "gone"),
    [
        ({"type": "ClusterIP"}, {"type": "NodePort"}, [".type"], []),
        ({"type": "ClusterIP"}, {}, [], [".type"]),
        ({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}}, [".selector"], []),
        (
            {},
            {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}},
            [
                ".sessionAffinityConfig",
                ".sessionAffinityConfig.clientIP",
                ".sessionAffinityConfig.clientIP.timeoutSeconds",
            ],
            [],
        ),
        (
            {"ports": [{"port": 80, "name": "a"}, {"port": 81}]},
            {"ports": [{"port": 80, "name": "b"}, {"port": 82}]},
            [
                '.ports[port=80,protocol="TCP"].name',
                '.ports[port=82,protocol="TCP"]',
                '.ports[port=82,protocol="TCP"].port',
            ],
            ['.ports[port=81,protocol="TCP"]', '.ports[port=81,protocol="TCP"].port'],
        ),
        ({"ports": [{"port": 80}, {"port": 81}]}, {"ports": [{"port": 81}, {"port": 80}]}, [], []),
        ({"externalIPs": ["192.0.2.1"]}, {"externalIPs": None}, [".externalIPs"], []),
    ],
)
def test_compare_names_what_differs(old, new, taken, gone):
    found = merging.compare("ServiceSpec", old, new)
    assert [[*fieldset.paths(fields)] for fields in found] == [taken, gone]


def test_elements_that_are_not_told_apart_change_as_one():
    old = {"addresses": [{"type": "InternalIP", "address": a} for a in ("192.0.2.1", "2001:db8::1")]}
    new = {"addresses": [{"type": "InternalIP", "address": a} for a in ("192.0.2.1", "2001:db8::2")]}
    taken, gone = merging.compare("NodeStatus", old, new)
    assert [*fieldset.paths(taken)] == ['.addresses[type="InternalIP"]'] and not gone
    assert merging.merge("NodeStatus", old, {"addresses": new["addresses"][1:]}) == {"addresses": new["addresses"][1:]}


@pytest.mark.parametrize(
    ("live", "config", "merged"),
    [
        ({"a": 1, "b": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"ports": [1, 2]}, {"ports": [3]}, {"ports": [1, 2, 3]}),
        ({"ports": [1, 2, 3]}, {"ports": [3, 1]}, {"ports": [2, 3, 1]}),
        ({"ports": [1, 2, 3]}, {"ports": [3, 4, 1]}, {"ports": [2, 3, 4, 1]}),
        ({"ports": [1, 2]}, {"ports": [2, 3]}, {"ports": [1, 2, 3]}),
        ({"ports": [1]}, {"ports": []}, {"ports": [1]}),
        ({"ports": [1]}, {"ports": None}, {"ports": [1]}),
        ({"selector": {"a": "b"}}, {"selector": {"c": "d"}}, {"selector": {"c": "d"}}),
    ],
)
def test_merge(live, config, merged):
    def as_spec(document):
        ports = [{"port": number} for number in document.get("ports") or ()]
        return document | ({"ports": ports} if document.get("ports") else {})

    assert merging.merge("ServiceSpec", as_spec(live), as_spec(config)) == as_spec(merged)


def test_without_takes_members_and_what_is_below_them():
    spec = {"type": "NodePort", "ports": [{"port": 80, "name": "a"}, {"port": 81}], "selector": {"a": "b"}}
    fields = {"f:selector": {}, "f:ports": {'k:{"port":81,"protocol":"TCP"}': {}, HTTP: {"f:name": {}}}}
    assert merging.without("ServiceSpec", spec, fields) == {"type": "NodePort", "ports": [{"port": 80}]}
    assert merging.without("ObjectMeta", {"labels": {"a": "b"}}, {"f:labels": {"f:a": {}}}) == {"labels": None}


# Laws, over every type of the schema

SCALARS = {
    "string": st.sampled_from(["a", "b", "TCP", "UDP"]),
    "int32": st.sampled_from([53, 80]),
    "int64": st.sampled_from([1, 2]),
    "bool": st.booleans(),
    "float": st.just(1.5),
    "time": st.just("2024-05-01T12:00:00Z"),
    "microtime": st.just("2024-05-01T12:00:00.000000Z"),
    "quantity": st.sampled_from(["1", "2Gi"]),
    "bytes": st.sampled_from(["", "YQ==", "Yg=="]),
    "intstr": st.sampled_from([80, "http"]),
}


@st.composite
def values(draw, type_name, depth=0):
    """A part of a document of a type; elements of keyed lists have their keys, each once."""
    if type_name in SCALARS:
        return draw(SCALARS[type_name])
    if type_name.startswith("{}"):
        return draw(st.dictionaries(st.sampled_from("ab"), values(type_name[2:], depth + 1), max_size=2))
    made = {}
    names = [name for name, field in schema.fields(type_name).items() if "any" not in field.type]
    for name in draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        field = schema.fields(type_name)[name]
        if not field.is_list:
            made[name] = draw(values(field.type, depth + 1))
            continue
        entries = draw(st.lists(values(field.element, depth + 1), max_size=2 if depth < 4 else 0))
        if field.shape == "keyed":
            keys = {key: SCALARS[schema.fields(field.element)[key].type] for key in field.list_keys}
            entries = [entry | {key: draw(value) for key, value in keys.items()} for entry in entries]
            entries = [*{merging.step_to(field, entry): entry for entry in entries}.values()]
        made[name] = [*dict.fromkeys(entries)] if field.shape == "set" else entries
    return made


ROOTS = st.sampled_from([schema.root(kind) for kind in STORED])
PAIRS = ROOTS.flatmap(lambda root: st.tuples(st.just(root), values(root), values(root)))


@given(PAIRS)
def test_merging_gives_what_the_config_says_and_says_it_again_in_vain(drawn):
    root, live, config = drawn
    merged = merging.merge(root, live, config)
    assert merging.merge(root, merged, config) == merged
    assert merging.merge(root, live, {}) == live
    named = merging.fields_of(root, config)
    assert fieldset.difference(named, merging.fields_of(root, merged, containers=True)) == {}
    taken, gone = merging.compare(root, live, merged)
    assert fieldset.difference(taken, merging.fields_of(root, config, containers=True)) == {} and not gone


@given(PAIRS)
def test_what_differs_one_way_is_told_the_other_way(drawn):
    root, old, new = drawn
    assert merging.compare(root, old, old) == ({}, {})
    taken, gone = merging.compare(root, old, new)
    back_taken, back_gone = merging.compare(root, new, old)
    assert fieldset.difference(gone, back_taken) == {} and fieldset.difference(back_gone, taken) == {}
    everything = merging.fields_of(root, new, containers=True)
    assert fieldset.difference(taken, everything) == {} and fieldset.intersection(gone, everything) == {}


@given(PAIRS)
def test_without_takes_what_is_named_and_nothing_else(drawn):
    root, document, other = drawn
    fields = merging.fields_of(root, other)
    left = merging.fields_of(root, merging.without(root, document, fields))
    before = merging.fields_of(root, document)
    assert merging.without(root, document, {}) == document
    emptied = fieldset.difference(left, before)  # a container that lost all it held is null, and so a field
    assert fieldset.intersection(fieldset.difference(left, emptied), fields) == {}
