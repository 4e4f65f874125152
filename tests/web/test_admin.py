"""The admin shows every table, and writes API objects through the store alone."""

import json
import re
from html import unescape

import pytest
import yaml
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from services_app import store
from services_app.admin.tables import RoughPaginator
from services_app.api.auth import user_of
from services_app.models import (
    ApiObject,
    ApiToken,
    Change,
    ClusterIPClaim,
    EndpointSlice,
    Grant,
    Namespace,
    Node,
    Pod,
    Service,
    SshKey,
)
from services_app.spec import kinds
from tests.web import sample

MODELS = [model for model in apps.get_app_config("services_app").get_models() if model not in (ApiToken, Grant)]
OBJECTS = [model for model in MODELS if issubclass(model, ApiObject)]
READ_ONLY = [model for model in MODELS if model not in OBJECTS]
HOSTILE = "<script>alert(1)</script>"


def table(model) -> str:
    return f"/admin/services_app/{model._meta.model_name}/"


def names(models) -> list[str]:
    return [model.__name__ for model in models]


@pytest.fixture
def cluster(db):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web", type="NodePort")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    sample.add_service("shop", "odd", annotations={"example.org/note": HOSTILE})


def test_every_table_is_in_the_admin():
    assert [model for model in [*MODELS, ApiToken, Grant] if not admin.site.is_registered(model)] == []


