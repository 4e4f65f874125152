"""Grants and tokens as a person with kubectl meets them, on the real server."""

import json
import time

import pytest

from services_app.lab.client import Kubectl
from services_app.local.supervisor import Stack
from tests.api.conftest import said


@pytest.fixture
def developer(stack: Stack, kubectl: Kubectl, namespace: str):
    """kubectl of somebody with edit in the test's namespace, by a token of his own."""
    name = f"dev-of-{namespace}"
    given = stack.manage("grant", "give", "edit", "--user", name, "--create", "-n", namespace)
    assert f"given: edit for user {name} in {namespace}" in given.stdout
    token = stack.manage("token", "issue", name, "laptop", "--days", "1").stdout.split()[-1]

    def as_developer(*arguments: str, **options):
        return kubectl("--token", token, "-n", namespace, *arguments, **options)

    as_developer.user = name
    return as_developer


def test_a_developer_works_in_his_namespace_and_is_told_kubernetes_words_elsewhere(developer, kubectl, namespace):
    user = developer.user
    assert ["Username", user] in [line.split() for line in said(developer("auth", "whoami")).splitlines()]
    said(developer("create", "service", "clusterip", "web", "--tcp=80:80"))
    assert said(developer("get", "svc", "-o", "name")) == "service/web"
    everywhere = developer("get", "svc", "-A")
    assert everywhere.stderr.strip() == (
        f'Error from server (Forbidden): services is forbidden: User "{user}" cannot list resource "services" '
        'in API group "" at the cluster scope'
    )
    assert (
        'cannot list resource "pods" in API group "" in the namespace "kube-system"'
        in developer("get", "pods", "-n", "kube-system").stderr
    )
    assert 'cannot create resource "namespaces"' in developer("create", "namespace", "mine").stderr
    applied = developer("apply", "-f", "-", input=endpoints_text())
    assert "the right services_app.write_endpoints is missing" in applied.stderr
    assert "deleted" in said(developer("delete", "svc", "web"))


def endpoints_text() -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": []})


QUESTIONS = [
    (["create", "services"], "yes"),
    (["get", "secrets"], "yes"),
    (["get", "services", "--subresource=status"], "yes"),
    (["create", "endpoints"], "no"),
    (["list", "services", "-A"], "no"),
    (["get", "nodes"], "no"),
    (["create", "namespaces"], "no"),
    (["*", "*"], "no"),
    (["get", "deployments.apps"], "no"),
    (["get", "/version"], "yes"),
    (["get", "/metrics"], "no"),
]


def test_can_i(developer):
    for question, answer in QUESTIONS:
        done = developer("auth", "can-i", *question)
        assert done.stdout.split()[0] == answer, (question, done.stderr)
        assert (done.returncode == 0) is (answer == "yes")


def test_can_i_lists_the_rules(developer, kubectl):
    listed = said(developer("auth", "can-i", "--list"))
    rows = {line.split()[0]: line for line in listed.splitlines()[1:] if line.split()}
    assert "create" in rows["services"]
    assert "deletecollection" in rows["configmaps"]
    assert "create" not in rows["endpoints"]
    assert "nodes" not in rows
    assert "/api" in listed
    assert "[*]" in said(kubectl("auth", "can-i", "--list"))


def test_a_token_ends_and_a_revoked_one_as_well(stack: Stack, kubectl: Kubectl, developer, namespace: str):
    token = stack.manage("token", "issue", developer.user, "short", "--seconds", "3").stdout.split()[-1]
    assert kubectl("--token", token, "-n", namespace, "get", "svc").returncode == 0
    deadline = time.monotonic() + 30
    while (refused := kubectl("--token", token, "-n", namespace, "get", "svc")).returncode == 0:
        assert time.monotonic() < deadline, "the token does not end"
    assert "You must be logged in to the server" in refused.stderr
    assert developer("get", "svc").returncode == 0
    stack.manage("token", "revoke", developer.user, "laptop")
    while (refused := developer("get", "svc")).returncode == 0:
        assert time.monotonic() < deadline, "the token still opens"
    assert "You must be logged in to the server" in refused.stderr


def test_a_grant_that_is_taken_back_closes_and_is_in_the_export(stack: Stack, developer, namespace: str):
    assert developer("get", "svc").returncode == 0
    stack.manage("grant", "take", "edit", "--user", developer.user, "-n", namespace)
    deadline, in_a_row = time.monotonic() + 30, 0
    while in_a_row < 6:  # each web process has known it for a moment
        refused = developer("get", "svc")
        in_a_row = in_a_row + 1 if refused.returncode else 0
        assert time.monotonic() < deadline, "the grant still opens"
    assert "Error from server (Forbidden)" in refused.stderr
    assert developer("create", "configmap", "a").returncode != 0
    lines = stack.manage("audit", "export", "--namespace", namespace).stdout.splitlines()
    told = [(r["verb"], r["kind"]) for r in map(json.loads, lines) if r["kind"] in ("grants", "configmaps")]
    assert told == [("ADDED", "grants"), ("DELETED", "grants"), ("REFUSED", "configmaps")]
