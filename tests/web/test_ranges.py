"""The page of ranges: each with its state and use, and the addresses in use."""

from services_app import store
from services_app.models import Grant
from services_app.spec import kinds
from tests.web import sample
from tests.web.test_pages import fragment, text_of


def test_ranges_show_their_state_and_use_and_the_addresses_are_found(page, db):
    store.bootstrap()
    document = {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.203.0.0/24", "fd00:203::/112"]}}
    store.create(kinds.SERVICE_CIDR, document, namespace="", actor=sample.ACTOR)
    sample.add_service("shop", "web", clusterIP="10.203.0.9")
    store.delete(kinds.SERVICE_CIDR, "", "more", actor=sample.ACTOR)
    body = text_of(page.get("/ui/ranges/"))
    assert "10.96.0.0/16 kubernetes Ready 1 of 65,534" in body
    assert "10.203.0.0/24 more Terminating Addresses of its ranges are still in use" in body
    assert "1 of 254" in body
    assert "fd00:203::/112 more Terminating" in body
    assert "0 of 65,535" in body
    assert "30000-32767 node ports Ready 0 of 2,768" in body
    assert "10.203.0.9 services/shop/web" in body
    found = fragment(page, "ranges", "/ui/ranges/", q="10.96.").content.decode()
    assert "10.96.0.1" in found
    assert "10.203.0.9" not in found
    assert "No address in use begins with 192." in text_of(page.get("/ui/ranges/", {"q": "192."}))


def test_ranges_are_for_those_who_are_logged_in(client, db):
    assert client.get("/ui/ranges/").status_code == 302


def test_ranges_are_for_those_who_may_read_what_is_in_no_namespace(client, django_user_model, db):
    user = django_user_model.objects.create_user("dev")
    client.force_login(user)
    Grant.objects.create(user=user, role="admin", namespace="shop")
    assert client.get("/ui/ranges/").status_code == 403
    Grant.objects.create(user=user, role="view")
    assert client.get("/ui/ranges/").status_code == 200
