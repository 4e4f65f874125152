"""What the pages say, to whom, and at what cost."""

import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from services_app.models import NodeSync
from services_app.web.overview import NODES_PER_PAGE
from services_app.web.service_list import SERVICES_PER_PAGE
from tests.web import sample

OVERVIEW = "/ui/"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def text_of(response) -> str:
    """The words of a page, without markup and with single spaces."""
    body = re.sub(r"<(script|style).*?</\1>", " ", response.content.decode(), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


class MarkupNames(HTMLParser):
    """The names of all elements and attributes, as a browser understands the page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.names |= {tag, *(name for name, _ in attributes)}

    @classmethod
    def in_page(cls, body: str) -> set[str]:
        parser = cls()
        parser.feed(body)
        return parser.names


def fragment(client: Client, target: str, path: str = OVERVIEW, **query: str):
    return client.get(path, query, headers={"HX-Request": "true", "HX-Target": target})


# Who may look


@pytest.mark.parametrize("path", ["/ui/", "/ui/?page=2", "/ui/services/shop/web/"])
def test_a_stranger_is_sent_to_the_login_and_back(db, path):
    response = Client().get(path)
    assert (response.status_code, response["Location"]) == (302, f"/ui/login/?next={quote(path)}")


def test_a_fragment_for_a_stranger_sends_the_whole_page_to_the_login(db):
    headers = {"HX-Request": "true", "HX-Target": "services", "HX-Current-URL": "http://testserver/ui/?q=web"}
    response = Client().get(OVERVIEW, headers=headers)
    assert response.status_code == 200
    assert response["HX-Redirect"] == "/ui/login/?next=%2Fui%2F%3Fq%3Dweb"


def test_the_root_leads_to_the_overview(db):
    assert Client().get("/")["Location"] == "/ui/"


def test_the_login_leads_back_and_never_to_another_site(person):
    for wanted, expected in [("/ui/services/a/b/", "/ui/services/a/b/"), ("https://example.org/", "/ui/")]:
        login = {"username": "ana", "password": "long enough for a test", "next": wanted}
        assert Client().post("/ui/login/", login)["Location"] == expected


def test_a_wrong_password_is_told(person):
    response = Client().post("/ui/login/", {"username": "ana", "password": "wrong"})
    assert "Please enter a correct username and password" in text_of(response)


def test_logging_out_needs_a_post(page):
    assert page.get("/ui/logout/").status_code == 405
    assert page.post("/ui/logout/")["Location"] == "/ui/login/"
    assert page.get(OVERVIEW).status_code == 302


def test_pages_only_read(page):
    assert page.post(OVERVIEW).status_code == 405


# What they say


def test_an_empty_cluster_says_what_to_do_first(page):
    text = text_of(page.get(OVERVIEW))
    assert "No node yet" in text
    assert "timonel node enroll NAME ADDRESS --user root" in text
    assert "No Service yet" in text


def test_a_service_shows_addresses_ports_and_endpoints(page):
    sample.add_node("node-1", "192.0.2.1")
    service = sample.add_service(
        "shop", "web", type="NodePort", externalIPs=["203.0.113.7"],
        ports=[{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}],
    )  # fmt: skip
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    sample.add_pod("shop", "web-2", app="web", ip="10.1.0.2", ready=False)
    sample.catch_up()
    text = text_of(page.get(OVERVIEW))
    for words in [
        f"shop web NodePort {service.cluster_ip} 203.0.113.7", "http 80/TCP", "8080", "node port 30080", "1 of 2 ready",
        "10.1.0.1:8080", "10.1.0.2:8080 Not ready",
    ]:  # fmt: skip
        assert words in text, words


def test_services_without_endpoints_say_why(page):
    sample.add_service("shop", "lonely")
    sample.add_service("shop", "manual", selector=None)
    sample.add_service("shop", "mail", type="ExternalName", externalName="mail.example.org")
    text = text_of(page.get(OVERVIEW))
    assert "no pod matches" in text
    assert "no selector" in text
    assert "mail.example.org" in text


NODE_STATES = [
    pytest.param("Live", {}, "Live", id="live"),
    pytest.param("Live", {"applied_revision": 0}, "Behind", id="behind"),
    pytest.param(
        "Live", {"rejected": {"shop/web": {"reason": "BadPort", "message": "cannot"}}}, "Rejected", id="rejected"
    ),
    pytest.param("Unreachable", {"reason": "Timeout", "message": "no answer in 5 s"}, "Unreachable", id="unreachable"),
    pytest.param(
        "Quarantined", {"reason": "HostKeyChanged", "message": "another key"}, "Quarantined", id="quarantined"
    ),
    pytest.param("Failed", {"reason": "NftMissing", "message": "install nftables"}, "Failed", id="failed"),
    pytest.param("Pending", {}, "Pending", id="pending"),
]


@pytest.mark.parametrize(("state", "report", "word"), NODE_STATES)
def test_a_node_is_shown_with_its_state_reason_and_remedy(page, state, report, word):
    sample.add_service("shop", "web")
    sample.add_node("node-1", "192.0.2.1", state=state, **report)
    for response in (fragment(page, "nodes"), page.get("/ui/services/shop/web/"), page.get(OVERVIEW)):
        text = text_of(response)
        assert "node-1" in text
        assert word in text
        for key in ("reason", "message"):
            assert report.get(key, "") in text
    if word == "Behind":
        assert "behind by 1" in text


def test_an_unreachable_node_says_when_it_was_heard_and_whether_it_still_holds_the_service(page):
    sample.add_service("shop", "web")
    sample.add_node("node-1", "192.0.2.1", state="Unreachable", reason="Timeout")
    text = text_of(page.get("/ui/services/shop/web/"))
    assert "Timeout, last report" in text
    assert "holds the last change" in text
    sample.change_service("shop", "web", ports=[{"port": 81}])
    assert "behind by 1" in text_of(page.get("/ui/services/shop/web/"))


def test_a_node_that_is_not_enrolled_says_how(page):
    sample.add_api_node("node-9", "192.0.2.9")
    assert "timonel node enroll node-9 192.0.2.9 --user root" in text_of(page.get(OVERVIEW))


def test_programmed_is_counted_over_all_services(page):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "a")
    sample.catch_up()
    sample.add_service("shop", "b")
    assert "1 of 2" in text_of(fragment(page, "nodes"))


def test_the_page_of_a_service_has_endpoints_nodes_conditions_and_the_object(page):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")
    sample.add_pod("shop", "web-1", app="web", ip="10.1.0.1")
    sample.catch_up()
    response = page.get("/ui/services/shop/web/")
    text = text_of(response)
    for words in ["10.1.0.1:8080", "Pod web-1", "1 of 1 ready", "Programmed True AllNodes", "clusterIP : 10.96."]:
        assert words in text, words


def test_a_service_that_is_not_there_is_a_404_with_a_way_back(page):
    response = page.get("/ui/services/shop/none/")
    assert response.status_code == 404
    assert "There is no Service none in namespace shop." in text_of(response)
    assert 'href="/ui/"' in response.content.decode()


@pytest.mark.parametrize("path", ["/ui/services/%00/x/", "/ui/services/shop/%00/", "/ui/services/%F0%9F%A6%80/x/"])
def test_a_name_that_cannot_be_is_a_404(page, path):
    assert page.get(path).status_code == 404


def test_an_unknown_path_is_a_404_in_the_same_dress(page):
    response = page.get("/nowhere")
    assert response.status_code == 404
    assert "There is no such page." in text_of(response)
    assert "Content-Security-Policy" in response


def test_an_open_page_says_that_its_service_was_deleted(page):
    sample.add_service("shop", "web")
    sample.delete_service("shop", "web")
    response = fragment(page, "service", "/ui/services/shop/web/")
    assert response.status_code == 200
    assert "This Service was deleted" in text_of(response)


# Fragments, filters, paging


def test_each_fragment_comes_alone(page):
    sample.add_service("shop", "web")
    sample.add_node("node-1", "192.0.2.1")
    for path, target in [(OVERVIEW, "services"), (OVERVIEW, "nodes"), ("/ui/services/shop/web/", "service")]:
        body = fragment(page, target, path).content.decode()
        assert body.lstrip().startswith(f'<section id="{target}"')
        assert body.count("<section") == 1


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        pytest.param({}, {"data/cache", "shop/cart", "shop/web"}, id="everything"),
        pytest.param({"namespace": "shop"}, {"shop/cart", "shop/web"}, id="namespace"),
        pytest.param({"q": "ca"}, {"data/cache", "shop/cart"}, id="part of a name"),
        pytest.param({"q": "CA shop"}, {"shop/cart"}, id="two words"),
        pytest.param({"q": "10.96.7.7"}, {"shop/cart"}, id="cluster IP"),
        pytest.param({"q": "nodeport"}, {"shop/web"}, id="type"),
        pytest.param({"state": "not-programmed"}, {"shop/web"}, id="not programmed"),
        pytest.param({"namespace": "shop", "q": "cache"}, set(), id="none"),
        pytest.param({"namespace": "gone"}, set(), id="unknown namespace"),
        pytest.param({"q": "%_\\"}, set(), id="wildcards are plain text"),
        pytest.param({"q": "\x00"}, set(), id="a byte that no name has"),
    ],
)
def test_filters_narrow_the_list(page, query, shown):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("data", "cache")
    sample.add_service("shop", "cart", clusterIP="10.96.7.7")
    sample.catch_up()
    sample.add_service("shop", "web", type="NodePort")
    body = fragment(page, "services", **query).content.decode()
    assert set(re.findall(r'href="/ui/services/([^"]+)/"', body)) == shown
    assert ("No Service matches" in body) == (not shown)


def test_pages_of_services_keep_the_filter(page):
    for number in range(SERVICES_PER_PAGE + 3):
        sample.add_service("shop", f"web-{number:03}", clusterIP="None")
    first = fragment(page, "services", namespace="shop").content.decode()
    assert 'id="service-shop-web-000"' in first
    assert "namespace=shop&amp;page=2" in first
    second = fragment(page, "services", namespace="shop", page="2").content.decode()
    assert len(re.findall(r'<tr id="service-', second)) == 3
    for number in ("999", "0", "-1", "x"):
        assert fragment(page, "services", page=number).status_code == 200


def test_many_nodes_are_paged_and_counted(page):
    for number in range(NODES_PER_PAGE + 1):
        sample.add_node(f"node-{number:02}", f"192.0.2.{number + 1}")
    NodeSync.objects.filter(node="node-10").update(state="Unreachable", reason="Timeout")
    body = fragment(page, "nodes").content.decode()
    assert body.index("node-10") < body.index("node-00"), "the troubled come first"
    assert 'id="node-node-09"' not in body
    assert 'id="node-node-09"' in fragment(page, "nodes", nodes_page="2").content.decode()


@pytest.mark.parametrize(
    ("path", "target"), [(OVERVIEW, ""), (OVERVIEW, "services"), (OVERVIEW, "nodes"), ("/ui/services/shop/web-0/", "")]
)
def test_queries_do_not_grow_with_what_is_shown(page, path, target):
    def queries() -> int:
        with CaptureQueriesContext(connection) as seen:
            response = fragment(page, target, path) if target else page.get(path)
        assert response.status_code == 200
        return len(seen)

    def add(numbers: range) -> None:
        for number in numbers:
            sample.add_node(f"node-{number}", f"192.0.2.{number + 1}")
            sample.add_service("shop", f"web-{number}")
            sample.add_pod(
                "shop", f"web-{number}", app=f"web-{number}", ip=f"10.1.0.{number + 1}", node=f"node-{number}"
            )

    add(range(2))
    few = queries()
    add(range(2, 12))
    assert queries() == few <= 13


# What an attacker may try


def test_hostile_text_is_only_text(page):
    sample.add_service("shop", "web", annotations={"example.org/note": HOSTILE})
    sample.add_node("node-1", "192.0.2.1", state="Failed", reason=HOSTILE, message=HOSTILE, agent_version=HOSTILE)
    sample.add_node("node-2", "192.0.2.2", rejected={"shop/web": {"reason": HOSTILE, "message": HOSTILE}})
    sample.add_node("node-3", "192.0.2.3", problems=[{"reason": HOSTILE, "message": HOSTILE}])
    sample.add_node("node-4", "192.0.2.4", rejected={HOSTILE: {}})
    bodies = [
        page.get(OVERVIEW, {"q": HOSTILE, "namespace": HOSTILE, "state": HOSTILE, "page": HOSTILE}),
        page.get(OVERVIEW),
        page.get("/ui/services/shop/web/"),
        page.get(f"/ui/services/{quote(HOSTILE.replace('/', ''))}/x/"),
        page.get("/ui/services/shop/web/", {"next": HOSTILE}),
        Client().get("/ui/login/", {"next": HOSTILE}),
    ]
    for response in bodies:
        body = response.content.decode()
        assert "<script>alert" not in body
        assert "<img" not in body
        assert not {"img", "onerror"} & MarkupNames.in_page(body)


@pytest.mark.parametrize("path", ["/ui/", "/ui/login/", "/ui/services/shop/none/", "/nowhere"])
def test_every_page_forbids_foreign_and_inline_code(page, path):
    response = page.get(path, follow=True)
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response["Cache-Control"] == "no-store"
    body = response.content.decode()
    assert not re.search(r"<script(?![^>]*\ssrc=)", body)
    assert not re.search(r"\s(style|on[a-z]+)=\"", body)
    assert not re.search(r"(src|href)=\"(https?:)?//", body)


# Static files


def test_style_sheets_are_compressed_and_not_sent_twice(page):
    path = "/static/vendor/tabler-1.6.1/css/tabler.min.css"
    plain = page.get(path)
    packed = page.get(path, headers={"Accept-Encoding": "gzip"})
    assert plain["Content-Type"] == "text/css"
    assert packed["Content-Encoding"] == "gzip"
    assert len(packed.content) * 4 < len(plain.content)
    assert page.get(path, headers={"If-None-Match": plain["ETag"]}).status_code == 304
    assert page.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": packed["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    "path", ["/static/none.css", "/static/", "/static/web/", "/static/../manage.py", "/static/%2e%2e/manage.py"]
)
def test_only_static_files_are_served(page, path):
    assert page.get(path).status_code in (400, 404)


def test_every_file_a_page_names_is_there(page):
    sample.add_service("shop", "web")
    body = page.get(OVERVIEW).content.decode() + page.get("/ui/services/shop/web/").content.decode()
    paths = set(re.findall(r'(?:src|href)="(/static/[^"#]+)', body))
    assert len(paths) > 5
    for path in paths:
        assert page.get(path).status_code == 200, path
