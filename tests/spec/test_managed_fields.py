"""Who owns what, through creates, updates and applies of whole objects."""

import json
from copy import deepcopy
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec import fieldset, managed_fields, objects
from services_app.spec.errors import ApplyConflict, BadRequest
from services_app.spec.kinds import ENDPOINT_SLICE, NAMESPACE, POD, SERVICE
from services_app.spec.managed_fields import Author
from tests.spec.sample import NOW, SINGLE, prepared, service, stored

T1, T2, T3 = (f"2024-05-01T12:0{minute}:00Z" for minute in (1, 2, 3))


def config(metadata=None, **spec):
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"} | (metadata or {})}
    return document | ({"spec": spec} if spec else {})


def apply(live, wanted, manager="one", *, force=False, subresource="", now=T1):
    """The object after an apply, as the store would keep it."""
    document, _ = managed_fields.configuration(SERVICE, wanted)
    author = Author(manager, now, subresource)
    merged = managed_fields.applied(SERVICE, live, document, author, force=force)
    entries = merged["metadata"].get("managedFields")
    kept = (
        stored(merged)
        if live is None
        else objects.prepare_update(SERVICE, live, merged, subresource=subresource, cluster=SINGLE)
    )
    kept["metadata"].pop("managedFields", None)
    return kept | {"metadata": kept["metadata"] | ({"managedFields": entries} if entries else {})}


def create(wanted, manager="maker"):
    made = stored(wanted)
    entries = managed_fields.created(SERVICE, wanted, prepared(wanted), Author(manager, T1))
    return made | {"metadata": made["metadata"] | {"managedFields": entries}}


def update(old, change, manager="editor", *, subresource="", now=T2):
    wanted = deepcopy(old)
    change(wanted)
    made = objects.prepare_update(SERVICE, old, wanted, subresource=subresource, cluster=SINGLE)
    entries = managed_fields.updated(SERVICE, old, wanted, made, Author(manager, now, subresource))
    made["metadata"].pop("managedFields", None)
    return made | {"metadata": made["metadata"] | ({"managedFields": entries} if entries else {})}


def owned(document, manager, operation="Apply", subresource=""):
    """The paths a manager owns."""
    for entry in document["metadata"].get("managedFields") or ():
        if (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, operation, subresource):
            return [*fieldset.paths(entry["fieldsV1"])]
    return []


def without_entries(document):
    metadata = {key: value for key, value in document["metadata"].items() if key != "managedFields"}
    return document | {"metadata": metadata}


# Creates and updates


def test_a_create_owns_what_was_sent_and_defaulted_but_nothing_given_out():
    made = create(service(selector={"app": "web"}, metadata={"labels": {"a": "b"}}))
    (entry,) = made["metadata"]["managedFields"]
    assert {key: value for key, value in entry.items() if key != "fieldsV1"} == {
        "manager": "maker",
        "operation": "Update",
        "apiVersion": "v1",
        "time": T1,
        "fieldsType": "FieldsV1",
    }
    assert owned(made, "maker", "Update") == [
        ".metadata.labels",
        ".metadata.labels.a",
        ".spec.internalTrafficPolicy",
        ".spec.ports",
        '.spec.ports[port=80,protocol="TCP"]',
        '.spec.ports[port=80,protocol="TCP"].port',
        '.spec.ports[port=80,protocol="TCP"].protocol',
        '.spec.ports[port=80,protocol="TCP"].targetPort',
        ".spec.selector",
        ".spec.sessionAffinity",
        ".spec.type",
    ]


def test_an_address_that_was_asked_for_is_owned():
    made = create(service(clusterIP="10.96.0.50", ipFamilyPolicy="SingleStack"))
    assert {".spec.clusterIP", ".spec.ipFamilyPolicy"} <= {*owned(made, "maker", "Update")}


