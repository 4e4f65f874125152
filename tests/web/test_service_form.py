"""Services by form: what is typed becomes the object, what is wrong is told beside its field, nothing is lost."""

import json
import re
from ipaddress import ip_network

import pytest

from services_app import store
from services_app.models import Change, Service
from services_app.spec import kinds
from services_app.web.service_form import (
    Pair,
    PortInput,
    Problem,
    ServiceForm,
    apply_form,
    from_document,
    merge,
    place_of,
)
from tests.web import sample
from tests.web.test_pages import HOSTILE, MarkupNames, text_of

NEW = "/ui/services/new/"
EDIT = "/ui/services/shop/web/edit/"

FULL = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "labels": {"app": "web"},
        "annotations": {"short": "a", "long": "x" * 300},
        "finalizers": ["example.org/hold"],
    },
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.7",
        "clusterIPs": ["10.96.0.7"],
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web", "nodePort": 30080, "later": 1},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353, "nodePort": 30053},
        ],
        "selector": {"app": "web", "tier": "front"},
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31111,
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
    },
}


def typed(**more) -> dict[str, str]:
    """A filled-in form as a browser sends it."""
    fields = {
        "action": "apply", "name": "web", "namespace": "shop", "type": "ClusterIP", "ip_mode": "auto",
        "affinity": "None", "internal_policy": "Cluster", "external_policy": "Cluster", "allocate_node_ports": "on",
        "ports-0-name": "", "ports-0-port": "80", "ports-0-protocol": "TCP", "ports-0-target": "8080",
        "ports-0-node": "", "ports-0-app": "", "ports-0-origin": "",
        "selector-0-key": "app", "selector-0-value": "web",
    }  # fmt: skip
    return {**fields, **{key.replace("__", "-"): value for key, value in more.items()}}


def sent_back(response, **changes) -> dict[str, str]:
    """The form of a page as a browser would send it, with some fields changed."""
    body = response.content.decode()
    form = body[body.index('<form id="editor"') : body.rindex("</form>")]
    data = {}
    for tag in re.findall(r"<input [^>]*>", form):
        named = dict(re.findall(r'(\w[\w-]*)="([^"]*)"', tag))
        if named.get("type") == "checkbox":
            if " checked" in tag:
                data[named["name"]] = "on"
        else:
            data[named["name"]] = unescaped(named.get("value", ""))
    for name, text in re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>(.*?)</textarea>', form, flags=re.S):
        data[name] = unescaped(text.removeprefix("\n"))
    for name, options in re.findall(r'<select[^>]* name="([\w-]+)".*?>(.*?)</select>', form, flags=re.S):
        chosen = re.search(r"<option([^>]*) selected>([^<]*)", options) or re.search(r"<option([^>]*)>([^<]*)", options)
        value = re.search(r'value="([^"]*)"', chosen[1])
        data[name] = unescaped(value[1] if value else chosen[2])
    return {**data, "action": "apply", **{key.replace("__", "-"): value for key, value in changes.items()}}


def unescaped(text: str) -> str:
    import html

    return html.unescape(text)


def stored(namespace: str = "shop", name: str = "web") -> dict:
    return json.loads(Service.objects.get(namespace=namespace, name=name).document)


@pytest.fixture
def shop(db):
    sample.add_namespace("shop")


# From a form to an object, without any server


def test_a_form_that_was_not_touched_changes_nothing():
    form = from_document(FULL)
    assert apply_form(FULL, form, form) == (FULL, [])


def change(**fields) -> dict:
    form = from_document(FULL)
    document, errors = apply_form(FULL, form, ServiceForm(**{**form.__dict__, **fields}))
    assert errors == []
    return document


