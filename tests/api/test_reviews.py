"""What is asked about others: whose a token is, what somebody may do; for those who may give grants."""

import json

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.test import Client

from services_app import store
from services_app.api import auth
from services_app.models import ApiToken, Grant

TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
SUBJECTS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
LOCAL = "/apis/authorization.k8s.io/v1/namespaces/shop/localsubjectaccessreviews"
AUDIENCE = "https://kubernetes.default.svc.cluster.local"


@pytest.fixture
def users(db):
    """Name -> the token of a user; what each may do is told by its name."""
    auth._known.clear()
    store.bootstrap()
    people = {name: get_user_model().objects.create(username=name) for name in ("admin", "owner", "editor", "member")}
    people["root"] = get_user_model().objects.create(username="root", is_superuser=True)
    people["away"] = get_user_model().objects.create(username="away", is_active=False)
    builders = Group.objects.create(name="builders")
    people["member"].groups.add(builders)
    builders.permissions.add(Permission.objects.get(codename="write_endpoints"))
    Grant.objects.create(role="admin", user=people["admin"])
    Grant.objects.create(role="admin", user=people["owner"], namespace="shop")
    Grant.objects.create(role="edit", user=people["editor"], namespace="shop")
    Grant.objects.create(role="edit", user=people["away"], namespace="shop")
    Grant.objects.create(role="edit", group=builders, namespace="shop")
    Grant.objects.create(role="view", everyone=True, namespace="open")
    return {name: ApiToken.issue(user, name) for name, user in people.items()}


@pytest.fixture
def ask(users):
    def send(path, spec, by="admin", **more):
        header = {"Authorization": f"Bearer {users[by]}"}
        answer = Client().post(
            path, {"spec": spec, **more}, content_type="application/json", headers=header, secure=True
        )
        return answer.status_code, json.loads(answer.content)

    return send


@pytest.fixture
def status(ask):
    def read(path, spec):
        code, review = ask(path, spec)
        assert (code, review["spec"]) == (201, spec), review
        return review["status"]

    return read


def test_a_token_tells_whose_it_is(users, status):
    member = status(TOKENS, {"token": users["member"]})
    uid = str(get_user_model().objects.get(username="member").pk)
    groups = ["builders", "system:authenticated"]
    assert member == {
        "authenticated": True,
        "user": {"username": "member", "uid": uid, "groups": groups},
        "audiences": [AUDIENCE],
    }
    assert "system:masters" in status(TOKENS, {"token": users["root"]})["user"]["groups"]


@pytest.mark.parametrize("spec", [{"token": "made up"}, {"audiences": ["https://example.org"]}, {"name": "away"}])
def test_a_token_for_nobody_is_told_as_one(users, status, spec):
    spec = {"token": users[spec.pop("name", "member")], **spec}
    assert status(TOKENS, spec) == {"user": {}, "error": "invalid bearer token"}
    assert status(TOKENS, {"token": users["member"], "audiences": [AUDIENCE, "x"]})["authenticated"]


@pytest.mark.parametrize(
    ("subject", "verb", "resource", "namespace", "allowed"),
    [
        ({"user": "editor"}, "create", "services", "shop", True),
        ({"user": "editor"}, "create", "services", "open", False),
        ({"user": "editor"}, "create", "nodes", "", False),
        ({"user": "root"}, "create", "nodes", "", True),
        ({"user": "away"}, "create", "services", "shop", False),
        ({"user": "nul\0"}, "create", "services", "shop", False),
        # Groups are those that are told, for users who are known here as well.
        ({"user": "member"}, "create", "services", "shop", False),
        ({"user": "member", "groups": ["builders"]}, "create", "services", "shop", True),
        ({"user": "stranger", "groups": ["builders"]}, "create", "services", "shop", True),
        ({"groups": ["builders"]}, "create", "endpoints", "shop", True),
        ({"user": "editor"}, "create", "endpoints", "shop", False),
        ({"user": "stranger"}, "list", "services", "open", False),
        ({"user": "stranger", "groups": ["system:authenticated"]}, "list", "services", "open", True),
        ({"user": "stranger", "groups": ["system:masters"]}, "delete", "nodes", "", True),
    ],
)
def test_what_somebody_may_do(status, subject, verb, resource, namespace, allowed):
    attributes = {"verb": verb, "resource": resource, **({"namespace": namespace} if namespace else {})}
    assert status(SUBJECTS, {**subject, "resourceAttributes": attributes})["allowed"] is allowed
    if namespace == "shop":
        assert status(LOCAL, {**subject, "resourceAttributes": attributes})["allowed"] is allowed


def test_paths_that_are_for_all_are_for_anybody(status):
    for path, allowed in (("/version", True), ("/metrics", False)):
        asked = {"user": "stranger", "nonResourceAttributes": {"path": path, "verb": "get"}}
        assert status(SUBJECTS, asked) == {"allowed": allowed}


def test_a_local_review_says_where(ask):
    code, review = ask(LOCAL, {"user": "editor", "resourceAttributes": {"namespace": "shop", "verb": "get"}})
    assert (code, review["metadata"]) == (201, {"namespace": "shop"})


@pytest.mark.parametrize(
    ("by", "path", "expected"),
    [
        ("admin", TOKENS, 201),
        ("root", TOKENS, 201),
        ("owner", TOKENS, 403),
        ("editor", TOKENS, 403),
        ("admin", SUBJECTS, 201),
        ("owner", SUBJECTS, 403),
        ("admin", LOCAL, 201),
        ("owner", LOCAL, 201),
        ("editor", LOCAL, 403),
        ("owner", LOCAL.replace("shop", "open"), 403),
    ],
)
def test_only_who_may_give_grants_may_ask(ask, by, path, expected):
    namespace = "open" if "open" in path else "shop"
    spec = {"token": "x"} if path == TOKENS else {"user": "x", "resourceAttributes": {"namespace": namespace}}
    assert ask(path, spec, by=by)[0] == expected


@pytest.mark.parametrize(
    ("path", "spec", "more", "code", "fields"),
    [
        (TOKENS, {}, {}, 400, None),
        (SUBJECTS, {"resourceAttributes": {}}, {}, 422, ["spec.user"]),
        (SUBJECTS, {"user": "x"}, {}, 422, ["spec.resourceAttributes"]),
        (SUBJECTS, {"user": "x", "resourceAttributes": {}}, {"metadata": {"name": "x"}}, 422, ["metadata"]),
        (LOCAL, {"user": "x", "resourceAttributes": {}}, {}, 422, ["spec.resourceAttributes.namespace"]),
        (LOCAL, {"user": "x", "nonResourceAttributes": {}}, {}, 422, ["spec.nonResourceAttributes"]),
        (LOCAL, {"user": "x", "resourceAttributes": {}}, {"metadata": {"namespace": "other"}}, 400, None),
    ],
)
def test_a_question_that_is_none_is_refused(ask, path, spec, more, code, fields):
    found, answer = ask(path, spec, **more)
    causes = answer["details"]["causes"] if code == 422 else None
    assert (found, causes and [cause["field"] for cause in causes]) == (code, fields), answer


def test_nothing_of_it_can_be_read(users):
    header = {"Authorization": f"Bearer {users['root']}"}
    for path in (TOKENS, SUBJECTS, LOCAL):
        assert Client().get(path, headers=header, secure=True).status_code == 405
