"""Objects by YAML: each document is tried, shown, applied; what is wrong is named and nothing is half done."""

import json
import re

import pytest

from services_app.models import Change, EndpointSlice, Namespace, Service
from services_app.web.manifests import DOCUMENTS_LIMIT
from tests.web import sample
from tests.web.test_pages import HOSTILE, MarkupNames, text_of
from tests.web.test_service_form import sent_back, stored

APPLY = "/ui/apply/"
EDIT = "/ui/services/shop/web/yaml/"

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: by-hand
  namespace: shop
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
ports:
- port: 8080
endpoints:
- addresses: [192.0.2.9]
"""


def post(client, text: str, action: str = "apply", path: str = APPLY):
    return client.post(path, {"text": text, "action": action})


def results(response) -> list[tuple[str, str]]:
    """(title, result) of each document on the page."""
    found = re.findall(r'<h3 class="card-title.*?</h3>.*?</span>', response.content.decode(), flags=re.S)
    return [tuple(" ".join(re.sub(r"<[^>]+>", " ", part).split()) for part in card.split("</h3>")) for card in found]


# Any document


def test_several_documents_of_several_kinds_are_applied_in_their_order(administrator, db):
    response = post(administrator, "---\n".join((NAMESPACE, SERVICE, SLICE)))
    assert results(response) == [
        ("Namespace shop", "created"),
        ("Service shop/web", "created"),
        ("EndpointSlice shop/by-hand", "created"),
    ]
    assert stored()["spec"]["ports"][0]["targetPort"] == 8080
    assert EndpointSlice.objects.filter(name="by-hand").exists()
    assert Change.objects.get(kind="services", name="web", verb="ADDED").user == "root"
    assert 'href="/ui/services/shop/web/"' in response.content.decode()


def test_a_preview_shows_what_would_be_and_writes_nothing(administrator, db):
    sample.add_service("shop", "web", ports=[{"port": 81, "targetPort": 8080}])
    response = post(administrator, SERVICE + "---\n" + SLICE, "preview")
    assert results(response) == [("Service shop/web", "changes"), ("EndpointSlice shop/by-hand", "new")]
    text = text_of(response)
    assert "- - port: 81" in text
    assert "+ - port: 80" in text
    assert stored()["spec"]["ports"][0]["port"] == 81
    assert not EndpointSlice.objects.filter(name="by-hand").exists()
    assert sent_back(response)["text"] == SERVICE + "---\n" + SLICE


def test_what_is_in_a_namespace_of_the_same_text_can_be_tried(administrator, db):
    response = post(administrator, NAMESPACE + "---\n" + SERVICE, "preview")
    assert results(response) == [("Namespace shop", "new"), ("Service shop/web", "new")]
    wrong = SERVICE.replace("port: 80\n", "port: 80000\n")
    response = post(administrator, NAMESPACE + "---\n" + wrong, "preview")
    assert "spec.ports[0].port: Invalid value: 80000" in text_of(response)
    assert not Namespace.objects.filter(name="shop").exists()


def test_the_text_replaces_an_object_and_keeps_its_addresses(administrator, db):
    service = sample.add_service("shop", "web", type="NodePort", annotations={"example.org/a": "b"})
    assert results(post(administrator, SERVICE.replace("spec:\n", "spec:\n  type: NodePort\n")))[0][1] == "changed"
    document = stored()
    assert document["spec"]["clusterIP"] == service.cluster_ip
    assert document["spec"]["ports"][0]["nodePort"] == json.loads(service.document)["spec"]["ports"][0]["nodePort"]
    assert "annotations" not in document["metadata"]


def test_what_is_the_same_stays_as_it_is(administrator, db):
    post(administrator, NAMESPACE + "---\n" + SERVICE)
    revision = stored()["metadata"]["resourceVersion"]
    assert results(post(administrator, SERVICE)) == [("Service shop/web", "unchanged")]
    assert stored()["metadata"]["resourceVersion"] == revision


def test_a_list_is_taken_apart_and_json_is_yaml(administrator, db):
    sample.add_namespace("shop")
    item = {"apiVersion": "v1", "kind": "Service", "metadata": {"generateName": "web-", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}]}}  # fmt: skip
    response = post(administrator, json.dumps({"apiVersion": "v1", "kind": "List", "items": [item, item]}))
    assert results(response) == [("Service shop/web-…", "created")] * 2
    assert Service.objects.filter(namespace="shop").count() == 2


def test_a_document_without_a_namespace_is_for_default(administrator, db):
    sample.add_namespace("default")
    assert results(post(administrator, SERVICE.replace("  namespace: shop\n", ""))) == [
        ("Service default/web", "created")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(SERVICE.replace("selector", "selectr"), 'unknown field "spec.selectr"', id="unknown field"),
        pytest.param(SERVICE + "    port: 81\n", 'duplicate field "spec.ports[0].port"', id="field given twice"),
        pytest.param(SERVICE.replace("port: 80\n", "port: eighty\n"), "cannot unmarshal string into", id="wrong type"),
        pytest.param(
            SERVICE.replace("port: 80\n", "port: 0\n"), "spec.ports[0].port: Invalid value: 0", id="wrong value"
        ),
        pytest.param(SERVICE.replace("Service", "Servise"), 'no matches for kind "Servise"', id="unknown kind"),
        pytest.param(SERVICE.replace("apiVersion: v1\n", ""), "it does not say what it is", id="no version"),
        pytest.param("- a\n", "it is no object", id="a list"),
        pytest.param(SERVICE.replace("shop", "none"), 'namespaces "none" not found', id="no such namespace"),
        pytest.param(SERVICE.replace("  name: web\n", ""), "name or generateName is required", id="no name"),
        pytest.param(SERVICE.replace("name: web", "name: [web]"), "cannot unmarshal array", id="name of a wrong type"),
        pytest.param("metadata: {\n", "line 2, column 1", id="no YAML"),
        pytest.param("", "the text holds no document", id="nothing"),
        pytest.param("---\n---\n", "the text holds no document", id="empty documents"),
        pytest.param("a: &a 1\nb: *a\n", "aliases are not accepted", id="aliases"),
        pytest.param("---\n".join([NAMESPACE] * (DOCUMENTS_LIMIT + 1)), "kubectl takes any number", id="too many"),
    ],
)
def test_what_is_wrong_is_named_and_the_text_stays(administrator, db, text, words):
    sample.add_namespace("shop")
    response = post(administrator, text)
    assert response.status_code == 200
    assert words in text_of(response).replace("&quot;", '"')
    assert sent_back(response)["text"] == text
    assert not Service.objects.filter(namespace="shop").exists()


def test_one_wrong_document_keeps_all_from_being_written(administrator, db):
    sample.add_namespace("shop")
    response = post(administrator, SERVICE + "---\n" + SLICE.replace("IPv4", "IPv5"))
    assert "1 of 2 would be refused; nothing was written" in text_of(response)
    assert results(response) == [("Service shop/web", "new"), ("EndpointSlice shop/by-hand", "refused")]
    assert not Service.objects.filter(namespace="shop").exists()


def test_what_only_writing_finds_out_is_told_per_document(administrator, db):
    sample.add_namespace("shop")
    fixed = SERVICE.replace("spec:\n", "spec:\n  clusterIP: 10.96.7.7\n")
    response = post(administrator, fixed + "---\n" + fixed.replace("name: web", "name: second"))
    assert "1 of 2 refused" in text_of(response)
    assert results(response) == [("Service shop/web", "created"), ("Service shop/second", "refused")]
    assert "10.96.7.7" in text_of(response)


def test_an_outdated_version_in_the_text_is_refused_with_a_way_out(administrator, db):
    sample.add_service("shop", "web")
    response = post(administrator, SERVICE.replace("  name: web\n", '  name: web\n  resourceVersion: "1"\n'))
    text = text_of(response)
    assert "the object has been modified" in text
    assert "Leave metadata.resourceVersion and uid out" in text


def test_warnings_of_the_api_are_shown(administrator, db):
    sample.add_namespace("shop")
    text = SERVICE.replace("spec:\n", "spec:\n  externalIPs: [192.0.2.9]\n")
    assert "spec.externalIPs is deprecated" in text_of(post(administrator, text, "preview"))


def test_only_those_who_may_write_apply(page, db):
    assert page.get(APPLY).status_code == 403
    assert post(page, NAMESPACE).status_code == 403
    assert not Namespace.objects.filter(name="shop").exists()


def test_hostile_text_is_only_text(administrator, db):
    for text in (HOSTILE, f"kind: {json.dumps(HOSTILE)}\napiVersion: v1\n", f"</textarea>{HOSTILE}", "\x00"):
        body = post(administrator, text).content.decode()
        assert not {"img", "onerror"} & MarkupNames.in_page(body)
        assert "<script>alert" not in body


# One Service


def test_the_text_of_a_service_holds_what_a_person_decides(administrator, db):
    sample.add_service("shop", "web", annotations={"example.org/a": "b"})
    text = sent_back(administrator.get(EDIT))["text"]
    assert "example.org/a: b" in text
    for word in ("status:", "uid:", "resourceVersion:", "creationTimestamp:"):
        assert word not in text


def edited(client, old: str, new: str, action: str = "apply"):
    back = sent_back(client.get(EDIT))
    assert old in back["text"]
    return client.post(EDIT, {**back, "text": back["text"].replace(old, new), "action": action})


def test_a_service_is_changed_by_its_text(administrator, db):
    sample.add_service("shop", "web")
    response = edited(administrator, "targetPort: 8080", "targetPort: 9090", "preview")
    assert results(response) == [("Service shop/web", "changes")]
    assert stored()["spec"]["ports"][0]["targetPort"] == 8080
    response = administrator.post(EDIT, sent_back(response), follow=True)
    assert response.redirect_chain == [("/ui/services/shop/web/", 302)]
    assert "Service shop/web was changed." in text_of(response)
    assert stored()["spec"]["ports"][0]["targetPort"] == 9090


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("name: web", "name: other", "this page changes Service shop/web", id="another name"),
        pytest.param("kind: Service", "kind: Pod", "unknown field", id="another kind"),
        pytest.param("spec:\n", "---\nspec:\n", "the text holds 2 documents", id="two documents"),
        pytest.param("targetPort: 8080", "targetPort: 80808", "spec.ports[0].targetPort: Invalid value", id="value"),
        pytest.param("clusterIP: ", "clusterIP: 1", "may not change once set", id="address"),
    ],
)
def test_what_is_wrong_in_the_text_of_a_service_is_named(administrator, db, old, new, words):
    sample.add_service("shop", "web")
    before = stored()
    response = edited(administrator, old, new)
    assert words in text_of(response)
    assert new in sent_back(response)["text"]
    assert stored() == before


def test_two_texts_at_once_see_both_changes_and_the_second_goes_on(administrator, db):
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT))
    sample.change_service("shop", "web", selector={"app": "other"})
    changed = {**back, "text": back["text"].replace("targetPort: 8080", "targetPort: 9090"), "action": "apply"}
    response = administrator.post(EDIT, changed)
    text = text_of(response)
    assert "Somebody else changed this Service meanwhile" in text
    assert "+ app: other" in text
    assert "+ targetPort: 9090" in text
    back = sent_back(response)
    assert back["text"] == changed["text"]
    assert stored()["spec"]["ports"][0]["targetPort"] == 8080
    assert administrator.post(EDIT, back).status_code == 302
    assert stored()["spec"]["ports"][0]["targetPort"] == 9090
    assert stored()["spec"]["selector"] == {"app": "web"}, "the text is the whole Service"


def test_a_service_deleted_meanwhile_keeps_the_text(administrator, db):
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT))
    sample.delete_service("shop", "web")
    response = administrator.post(EDIT, back)
    assert "it was deleted meanwhile" in text_of(response)
    assert sent_back(response)["text"] == back["text"]
    assert not Service.objects.filter(name="web").exists()