@pytest.mark.parametrize(
    ("kind", "document", "paths"),
    [
        (
            NAMESPACE,
            {"metadata": {"name": "shop"}},
            [".metadata.labels", ".metadata.labels.kubernetes.io/metadata.name"],
        ),
        (
            ENDPOINT_SLICE,
            {
                "metadata": {"name": "s"},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["192.0.2.1"]}],
                "ports": [],
            },
            [".addressType", ".endpoints"],
        ),
    ],
    ids=["namespace", "slice"],
)
def test_what_a_create_of_other_kinds_owns(kind, document, paths):
    made = objects.prepare_create(kind, document, namespace="shop", now=NOW, uid="u", cluster=SINGLE)
    (entry,) = managed_fields.created(kind, document, made, Author("m", T1))
    assert [*fieldset.paths(entry["fieldsV1"])] == paths


def test_the_entry_of_a_new_pod_is_that_of_kubernetes():
    """As after `kubectl run web --image=app`: nothing of what admission adds, and of the containers no list as such."""
    document = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "app"}]}}
    made = objects.prepare_create(POD, document, namespace="shop", now=NOW, uid="u", cluster=SINGLE)
    (entry,) = managed_fields.created(POD, document, made, Author("m", T1))
    container = "image imagePullPolicy name resources terminationMessagePath terminationMessagePolicy"
    spec = "dnsPolicy enableServiceLinks restartPolicy schedulerName securityContext terminationGracePeriodSeconds"
    assert entry["fieldsV1"] == {
        "f:spec": {
            "f:containers": {'k:{"name":"c"}': {".": {}, **{f"f:{name}": {} for name in container.split()}}},
            **{f"f:{name}": {} for name in spec.split()},
        }
    }


def test_an_update_takes_what_it_changes_from_its_owner():
    made = create(service(selector={"a": "b"}))
    changed = update(made, lambda new: new["spec"].update(selector={"a": "c"}))
    assert owned(changed, "editor", "Update") == [".spec.selector"]
    assert ".spec.selector" not in owned(changed, "maker", "Update")
    assert ".spec.type" in owned(changed, "maker", "Update")


def test_an_update_of_nothing_leaves_the_entries_alone():
    made = create(service())
    assert update(made, lambda new: None)["metadata"]["managedFields"] == made["metadata"]["managedFields"]


def test_what_an_update_removes_is_nobodys():
    made = apply(None, config({"labels": {"a": "b"}}, ports=[{"port": 80}]))
    changed = update(made, lambda new: new["metadata"].pop("labels"))
    assert not [path for path in owned(changed, "one") if "labels" in path]
    assert owned(changed, "editor", "Update") == []