@pytest.mark.parametrize(
    ("fields", "path", "expected"),
    [
        pytest.param({"selector": (Pair("app", "new"),)}, "selector", {"app": "new"}, id="selector"),
        pytest.param({"selector": ()}, "selector", None, id="selector gone"),
        pytest.param({"affinity": "None"}, "sessionAffinityConfig", None, id="affinity gone"),
        pytest.param(
            {"affinity_timeout": "7"}, "sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 7}}, id="timeout"
        ),
        pytest.param({"external_ips": "192.0.2.1, 192.0.2.2\n"}, "externalIPs", ["192.0.2.1", "192.0.2.2"], id="IPs"),
        pytest.param({"source_ranges": ""}, "loadBalancerSourceRanges", None, id="ranges gone"),
        pytest.param({"internal_policy": "Local"}, "internalTrafficPolicy", "Local", id="policy"),
        pytest.param({"publish_not_ready": True}, "publishNotReadyAddresses", True, id="not ready"),
        pytest.param({"allocate_node_ports": False}, "allocateLoadBalancerNodePorts", False, id="no node ports"),
        pytest.param({"families": "IPv4,IPv6"}, "ipFamilies", ["IPv4", "IPv6"], id="families"),
    ],
)
def test_a_changed_field_changes_its_field_alone(fields, path, expected):
    document = change(**fields)
    assert document["spec"].get(path) == expected
    document["spec"].pop(path, None)
    rest = {key: value for key, value in FULL["spec"].items() if key not in (path, "sessionAffinity")}
    assert {key: value for key, value in document["spec"].items() if key != "sessionAffinity"} == rest
    assert document["metadata"] == FULL["metadata"]


def test_ports_keep_what_the_form_does_not_know_when_rows_come_and_go():
    http, dns = from_document(FULL).ports
    ports = change(ports=(PortInput(name="new", port="81"), PortInput(**{**http.__dict__, "port": "8080"})))
    assert ports["spec"]["ports"] == [
        {"name": "new", "port": 81, "protocol": "TCP"},
        {"name": "http", "port": 8080, "protocol": "TCP", "targetPort": "web", "nodePort": 30080, "later": 1},
    ]
    assert change(ports=(dns,))["spec"]["ports"] == [FULL["spec"]["ports"][1]]


def test_annotations_too_long_for_a_form_stay():
    document = change(annotations=(Pair("other", "b"),))
    assert document["metadata"]["annotations"] == {"long": "x" * 300, "other": "b"}


def test_what_a_type_has_no_use_for_is_not_written():
    form = ServiceForm(
        name="web", type="ClusterIP", ports=(PortInput(port="80", node="30080"),), external_policy="Local",
        source_ranges="192.0.2.0/24", cluster_ip="10.96.0.9", external_name="x.example.org", affinity_timeout="9",
    )  # fmt: skip
    document, errors = apply_form({}, ServiceForm(), form)
    assert document["spec"] == {"ports": [{"port": 80, "protocol": "TCP"}]}
    assert errors == []


def test_what_cannot_be_read_is_told_with_its_path():
    ports = (PortInput(port="eighty"), PortInput(name="b", node="1.5"), PortInput(port="99999999999"))
    form = ServiceForm(type="NodePort", ports=ports, selector=(Pair("a", "1"), Pair("a", "2")), ip_mode="chosen")
    _, errors = apply_form({}, ServiceForm(), form)
    assert sorted(map(str, errors)) == [
        "spec.clusterIPs: Required value: write an address, or let it be chosen",
        'spec.ports[0].port: Invalid value: "eighty": must be a whole number',
        'spec.ports[1].nodePort: Invalid value: "1.5": must be a whole number',
        "spec.ports[1].port: Required value",
        'spec.ports[2].port: Invalid value: "99999999999": must be a whole number',
        'spec.selector: Duplicate value: "a"',
    ]


def test_two_changes_of_different_fields_are_merged_and_the_same_field_is_named():
    base = ServiceForm(name="web", external_name="a", cluster_ip="1")
    mine = ServiceForm(name="web", external_name="mine", cluster_ip="1", affinity="ClientIP")
    theirs = ServiceForm(name="web", external_name="theirs", cluster_ip="2", affinity="ClientIP")
    merged, both = merge(base, mine, theirs)
    assert merged == ServiceForm(name="web", external_name="mine", cluster_ip="2", affinity="ClientIP")
    assert both == ["external_name"]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("metadata.name", "name"),
        ("spec.ports", "ports"),
        ("spec.ports[3]", "ports-3-port"),
        ("spec.ports[0].nodePort", "ports-0-node"),
        ("spec.clusterIPs[1]", "cluster_ip"),
        ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "affinity_timeout"),
        ("spec.LoadBalancerSourceRanges[0]", "source_ranges"),
        ("metadata.annotations[a.example.org/b]", "annotations"),
        ("spec.healthCheckNodePort", ""),
        ("metadata.resourceVersion", ""),
    ],
)
def test_every_path_of_an_error_has_its_place(path, place):
    assert place_of(path) == place


