"""One Service's page: everything it says, and its deletion."""

import json
import re

import pytest
from django.test import Client

from services_app import store
from services_app.models import Event, Service
from services_app.spec import kinds
from tests.web import sample
from tests.web.test_pages import HOSTILE, MarkupNames, fragment, text_of

PAGE = "/ui/services/shop/web/"
DELETE = PAGE + "delete/"


def add_event(name: str, *, uid: str = "", **fields) -> None:
    about = {"kind": "Service", "namespace": "shop", "name": "web", **({"uid": uid} if uid else {})}
    document = {"metadata": {"name": name}, "involvedObject": about, **fields}
    store.create(kinds.EVENT, document, namespace="shop", actor=sample.ACTOR)


def test_every_way_to_reach_it_is_named_with_its_port(page):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_node("node-2", "192.0.2.2")
    service = sample.add_service(
        "shop", "web", type="NodePort", externalIPs=["203.0.113.7"],
        ports=[{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080, "appProtocol": "http"}],
    )  # fmt: skip
    response = page.get(PAGE)
    text = text_of(response)
    for words in [
        f"{service.cluster_ip}:80", "192.0.2.1:30080", "192.0.2.2:30080", "30080/TCP on every node", "203.0.113.7:80",
        "80/TCP http 8080 30080 http", "app=web", "Clients outside reach every endpoint",
    ]:  # fmt: skip
        assert words in text, words
    assert 'data-copy="192.0.2.2:30080"' in response.content.decode()


def test_many_nodes_are_counted_beside_the_first(page):
    for number in range(9):
        sample.add_node(f"node-{number}", f"192.0.2.{number + 1}")
    sample.add_service("shop", "web", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    assert "and at 3 more nodes" in text_of(page.get(PAGE))


def test_a_load_balancer_shows_where_it_was_given_and_who_may_come(page):
    sample.add_service("shop", "web", type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"])

    def give(document):
        document["status"]["loadBalancer"] = {"ingress": [{"ip": "203.0.113.9"}]}
        return document

    store.update(kinds.SERVICE, "shop", "web", give, subresource="status", actor=sample.ACTOR)
    text = text_of(page.get(PAGE))
    assert "203.0.113.9:80" in text
    assert "Allowed clients 192.0.2.0/24" in text


def test_the_names_it_answers_to_are_listed(page):
    service = sample.add_service("shop", "web", ports=[{"name": "http", "port": 80}])
    text = text_of(page.get(PAGE))
    assert re.search(rf"web\.shop\.svc\.cluster\.local\. .*A {service.cluster_ip}", text)
    assert "_http._tcp.web.shop.svc.cluster.local." in text
    assert "0 100 80 web.shop.svc.cluster.local." in text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param({"clusterIP": "None"}, "A headless Service has no address of its own", id="headless"),
        pytest.param(
            {"type": "ExternalName", "externalName": "a.example.org"}, "An alias for a.example.org", id="alias"
        ),
        pytest.param({"selector": None}, "the endpoints are written by hand", id="no selector"),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5400}}},
            "until it was silent for 90 min",
            id="affinity",
        ),
        pytest.param({"internalTrafficPolicy": "Local"}, "on their own node only", id="internal policy"),
        pytest.param({"publishNotReadyAddresses": True}, "Not ready endpoints published", id="not ready"),
    ],
)
def test_settings_are_told_in_words(page, spec, words):
    sample.add_service("shop", "web", **spec)
    assert words in text_of(page.get(PAGE))


def test_an_endpoint_is_shown_with_state_node_zone_pod_and_slice(page):
    sample.add_node("node-1", "192.0.2.1")

    def place(node):
        node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "lyon"}
        return node

    store.update(kinds.NODE, "", "node-1", place, actor=sample.ACTOR)
    sample.add_service("shop", "web")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    sample.add_pod("shop", "web-2", app="web", ip="10.1.0.2", ready=False)
    sample.add_pod("shop", "web-3", app="web", ip="10.1.0.3")
    store.delete(kinds.POD, "shop", "web-3", actor=sample.ACTOR)
    text = text_of(page.get(PAGE))
    assert re.search(r"10\.1\.0\.1:8080 Ready node-1 lyon Pod web-1 web-\w{5}", text)
    assert re.search(r"10\.1\.0\.2:8080 Not ready node-1", text)
    assert re.search(r"10\.1\.0\.3:8080 Terminating, serving node-1", text)


def test_many_endpoints_are_paged_with_the_troubled_first(page):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")
    for number in range(52):
        sample.add_pod("shop", f"web-{number:02}", app="web", ip=f"10.1.0.{number + 1}", ready=number != 40)
    body = fragment(page, "service", PAGE).content.decode()
    assert body.index("Pod web-40") < body.index("Pod web-00")
    assert "51 of 52 ready" in body
    assert "Pod web-51" not in body
    second = fragment(page, "service", PAGE, endpoints_page="2").content.decode()
    assert "Pod web-51" in second
    assert 'hx-get="/ui/services/shop/web/?endpoints_page=2"' in second, "a live update stays on the page"