def test_status_is_owned_apart_from_the_spec():
    made = create(service(type="LoadBalancer"))

    def report(new):
        new["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
        new["spec"]["type"] = "ClusterIP"

    changed = update(made, report, "balancer", subresource="status")
    assert owned(changed, "balancer", "Update", "status") == [".status.loadBalancer.ingress"]
    assert owned(changed, "maker", "Update") == owned(made, "maker", "Update")


def test_an_object_without_entries_gets_none_by_updates():
    plain = stored(service())
    assert "managedFields" not in update(plain, lambda new: new["spec"].update(selector={"a": "b"}))["metadata"]


@pytest.mark.parametrize("sent", [[], None], ids=["empty", "missing"])
def test_entries_are_not_lost_by_clients_that_do_not_know_them(sent):
    made = create(service())
    changed = update(made, lambda new: new["metadata"].update(managedFields=sent))
    assert changed["metadata"]["managedFields"] == made["metadata"]["managedFields"]


def test_one_empty_entry_takes_all_away():
    changed = update(create(service()), lambda new: new["metadata"].update(managedFields=[{}]))
    assert "managedFields" not in changed["metadata"]


def test_entries_can_be_replaced_but_not_through_a_subresource():
    made = create(service())
    sent = [made["metadata"]["managedFields"][0] | {"manager": "other", "operation": "Apply"}]
    changed = update(made, lambda new: new["metadata"].update(managedFields=sent))
    assert changed["metadata"]["managedFields"] == sent
    changed = update(made, lambda new: new["metadata"].update(managedFields=sent), subresource="status")
    assert changed["metadata"]["managedFields"] == made["metadata"]["managedFields"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"operation": "Delete"},
        {"fieldsType": "FieldsV2"},
        {"fieldsV1": {"a": {}}},
        {"manager": "m" * 129},
        {"subresource": "\n"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_entries_that_cannot_be_read_are_passed_over(wrong):
    made = create(service())
    sent = [made["metadata"]["managedFields"][0] | wrong]
    changed = update(made, lambda new: new["metadata"].update(managedFields=sent))
    assert changed["metadata"]["managedFields"] == made["metadata"]["managedFields"]


def test_the_oldest_updates_are_put_together():
    document = create(service())
    for number in range(15):
        document = update(
            document,
            lambda new, number=number: new["metadata"].setdefault("labels", {}).update({f"l{number}": "x"}),
            f"m{number}",
            now=f"2024-05-01T13:{number:02}:00Z",
        )
    managers = [entry["manager"] for entry in document["metadata"]["managedFields"]]
    assert managers == ["ancient-changes", *(f"m{number}" for number in range(6, 15))]
    ancient = owned(document, "ancient-changes", "Update")
    assert ".spec.type" in ancient and ".metadata.labels.l5" in ancient and ".metadata.labels.l6" not in ancient


# Apply


def test_an_apply_owns_what_its_configuration_names():
    made = apply(None, config({"labels": {"x": "y"}}, selector={"a": "b"}, ports=[{"port": 80}]))
    assert owned(made, "one") == [
        ".metadata.labels.x",
        '.spec.ports[port=80,protocol="TCP"]',
        '.spec.ports[port=80,protocol="TCP"].port',
        ".spec.selector",
    ]


def test_a_contested_field_is_named_with_its_owner():
    made = update(create(service()), lambda new: new["spec"].update(selector={"a": "b"}))
    with pytest.raises(ApplyConflict) as refused:
        apply(made, config({"labels": {"x": "y"}}, type="NodePort", selector={"a": "c"}))
    assert refused.value.message == (
        'Apply failed with 2 conflicts: conflicts with "editor" using v1:\n- .spec.selector\n'
        'conflicts with "maker" using v1:\n- .spec.type'
    )
    assert refused.value.status()["details"]["causes"][0] == {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "maker" using v1',
        "field": ".spec.type",
    }
    forced = apply(made, config(selector={"a": "c"}), force=True)
    assert forced["spec"]["selector"] == {"a": "c"}
    assert owned(forced, "editor", "Update") == []


def test_conflicts_tell_appliers_and_subresources():
    made = apply(None, config(selector={"a": "b"}, ports=[{"port": 80}]))
    with pytest.raises(ApplyConflict, match='1 conflict: conflict with "one": .spec.selector'):
        apply(made, config(selector={"a": "c"}), "two")
    status = {"apiVersion": "v1", "kind": "Service", "status": {"conditions": [{"type": "Up", "status": "True"}]}}
    made = apply(made, status, "two", subresource="status")
    status["status"]["conditions"][0]["status"] = "False"
    with pytest.raises(ApplyConflict, match='conflict with "two" with subresource "status": .*type="Up".*status'):
        apply(made, status, "three", subresource="status")


def test_the_first_apply_finds_who_was_there_before():
    made = apply(stored(service(selector={"a": "b"})), config({"labels": {"x": "y"}}))
    assert ".spec.selector" in owned(made, "before-first-apply", "Update")
    assert owned(made, "one") == [".metadata.labels.x"]
    with pytest.raises(ApplyConflict):
        apply(stored(service(selector={"a": "b"})), config(selector={"a": "c"}))


def test_a_struct_that_is_emptied_goes():
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}
    made = apply(None, config(ports=[{"port": 80}], **affinity))
    left = apply(made, config(ports=[{"port": 80}]))
    assert "sessionAffinityConfig" not in left["spec"] and left["spec"]["sessionAffinity"] == "None"


def test_a_port_that_is_dropped_goes_and_one_of_another_manager_stays():
    made = apply(None, config(ports=[{"port": 80, "name": "a"}, {"port": 53, "protocol": "UDP", "name": "b"}]))
    made = apply(made, config(ports=[{"port": 81, "name": "c"}]), "two")
    left = apply(made, config(ports=[{"port": 80, "name": "a"}]))
    assert [port["port"] for port in left["spec"]["ports"]] == [80, 81]
    left = apply(left, config(ports=[{"port": 80, "name": "a"}]), "two", force=True)
    assert [port["port"] for port in left["spec"]["ports"]] == [80]


def test_what_another_update_owns_is_not_taken_away():
    made = apply(None, config({"annotations": {"x": "1"}}, ports=[{"port": 80}]))
    made = update(made, lambda new: new["metadata"]["annotations"].update(y="2"))
    left = apply(made, config(ports=[{"port": 80}]))
    assert left["metadata"]["annotations"] == {"y": "2"}


def test_what_was_given_out_survives_an_apply_without_it():
    made = apply(None, config(type="NodePort", ports=[{"port": 80}]))
    again = apply(made, config({"labels": {"x": "y"}}, type="NodePort", ports=[{"port": 80}]))
    assert again["spec"] == made["spec"]


def test_kubectl_goes_over_from_client_side_apply_without_a_conflict():
    text = json.dumps(config(selector={"a": "b"}, ports=[{"port": 80}]))
    sent = service(selector={"a": "b"}, metadata={"annotations": {managed_fields.LAST_APPLIED: text}})
    made = create(sent, "kubectl-client-side-apply")
    wanted = config(selector={"a": "c"}, ports=[{"port": 80}])
    with pytest.raises(ApplyConflict):
        apply(made, wanted)
    moved = apply(made, wanted, "kubectl")
    assert moved["spec"]["selector"] == {"a": "c"}
    assert json.loads(moved["metadata"]["annotations"][managed_fields.LAST_APPLIED]) == wanted
    edited = update(made, lambda new: new["spec"].update(selector={"a": "z"}))
    with pytest.raises(ApplyConflict, match="editor"):
        apply(edited, wanted, "kubectl")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "must be an object"),
        ({"kind": "Service"}, "Incorrect version specified in apply patch"),
        ({"apiVersion": "v1", "kind": "Pod"}, "Incorrect version specified in apply patch"),
        (config(colour="red"), 'unknown field "spec.colour"'),
        (
            config(ports=[{"port": 80}, {"port": 80, "name": "b"}]),
            r'duplicate entries for key \[port=80,protocol="TCP"',
        ),
        (config(ports=[{"name": "b"}]), "omits its key 'port'"),
        (config(ports=80), "cannot unmarshal number"),
        (config({"managedFields": [{"manager": "x"}]}), "managedFields must be nil"),
    ],
    ids=str,
)
def test_what_cannot_be_applied_is_refused(body, told):
    with pytest.raises(BadRequest, match=told):
        managed_fields.configuration(SERVICE, body)


