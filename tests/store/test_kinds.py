"""What is particular to how ConfigMaps, Secrets, Leases, Ingresses and the two faces of Events are stored."""

import json
from base64 import b64encode

import pytest

from services_app import changes, models, store
from services_app.spec import kinds
from services_app.spec.errors import Conflict, InternalError, Invalid, NotFound
from tests.store.conftest import ACTOR

PASSWORD = "correct-horse-battery"


def create(kind, name, **rest):
    namespace = "shop" if kind.namespaced else ""
    metadata = {"name": name, **rest.pop("metadata", {})}
    return json.loads(store.create(kind, {"metadata": metadata, **rest}, namespace=namespace, actor=ACTOR).document)


def everything_stored() -> str:
    """All text the tables hold about Secrets and the log."""
    rows = [*models.Secret.objects.values_list(), *models.Change.objects.values_list()]
    return repr(rows)


def test_values_of_secrets_are_nowhere_in_clear(world):
    manifest = json.dumps({"stringData": {"password": PASSWORD}})
    made = create(
        kinds.SECRET,
        "db",
        metadata={"annotations": {"kubectl.kubernetes.io/last-applied-configuration": manifest}, "labels": {"a": "b"}},
        stringData={"password": PASSWORD},
    )
    coded = b64encode(PASSWORD.encode()).decode()
    assert made["data"] == {"password": coded}
    assert made["type"] == "Opaque"
    assert "stringData" not in made

    def change(secret):
        secret["data"]["second"] = coded
        return secret

    assert world.update(kinds.SECRET, "db", change)["data"] == {"password": coded, "second": coded}
    assert json.loads(store.list(kinds.SECRET, "shop").documents[0])["data"]["second"] == coded
    first = store.list(kinds.SECRET, "shop", at=int(made["metadata"]["resourceVersion"]))
    assert json.loads(first.documents[0]) == made
    world.delete(kinds.SECRET, "db")
    assert [row.verb for row in models.Change.objects.filter(kind="secrets")] == ["ADDED", "MODIFIED", "DELETED"]
    stored = everything_stored()
    assert PASSWORD not in stored
    assert coded not in stored
    assert '"a":"b"' in stored  # labels stay readable: selectors need them


def test_a_secret_under_another_key_is_an_error_that_says_what_to_do(world, settings):
    create(kinds.SECRET, "db", stringData={"password": PASSWORD})
    settings.SECRET_KEY = "another key of at least thirty-two characters"
    with pytest.raises(InternalError, match='cannot open secret "shop/db".*TIMONEL_OLD_SECRET_KEYS'):
        store.get(kinds.SECRET, "shop", "db")


def test_errors_about_secrets_show_no_value(world):
    with pytest.raises(Invalid) as refusal:
        create(kinds.SECRET, "x", type="kubernetes.io/dockerconfigjson", stringData={".dockerconfigjson": PASSWORD})
    assert [error.field for error in refusal.value.errors] == ["data[.dockerconfigjson]"]
    assert PASSWORD not in refusal.value.message


@pytest.mark.parametrize(
    "kind, field", [(kinds.SECRET, "data"), (kinds.CONFIG_MAP, "data"), (kinds.CONFIG_MAP, "binaryData")]
)
def test_an_immutable_object_keeps_its_contents_and_its_mark(world, kind, field):
    create(kind, "fixed", immutable=True, **{field: {"a": "YQ=="}})

    def other_data(document):
        document[field] = {"a": "Yg=="}
        return document

    def no_mark(document):
        document["immutable"] = False
        return document

    def labelled(document):
        document["metadata"]["labels"] = {"a": "b"}
        return document

    for change, wrong in ((other_data, field), (no_mark, "immutable")):
        with pytest.raises(Invalid) as refusal:
            world.update(kind, "fixed", change)
        assert [error.field for error in refusal.value.errors] == [wrong]
    assert world.update(kind, "fixed", labelled)["metadata"]["labels"] == {"a": "b"}


def test_the_type_of_a_secret_is_fixed_and_tls_needs_both_halves(world):
    with pytest.raises(Invalid) as refusal:
        create(kinds.SECRET, "tls", type="kubernetes.io/tls", data={"tls.crt": ""})
    assert [str(error) for error in refusal.value.errors] == ["data[tls.key]: Required value"]
    create(kinds.SECRET, "tls", type="kubernetes.io/tls", data={"tls.crt": "", "tls.key": ""})
    with pytest.raises(Invalid) as refusal:
        world.update(kinds.SECRET, "tls", lambda secret: {**secret, "type": "Opaque"})
    assert [error.field for error in refusal.value.errors] == ["type"]