def test_a_message_that_names_a_field_leads_to_it():
    told = Problem.told('services "web" is forbidden: User "ana" cannot set spec.externalIPs to 192.0.2.9: no right')
    assert told.place == "f-external_ips"
    assert Problem.told("the namespace is being terminated").place == ""


# Creating


def test_a_service_is_created_as_typed_by_the_one_who_is_logged_in(administrator, shop):
    response = administrator.post(
        NEW,
        typed(
            type="NodePort", ports__0__name="http", ports__0__node="30080", affinity="ClientIP", affinity_timeout="60",
            labels__0__key="team", labels__0__value="blue", external_policy="Local", publish_not_ready="on",
            ip_mode="chosen", cluster_ip="10.96.5.5",
        ),
        follow=True,
    )  # fmt: skip
    assert response.redirect_chain == [("/ui/services/shop/web/", 302)]
    assert "Service shop/web was created." in text_of(response)
    document = stored()
    assert document["metadata"]["labels"] == {"team": "blue"}
    spec = document["spec"]
    assert spec["ports"] == [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]
    assert spec["clusterIP"] == "10.96.5.5"
    assert spec["externalTrafficPolicy"] == "Local"
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 60}}
    assert spec["publishNotReadyAddresses"] is True
    assert Change.objects.get(kind="services", name="web", verb="ADDED").user == "root"


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        pytest.param({"ip_mode": "none"}, {"clusterIP": "None"}, id="headless"),
        pytest.param(
            {"type": "ExternalName", "external_name": "a.example.org", "ports-0-port": "", "ports-0-target": ""},
            {"type": "ExternalName", "externalName": "a.example.org"},
            id="external name",
        ),
        pytest.param({"type": "LoadBalancer", "source_ranges": "192.0.2.0/24"},
                     {"loadBalancerSourceRanges": ["192.0.2.0/24"], "allocateLoadBalancerNodePorts": True}, id="balancer"),
        pytest.param({"selector-0-key": "", "selector-0-value": ""}, {"sessionAffinity": "None"}, id="no selector"),
    ],
)  # fmt: skip
def test_services_of_every_kind_are_created(administrator, shop, fields, spec):
    assert administrator.post(NEW, typed(**fields)).status_code == 302
    assert spec.items() <= stored()["spec"].items()