def test_a_later_time_alone_is_no_difference_even_where_it_changes_the_order():
    """Two apply alike; the first comes again with a list whose defaults were filled in, so that it seems to change it."""
    first = apply(None, config(ports=[{"port": 80}]), "one", now=T1)
    both = apply(first, config(ports=[{"port": 80}]), "two", now=T2)
    entries = [
        {**entry, "time": T3} if entry["manager"] == "one" else entry for entry in both["metadata"]["managedFields"]
    ]
    again = both | {"metadata": both["metadata"] | {"managedFields": entries[::-1]}}
    assert managed_fields.is_same(both, again)
    entries[0]["fieldsV1"] = {"f:spec": {}}
    assert not managed_fields.is_same(both, both | {"metadata": both["metadata"] | {"managedFields": entries}})


# Laws

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))
PORTS = st.lists(
    st.fixed_dictionaries(
        {"port": st.sampled_from([53, 80, 443])},
        optional={
            "protocol": st.sampled_from(["TCP", "UDP"]),
            "name": st.sampled_from(["a", "b"]),
            "targetPort": st.sampled_from([8080, "http"]),
            "appProtocol": st.just("http"),
        },
    ),
    max_size=4,
    unique_by=lambda port: (port["port"], port.get("protocol", "TCP")),
)
CONFIGS = st.builds(
    lambda metadata, spec: config(metadata, **spec),
    st.fixed_dictionaries({}, optional={"labels": LABELS, "finalizers": st.just(["example.org/x"])}),
    st.fixed_dictionaries(
        {},
        optional={
            "ports": PORTS,
            "selector": st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
            "sessionAffinity": st.sampled_from(["None", "ClientIP"]),
            "externalIPs": st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2"]), unique=True),
        },
    ),
)