@pytest.mark.parametrize("model", READ_ONLY, ids=names(READ_ONLY))
def test_a_table_is_shown_searched_and_never_written(administrator, cluster, model):
    assert administrator.get(table(model)).status_code == 200
    assert administrator.get(table(model), {"q": "10"}).status_code == 200
    assert administrator.get(table(model) + "add/").status_code == 403
    row = model.objects.first()
    if row is None:
        return  # FreeValue may be empty here
    one = f"{table(model)}{str(row.pk).replace('_', '_5F').replace('/', '_2F')}/"
    page = administrator.get(one + "change/")
    assert page.status_code == 200
    assert 'name="_save"' not in page.content.decode()
    assert administrator.post(one + "change/", {"name": "other"}).status_code == 403
    assert administrator.post(one + "delete/", {"post": "yes"}).status_code == 403
    administrator.post(table(model), {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"})
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize(
    ("model", "query"),
    [(Service, {"type": "NodePort"}), (Change, {"kind": "services", "verb": "ADDED"})],
    ids=["type", "log"],
)
def test_filters_narrow_the_list(administrator, cluster, model, query):
    page = administrator.get(table(model), query)
    listed = page.context["cl"].result_list
    assert 0 < len(listed) < model.objects.count()
    for row in listed:
        assert all(getattr(row, key) == value for key, value in query.items())


def test_a_document_is_shown_as_yaml_and_escaped(administrator, cluster):
    service = Service.objects.get(name="odd")
    body = administrator.get(f"{table(Service)}{service.pk}/change/").content.decode()
    assert "\n  clusterIP: " in body
    assert HOSTILE not in body


def test_a_private_key_is_never_shown(administrator, cluster):
    key = SshKey.objects.get()
    body = administrator.get(f"{table(SshKey)}{key.pk}/change/").content.decode()
    assert key.public in body
    assert "private" not in body.lower()
    assert "sealed" not in body


def test_an_issued_token_is_shown_once_works_and_can_be_revoked(administrator):
    user = get_user_model().objects.create_user("robot", is_staff=True)
    answer = administrator.post(table(ApiToken) + "add/", {"name": "builds", "user": user.pk}, follow=True)
    plain = re.search(r"shown this once: <code>([\w-]{43})</code>", answer.content.decode()).group(1)
    token = ApiToken.objects.get()
    assert (token.name, token.user, token.digest) == ("builds", user, ApiToken.digest_of(plain))
    assert user_of(f"Bearer {plain}") == user

    for path in ("", f"{token.pk}/change/"):
        body = administrator.get(table(ApiToken) + path).content.decode()
        assert plain not in body
        assert token.digest not in body

    administrator.post(f"{table(ApiToken)}{token.pk}/delete/", {"post": "yes"})
    assert not ApiToken.objects.exists()


def test_an_issued_token_is_in_no_cookie_and_no_session(administrator):
    user = get_user_model().objects.get(username="root")
    answer = administrator.post(table(ApiToken) + "add/", {"name": "builds", "user": user.pk})
    plain = re.search(r"<code>([\w-]{43})</code>", answer.content.decode()).group(1)
    assert "no-store" in answer["Cache-Control"]
    assert all(plain not in morsel.value for morsel in answer.cookies.values())
    assert plain not in str(dict(administrator.session.items()))


def test_a_token_that_would_never_be_valid_is_refused(administrator):
    user = get_user_model().objects.get(username="root")
    past = {"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}
    answer = administrator.post(table(ApiToken) + "add/", {"name": "old", "user": user.pk, **past})
    assert "This moment is past" in answer.content.decode()
    assert not ApiToken.objects.exists()


def test_an_issued_token_does_not_change(administrator):
    user = get_user_model().objects.get(username="root")
    ApiToken.issue(user, "builds")
    path = f"{table(ApiToken)}{ApiToken.objects.get().pk}/change/"
    assert administrator.post(path, {"name": "other", "user": user.pk}).status_code == 403
    assert ApiToken.objects.get().name == "builds"


def test_only_a_superuser_issues_tokens_for_others(person):
    boss = get_user_model().objects.create_superuser("boss")
    person.is_staff = True
    person.save()
    person.user_permissions.set(Permission.objects.filter(codename__in=["add_apitoken", "view_apitoken"]))
    client = Client()
    client.force_login(person)
    answer = client.post(table(ApiToken) + "add/", {"name": "mine", "user": boss.pk})
    assert "Select a valid choice" in answer.content.decode()
    assert not ApiToken.objects.exists()
    client.post(table(ApiToken) + "add/", {"name": "mine", "user": person.pk})
    assert ApiToken.objects.get().user == person


def test_who_is_no_staff_sees_no_admin(page):
    assert page.get("/admin/")["Location"].startswith("/admin/login/")
    assert "Admin" not in page.get("/ui/").content.decode()


def test_a_large_table_is_counted_roughly(cluster, monkeypatch):
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE services_app_change")
    exact = Change.objects.count()
    assert RoughPaginator(Change.objects.order_by("revision"), 50).count == exact
    monkeypatch.setattr(RoughPaginator, "EXACT_BELOW", 1)
    Change.objects.filter(revision=exact).delete()
    assert RoughPaginator(Change.objects.order_by("revision"), 50).count == exact, (
        "the estimate, from before the delete"
    )
    assert RoughPaginator(Change.objects.filter(verb="ADDED").order_by("revision"), 50).count < exact


# API objects


def change_path(row) -> str:
    return f"{table(type(row))}{row.pk}/change/"


def text_in(page) -> str:
    """The document in the form."""
    return unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", page.content.decode(), re.DOTALL).group(1))


def errors_in(page) -> list[str]:
    found = re.search(r'<ul class="errorlist document-errors">(.*?)</ul>', page.content.decode(), re.DOTALL)
    return [unescape(error) for error in re.findall(r"<li>(.*?)</li>", found.group(1), re.DOTALL)] if found else []


@pytest.mark.parametrize("model", OBJECTS, ids=names(OBJECTS))
def test_objects_of_every_kind_are_listed_searched_shown_and_saved_as_they_are(administrator, cluster, model):
    kind = next(kind for kind in kinds.KINDS if kind.kind == model.__name__ and kind is not kinds.EVENTS_EVENT)
    if model.__name__ in MORE:
        store.create(kind, MORE[model.__name__], namespace="shop" if kind.namespaced else "", actor=sample.ACTOR)
    assert administrator.get(table(model), {"q": "s"}).status_code == 200
    assert administrator.get(table(model)).status_code == 200
    assert "apiVersion" in text_in(administrator.get(table(model) + "add/"))
    row = model.objects.first()
    shown = administrator.get(change_path(row))
    assert yaml.safe_load(text_in(shown)) == json.loads(store.shown_text(kind, row.document))
    head = Change.objects.count()
    saved = administrator.post(change_path(row), {"document": text_in(shown), "_save": "Save"})
    assert saved.status_code == 302, errors_in(saved)
    assert Change.objects.count() == head, "nothing changed, so nothing is written"


EVENT = {
    "metadata": {"name": "web.1"},
    "involvedObject": {"kind": "Service", "namespace": "shop", "name": "web"},
    "reason": "Tried",
    "type": "Normal",
}
# What the sample lacks.
MORE = {
    "Event": EVENT,
    "ConfigMap": {"metadata": {"name": "settings"}, "data": {"a": "b"}},
    "Secret": {"metadata": {"name": "secrets"}, "stringData": {"password": "s"}},
    "Lease": {"metadata": {"name": "leases"}, "spec": {"holderIdentity": "one"}},
    "Ingress": {
        "metadata": {"name": "shops"},
        "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}},
    },
    "IngressClass": {"metadata": {"name": "classes"}, "spec": {"controller": "example.org/controller"}},
    "ServiceCIDR": {"metadata": {"name": "services"}, "spec": {"cidrs": ["10.96.0.0/16"]}},
}


def test_a_service_is_created_with_an_address_and_everything_derived(administrator, cluster):
    document = """
apiVersion: v1
kind: Service
metadata: {name: new, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
    answer = administrator.post(table(Service) + "add/", {"document": document, "_continue": "yes"}, follow=True)
    service = Service.objects.get(name="new")
    assert service.cluster_ip in text_in(answer)
    assert ClusterIPClaim.objects.filter(service=service, address=service.cluster_ip).exists()
    assert "10.1.0.1" in EndpointSlice.objects.get(service_name="new").document
    assert Change.objects.get(kind="services", name="new", verb="ADDED").user == "root"


def test_every_error_of_a_document_is_told_and_nothing_is_lost(administrator, cluster):
    document = """
metadata: {name: Bad_Name, namespace: shop}
spec:
  type: NodePort
  ports: [{port: 80, nodePort: 80}, {port: 70000}]
"""
    answer = administrator.post(table(Service) + "add/", {"document": document})
    told = errors_in(answer)
    for field in ("metadata.name", "spec.ports[0].name", "spec.ports[0].nodePort", "spec.ports[1].port"):
        assert any(error.startswith(field) for error in told), (field, told)
    assert text_in(answer).strip() == document.strip()
    assert not Service.objects.filter(name="Bad_Name").exists()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("spec: [", "error converting YAML"),
        ("- a\n- b", "cannot unmarshal array"),
        ("kind: Pod\nmetadata: {name: x}", "does not match the expected kind"),
        ("metadata: {name: x}\nspec: {ports: [{port: 80}], colour: red}", 'unknown field "spec.colour"'),
        ("metadata: {name: x}\nspec: {ports: many}", "cannot unmarshal string"),
        ("metadata: {name: x, namespace: nowhere}\nspec: {ports: [{port: 80}]}", 'namespaces "nowhere" not found'),
        ("metadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}", "already exists"),
    ],
    ids=["torn", "list", "kind", "unknown-field", "wrong-type", "namespace", "exists"],
)
def test_a_document_that_cannot_be_stored_says_why(administrator, cluster, document, words):
    store.bootstrap()
    answer = administrator.post(table(Service) + "add/", {"document": document})
    assert answer.status_code == 200
    assert errors_in(answer)
    assert words in errors_in(answer)[0]


def test_a_change_that_somebody_else_made_meanwhile_is_not_overwritten(administrator, cluster):
    service = Service.objects.get(name="web")
    text = text_in(administrator.get(change_path(service)))
    sample.change_service("shop", "web", sessionAffinity="ClientIP")
    answer = administrator.post(change_path(service), {"document": text.replace("8080", "9090")})
    assert "the object has been modified" in errors_in(answer)[0]
    service.refresh_from_db()
    assert "ClientIP" in service.document
    assert "9090" not in service.document
    assert "9090" in text_in(answer)


def test_an_object_is_not_renamed(administrator, cluster):
    service = Service.objects.get(name="web")
    text = text_in(administrator.get(change_path(service))).replace("name: web", "name: other", 1)
    assert "is another object" in errors_in(administrator.post(change_path(service), {"document": text}))[0]
    assert not Service.objects.filter(name="other").exists()


def test_a_deleted_service_gives_back_what_it_held(administrator, cluster):
    service = Service.objects.get(name="web")
    assert "shop/web" in administrator.get(f"{table(Service)}{service.pk}/delete/").content.decode()
    assert Service.objects.filter(name="web").exists()
    administrator.post(f"{table(Service)}{service.pk}/delete/", {"post": "yes"})
    assert not Service.objects.filter(name="web").exists()
    assert not ClusterIPClaim.objects.filter(address=service.cluster_ip).exists()
    assert not EndpointSlice.objects.filter(service_name="web").exists()
    assert Change.objects.get(kind="services", name="web", verb="DELETED").user == "root"


def test_many_are_deleted_through_the_store_and_what_may_not_go_is_told(administrator, cluster):
    store.bootstrap()
    rows = Namespace.objects.filter(name__in=["shop", "default"])
    chosen = {"action": "delete_selected", "_selected_action": [str(row.pk) for row in rows]}
    asked = administrator.post(table(Namespace), chosen).content.decode()
    assert "shop" in asked
    assert rows.count() == 2
    answer = administrator.post(table(Namespace), {**chosen, "post": "yes"}, follow=True).content.decode()
    assert "Deleted: 1 of 2." in answer
    assert "this namespace may not be deleted" in answer
    assert [row.name for row in rows.all()] == ["default"]
    assert not Service.objects.filter(namespace="shop").exists()


def test_no_way_of_django_saves_or_deletes_an_object(rf, cluster):
    request = rf.post("/")
    for model in OBJECTS:
        made = admin.site._registry[model]
        row = model.objects.first()
        for call in (
            lambda made=made, row=row: made.save_model(request, row, None, True),
            lambda made=made, row=row: made.delete_model(request, row),
            lambda made=made, model=model: made.delete_queryset(request, model.objects.all()),
        ):
            with pytest.raises(PermissionDenied):
                call()


def test_who_may_call_the_api_may_use_its_objects_here_and_nobody_else(person, cluster):
    client = Client()
    client.force_login(person)
    service = Service.objects.get(name="web")
    assert client.get(change_path(service)).status_code == 302
    person.is_staff = True
    person.save()
    assert client.get(change_path(service)).status_code == 200
    assert "Services" in client.get("/admin/").content.decode()
    assert client.get(table(Change)).status_code == 403, "other tables need Django's own permissions"


@pytest.mark.parametrize("model", [Service, Pod, EndpointSlice, ClusterIPClaim, Change], ids=lambda m: m.__name__)
def test_a_list_takes_the_same_queries_however_long_and_reads_no_document(administrator, cluster, model):
    def queries() -> list[str]:
        with CaptureQueriesContext(connection) as caught:
            assert administrator.get(table(model)).status_code == 200
        return [query["sql"] for query in caught]

    few = queries()
    for number in range(20):
        sample.add_service("shop", f"s-{number}")
        sample.add_pod("shop", f"p-{number}", app=f"s-{number}", ip=f"10.1.1.{number}")
    many = queries()
    assert len(many) == len(few)
    assert not [sql for sql in many if '"document"' in sql]


def test_links_lead_between_objects(administrator, cluster):
    service = Service.objects.get(name="web")
    body = administrator.get(change_path(service)).content.decode()
    for path in re.findall(r'href="([^"]+)"', re.search(r'object-links">(.*?)</p>', body).group(1)):
        assert administrator.get(unescape(path)).status_code == 200, path
    node = Node.objects.get()
    assert "/ui/nodes/node-1/" in administrator.get(change_path(node)).content.decode()
    slices = administrator.get(table(EndpointSlice), {"namespace": "shop", "service_name": "web"})
    assert [row.service_name for row in slices.context["cl"].result_list] == ["web"]


def test_staff_without_the_right_add_no_external_ips_here_either(cluster):
    person = get_user_model().objects.create_user("clerk", is_staff=True)
    Grant.objects.create(role="edit", user=person)
    client = Client()
    client.force_login(person)
    row = Service.objects.get(name="web")
    document = json.loads(row.document)
    document["spec"]["externalIPs"] = ["198.51.100.7"]
    changed = client.post(change_path(row), {"document": yaml.safe_dump(document), "_save": "Save"})
    assert "use_external_ips" in errors_in(changed)[0]
    assert "externalIPs" not in Service.objects.get(name="web").document
    new = {
        "metadata": {"name": "new", "namespace": "shop"},
        "spec": {"ports": [{"port": 80}], "externalIPs": ["198.51.100.7"]},
    }
    added = client.post(table(Service) + "add/", {"document": yaml.safe_dump(new), "_save": "Save"})
    assert "use_external_ips" in errors_in(added)[0]
    assert not Service.objects.filter(name="new").exists()
    person.user_permissions.set(Permission.objects.filter(codename="use_external_ips"))
    saved = client.post(change_path(row), {"document": yaml.safe_dump(document), "_save": "Save"})
    assert saved.status_code == 302, errors_in(saved)
    assert "198.51.100.7" in Service.objects.get(name="web").document
