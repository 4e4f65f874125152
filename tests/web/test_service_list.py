"""The list of Services: what each filter finds, how it is sorted, who may create."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from services_app import store
from services_app.models import Service
from services_app.spec import kinds
from tests.web import sample
from tests.web.test_pages import fragment, text_of

LIST = "/ui/services/"


def shown(client, **query: str) -> list[str]:
    """The Services in the table, "namespace/name" in its order."""
    response = fragment(client, "services", LIST, **query)
    assert response.status_code == 200
    return re.findall(r'<a class="fw-bold" href="/ui/services/([^"]+)/"', response.content.decode())


def set_labels(namespace: str, name: str, **labels: str) -> None:
    def change(document):
        document["metadata"]["labels"] = labels
        return document

    store.update(kinds.SERVICE, namespace, name, change, actor=sample.ACTOR)


@pytest.fixture
def services(db):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("data", "cache", clusterIP="10.96.7.7")
    sample.add_pod("data", "cache-1", app="cache", ip="10.1.0.1")
    sample.add_service("data", "postgres", clusterIP="None")
    sample.add_pod("data", "postgres-1", app="postgres", ip="10.1.0.2", ready=False)
    sample.catch_up()
    sample.add_service("shop", "web", type="NodePort", ports=[{"port": 80, "nodePort": 30081}])
    sample.add_service("shop", "mail", type="ExternalName", externalName="mail.example.org")
    set_labels("data", "cache", app="cache", tier="1", **{"example.org/team": "blue"})
    set_labels("data", "postgres", app="postgres", tier="2")
    set_labels("shop", "web", app="web", tier="front")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({}, "data/cache data/postgres shop/mail shop/web", id="everything"),
        pytest.param({"namespace": "shop"}, "shop/mail shop/web", id="namespace"),
        pytest.param({"q": "a"}, "data/cache data/postgres shop/mail", id="part of name or namespace"),
        pytest.param({"q": "10.96.7"}, "data/cache", id="beginning of a cluster IP"),
        pytest.param({"q": "30081"}, "shop/web", id="node port"),
        pytest.param({"q": "99999999999999999999"}, "", id="a number that is no port"),
        pytest.param({"q": "²"}, "", id="a digit that is no number"),
        pytest.param({"type": "NodePort"}, "shop/web", id="type"),
        pytest.param({"type": "Headless"}, "data/postgres", id="headless"),
        pytest.param({"type": "ExternalName"}, "shop/mail", id="external name"),
        pytest.param({"type": "Nothing"}, "", id="unknown type"),
        pytest.param({"state": "programmed"}, "data/cache data/postgres", id="programmed"),
        pytest.param({"state": "not-programmed"}, "shop/mail shop/web", id="not programmed"),
        pytest.param({"state": "no-endpoints"}, "data/postgres shop/web", id="without ready endpoint"),
        pytest.param({"state": "rejected"}, "", id="rejected"),
        pytest.param({"labels": "app=web"}, "shop/web", id="label"),
        pytest.param({"labels": "app!=web"}, "data/cache data/postgres shop/mail", id="other than a label"),
        pytest.param({"labels": "app in (web, cache)"}, "data/cache shop/web", id="one of several"),
        pytest.param({"labels": "app notin (web, cache)"}, "data/postgres shop/mail", id="none of several"),
        pytest.param({"labels": "example.org/team"}, "data/cache", id="label exists"),
        pytest.param({"labels": "!app"}, "shop/mail", id="label does not exist"),
        pytest.param({"labels": "tier>1"}, "data/postgres", id="greater, and not a number"),
        pytest.param({"labels": "tier<2,app"}, "data/cache", id="several terms"),
        pytest.param({"labels": "app in ("}, "", id="no selector"),
        pytest.param({"labels": "a=\x00"}, "", id="a byte no label has"),
        pytest.param({"sort": "name"}, "data/cache shop/mail data/postgres shop/web", id="by name"),
        pytest.param({"sort": "-name"}, "shop/web data/postgres shop/mail data/cache", id="by name, turned"),
        pytest.param({"sort": "-namespace"}, "shop/web shop/mail data/postgres data/cache", id="namespace, turned"),
        pytest.param({"sort": "type"}, "data/cache data/postgres shop/mail shop/web", id="by type"),
        pytest.param({"sort": "age"}, "data/cache data/postgres shop/web shop/mail", id="by age"),
        pytest.param({"sort": "-cluster-ip", "namespace": "data"}, "data/cache data/postgres", id="nothing comes last"),
        pytest.param({"sort": "none'; --"}, "data/cache data/postgres shop/mail shop/web", id="unknown order"),
        pytest.param({"q": "web", "namespace": "shop", "labels": "app=web", "sort": "-age"}, "shop/web", id="all"),
    ],
)
def test_what_is_asked_for_is_shown_in_order(page, services, query, expected):
    assert shown(page, **query) == expected.split()


def test_services_that_a_node_refused_are_found(page, services):
    sample.add_node("node-2", "192.0.2.2", rejected={"shop/web": {"reason": "BadPort"}, "shop/gone": {}})
    assert shown(page, state="rejected") == ["shop/web"]


def test_an_endpoint_written_by_hand_without_a_word_about_readiness_counts_as_ready(page, services):
    document = {
        "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.77"], "conditions": {}}],
        "ports": [{"port": 80}],
    }
    store.create(kinds.ENDPOINT_SLICE, document, namespace="shop", actor=sample.ACTOR)
    assert shown(page, state="no-endpoints") == ["data/postgres"]


def test_a_label_selector_that_cannot_be_read_is_explained(page, services):
    text = text_of(page.get(LIST, {"labels": "app in ("}))
    assert "The label selector cannot be read: " in text


def test_headings_say_how_the_table_is_sorted_and_turn_it_round(page, services):
    body = fragment(page, "services", LIST, sort="name", q="a").content.decode()
    assert body.count('aria-sort="ascending"') == 1
    assert "sort=-name" in body
    assert "q=a" in re.findall(r'href="(/ui/services/\?[^"]+)"', body)[0]


def test_order_and_filter_survive_paging_and_live_updates(page, db):
    for number in range(53):
        sample.add_service("shop", f"web-{number:02}", clusterIP="None")
    body = fragment(page, "services", LIST, sort="-name", q="web").content.decode()
    assert 'hx-get="/ui/services/?sort=-name&amp;q=web"' in body
    assert "sort=-name&amp;q=web&amp;page=2" in body
    assert shown(page, sort="-name", q="web", page="2") == ["shop/web-02", "shop/web-01", "shop/web-00"]


def test_only_those_who_may_write_see_the_way_to_it(page, administrator, services):
    for path in (LIST, "/ui/"):
        assert "/ui/services/new/" not in page.get(path).content.decode()
        assert "/ui/services/new/" in administrator.get(path).content.decode()


@pytest.mark.parametrize("query", [{}, {"state": "no-endpoints", "labels": "app", "q": "10.96"}])
def test_queries_do_not_grow_with_the_services(page, services, query):
    def queries() -> int:
        with CaptureQueriesContext(connection) as seen:
            shown(page, **query)
        return len(seen)

    few = queries()
    for number in range(8):
        sample.add_service("shop", f"more-{number}")
    assert Service.objects.count() == 12
    assert queries() == few <= 12