def merged(live, wanted, manager, *, force=True, now=T1):
    """An apply without what the kind adds to it."""
    return managed_fields.applied(SERVICE, live, wanted, Author(manager, now), force=force)


def canonical(document):
    """Without the order of elements and without what is empty."""
    if isinstance(document, dict):
        kept = {key: canonical(value) for key, value in document.items()}
        return {key: value for key, value in kept.items() if value not in (None, {}, [])}
    if isinstance(document, list):
        return sorted((canonical(item) for item in document), key=lambda item: json.dumps(item, sort_keys=True))
    return document


@given(CONFIGS, CONFIGS)
def test_applying_the_same_again_changes_nothing(first, second):
    live = merged(merged(None, first, "one"), second, "two", now=T2)
    assert merged(live, second, "two", now=T3) == live


@given(CONFIGS, CONFIGS)
def test_what_a_manager_drops_and_nobody_owns_is_gone(first, second):
    live = merged(merged(None, first, "one"), second, "one")
    assert canonical(without_entries(live)) == canonical(without_entries(merged(None, second, "one")))


@given(CONFIGS, CONFIGS)
def test_what_another_applies_stays_when_a_manager_drops_it(first, second):
    live = merged(merged(None, second, "two"), first, "one")
    left = merged(live, config(), "one")
    paths = {*fieldset.paths(managed_fields.merging.fields_of("Service", left))}
    assert {*owned(left, "two")} <= paths


def _split(whole):
    """Three disjoint parts of one configuration."""
    spec = whole.get("spec", {})
    names = sorted(spec)
    ports = spec.get("ports") or []
    labels = whole["metadata"].get("labels") or {}
    parts = []
    for turn in range(3):
        part = {name: spec[name] for name in names[turn::3] if name != "ports"}
        if ports[turn::3]:
            part["ports"] = ports[turn::3]
        mine = {key: labels[key] for key in sorted(labels)[turn::3]}
        parts.append(config({"labels": mine} if mine else {}, **part))
    return parts


@given(CONFIGS)
def test_disjoint_parts_give_the_same_object_in_every_order(whole):
    results = []
    for order in permutations(enumerate(_split(whole))):
        live = None
        for number, part in order:
            live = merged(live, part, f"m{number}", force=False)
        results.append(canonical(live))
    assert all(result == results[0] for result in results)


@given(CONFIGS, CONFIGS, CONFIGS)
def test_entries_hold_only_fields_that_are_there_and_read_back(first, second, third):
    live = merged(merged(merged(None, first, "one"), second, "two"), third, "one")
    everything = managed_fields.merging.fields_of("Service", live, containers=True)
    for entry in live["metadata"].get("managedFields") or ():
        assert fieldset.parse(json.loads(json.dumps(entry["fieldsV1"]))) == entry["fieldsV1"]
        lost = [*fieldset.paths(fieldset.difference(entry["fieldsV1"], everything))]
        assert lost == []


# Managers' names


@pytest.mark.parametrize(
    ("named", "agent", "manager"),
    [
        ("me", "kubectl/v1.36.2 (linux/amd64)", "me"),
        ("", "kubectl/v1.36.2 (linux/amd64)", "kubectl"),
        ("", "My Agent 1.0", "My Agent 1.0"),
        ("", "a\x07b\n/1", "ab"),
        ("", "m" * 200, "m" * 128),
        ("", "é" * 100, "é" * 64),
        ("", "", "unknown"),
    ],
)
def test_the_manager_is_named_or_told_by_the_client(named, agent, manager):
    assert managed_fields.manager_of(named, agent) == manager


def test_a_manager_is_short_and_printable():
    assert managed_fields.validate_manager("é" * 64) == []
    assert [error.type for error in managed_fields.validate_manager("é" * 64 + "x")] == ["TooLong"]
    (error,) = managed_fields.validate_manager("a\tb")
    assert "position 1" in error.detail