def test_only_one_of_two_holders_takes_a_lease(world):
    """Leader election as client-go does it: an update from the version that was read."""
    lease = create(kinds.LEASE, "leader", spec={"holderIdentity": "a", "renewTime": "2026-01-02T03:04:05Z"})
    assert lease["spec"]["renewTime"] == "2026-01-02T03:04:05.000000Z"

    def taken_by(identity):
        return lambda _: {**lease, "spec": {"holderIdentity": identity, "leaseDurationSeconds": 15}}

    assert world.update(kinds.LEASE, "leader", taken_by("b"))["spec"]["holderIdentity"] == "b"
    with pytest.raises(Conflict):
        world.update(kinds.LEASE, "leader", taken_by("c"))
    assert models.Lease.objects.get(name="leader").holder == "b"

    def without_version(current):
        del current["metadata"]["resourceVersion"]
        return current

    with pytest.raises(Invalid) as refusal:
        world.update(kinds.LEASE, "leader", without_version)
    assert [error.field for error in refusal.value.errors] == ["metadata.resourceVersion"]


def test_an_event_has_two_faces(world):
    regarding = {"kind": "Service", "namespace": "shop", "name": "web"}
    made = create(
        kinds.EVENTS_EVENT,
        "web.1",
        eventTime="2026-01-02T03:04:05.123456Z",
        regarding=regarding,
        reason="Tested",
        action="Test",
        note="it works",
        type="Normal",
        reportingController="example.org/tester",
        reportingInstance="tester-1",
    )
    assert (made["apiVersion"], made["note"], made["regarding"]) == ("events.k8s.io/v1", "it works", regarding)
    core = world.get(kinds.EVENT, "web.1")
    assert (core["apiVersion"], core["message"], core["involvedObject"]) == ("v1", "it works", regarding)
    assert core["metadata"] == made["metadata"]
    assert core["reportingComponent"] == "example.org/tester"
    assert models.Event.objects.get(name="web.1").involved_name == "web"
    assert world.get(kinds.EVENTS_EVENT, "web.1") == made

    def counted(event):
        event["series"] = {"count": 2, "lastObservedTime": "2026-01-02T03:05:00.000000Z"}
        return event

    assert world.update(kinds.EVENTS_EVENT, "web.1", counted)["series"]["count"] == 2
    assert world.get(kinds.EVENT, "web.1")["series"]["count"] == 2
    with pytest.raises(Invalid) as refusal:
        world.update(kinds.EVENTS_EVENT, "web.1", lambda event: {**event, "note": "something else"})
    assert [error.field for error in refusal.value.errors] == ["message"]


def test_what_an_old_event_may_be_a_new_one_may_not(world):
    about = {"kind": "Service", "namespace": "shop", "name": "web"}
    create(kinds.EVENT, "old", involvedObject=about, reason="Tested", type="Odd", count=3)
    with pytest.raises(Invalid) as refusal:
        create(kinds.EVENTS_EVENT, "new", regarding=about, reason="Tested", type="Odd", deprecatedCount=3)
    assert {error.field for error in refusal.value.errors} == {"eventTime", "type", "count"}


