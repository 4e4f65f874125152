"""The admin shows every table, and changes none that the store, the log or the pushers write."""

import re

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from services_app.admin import RoughPaginator
from services_app.api.auth import user_of
from services_app.models import ApiToken, Change, Service, SshKey
from tests.web import sample

MODELS = [model for model in apps.get_app_config("services_app").get_models() if model is not ApiToken]
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
    assert [model for model in [*MODELS, ApiToken] if not admin.site.is_registered(model)] == []


@pytest.mark.parametrize("model", MODELS, ids=names(MODELS))
def test_a_table_is_shown_searched_and_never_written(administrator, cluster, model):
    assert administrator.get(table(model)).status_code == 200
    assert administrator.get(table(model), {"q": "10"}).status_code == 200
    assert administrator.get(table(model) + "add/").status_code == 403
    row = model.objects.first()
    if row is None:
        return  # Event and FreeValue may be empty here
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


def test_a_document_is_shown_indented_and_escaped(administrator, cluster):
    service = Service.objects.get(name="odd")
    body = administrator.get(f"{table(Service)}{service.pk}/change/").content.decode()
    assert "&quot;clusterIP&quot;: " in body
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
    from django.db import connection

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
