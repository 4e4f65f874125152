"""The kinds that come along with Services, as kubectl and plain clients meet them."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from services_app.lab.client import ApiClient, ApiRefused, Kubectl
from services_app.local.supervisor import Stack
from tests.api.conftest import said

COORDINATION = "/apis/coordination.k8s.io/v1"


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_config_maps_and_secrets(stack: Stack, kubectl: Kubectl, namespace: str) -> None:
    on = ("-n", namespace)
    said(kubectl("create", "configmap", "settings", *on, "--from-literal=colour=blue", "--from-literal=size=9"))
    said(kubectl("create", "secret", "generic", "db", *on, "--from-literal=password=s3cret"))
    assert columns(said(kubectl("get", "cm", *on, "--no-headers")))[0][:2] == ["settings", "2"]
    assert columns(said(kubectl("get", "secrets", *on, "--no-headers")))[0][:3] == ["db", "Opaque", "1"]
    coded = said(kubectl("get", "secret", "db", *on, "-o", "jsonpath={.data.password}"))
    assert coded == "czNjcmV0"
    described = said(kubectl("describe", "secret", "db", *on))
    assert "password:  6 bytes" in described
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db", "namespace": namespace},
        "stringData": {"password": "changed"},
    }
    said(kubectl("apply", "-f", "-", input=json.dumps(manifest)))
    assert said(kubectl("get", "secret", "db", *on, "-o", "jsonpath={.data.password}")) == "Y2hhbmdlZA=="
    assert said(kubectl("get", "secrets", *on, "--field-selector=type=Opaque", "-o", "name")) == "secret/db"
    assert said(kubectl("get", "secrets", *on, "--field-selector=type!=Opaque", "-o", "name")) == ""
    refused = kubectl("create", "secret", "generic", "db", *on, "--from-literal=bad key=x")
    assert refused.returncode != 0
    logs = [path.read_text(errors="replace") for path in stack.data_dir.rglob("*.log")]
    assert logs
    assert not [word for word in ("s3cret", "czNjcmV0", "Y2hhbmdlZA==") for text in logs if word in text]


def test_ingresses_and_their_class(kubectl: Kubectl, namespace: str) -> None:
    on = ("-n", namespace)
    ingress_class = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": "edge"},
        "spec": {"controller": "example.org/edge"},
    }
    said(kubectl("apply", "-f", "-", input=json.dumps(ingress_class)))
    rule = "shop.example.org/cart*=web:http,tls=shop-tls"
    said(kubectl("create", "ingress", "shop", *on, "--class=edge", f"--rule={rule}"))
    row = said(kubectl("get", "ing", *on, "--no-headers"))
    assert row.split()[:4] == ["shop", "edge", "shop.example.org", "80,"]
    assert columns(said(kubectl("get", "ingressclass", "--no-headers")))[0][:2] == ["edge", "example.org/edge"]
    assert "shop.example.org" in said(kubectl("describe", "ingress", "shop", *on))
    refused = kubectl("create", "ingress", "bad", *on, "--rule=192.0.2.1/x*=web:80")
    assert "must be a DNS name, not an IP address" in refused.stderr
    said(kubectl("delete", "ingressclass", "edge"))


def test_what_kubectl_asks_about_oneself(kubectl: Kubectl) -> None:
    who = said(kubectl("auth", "whoami"))
    assert "Username" in who
    assert "system:authenticated" in who
    assert said(kubectl("auth", "can-i", "create", "services", "-n", "default")) == "yes"
    assert said(kubectl("auth", "can-i", "get", "/healthz")) == "yes"
    listed = said(kubectl("auth", "can-i", "--list", "-n", "default"))
    assert "endpointslices.discovery.k8s.io" in listed
    assert "selfsubjectreviews.authentication.k8s.io" in listed


@pytest.mark.parametrize(
    "path, words",
    [
        ("ingress.spec.rules.http.paths", "pathType"),
        ("secret", "stringData"),
        ("configmap", "binaryData"),
        ("lease.spec", "holderIdentity"),
        ("service.spec.ports", "targetPort"),
    ],
)
def test_explain_knows_every_kind(kubectl: Kubectl, path: str, words: str) -> None:
    assert words in said(kubectl("explain", path))


def test_events_are_the_same_in_both_groups(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    about = {"kind": "Service", "namespace": namespace, "name": "web", "apiVersion": "v1"}
    event = {"metadata": {"name": "web.1"}, "involvedObject": about, "reason": "Tested", "message": "it works"}
    api.create(f"/api/v1/namespaces/{namespace}/events", event)
    (listed,) = api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    assert (listed["note"], listed["regarding"]) == ("it works", about)
    row = said(kubectl("get", "events.v1.events.k8s.io", "-n", namespace, "--no-headers"))
    assert "service/web" in row
    assert "it works" in row
    assert "it works" in said(kubectl("events", "-n", namespace))
    selected = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldSelector=regarding.name%3Dother"
    assert api.request("GET", selected)["items"] == []


def test_reviews_are_answered_and_not_kept(api: ApiClient) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    asked: dict[str, Any] = {"spec": {"resourceAttributes": {"verb": "list", "resource": "services"}}}
    review = api.create(path, asked)
    assert (review["kind"], review["status"]) == ("SelfSubjectAccessReview", {"allowed": True})
    for spec in ({}, {"resourceAttributes": {}, "nonResourceAttributes": {}}):
        with pytest.raises(ApiRefused) as refusal:
            api.create(path, {"spec": spec})
        assert refusal.value.code == 422
    for method, query in (("GET", ""), ("GET", "?watch=1"), ("DELETE", "")):
        with pytest.raises(ApiRefused) as refusal:
            api.request(method, path + query)
        assert refusal.value.code == 405


class Candidate(threading.Thread):
    """Takes part in leader election as client-go does: reads the Lease, writes it from the version that was read."""

    def __init__(self, api: ApiClient, path: str, name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.api, self.path, self.identity, self.stopped = api, path, name, stop
        self.led: list[tuple[float, float]] = []  # from the answer that made it leader until it gave the lease back

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                lease = self.api.request("GET", self.path)
                if lease["spec"].get("holderIdentity"):
                    time.sleep(0.005)
                    continue
                lease["spec"]["holderIdentity"] = self.identity
                held = self.api.request("PUT", self.path, lease)
                since = time.monotonic()
                time.sleep(0.01)
                held["spec"]["holderIdentity"] = ""
                self.led.append((since, time.monotonic()))
                self.api.request("PUT", self.path, held)
            except ApiRefused as err:
                if err.code != 409:
                    raise


def test_leader_election_never_has_two_leaders(api: ApiClient, namespace: str) -> None:
    path = f"{COORDINATION}/namespaces/{namespace}/leases/leader"
    empty = {"metadata": {"name": "leader"}, "spec": {}}
    api.request("PUT", path, empty)  # a PUT creates it
    stop = threading.Event()
    candidates = [Candidate(api, path, f"c{number}", stop) for number in range(4)]
    for candidate in candidates:
        candidate.start()
    time.sleep(2)
    stop.set()
    for candidate in candidates:
        candidate.join(10)
    terms = sorted(term for candidate in candidates for term in candidate.led)
    assert len(terms) > 10
    assert all(before[1] <= after[0] for before, after in pairwise(terms))


@pytest.fixture
def many(api: ApiClient, namespace: str) -> str:
    collection = f"/api/v1/namespaces/{namespace}/configmaps"
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(lambda number: api.create(collection, {"metadata": {"name": f"c{number:03}"}}), range(60))]
    return collection


def test_pages_belong_together_while_objects_change(api: ApiClient, many: str) -> None:
    page = api.request("GET", f"{many}?limit=25")
    names = [item["metadata"]["name"] for item in page["items"]]
    api.request("DELETE", f"{many}/c059")
    api.create(many, {"metadata": {"name": "c0300"}})
    while token := page["metadata"].get("continue"):
        page = api.request("GET", f"{many}?limit=25&continue={token}")
        names += [item["metadata"]["name"] for item in page["items"]]
    assert names == [f"c{number:03}" for number in range(60)]
