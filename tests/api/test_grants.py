"""Who may do what: every kind of user, verb, kind and place, judged once more by a small table of its own."""

import json
from datetime import timedelta
from itertools import product

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client
from django.utils import timezone

from services_app import store
from services_app.api import auth
from services_app.models import ApiToken, AuditEntry, Grant
from services_app.spec import kinds

ACTOR = store.Actor("tester")
READ = ("get", "list", "watch")
WRITE = ("create", "update", "patch", "delete", "deletecollection")
CLUSTER_WIDE = ("namespaces", "nodes", "ingressclasses", "ipaddresses", "servicecidrs")
BY_HAND = ("endpoints", "endpointslices")
# name -> (role, where); "" is everywhere
USERS = {
    "nobody": None,
    "viewer": ("view", "shop"),
    "editor": ("edit", "shop"),
    "owner": ("admin", "shop"),
    "viewer-of-all": ("view", ""),
    "editor-of-all": ("edit", ""),
    "owner-of-all": ("admin", ""),
    "member": ("edit", "shop"),  # by a group
}
ORDER = ("view", "edit", "admin")
# path below the namespace or the root, and how each verb is asked; a name that is not there is as good as one that is
METHODS = {
    "get": ("GET", "/x"),
    "list": ("GET", ""),
    "create": ("POST", ""),
    "update": ("PUT", "/x"),
    "patch": ("PATCH", "/x"),
    "delete": ("DELETE", "/x"),
    "deletecollection": ("DELETE", "?dryRun=All"),
}


def oracle(user: str, verb: str, kind: str, place: str) -> bool:
    """Whether it is allowed. place: the namespace that is asked about, "" for all of them and for cluster-wide kinds."""
    if user == "root":
        return True
    if USERS[user] is None:
        return False
    role, where = USERS[user]
    if kind in CLUSTER_WIDE:
        return where == "" and (verb in READ or role == "admin") and (kind, verb) != ("namespaces", "deletecollection")
    if where not in ("", place):
        return False
    if kind in BY_HAND and verb in WRITE:
        return False  # needs the right write_endpoints as well
    needed = "view" if verb in READ and kind != "secrets" else "edit"
    return ORDER.index(role) >= ORDER.index(needed)


@pytest.fixture
def cluster(db):
    auth._known.clear()
    store.bootstrap()
    for name in ("shop", "other"):
        store.create(kinds.NAMESPACE, {"metadata": {"name": name}}, namespace="", actor=ACTOR)


@pytest.fixture
def asker(cluster):
    return Asker


class Asker:
    """A user of the API by token, with what USERS says he was given."""

    def __init__(self, name, *, expires_at=None, **columns):
        self.user = get_user_model().objects.create(username=name, is_superuser=name == "root", **columns)
        if name == "member":
            group = Group.objects.create(name="builders")
            self.user.groups.add(group)
            Grant.objects.create(role=USERS[name][0], namespace=USERS[name][1], group=group)
        elif USERS.get(name):
            Grant.objects.create(role=USERS[name][0], namespace=USERS[name][1], user=self.user)
        self.header = f"Bearer {ApiToken.issue(self.user, name, expires_at)}"

    def __call__(self, method, path, body=None, content_type="application/json", **headers):
        response = Client().generic(
            method,
            path,
            json.dumps(body) if body is not None else "",
            content_type=content_type,
            headers={"Authorization": self.header, **headers},
            secure=True,
        )
        return response.status_code, json.loads(response.content)

    def may(self, verb, kind, place, **more):
        attributes = {"verb": verb, "group": kind.group, "resource": kind.plural, "namespace": place, **more}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        code, answer = self("POST", path, {"spec": {"resourceAttributes": attributes}})
        assert code == 201, answer
        return answer["status"]["allowed"]


def path_of(kind, place, below=""):
    root = f"/apis/{kind.group}/v1" if kind.group else "/api/v1"
    return f"{root}/namespaces/{place}/{kind.plural}{below}" if place else f"{root}/{kind.plural}{below}"


