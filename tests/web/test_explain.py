"""The page that says where a connection goes."""

import pytest
from django.utils.html import escape

from services_app import store
from services_app.models import Grant
from services_app.spec import kinds
from tests.store.conftest import fresh_snapshots
from tests.web import sample
from tests.web.test_pages import text_of

__all__ = ["fresh_snapshots"]
CONFIGURATION = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: userspace\n"
PATH = "/ui/services/shop/storefront/explain/"


@pytest.fixture
def shop(db, fresh_snapshots):
    sample.build_shop()


def asked(page, path: str = PATH, **query: str) -> str:
    return text_of(page.get(path, {key.removesuffix("_"): value for key, value in query.items()}))


def test_nodes_that_do_the_same_are_told_together(page, shop):
    body = asked(page)
    assert "delivered to one of 3 lyon-1, lyon-2, lyon-3, porto-1, porto-2" in body
    for number in (1, 2, 3):
        assert f"10.20.{number}.11:8080 the client 1 of 3" in body
    assert "(shop/storefront)" in body


def test_a_client_elsewhere_is_asked_about(page, shop):
    sample.change_service("shop", "storefront", externalTrafficPolicy="Local")
    body = asked(page, to="node 30080 tcp", from_="203.0.113.9")
    for node, number in (("lyon-1", 1), ("lyon-2", 2), ("porto-1", 3)):
        assert f"delivered {node}" in body
        assert f"10.20.{number}.11:8080 the client 1 of 1" in body
    assert "dropped lyon-3, porto-2" in body
    assert "for 203.0.113.9 to 192.0.2.11 tcp 30080" in body


def test_weights_are_told_as_shares(page, shop):
    def change(pod):
        pod["metadata"]["annotations"]["timonel.io/weight"] = "50"
        return pod

    store.update(kinds.POD, "shop", "storefront-1", change, actor=sample.ACTOR)
    body = asked(page)
    assert "10.20.1.11:8080 the client 20 %" in body
    assert "10.20.2.11:8080 the client 40 %" in body


def test_proxies_hide_the_client(page, shop):
    config = {"metadata": {"name": "kube-proxy"}, "data": {"config.conf": CONFIGURATION}}
    sample.add_namespace("kube-system")
    store.create(kinds.CONFIG_MAP, config, namespace="kube-system", actor=sample.ACTOR)
    assert "10.20.1.11:8080 the node 1 of 3" in asked(page)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"from": "10.0.0"}, "'10.0.0' is not an IP address"),
        ({"from": "::1"}, "::1 is of another address family than 10.96."),
        ({"from": "<b>"}, "'<b>' is not an IP address"),
    ],
)
def test_what_no_client_has_is_told_beside_the_field(page, shop, query, words):
    response = page.get(PATH, query)
    assert response.status_code == 200
    assert escape(words) in response.content.decode()
    assert "delivered" not in text_of(response)


def test_a_way_that_there_is_not_asks_for_the_first(page, shop):
    assert "delivered to one of 3" in asked(page, to="10.0.0.1 80 tcp; x")


@pytest.mark.parametrize("path", ["/ui/services/data/postgres/explain/", "/ui/services/shop/payments/explain/"])
def test_services_without_an_address_say_so(page, shop, path):
    assert "No node takes connections for this Service" in asked(page, path)


def test_without_nodes_it_says_how_to_get_one(page, db, fresh_snapshots):
    sample.add_service("shop", "storefront")
    assert "No node yet" in asked(page)


def test_the_number_of_queries_does_not_grow_with_nodes(page, shop, django_assert_max_num_queries):
    with django_assert_max_num_queries(20):
        page.get(PATH)
    for number in range(20):
        sample.add_node(f"more-{number}", f"192.0.2.{100 + number}")
    with django_assert_max_num_queries(20):
        assert "lyon-1, lyon-2, lyon-3, more-0, " in asked(page)
    assert "and 13 more" in asked(page)


def test_it_is_for_those_who_may_see_the_service(client, django_user_model, shop):
    assert client.get(PATH).status_code == 302
    user = django_user_model.objects.create_user("dev")
    client.force_login(user)
    assert client.get(PATH).status_code == 403
    Grant.objects.create(user=user, role="view", namespace="shop")
    assert client.get(PATH).status_code == 200
    assert client.get("/ui/services/shop/none/explain/").status_code == 404