def test_a_node_that_refused_it_is_shown_with_the_reason(page):
    sample.add_service("shop", "web")
    sample.add_node("node-1", "192.0.2.1", rejected={"shop/web": {"reason": "BadPort", "message": "port 80 is taken"}})
    assert re.search(r"node-1 192\.0\.2\.1 .*Rejected BadPort port 80 is taken", text_of(page.get(PAGE)))


def test_events_about_it_are_told_newest_first_and_none_about_an_earlier_service(page):
    service = sample.add_service("shop", "web")
    add_event("first", uid=str(service.uid), type="Normal", reason="Older", message="a", count=3)
    add_event("second", type="Warning", reason="Newer", message="b", reportingComponent="example.org/tool")
    add_event("third", uid="00000000-0000-0000-0000-000000000001", reason="Foreign", message="c")
    text = text_of(page.get(PAGE))
    assert text.index("Newer") < text.index("Older × 3")
    assert "example.org/tool" in text
    assert "Foreign" not in text
    assert Event.objects.count() == 3


def test_changes_say_who_changed_what(page):
    sample.add_service("shop", "web")
    sample.change_service("shop", "web", selector={"app": "other"})
    body = page.get(PAGE).content.decode()
    text = text_of(page.get(PAGE))
    assert "tester changed spec.selector" in text
    assert "tester created it" in text
    assert re.search(r'diff-removed"><span class="diff-sign">-</span>\s+app: web\n', body)
    assert re.search(r'diff-added"><span class="diff-sign">\+</span>\s+app: other\n', body)


def test_the_yaml_is_what_kubectl_would_print(page):
    service = sample.add_service("shop", "web", annotations={"example.org/a": HOSTILE})
    body = page.get(PAGE).content.decode()
    block = re.search(r'<pre class="yaml.*?>(.*?)</pre>', body, flags=re.S)[1]
    import html

    import yaml

    assert yaml.safe_load(html.unescape(re.sub(r"<[^>]+>", "", block))) == json.loads(service.document)
    assert not {"img", "onerror"} & MarkupNames.in_page(body)


def test_buttons_to_write_are_for_those_who_may(page, administrator):
    sample.add_service("shop", "web")
    for path in (PAGE + "edit/", PAGE + "yaml/", DELETE):
        assert path not in page.get(PAGE).content.decode()
        assert path in administrator.get(PAGE).content.decode()
        assert page.get(path).status_code == 403
        assert Client().get(path).status_code == 302


# Deletion


def test_deleting_says_first_what_goes_with_it(administrator):
    service = sample.add_service("shop", "web", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    sample.add_node("node-1", "192.0.2.1")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    text = text_of(administrator.get(DELETE))
    for words in [f"the cluster IP {service.cluster_ip}", "node port 30080/TCP", "1 endpoint;", "web.shop.svc"]:
        assert words in text, words
    assert Service.objects.filter(name="web").exists(), "looking deletes nothing"


def test_a_service_is_deleted_and_the_list_says_so(administrator):
    service = sample.add_service("shop", "web")
    response = administrator.post(DELETE, {"uid": str(service.uid)}, follow=True)
    assert response.redirect_chain == [("/ui/services/", 302)]
    assert "Service shop/web was deleted." in text_of(response)
    assert not Service.objects.filter(name="web").exists()


def test_a_service_made_anew_under_the_name_is_not_deleted(administrator):
    old = sample.add_service("shop", "web")
    sample.delete_service("shop", "web")
    sample.add_service("shop", "web")
    response = administrator.post(DELETE, {"uid": str(old.uid)})
    assert "Another Service of this name was created meanwhile." in text_of(response)
    assert Service.objects.filter(name="web").exists()


def test_what_finalizers_hold_is_told(administrator):
    service = sample.add_service("shop", "web")

    def hold(document):
        document["metadata"]["finalizers"] = ["example.org/hold"]
        return document

    store.update(kinds.SERVICE, "shop", "web", hold, actor=sample.ACTOR)
    response = administrator.post(DELETE, {"uid": str(service.uid)}, follow=True)
    assert "is marked for deletion; finalizers hold it: example.org/hold" in text_of(response)
    assert "Marked for deletion" in text_of(response)


@pytest.mark.parametrize("path", [DELETE, PAGE + "edit/", PAGE + "yaml/"])
def test_writing_to_what_is_not_there_is_a_404(administrator, db, path):
    assert administrator.get(path).status_code == 404


def test_a_forged_post_is_refused(administrator):
    service = sample.add_service("shop", "web")
    client = Client(enforce_csrf_checks=True)
    client.cookies = administrator.cookies
    assert client.post(DELETE, {"uid": str(service.uid)}).status_code == 403
    assert Service.objects.filter(name="web").exists()