@pytest.mark.parametrize("name", [*USERS, "root"])
def test_every_verb_on_every_kind_in_every_place(asker, name):
    user = asker(name)
    asked = 0
    for kind, verb in product(kinds.STORED, (*READ, *WRITE)):
        for place in ("",) if kind.plural in CLUSTER_WIDE else ("shop", "other", ""):
            expected = oracle(name, verb, kind.plural, place)
            about = f"{name} {verb} {kind.plural} in {place or 'all'}"
            assert user.may(verb, kind, place) is expected, about
            if verb not in METHODS or (kind.namespaced and not place and METHODS[verb][1].startswith("/")):
                continue  # watches are below; nothing is named without its namespace
            method, below = METHODS[verb]
            code, answer = user(method, path_of(kind, place, below), {} if method in ("POST", "PUT", "PATCH") else None)
            assert (code == 403) is not expected, f"{about}: {code} {answer}"
            asked += 1
    assert asked > 180


@pytest.mark.parametrize(
    ("name", "resource", "verb", "expected"),
    [
        ("viewer", "pods/log", "get", True),
        ("viewer", "pods/exec", "create", False),
        ("viewer", "pods/portforward", "get", False),
        ("viewer", "services/proxy", "get", False),
        ("viewer", "services/status", "get", True),
        ("viewer", "services/status", "patch", False),
        ("editor", "services/status", "patch", True),
        ("editor", "pods/binding", "create", True),
        ("editor", "pods/exec", "create", True),
        ("editor", "services/proxy", "get", True),
        ("editor", "services/nothing", "get", False),
        ("viewer", "namespaces/status", "get", False),
        ("owner", "namespaces/finalize", "update", False),
        ("owner-of-all", "namespaces/finalize", "update", True),
    ],
)
def test_what_is_below_an_object_asks_for_its_own_right(asker, name, resource, verb, expected):
    plural, _, subresource = resource.partition("/")
    user = asker(name)
    kind = kinds.by_group_resource("", plural)
    assert user.may(verb, kind, "shop", subresource=subresource, name="web") is expected


def test_a_role_in_a_namespace_shows_that_namespace_and_no_other(asker):
    user = asker("viewer")
    assert user("GET", "/api/v1/namespaces/shop")[0] == 200
    code, answer = user("GET", "/api/v1/namespaces/other")
    assert code == 403
    assert answer["message"] == (
        'namespaces "other" is forbidden: User "viewer" cannot get resource "namespaces" in API group "" '
        'in the namespace "other"'
    )
    assert user("DELETE", "/api/v1/namespaces/shop")[0] == 403
    assert user("GET", "/api/v1/namespaces")[0] == 403


STATUS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}


@pytest.mark.parametrize(
    ("method", "path", "message", "details"),
    [
        (
            "GET",
            "/api/v1/namespaces/shop/services",
            'services is forbidden: User "nobody" cannot list resource "services" in API group "" in the namespace "shop"',
            {"kind": "services"},
        ),
        (
            "GET",
            "/api/v1/services",
            'services is forbidden: User "nobody" cannot list resource "services" in API group "" at the cluster scope',
            {"kind": "services"},
        ),
        (
            "DELETE",
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/a",
            'endpointslices.discovery.k8s.io "a" is forbidden: User "nobody" cannot delete resource "endpointslices" in '
            'API group "discovery.k8s.io" in the namespace "shop": the right services_app.write_endpoints is missing',
            {"name": "a", "group": "discovery.k8s.io", "kind": "endpointslices"},
        ),
        (
            "PATCH",
            "/api/v1/namespaces/shop/services/web/status",
            'services "web" is forbidden: User "nobody" cannot patch resource "services/status" in API group "" '
            'in the namespace "shop"',
            {"name": "web", "kind": "services"},
        ),
        (
            "POST",
            "/api/v1/nodes",
            'nodes is forbidden: User "nobody" cannot create resource "nodes" in API group "" at the cluster scope',
            {"kind": "nodes"},
        ),
        (
            "GET",
            "/apis/apps/v1/namespaces/shop/deployments/web",
            'deployments.apps "web" is forbidden: User "nobody" cannot get resource "deployments" in API group "apps" '
            'in the namespace "shop"',
            {"name": "web", "group": "apps", "kind": "deployments"},
        ),
        (
            "GET",
            "/api/v9/services",
            'services is forbidden: User "nobody" cannot list resource "services" in API group "" at the cluster scope',
            {"kind": "services"},
        ),
        (
            "DELETE",
            "/api/v1/namespaces/shop/pods",
            'pods is forbidden: User "nobody" cannot deletecollection resource "pods" in API group "" '
            'in the namespace "shop"',
            {"kind": "pods"},
        ),
    ],
)
def test_a_refusal_is_worded_as_kubernetes_words_it(asker, method, path, message, details):
    code, answer = asker("nobody")(method, path, {} if method in ("POST", "PATCH") else None)
    assert (code, answer) == (
        403,
        {**STATUS, "message": message, "reason": "Forbidden", "details": details, "code": 403},
    )


