"""Grants, tokens, users and groups in the admin; what each of them opens on the pages; and that changes are recorded."""

import json

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from services_app import store
from services_app.models import ApiToken, AuditRecord, Grant, Service
from services_app.spec import kinds
from tests.web import sample
from tests.web.conftest import PASSWORD

GRANTS = "/admin/services_app/grant/"


@pytest.fixture
def cluster(db):
    store.bootstrap()
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")
    sample.add_service("other", "api")


def login(name, *grants, **columns):
    """A browser of a new user with grants (role, namespace)."""
    user = get_user_model().objects.create_user(name, password=PASSWORD, **columns)
    for role, namespace in grants:
        Grant.objects.create(role=role, namespace=namespace, user=user)
    client = Client()
    client.force_login(user)
    return client


def records(kind):
    """(verb, who, before, after), the oldest first."""
    found = AuditRecord.objects.filter(kind=kind).order_by("-id")
    return [(r.verb, r.user, *(json.loads(t) if t else None for t in (r.previous, r.document))) for r in found]


def errors_of(answer):
    return str(answer.context["errors"]) if answer.status_code == 200 else ""


def test_a_grant_is_given_changed_and_taken_back_and_each_is_recorded(administrator, cluster):
    dev = get_user_model().objects.create_user("dev")
    given = administrator.post(f"{GRANTS}add/", {"role": "view", "user": dev.pk, "namespace": "shop"})
    assert given.status_code == 302, errors_of(given)
    grant = Grant.objects.get()
    assert (grant.role, grant.namespace, grant.user, grant.given_by) == ("view", "shop", dev, "root")
    path = f"{GRANTS}{grant.pk}/change/"
    administrator.post(path, {"role": "edit", "user": dev.pk, "namespace": "shop"})
    administrator.post(path, {"role": "edit", "user": dev.pk, "namespace": "shop"})  # as it is
    administrator.post(f"{GRANTS}{grant.pk}/delete/", {"post": "yes"})
    assert not Grant.objects.exists()
    view = {"role": "view", "subject": "user dev", "namespace": "shop"}
    edit = {**view, "role": "edit"}
    assert records("grants") == [
        ("ADDED", "root", None, view),
        ("MODIFIED", "root", view, edit),
        ("DELETED", "root", None, edit),
    ]


def test_several_grants_taken_back_at_once_are_recorded_one_by_one(administrator, cluster):
    login("dev", ("view", "shop"), ("edit", "other"))
    selected = [*Grant.objects.values_list("pk", flat=True)]
    administrator.post(GRANTS, {"action": "delete_selected", "_selected_action": selected, "post": "yes"})
    assert not Grant.objects.exists()
    assert [verb for verb, *_ in records("grants")] == ["DELETED", "DELETED"]


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"namespace": "shop"}, "Give it to one user, to one group, or to everybody."),
        ({"user": "dev", "everyone": "on"}, "Give it to one user, to one group, or to everybody."),
        ({"user": "dev", "namespace": "Not a name"}, "is no name of a namespace"),
        ({"user": "dev", "namespace": "shop", "role": "king"}, "Select a valid choice"),
        ({"user": "has-it", "namespace": "shop"}, "This grant is given already."),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(administrator, cluster, columns, error):
    login("has-it", ("view", "shop"))
    users = {
        "dev": get_user_model().objects.create_user("dev").pk,
        "has-it": get_user_model().objects.get(username="has-it").pk,
    }
    posted = {"role": "view", **columns}
    if "user" in posted:
        posted["user"] = users[posted["user"]]
    answer = administrator.post(f"{GRANTS}add/", posted)
    assert error in errors_of(answer)
    assert Grant.objects.count() == 1


def test_the_admin_of_a_namespace_gives_grants_there_and_sees_no_others(cluster):
    owner = login("owner", ("admin", "shop"), is_staff=True)
    dev = login("dev", ("view", "other")).session["_auth_user_id"]
    assert owner.post(f"{GRANTS}add/", {"role": "admin", "user": dev, "namespace": "shop"}).status_code == 302
    for namespace in ("other", ""):
        answer = owner.post(f"{GRANTS}add/", {"role": "view", "user": dev, "namespace": namespace})
        assert "You may give grants in shop only." in errors_of(answer)
    mine, theirs = Grant.objects.get(namespace="shop", user=dev), Grant.objects.get(namespace="other")
    moved = owner.post(f"{GRANTS}{mine.pk}/change/", {"role": "admin", "user": dev, "namespace": ""})
    assert "You may give grants in shop only." in errors_of(moved)
    assert [row.namespace for row in owner.get(GRANTS).context["cl"].result_list] == ["shop", "shop"]
    assert owner.get(f"{GRANTS}{theirs.pk}/change/").status_code == 302, "it is not among what he sees"
    owner.post(f"{GRANTS}{theirs.pk}/delete/", {"post": "yes"})
    assert Grant.objects.filter(pk=theirs.pk).exists()


@pytest.mark.parametrize("role", ["view", "edit"])
def test_who_only_views_or_edits_gives_no_grants(cluster, role):
    client = login("dev", (role, "shop"), is_staff=True)
    assert client.get(GRANTS).status_code == 403
    assert client.post(f"{GRANTS}add/", {"role": "view", "everyone": "on", "namespace": "shop"}).status_code == 403


def test_who_holds_grants_is_not_deleted_before_they_are_taken_back(administrator, cluster):
    login("dev", ("view", "shop"))
    user = get_user_model().objects.get(username="dev")
    administrator.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"})
    assert get_user_model().objects.filter(pk=user.pk).exists()
    Grant.objects.all().delete()
    administrator.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"})
    assert not get_user_model().objects.filter(pk=user.pk).exists()
    ((verb, who, _, after),) = records("users")
    assert (verb, who, after["username"]) == ("DELETED", "root", "dev")