def test_all_errors_come_at_once_beside_their_fields_and_nothing_typed_is_lost(administrator, shop):
    response = administrator.post(
        NEW,
        typed(
            name="Web_1", type="NodePort", ports__0__port="eighty", ports__0__node="80", selector__0__value="not valid",
            external_ips="nowhere\n192.0.2.9", affinity="ClientIP", affinity_timeout="0",
        ),
    )  # fmt: skip
    text = text_of(response)
    assert "6 things are wrong; nothing was written" in text
    body = response.content.decode()
    for place in ("name", "ports-0-port", "ports-0-node", "external_ips", "affinity_timeout"):
        assert re.search(rf'id="f-{place}"[^>]*aria-invalid="true"[^>]*aria-describedby="f-{place}-error-1"', body), (
            place
        )
        assert f'id="f-{place}-error-1"' in body
        assert f'href="#f-{place}"' in body
    named = r'is-invalid[^>]*name="selector-0-value" value="not valid"[^>]* aria-describedby="f-selector-error-1"'
    assert re.search(named, body)
    assert 'id="f-selector-error-1"' in body
    back = sent_back(response)
    for name, value in [
        ("name", "Web_1"), ("ports-0-port", "eighty"), ("ports-0-node", "80"), ("selector-0-value", "not valid"),
        ("external_ips", "nowhere\n192.0.2.9"), ("affinity_timeout", "0"), ("ports-0-target", "8080"),
    ]:  # fmt: skip
        assert back[name] == value
    assert not Service.objects.filter(namespace="shop").exists()
    fixed = {
        "name": "web-1", "ports-0-port": "80", "ports-0-node": "30080", "selector-0-value": "valid",
        "external_ips": "192.0.2.9", "affinity_timeout": "1",
    }  # fmt: skip
    assert administrator.post(NEW, {**back, **fixed}).status_code == 302
    assert stored(name="web-1")["spec"]["externalIPs"] == ["192.0.2.9"]


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        pytest.param({"name": "taken"}, "name", "the namespace shop has a Service of this name", id="name taken"),
        pytest.param({"namespace": "none"}, "namespace", "create the Namespace first", id="no such namespace"),
        pytest.param({"namespace": ""}, "namespace", "Required value", id="no namespace"),
        pytest.param(
            {"ip_mode": "chosen", "cluster_ip": "10.96.7.7"}, "cluster_ip", "already allocated", id="address taken"
        ),
        pytest.param({"type": "Thing"}, "type", "Unsupported value", id="type"),
        pytest.param({"family_policy": "RequireDualStack"}, "family_policy", "not configured for dual", id="families"),
        pytest.param({"ports-0-port": "", "ports-0-target": ""}, "ports", "Required value", id="no ports"),
        pytest.param({"labels-0-key": "a b", "labels-0-value": "c"}, "labels", "name part must consist", id="label"),
    ],
)
def test_each_refusal_is_told_at_its_field(administrator, shop, fields, place, words):
    sample.add_service("shop", "taken", clusterIP="10.96.7.7")
    response = administrator.post(NEW, typed(**fields))
    assert response.status_code == 200
    assert words in text_of(response)
    assert re.search(rf'id="f-{place}-error-1">[^<]*{words}', response.content.decode())


def test_a_preview_shows_the_object_and_writes_nothing(administrator, shop):
    response = administrator.post(NEW, typed(action="preview"))
    text = text_of(response)
    assert "This will be created" in text
    assert "+ targetPort: 8080" in text
    assert not Service.objects.filter(namespace="shop").exists()
    assert administrator.post(NEW, sent_back(response)).status_code == 302


def test_rows_are_added_and_removed_and_all_else_stays(administrator, shop):
    response = administrator.post(NEW, typed(action="add:ports", ports__0__name="http", external_ips="192.0.2.9"))
    back = sent_back(response)
    assert back["ports-1-port"] == ""
    assert back["ports-0-name"] == "http"
    assert back["external_ips"] == "192.0.2.9"
    assert re.search(r'id="f-ports-1-name"[^>]* data-focus', response.content.decode())
    back = sent_back(administrator.post(NEW, {**back, "ports-1-port": "81", "action": "add:ports"}))
    back = sent_back(administrator.post(NEW, {**back, "action": "remove:ports:0"}))
    assert (back["ports-0-port"], back["ports-1-port"]) == ("81", "")
    assert "ports-2-port" not in back
    for action in ("remove:ports:99", "remove:nothing:0", "add:nothing", "remove:ports:²", "", "nonsense"):
        assert administrator.post(NEW, {**back, "action": action}).status_code == 200


def test_fields_of_another_type_are_kept_while_the_type_is_tried(administrator, shop):
    data = typed(type="NodePort", ports__0__node="30080", external_policy="Local", affinity_timeout="7")
    for type_name in ("ExternalName", "ClusterIP", "LoadBalancer", "NodePort"):
        data = sent_back(administrator.post(NEW, {**data, "type": type_name, "action": "show"}))
    assert (data["ports-0-node"], data["external_policy"], data["affinity_timeout"]) == ("30080", "Local", "7")
    assert data["allocate_node_ports"] == "on"


def test_only_those_who_may_write_get_the_form(page, shop):
    assert page.get(NEW).status_code == 403
    response = page.post(NEW, typed())
    assert response.status_code == 403
    assert "ana may not create Services in namespace shop" in text_of(response)
    assert not Service.objects.filter(namespace="shop").exists()