def test_who_has_no_grant_may_look_around_and_ask_about_himself(asker):
    user = asker("nobody")
    for path in ("/api", "/apis", "/api/v1", "/apis/discovery.k8s.io/v1", "/openapi/v3", "/version"):
        assert user("GET", path)[0] == 200, path
    code, answer = user("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    assert code == 201
    assert answer["status"]["userInfo"]["username"] == "nobody"
    assert answer["status"]["userInfo"]["groups"] == ["system:authenticated"]


def test_a_grant_for_everybody_is_for_whoever_has_a_token(asker):
    user = asker("nobody")
    assert user("GET", "/api/v1/namespaces/shop/services")[0] == 403
    Grant.objects.create(role="view", namespace="shop", everyone=True)
    auth._known.clear()
    assert user("GET", "/api/v1/namespaces/shop/services")[0] == 200
    assert user("GET", "/api/v1/namespaces/other/services")[0] == 403
    assert Client().get("/api/v1/namespaces/shop/services", secure=True).status_code == 401


def test_a_grant_that_is_taken_back_ends_with_the_next_request(asker):
    user = asker("viewer")
    assert user("GET", "/api/v1/namespaces/shop/pods")[0] == 200
    Grant.objects.all().delete()
    auth._known.clear()  # what is known of a token lives for two seconds
    assert user("GET", "/api/v1/namespaces/shop/pods")[0] == 403


def test_the_rules_of_a_namespace_say_what_the_reviews_say(asker):
    for name in USERS:
        user = asker(name)
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        _, answer = user("POST", path, {"spec": {"namespace": "shop"}})
        told = {
            (verb, group, resource)
            for rule in answer["status"]["resourceRules"]
            for verb, group, resource in product(rule["verbs"], rule["apiGroups"], rule["resources"])
            if "resourceNames" not in rule
        }
        for kind, verb in product(kinds.STORED, (*READ, *WRITE)):
            place = "" if kind.plural in CLUSTER_WIDE else "shop"
            assert ((verb, kind.group, kind.plural) in told) is oracle(name, verb, kind.plural, place), (
                name,
                kind,
                verb,
            )
        assert ("create", "authorization.k8s.io", "selfsubjectaccessreviews") in told


def test_all_and_what_is_not_served_is_for_superusers_alone(asker):
    for name, expected in (("owner-of-all", False), ("root", True)):
        user = asker(name)
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        for attributes in (
            {"verb": "*", "group": "*", "resource": "*"},
            {"verb": "*", "resource": "services", "namespace": "shop"},
            {"verb": "get", "resource": "*", "namespace": "shop"},
            {"verb": "get", "group": "apps", "resource": "deployments", "namespace": "shop"},
        ):
            _, answer = user("POST", path, {"spec": {"resourceAttributes": attributes}})
            assert answer["status"]["allowed"] is expected, attributes
        asked = {"spec": {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}}
        assert user("POST", path, asked)[1]["status"]["allowed"] is expected


@pytest.mark.parametrize("how", ["expired", "inactive", "unknown", "none", "no bearer"])
def test_who_is_not_known_is_told_401(asker, how):
    user = asker("viewer", is_active=how != "inactive", expires_at=timezone.now() + timedelta(hours=1))
    if how == "expired":
        ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    headers = {"unknown": "Bearer nobody-knows-it", "no bearer": "Basic dXNlcjpwYXNz"}
    header = {} if how == "none" else {"Authorization": headers.get(how, user.header)}
    answer = Client().get("/api/v1/namespaces/shop/services", headers=header, secure=True)
    assert answer.status_code == 401
    assert json.loads(answer.content) == {**STATUS, "message": "Unauthorized", "reason": "Unauthorized", "code": 401}


def test_a_token_is_known_no_longer_than_it_is_valid(asker, monkeypatch):
    monkeypatch.setattr(auth, "KEPT_S", 3600.0)
    user = asker("viewer", expires_at=timezone.now() + timedelta(minutes=10))
    assert user("GET", "/api/v1/namespaces/shop/services")[0] == 200
    (known,) = auth._known.values()
    assert known.until - auth.time.monotonic() <= 600


def test_an_update_that_makes_its_object_needs_the_right_to_create(asker):
    user = asker("viewer")
    code, answer = user("PUT", "/api/v1/namespaces/shop/services/web", {"metadata": {"name": "web"}})
    assert (code, "cannot update" in answer["message"]) == (403, True)


def test_a_refused_write_is_recorded_and_a_refused_look_is_not(asker):
    user = asker("viewer")
    secret = {"metadata": {"name": "key"}, "stringData": {"password": "correct horse"}}
    code, answer = user("POST", "/api/v1/namespaces/shop/secrets", secret, **{"X-Request-Id": "r-1"})
    assert code == 403
    user("GET", "/api/v1/namespaces/other/services")
    (entry,) = AuditEntry.objects.filter(verb="REFUSED")
    assert (entry.user, entry.kind, entry.namespace, entry.request_id) == ("viewer", "secrets", "shop", "r-1")
    assert entry.message == answer["message"]
    assert "correct horse" not in json.dumps([*AuditEntry.objects.values()], default=str)


# Standing in for somebody: kubectl --as


def test_a_superuser_stands_in_for_a_user_with_his_rights_and_is_recorded(asker):
    root, _ = asker("root"), asker("editor")
    as_editor = {"Impersonate-User": "editor"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    assert root("POST", path, {}, **as_editor)[1]["status"]["userInfo"]["username"] == "editor"
    assert root("GET", "/api/v1/nodes", **as_editor)[0] == 403
    made = {"metadata": {"name": "a"}}
    assert root("POST", "/api/v1/namespaces/shop/configmaps", made, **as_editor)[0] == 201
    assert AuditEntry.objects.get(kind="configmaps").user == "root for editor"
    assert root("GET", "/api/v1/nodes")[0] == 200, "with the next request he is himself"


@pytest.mark.parametrize(
    ("name", "headers", "code", "told"),
    [
        (
            "owner-of-all",
            {"Impersonate-User": "root"},
            403,
            'users "root" is forbidden: User "owner-of-all" cannot imper',
        ),
        ("root", {"Impersonate-User": "nobody-knows"}, 403, "there is no such user"),
        ("root", {"Impersonate-User": "root", "Impersonate-Group": "x"}, 403, 'resource "groups"'),
        ("root", {"Impersonate-Group": "x"}, 400, "without impersonating a user"),
    ],
)
def test_nobody_else_stands_in_for_anybody(asker, name, headers, code, told):
    askers = {each: asker(each) for each in ("root", "owner-of-all")}
    answered, status = askers[name]("GET", "/api/v1/namespaces", **headers)
    assert answered == code
    assert told in status["message"]
