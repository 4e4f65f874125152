"""Rights of their own: whose traffic a user may receive is not decided by the right to write Services."""

import json

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from services_app import store
from services_app.api import auth
from services_app.models import ApiToken, Grant

SERVICES = "/api/v1/namespaces/default/services"
ENDPOINTS = "/api/v1/namespaces/default/endpoints"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


class Asker:
    """A user of the API by token."""

    def __init__(self, name, *, is_superuser=False, rights=()):
        user = get_user_model().objects.create(username=name, is_superuser=is_superuser)
        Grant.objects.create(role="edit", user=user)
        user.user_permissions.set(Permission.objects.filter(codename__in=rights))
        self.header = f"Bearer {ApiToken.issue(user, name)}"

    def __call__(self, method, path, body=None, content_type="application/json"):
        response = Client().generic(
            method,
            path,
            json.dumps(body) if body is not None else "",
            content_type=content_type,
            headers={"Authorization": self.header},
            secure=True,
        )
        return response.status_code, json.loads(response.content)

    def patch(self, path, body):
        return self("PATCH", path, body, "application/merge-patch+json")


@pytest.fixture
def cluster(db):
    auth._known.clear()
    store.bootstrap()


@pytest.fixture
def admin(cluster):
    return Asker("admin", is_superuser=True)


@pytest.fixture
def developer(cluster):
    return Asker("developer")


def service(name="web", **spec):
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def by_hand(name="web"):
    return {"metadata": {"name": name}, "subsets": [{"addresses": [{"ip": "192.0.2.42"}], "ports": [{"port": 9376}]}]}


def slice_by_hand():
    return {"metadata": {"name": "web-1"}, "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.42"]}]}


def test_external_ips_need_a_right_that_the_answer_names(developer):
    code, answer = developer("POST", SERVICES, service(externalIPs=["198.51.100.32"]))
    assert (code, answer["reason"]) == (403, "Forbidden")
    assert answer["message"] == (
        'services "web" is forbidden: User "developer" cannot set spec.externalIPs to 198.51.100.32: '
        "the right services_app.use_external_ips is missing"
    )
    assert developer("GET", f"{SERVICES}/web")[0] == 404
    assert developer("POST", SERVICES, service())[0] == 201


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        ("PUT", "application/json"),
        ("PATCH", "application/merge-patch+json"),
        ("PATCH", "application/strategic-merge-patch+json"),
    ],
)
def test_no_way_of_writing_goes_around_the_right(developer, method, content_type):
    developer("POST", SERVICES, service())
    body = service(externalIPs=["198.51.100.32"])
    assert developer(method, f"{SERVICES}/web", body, content_type)[0] == 403
    steps = [{"op": "add", "path": "/spec/externalIPs", "value": ["198.51.100.32"]}]
    assert developer("PATCH", f"{SERVICES}/web", steps, "application/json-patch+json")[0] == 403


def test_what_is_there_may_be_kept_and_removed_but_not_widened(admin, developer):
    assert admin("POST", SERVICES, service(externalIPs=["198.51.100.32", "198.51.100.33"]))[0] == 201
    assert developer.patch(f"{SERVICES}/web", {"metadata": {"labels": {"a": "b"}}})[0] == 200
    assert developer.patch(f"{SERVICES}/web", {"spec": {"externalIPs": ["198.51.100.33", "198.51.100.34"]}})[0] == 403
    assert developer.patch(f"{SERVICES}/web", {"spec": {"externalIPs": ["198.51.100.33"]}})[0] == 200
    assert developer.patch(f"{SERVICES}/web", {"spec": {"externalIPs": None}})[0] == 200
    assert developer.patch(f"{SERVICES}/web", {"spec": {"externalIPs": ["198.51.100.33"]}})[0] == 403


def test_the_address_of_a_load_balancer_needs_the_same_right(admin, developer):
    developer("POST", SERVICES, service(type="LoadBalancer"))
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.40"}]}}}
    code, answer = developer.patch(f"{SERVICES}/web/status", status)
    assert code == 403
    assert "status.loadBalancer.ingress" in answer["message"]
    assert admin.patch(f"{SERVICES}/web/status", status)[0] == 200
    assert developer.patch(f"{SERVICES}/web/status", status)[0] == 200  # nothing new in it


@pytest.mark.parametrize(("path", "body"), [(ENDPOINTS, by_hand()), (SLICES, slice_by_hand())], ids=["v1", "slices"])
def test_endpoints_by_hand_need_a_right_to_write_and_none_to_read(admin, developer, path, body):
    code, answer = developer("POST", path, body)
    assert code == 403
    assert "the right services_app.write_endpoints is missing" in answer["message"]
    assert admin("POST", path, body)[0] == 201
    name = body["metadata"]["name"]
    assert developer("GET", f"{path}/{name}")[0] == 200
    assert developer.patch(f"{path}/{name}", {"metadata": {"labels": {"a": "b"}}})[0] == 403
    assert developer("DELETE", f"{path}/{name}")[0] == 403
    assert developer("DELETE", path)[0] == 403


def test_a_granted_right_is_enough(cluster):
    operator = Asker("operator", rights=["use_external_ips", "write_endpoints"])
    assert operator("POST", SERVICES, service(externalIPs=["198.51.100.32"]))[0] == 201
    assert operator("POST", ENDPOINTS, by_hand())[0] == 201


def test_a_service_with_endpoints_by_hand_may_be_deleted_with_them(admin, developer):
    developer("POST", SERVICES, service())
    admin("POST", ENDPOINTS, by_hand())
    assert developer("DELETE", f"{SERVICES}/web")[0] == 200
    assert developer("GET", f"{ENDPOINTS}/web")[0] == 404