def test_membership_and_rank_of_a_user_are_recorded(administrator, cluster):
    group = Group.objects.create(name="builders")
    login("dev")
    user = get_user_model().objects.get(username="dev")
    posted = {"username": "dev", "groups": [group.pk], "is_active": "on", "is_staff": "on"}
    posted |= {"date_joined_0": "2026-01-01", "date_joined_1": "10:00:00"}
    answer = administrator.post(f"/admin/auth/user/{user.pk}/change/", posted)
    assert answer.status_code == 302, errors_of(answer)
    ((verb, who, before, after),) = records("users")
    assert (verb, who) == ("MODIFIED", "root")
    assert (before["groups"], before["staff"], after["groups"], after["staff"]) == ([], False, ["builders"], True)
    assert PASSWORD not in json.dumps(after)


def test_tokens_issued_and_revoked_are_recorded_without_their_text(administrator, cluster):
    user = get_user_model().objects.get(username="root")
    answer = administrator.post("/admin/services_app/apitoken/add/", {"name": "ci", "user": user.pk})
    token = ApiToken.objects.get()
    administrator.post(f"/admin/services_app/apitoken/{token.pk}/delete/", {"post": "yes"})
    assert [(verb, (after or {})["name"]) for verb, _, _, after in records("apitokens")] == [
        ("ADDED", "ci"),
        ("DELETED", "ci"),
    ]
    told = json.dumps([*AuditRecord.objects.values()], default=str)
    assert token.digest not in told
    assert answer.context["token"].plain not in told


# Pages


def test_pages_show_what_lies_in_the_namespaces_of_the_grants(cluster):
    page = login("dev", ("view", "shop"))
    services = page.get("/ui/services/")
    assert [row.name for row in services.context["services"].rows] == ["web"]
    assert [*services.context["services"].namespaces] == ["shop"]
    assert page.get("/ui/services/shop/web/").status_code == 200
    refused = page.get("/ui/services/other/api/")
    assert (refused.status_code, "see Services in namespace other" in refused.content.decode()) == (403, True)
    overview = page.get("/ui/")
    assert overview.context["services_total"] == 1
    assert "node-1" not in re_nodes(overview)
    assert page.get("/ui/nodes/").status_code == 403
    assert page.get("/ui/nodes/node-1/").status_code == 403


def re_nodes(answer):
    """What the overview says about nodes."""
    body = answer.content.decode()
    return body[body.index('<section id="nodes"') : body.index('<section id="services"')]


def test_who_has_no_grant_sees_an_empty_page_that_says_so(cluster):
    page = login("dev")
    body = page.get("/ui/services/").content.decode()
    assert "You have no grant yet" in body
    assert "api" not in [row.name for row in page.get("/ui/services/").context["services"].rows]
    assert page.get("/ui/services/shop/web/").status_code == 403


def test_pages_offer_and_take_what_the_grant_allows(cluster):
    page = login("dev", ("edit", "shop"), ("view", "other"))
    assert page.get("/ui/services/new/").context["form"].namespace == "shop"
    assert [*page.get("/ui/services/new/").context["namespaces"]] == ["shop"]
    assert page.get("/ui/services/shop/web/edit/").status_code == 200
    assert page.get("/ui/services/other/api/edit/").status_code == 403
    assert page.get("/ui/services/other/api/delete/").status_code == 403
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: other}}\n---\n"
    text += "{apiVersion: v1, kind: Node, metadata: {name: n}}"
    outcomes = page.post("/ui/apply/", {"text": text, "action": "preview"}).context["outcomes"]
    assert [outcome.errors[0].split(":")[0] for outcome in outcomes] == [
        'configmaps "a" is forbidden',
        'nodes "n" is forbidden',
    ]
    refused = AuditRecord.objects.filter(verb="REFUSED", user="dev")
    assert {(row.kind, row.namespace, row.name) for row in refused} == {
        ("configmaps", "other", "a"),
        ("nodes", "", "n"),
    }


def test_the_admin_shows_and_takes_objects_where_there_is_a_grant(cluster):
    staff = login("dev", ("edit", "shop"), is_staff=True)
    shown = staff.get("/admin/services_app/service/").context["cl"].result_list
    assert [row.name for row in shown] == ["web"]
    mine, other = Service.objects.get(name="web"), Service.objects.get(name="api")
    assert staff.get(f"/admin/services_app/service/{mine.pk}/change/").status_code == 200
    assert staff.get(f"/admin/services_app/service/{other.pk}/change/").status_code == 302
    assert staff.get("/admin/services_app/node/").status_code == 403
    text = "{metadata: {name: a, namespace: other}, data: {}}"
    added = staff.post("/admin/services_app/configmap/add/", {"document": text, "_save": "Save"})
    assert "cannot create resource" in added.content.decode()
    added = staff.post(
        "/admin/services_app/configmap/add/", {"document": text.replace("other", "shop"), "_save": "Save"}
    )
    assert added.status_code == 302
    assert store.get(kinds.CONFIG_MAP, "shop", "a")


def test_secrets_in_the_admin_are_for_editors(cluster):
    secret = {"metadata": {"name": "key"}, "stringData": {"password": "correct horse"}}
    store.create(kinds.SECRET, secret, namespace="shop", actor=store.Actor("tester"))
    viewer = login("viewer", ("view", "shop"), is_staff=True)
    assert viewer.get("/admin/services_app/secret/").status_code == 403
    editor = login("editor", ("edit", "shop"), is_staff=True)
    assert len(editor.get("/admin/services_app/secret/").context["cl"].result_list) == 1
