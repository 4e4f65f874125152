"""Ownership of fields through the store: what clients apply, what the control plane writes beside them."""

import json
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from services_app import store
from services_app.models import Change
from services_app.spec import fieldset, kinds, managed_fields
from services_app.spec.errors import ApplyConflict, Conflict, Forbidden, Invalid, NotFound
from tests.store.conftest import ACTOR


def apply(kind, config, manager="one", *, namespace="shop", creating=lambda: None, **options):
    config, _ = managed_fields.configuration(kind, {"apiVersion": kind.api_version, "kind": kind.kind, **config})
    stored = store.apply(
        kind,
        namespace,
        config["metadata"]["name"],
        config,
        creating=creating,
        check=lambda live, wanted: None,
        actor=replace(ACTOR, manager=manager),
        **options,
    )
    return json.loads(stored.document), stored


def service(metadata=None, **spec):
    spec.setdefault("ports", [{"port": 80}])
    return {"metadata": {"name": "web"} | (metadata or {}), "spec": spec}


def owners(document):
    """(manager, operation) -> paths."""
    entries = document["metadata"].get("managedFields") or ()
    return {(entry["manager"], entry["operation"]): {*fieldset.paths(entry["fieldsV1"])} for entry in entries}


CONFIGS = {
    kinds.NAMESPACE: {"metadata": {"name": "apart", "labels": {"team": "a"}}},
    kinds.SERVICE: service(type="LoadBalancer", selector={"app": "web"}, ports=[{"port": 80, "name": "http"}]),
    kinds.ENDPOINTS: {"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}]}]},
    kinds.ENDPOINT_SLICE: {
        "metadata": {"name": "s"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
        "ports": [{"port": 80}],
    },
    kinds.POD: {
        "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "app", "ports": [{"containerPort": 80}]}]},
    },
    kinds.NODE: {"metadata": {"name": "n9"}, "spec": {"podCIDRs": ["192.0.2.0/24"], "unschedulable": True}},
    kinds.EVENT: {
        "metadata": {"name": "ev"},
        "involvedObject": {"kind": "Service", "namespace": "shop", "name": "web"},
        "reason": "Made",
        "type": "Normal",
    },
}


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.plural)
def test_an_object_of_every_kind_is_made_by_an_apply_and_the_same_again_is_no_write(world, kind):
    namespace = "shop" if kind.namespaced else ""
    first, made = apply(kind, CONFIGS[kind], namespace=namespace)
    assert made.created and [*owners(first)] == [("one", "Apply")]
    head = Change.objects.count()
    again, same = apply(kind, CONFIGS[kind], namespace=namespace)
    assert (again, same.created, Change.objects.count()) == (first, False, head)


def test_a_value_that_the_server_replaces_is_no_write_again(world, monkeypatch):
    config = service(clusterIP="", externalIPs=[], ports=[{"port": 80, "targetPort": 0}])
    first, _ = apply(kinds.SERVICE, config)
    head = Change.objects.count()
    later = timezone.now() + timedelta(hours=1)
    monkeypatch.setattr("django.utils.timezone.now", lambda: later)
    again, _ = apply(kinds.SERVICE, config)
    assert (again, Change.objects.count()) == (first, head)
    moved, _ = apply(kinds.SERVICE, config | {"metadata": {"name": "web", "labels": {"x": "y"}}})
    assert moved["metadata"]["managedFields"][0]["time"] == later.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_what_the_control_plane_adds_is_nobodys_and_stays(world):
    world.node()
    apply(kinds.SERVICE, service(selector={"app": "web"}))
    world.pod(ip="192.0.2.9", app="web", ports=[{"containerPort": 80}])

    def programmed(document):
        condition = {
            "type": "Programmed",
            "status": "True",
            "reason": "AllNodes",
            "message": "",
            "lastTransitionTime": None,
        }
        document["status"]["conditions"] = [condition | {"lastTransitionTime": "2024-05-01T12:00:00Z"}]
        return document

    before = world.get(kinds.SERVICE, "web")
    after = world.update(kinds.SERVICE, "web", programmed, subresource="status")
    assert after["metadata"]["managedFields"] == before["metadata"]["managedFields"]
    left, _ = apply(kinds.SERVICE, service({"labels": {"x": "y"}}, selector={"app": "web"}))
    assert left["status"]["conditions"][0]["type"] == "Programmed"
    assert left["spec"]["clusterIP"] == before["spec"]["clusterIP"]
    assert all("managedFields" not in item["metadata"] for item in world.slices())


def test_a_derived_slice_belongs_to_who_was_before_the_first_apply(world):
    world.node()
    world.service(selector={"app": "web"})
    world.pod(ip="192.0.2.9", app="web")
    (found,) = world.slices()
    config = {"metadata": {"name": found["metadata"]["name"], "labels": {"x": "y"}}}
    applied, _ = apply(kinds.ENDPOINT_SLICE, config)
    assert owners(applied)["one", "Apply"] == {".metadata.labels.x"}
    with pytest.raises(
        ApplyConflict, match=r'conflict with "before-first-apply" using discovery.k8s.io/v1: \.endpoints'
    ):
        apply(kinds.ENDPOINT_SLICE, config | {"endpoints": [{"addresses": ["192.0.2.66"]}]})
    assert world.slices()[0]["endpoints"] == found["endpoints"]


def test_an_update_in_a_name_takes_fields_and_one_without_does_not(world):
    apply(kinds.SERVICE, service(selector={"app": "a"}))

    def change(to):
        return lambda document: document | {"spec": document["spec"] | {"selector": {"app": to}}}

    world.update(kinds.SERVICE, "web", change("b"))
    assert ".spec.selector" in owners(world.get(kinds.SERVICE, "web"))["one", "Apply"]
    actor = replace(ACTOR, manager="editor")
    store.update(kinds.SERVICE, "shop", "web", change("c"), actor=actor)
    assert owners(world.get(kinds.SERVICE, "web"))["editor", "Update"] == {".spec.selector"}
    with pytest.raises(ApplyConflict):
        apply(kinds.SERVICE, service(selector={"app": "a"}))


def test_a_create_in_a_name_owns_nothing_that_is_given_out(world):
    actor = replace(ACTOR, manager="maker")
    store.create(kinds.SERVICE, service(type="NodePort"), namespace="shop", actor=actor)
    made = world.get(kinds.SERVICE, "web")
    assert made["spec"]["ports"][0]["nodePort"] and made["spec"]["clusterIP"]
    told = " ".join(owners(made)["maker", "Update"])
    assert ".spec.type" in told
    assert not [word for word in ("nodePort", "clusterIP", "ipFamil", "status", "uid") if word in told]
    apply(kinds.SERVICE, service(type="NodePort", ipFamilyPolicy="SingleStack"))


def test_status_is_applied_apart(world):
    world.service(type="LoadBalancer")
    config = {"metadata": {"name": "web"}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}
    document, _ = apply(kinds.SERVICE, config, "balancer", subresource="status")
    assert document["status"]["loadBalancer"]["ingress"] == [{"ip": "203.0.113.1", "ipMode": "VIP"}]
    assert owners(document)["balancer", "Apply"] == {".status.loadBalancer.ingress"}
    document, _ = apply(kinds.SERVICE, {"metadata": {"name": "web"}, "status": {}}, "balancer", subresource="status")
    assert document["status"] == {"loadBalancer": {}}
    with pytest.raises(NotFound):
        apply(kinds.SERVICE, config | {"metadata": {"name": "none"}}, "balancer", subresource="status")


def test_a_dry_run_shows_and_keeps_nothing(world):
    shown, stored = apply(kinds.SERVICE, service(), dry_run=True)
    assert stored.created and shown["metadata"]["managedFields"] and "resourceVersion" not in shown["metadata"]
    with pytest.raises(NotFound):
        world.get(kinds.SERVICE, "web")
    made, _ = apply(kinds.SERVICE, service())
    shown, stored = apply(kinds.SERVICE, service({"labels": {"x": "y"}}), dry_run=True)
    assert shown["metadata"]["labels"] == {"x": "y"} and not stored.created
    assert world.get(kinds.SERVICE, "web") == made


def test_preconditions_and_rights_of_an_apply(world):
    def refuse():
        raise Forbidden(kinds.SERVICE, "web", "may not create")

    with pytest.raises(Forbidden):
        apply(kinds.SERVICE, service(), creating=refuse)
    with pytest.raises(Conflict, match="uid mismatch"):
        apply(kinds.SERVICE, service({"uid": "11111111-2222-3333-4444-555555555555"}))
    apply(kinds.SERVICE, service())
    apply(kinds.SERVICE, service({"labels": {"x": "y"}}), creating=refuse)
    with pytest.raises(Conflict, match="modified"):
        apply(kinds.SERVICE, service({"resourceVersion": "1"}))
    with pytest.raises((Conflict, Invalid), match="uid|UID"):
        apply(kinds.SERVICE, service({"uid": "11111111-2222-3333-4444-555555555555"}))
    with pytest.raises(NotFound, match="namespaces"):
        apply(kinds.SERVICE, service(), namespace="nowhere")
    with pytest.raises(Invalid):
        apply(kinds.SERVICE, service(sessionAffinity="Sometimes"), force=True)


@pytest.mark.slow
def test_appliers_of_one_object_at_once_all_land(committed_world):
    """Each makes the object or finds it made; no one's part is lost."""
    failed = []

    def work(number):
        try:
            label = {"labels": {f"l{number}": "x"}}
            apply(kinds.SERVICE, service(label, ports=[{"port": 80, "name": "http"}]), f"m{number}")
        except Exception as err:
            failed.append(err)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    document = committed_world.get(kinds.SERVICE, "web")
    assert document["metadata"]["labels"] == {f"l{number}": "x" for number in range(6)}
    assert owners(document).keys() == {(f"m{number}", "Apply") for number in range(6)}