# Changing


def test_an_untouched_form_changes_nothing(administrator, db):
    sample.add_service("shop", "web", type="NodePort", sessionAffinity="ClientIP")
    before = stored()
    assert administrator.post(EDIT, sent_back(administrator.get(EDIT))).status_code == 302
    assert stored() == before


def test_a_change_is_previewed_as_a_difference_then_written(administrator, db):
    sample.add_service("shop", "web")
    response = administrator.post(EDIT, sent_back(administrator.get(EDIT), ports__0__target="9090", action="preview"))
    text = text_of(response)
    assert "This will change" in text
    assert "- targetPort: 8080" in text
    assert "+ targetPort: 9090" in text
    assert stored()["spec"]["ports"][0]["targetPort"] == 8080
    assert administrator.post(EDIT, sent_back(response)).status_code == 302
    assert stored()["spec"]["ports"][0]["targetPort"] == 9090
    assert Change.objects.filter(name="web", kind="services").order_by("-revision").first().user == "root"


def test_a_change_of_type_gives_up_what_the_new_type_lacks(administrator, db):
    sample.add_service("shop", "web", type="NodePort", externalTrafficPolicy="Local")
    assert administrator.post(EDIT, sent_back(administrator.get(EDIT), type="ClusterIP")).status_code == 302
    spec = stored()["spec"]
    assert "nodePort" not in spec["ports"][0]
    assert "externalTrafficPolicy" not in spec
    changes = {"type": "ExternalName", "external_name": "a.example.org"}
    assert administrator.post(EDIT, sent_back(administrator.get(EDIT), **changes)).status_code == 302
    assert "clusterIP" not in stored()["spec"]
    back = sent_back(administrator.get(EDIT), type="ClusterIP", ip_mode="auto")
    assert administrator.post(EDIT, back).status_code == 302
    assert stored()["spec"]["clusterIP"].startswith("10.96.")
    assert "externalName" not in stored()["spec"]


def test_a_second_family_is_taken_and_given_up_by_form(administrator, db, settings):
    settings.TIMONEL_SERVICE_CIDRS = (ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112"))
    sample.add_service("shop", "web")
    first = stored()["spec"]["clusterIPs"]
    assert (
        administrator.post(EDIT, sent_back(administrator.get(EDIT), family_policy="PreferDualStack")).status_code == 302
    )
    both = stored()["spec"]["clusterIPs"]
    assert both[:1] == first
    assert f"[{both[1]}]:80" in text_of(administrator.get("/ui/services/shop/web/"))
    assert shown_by(administrator, both[1]) == ["shop/web"]
    assert administrator.post(EDIT, sent_back(administrator.get(EDIT), family_policy="SingleStack")).status_code == 302
    assert stored()["spec"]["clusterIPs"] == first


def shown_by(client, text: str) -> list[str]:
    body = client.get("/ui/services/", {"q": text}).content.decode()
    return re.findall(r'<a class="fw-bold" href="/ui/services/([^"]+)/"', body)


def test_what_the_form_does_not_know_stays(administrator, db):
    sample.add_service("shop", "web", annotations={"example.org/long": "line\nline"})

    def hold(document):
        document["metadata"]["finalizers"] = ["example.org/hold"]
        document["spec"]["trafficDistribution"] = "PreferSameZone"
        return document

    store.update(kinds.SERVICE, "shop", "web", hold, actor=sample.ACTOR)
    response = administrator.get(EDIT)
    assert "Longer ones are kept as they are: example.org/long" in text_of(response)
    assert administrator.post(EDIT, sent_back(response, ports__0__port="81")).status_code == 302
    document = stored()
    assert document["spec"]["ports"][0]["port"] == 81
    assert document["metadata"]["annotations"] == {"example.org/long": "line\nline"}
    assert document["metadata"]["finalizers"] == ["example.org/hold"]
    assert document["spec"]["trafficDistribution"] == "PreferSameZone"


def test_a_new_status_is_no_change_to_the_form(administrator, db):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT), ports__0__target="9090")
    version = stored()["metadata"]["resourceVersion"]
    sample.catch_up()
    assert stored()["metadata"]["resourceVersion"] != version
    assert administrator.post(EDIT, back).status_code == 302
    assert stored()["spec"]["ports"][0]["targetPort"] == 9090


