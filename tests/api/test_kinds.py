"""The kinds that come along with Services, as kubectl and plain clients meet them."""

import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
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
    assert "*.*" in listed, "as of any cluster-admin"
    assert "selfsubjectreviews.authentication.k8s.io" in listed


@pytest.mark.parametrize(
    "path, words",
    [
        ("ingress.spec.rules.http.paths", "pathType"),
        ("secret", "stringData"),
        ("configmap", "binaryData"),
        ("lease.spec", "holderIdentity"),
        ("service.spec.ports", "targetPort"),
        ("servicecidr.spec", "cidrs"),
        ("servicecidr.status.conditions", "lastTransitionTime"),
        ("ipaddress.spec.parentRef", "resource"),
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


NETWORKING = "/apis/networking.k8s.io/v1"


def a_range(name: str, *cidrs: str) -> str:
    manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}}
    return json.dumps({**manifest, "spec": {"cidrs": [*cidrs]}})


def newest_kubectl() -> str:
    """The newest of the versions that lie beside kubectl, "kubectl" itself when it is the only one."""
    there = Path(str(shutil.which("kubectl"))).resolve().parent
    versions = [path for path in there.glob("kubectl.1.*") if path.suffix[1:].isdigit()]
    return str(max(versions, key=lambda path: int(path.suffix[1:]), default="kubectl"))


def minor_of(kubectl: Kubectl) -> int:
    """33 of 1.33."""
    version = json.loads(said(kubectl("version", "--client", "-o", "json")))["clientVersion"]
    return int(re.sub(r"\D", "", version["minor"]))


def test_ranges_are_added_used_and_retired(stack: Stack, kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    """The whole life of a range with kubectl, over processes that each keep the ranges they know."""
    listed = columns(said(kubectl("get", "servicecidrs", "--no-headers")))
    assert [row[:2] for row in listed] == [["10.0.160.0-20", "10.0.160.0/20"], ["kubernetes", "10.96.0.0/20"]]
    said(kubectl("apply", "--server-side", "-f", "-", input=a_range("more", "10.203.0.0/24")))
    said(kubectl("wait", "--for=condition=Ready", "servicecidr/more", "--timeout=10s"))
    services = f"/api/v1/namespaces/{namespace}/services"
    for number in range(1, 9):  # whichever process answers
        made = api.create(
            services,
            {"metadata": {"name": f"s{number}"}, "spec": {"clusterIP": f"10.203.0.{number}", "ports": [{"port": 80}]}},
        )
        assert made["spec"]["clusterIPs"] == [f"10.203.0.{number}"]
    row = columns(said(kubectl("get", "ip", "10.203.0.3", "--no-headers")))[0]
    assert row[:2] == ["10.203.0.3", f"services/{namespace}/s3"]
    said(kubectl("delete", "servicecidr", "more", "--wait=false"))
    reason = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}"
    assert said(kubectl("get", "servicecidr", "more", "-o", reason)) == "Terminating"
    newest = Kubectl(stack.kubeconfig, newest_kubectl())
    if minor_of(newest) >= 33:  # older ones describe the two kinds in the beta version alone
        described = said(newest("describe", "ipaddress", "10.203.0.3"))
        assert "ipallocator.k8s.io" in described
        assert namespace in described
        described = said(newest("describe", "servicecidr", "more"))
        assert "10.203.0.0/24" in described
        assert "Terminating" in described
    for _ in range(8):
        refused = kubectl(
            "create", "service", "clusterip", "late", "-n", namespace, "--clusterip=10.203.0.99", "--tcp=80"
        )
        assert "is not in the valid range" in refused.stderr
    said(kubectl("delete", "services", "-n", namespace, "--all"))
    said(kubectl("wait", "--for=delete", "servicecidr/more", "--timeout=30s"))
    assert [item["metadata"]["name"] for item in api.request("GET", f"{NETWORKING}/servicecidrs")["items"]] == [
        "10.0.160.0-20",
        "kubernetes",
    ]


def test_ranges_are_judged_and_change_only_as_they_may(kubectl: Kubectl, api: ApiClient) -> None:
    refused = kubectl("apply", "-f", "-", input=a_range("bad", "10.204.0.1/24", "10.205.0.0/24"))
    assert "spec.cidrs[0]: Invalid value" in refused.stderr
    assert "no more than one IP for each IP family" in refused.stderr
    said(kubectl("apply", "-f", "-", input=a_range("wide", "10.204.0.0/24")))
    refused = kubectl("apply", "-f", "-", input=a_range("wide", "10.205.0.0/24"))
    assert "field is immutable" in refused.stderr
    said(kubectl("apply", "-f", "-", input=a_range("wide", "10.204.0.0/24", "fd00:204::/112")))
    path = f"{NETWORKING}/servicecidrs/wide"
    marked = api.request("PATCH", path, {"metadata": {"labels": {"a": "b"}}})
    assert marked["metadata"]["finalizers"] == ["networking.k8s.io/service-cidr-finalizer"]
    status = api.request("GET", f"{path}/status")
    assert status["status"]["conditions"][0]["status"] == "True"
    said(kubectl("delete", "servicecidrs", "-l", "a=b", "--timeout=30s"))
    assert kubectl("get", "servicecidr", "wide").returncode != 0


def test_an_address_may_be_taken_by_hand(kubectl: Kubectl, api: ApiClient, namespace: str) -> None:
    reference = {"resource": "hosts", "name": "printer"}
    path = f"{NETWORKING}/ipaddresses"
    api.create(path, {"metadata": {"name": "10.96.0.250"}, "spec": {"parentRef": reference}})
    with pytest.raises(ApiRefused) as refusal:
        api.create(path, {"metadata": {"name": "10.96.0.250"}, "spec": {"parentRef": reference}})
    assert refusal.value.code == 409
    refused = kubectl("create", "service", "clusterip", "web", "-n", namespace, "--clusterip=10.96.0.250", "--tcp=80")
    assert "already allocated" in refused.stderr
    said(kubectl("delete", "ip", "10.96.0.250"))
    said(kubectl("create", "service", "clusterip", "web", "-n", namespace, "--clusterip=10.96.0.250", "--tcp=80"))
    said(kubectl("delete", "ip", "10.96.0.250", "--wait=false"))
    assert api.request("GET", f"{path}/10.96.0.250")["spec"]["parentRef"]["namespace"] == namespace