def test_a_namespace_takes_all_kinds_with_it(world):
    for kind, rest in (
        (kinds.CONFIG_MAP, {"data": {"a": "b"}}),
        (kinds.SECRET, {}),
        (kinds.LEASE, {}),
        (kinds.INGRESS, {"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}}),
    ):
        create(kind, "x", **rest)
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    for kind in (kinds.CONFIG_MAP, kinds.SECRET, kinds.LEASE, kinds.INGRESS):
        with pytest.raises(NotFound):
            store.get(kind, "shop", "x")
    assert changes.head() == models.Change.objects.order_by("-revision")[0].revision


def test_a_namespace_that_a_finalizer_of_its_spec_holds_stays(world):
    def held(namespace):
        namespace["spec"]["finalizers"] = ["kubernetes", "example.org/hold"]
        return namespace

    store.update(kinds.NAMESPACE, "", "shop", held, subresource="finalize", actor=ACTOR)
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    assert json.loads(store.get(kinds.NAMESPACE, "", "shop").document)["status"]["phase"] == "Terminating"

    def free(namespace):
        namespace["spec"]["finalizers"] = []
        return namespace

    store.update(kinds.NAMESPACE, "", "shop", free, subresource="finalize", actor=ACTOR)
    assert store.finish_namespace("shop", actor=ACTOR, at_most=10)


def test_what_has_finalizers_holds_a_namespace_and_nothing_else(world):
    """The others go at once, the conditions say what is waited for, and nothing is written while it waits."""
    hold = {"finalizers": ["example.org/hold"]}
    for number in range(250):
        create(kinds.CONFIG_MAP, f"c{number:03}", metadata=hold if number in (3, 120) else {})
    world.service("web")
    create(kinds.SECRET, "last", metadata={"finalizers": ["example.org/hold", "example.org/other"]})
    store.delete(kinds.NAMESPACE, "", "shop", actor=ACTOR)
    assert [*models.ConfigMap.objects.values_list("name", flat=True)] == ["c003", "c120"]
    assert not models.Service.objects.filter(namespace="shop").exists()
    status = json.loads(store.get(kinds.NAMESPACE, "", "shop").document)["status"]
    told = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}
    assert told["NamespaceContentRemaining"] == (
        "True",
        "SomeResourcesRemain",
        "Some resources are remaining: configmaps. has 2 resource instances, secrets. has 1 resource instances",
    )
    assert told["NamespaceFinalizersRemaining"][2] == (
        "Some content in the namespace has finalizers remaining: "
        "example.org/hold in 3 resource instances, example.org/other in 1 resource instances"
    )
    assert told["NamespaceDeletionContentFailure"][0] == "False"
    before = changes.head()
    assert not store.finish_namespace("shop", actor=ACTOR, at_most=2000)
    assert changes.head() == before

    def free(document):
        del document["metadata"]["finalizers"]
        return document

    for kind, name in ((kinds.CONFIG_MAP, "c003"), (kinds.CONFIG_MAP, "c120"), (kinds.SECRET, "last")):
        store.update(kind, "shop", name, free, actor=ACTOR)
    assert store.finish_namespace("shop", actor=ACTOR, at_most=2000)


def test_ingresses_raise_their_generation_with_their_spec_alone(world):
    backend = {"service": {"name": "web", "port": {"name": "http"}}}
    made = create(kinds.INGRESS, "web", spec={"ingressClassName": "edge", "defaultBackend": backend})
    assert (made["metadata"]["generation"], made["status"]) == (1, {"loadBalancer": {}})
    assert models.Ingress.objects.get(name="web").class_name == "edge"

    def served(ingress):
        ingress["status"]["loadBalancer"] = {"ingress": [{"ip": "192.0.2.7"}]}
        return ingress

    done = world.update(kinds.INGRESS, "web", served, subresource="status")
    assert done["metadata"]["generation"] == 1
    assert done["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.7"}]

    def retargeted(ingress):
        ingress["spec"]["defaultBackend"]["service"]["name"] = "other"
        return ingress

    done = world.update(kinds.INGRESS, "web", retargeted)
    assert done["metadata"]["generation"] == 2
    assert done["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.7"}]


def test_a_nul_is_no_reason_to_fail(world):
    made = create(kinds.LEASE, "odd", spec={"holderIdentity": "a\0b"})
    assert made["spec"]["holderIdentity"] == "a\0b"
    assert world.get(kinds.LEASE, "odd") == made
    with pytest.raises(NotFound):
        store.get(kinds.LEASE, "shop", "a\0b")
    with pytest.raises(Invalid):
        create(kinds.EVENT, "a\0b", involvedObject={"namespace": "shop"})


def test_a_new_ingress_without_a_class_gets_the_default_and_an_old_one_keeps_none(world):
    backend = {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}
    assert "ingressClassName" not in create(kinds.INGRESS, "before", spec=backend)["spec"]
    mark = {"ingressclass.kubernetes.io/is-default-class": "true"}
    create(kinds.INGRESS_CLASS, "other", spec={"controller": "example.org/other"})
    create(kinds.INGRESS_CLASS, "edge", metadata={"annotations": mark}, spec={"controller": "example.org/edge"})
    assert create(kinds.INGRESS, "after", spec=backend)["spec"] == {"ingressClassName": "edge", **backend}
    assert (
        create(kinds.INGRESS, "named", spec={"ingressClassName": "other", **backend})["spec"]["ingressClassName"]
        == "other"
    )
    annotated = {"annotations": {"kubernetes.io/ingress.class": "old"}}
    assert "ingressClassName" not in create(kinds.INGRESS, "annotated", metadata=annotated, spec=backend)["spec"]

    def change(ingress):
        ingress["spec"]["defaultBackend"]["service"]["port"]["number"] = 81
        return ingress

    assert "ingressClassName" not in world.update(kinds.INGRESS, "before", change)["spec"]
    assert models.Ingress.objects.get(name="after").class_name == "edge"