def test_two_people_at_once_see_both_changes_and_the_second_goes_on(administrator, db):
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT), ports__0__target="9090", affinity="ClientIP")
    sample.change_service("shop", "web", selector={"app": "other"})
    response = administrator.post(EDIT, back)
    text = text_of(response)
    assert "Somebody else changed this Service meanwhile" in text
    assert "tester, " in text
    for line in ("- app: web", "+ app: other", "- targetPort: 8080", "+ targetPort: 9090"):
        assert line in text
    assert stored()["spec"]["ports"][0]["targetPort"] == 8080, "nothing is written yet"
    back = sent_back(response)
    assert back["selector-0-value"] == "other"
    assert administrator.post(EDIT, back).status_code == 302
    spec = stored()["spec"]
    assert spec["selector"] == {"app": "other"}
    assert spec["ports"][0]["targetPort"] == 9090
    assert spec["sessionAffinity"] == "ClientIP"


def test_the_same_field_changed_by_two_is_named(administrator, db):
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT), selector__0__value="mine")
    sample.change_service("shop", "web", selector={"app": "theirs"})
    response = administrator.post(EDIT, back)
    assert "You both changed: selector. Yours is kept there." in text_of(response)
    assert sent_back(response)["selector-0-value"] == "mine"


def test_a_service_deleted_meanwhile_keeps_what_was_typed(administrator, db):
    sample.add_service("shop", "web")
    back = sent_back(administrator.get(EDIT), ports__0__target="9090")
    sample.delete_service("shop", "web")
    response = administrator.post(EDIT, back)
    assert "was deleted meanwhile" in text_of(response)
    assert sent_back(response)["ports-0-target"] == "9090"


@pytest.mark.parametrize("page_path", [EDIT, "/ui/services/shop/web/yaml/"])
def test_an_open_form_is_told_of_a_change_and_only_of_one(administrator, db, page_path):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")
    path = re.search(r'id="changed" hx-get="([^"]+)"', administrator.get(page_path).content.decode())[1]
    headers = {"HX-Request": "true", "HX-Target": "changed"}
    sample.catch_up()
    quiet = administrator.get(path, headers=headers).content.decode()
    assert quiet.startswith('<div id="changed"')
    assert quiet.count("<div") == 1
    sample.change_service("shop", "web", selector={"app": "other"})
    assert "tester changed this Service" in text_of(administrator.get(path, headers=headers))
    sample.delete_service("shop", "web")
    assert "This Service was deleted meanwhile" in text_of(administrator.get(path, headers=headers))


@pytest.mark.parametrize("base", ["", "[]", "{", '{"metadata":{}}', '{"metadata":{"name":"x"},"spec":{}}'])
def test_a_form_without_its_beginning_starts_again(administrator, db, base):
    sample.add_service("shop", "web")
    response = administrator.post(EDIT, {**sent_back(administrator.get(EDIT)), "base": base})
    assert (response.status_code, response["Location"]) == (302, EDIT)


def test_a_service_too_large_for_a_form_is_shown_as_yaml(administrator, db):
    ports = [{"name": f"p{number}", "port": 1000 + number} for number in range(61)]
    sample.add_service("shop", "web", ports=ports)
    response = administrator.get(EDIT, follow=True)
    assert response.redirect_chain == [("/ui/services/shop/web/yaml/", 302)]
    assert "more rows than a form can hold" in text_of(response)


def test_hostile_text_is_only_text(administrator, shop):
    fields = {key: HOSTILE for key in typed() if key not in ("action",)}
    for action in ("preview", "show", "add:labels"):
        body = administrator.post(NEW, {**fields, "action": action}).content.decode()
        assert not {"img", "onerror"} & MarkupNames.in_page(body)
        assert "<script>alert" not in body
    for name in fields:
        assert administrator.post(NEW, {**typed(), name: "\x00"}).status_code in (200, 302)
