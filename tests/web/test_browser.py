"""The pages in a real browser, over a real server and database: what a person sees, and that it keeps itself true."""

import re

import pytest
from django.contrib.auth import get_user_model
from playwright.sync_api import expect

from services_app.models import NodeSync
from tests.web import sample
from tests.web.chromium import NARROW, WIDE, Visit, chromium
from tests.web.conftest import PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.slow]
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def visit(browser, server):
    """A person's tab, logged in, on the sample's shop; nothing may have gone wrong in it by the end."""
    get_user_model().objects.create_superuser("ana", password=PASSWORD)
    sample.build_shop()
    made = Visit(browser, server)
    made.log_in("ana", PASSWORD)
    yield made
    assert made.complaints == []
    made.context.close()


def test_a_person_logs_in_and_sees_services_and_nodes(visit):
    page = visit.page
    row = page.locator("#service-shop-storefront")
    expect(row).to_contain_text("NodePort")
    expect(row).to_contain_text("80/TCP")
    expect(row).to_contain_text("30080")
    expect(row).to_contain_text(re.compile(r"10\.96\.\d+\.\d+"))
    expect(row.locator("details")).to_contain_text("3 ready")
    row.locator("summary").click()
    expect(row.get_by_text("10.20.1.11:8080")).to_be_visible()
    expect(page.locator("#service-monitoring-metrics")).to_contain_text("behind by")
    expect(page.locator("#node-porto-2")).to_contain_text("ConnectionRefused")
    expect(page.locator("#node-porto-2 time")).to_have_text("14 min ago")


def test_the_page_follows_what_happens_without_being_loaded_again(visit):
    page = visit.page
    page.evaluate("window.loadedOnce = true")
    details = page.locator("#service-shop-storefront details")
    details.locator("summary").click()

    sample.add_service("shop", "vouchers")
    expect(page.locator("#service-shop-vouchers")).to_contain_text("no pod matches")
    expect(page.locator("#service-shop-vouchers")).to_contain_text("behind by")
    sample.add_pod("shop", "vouchers-1", app="vouchers", ip="10.20.1.99", node="lyon-1")
    expect(page.locator("#service-shop-vouchers")).to_contain_text("1 ready")
    sample.catch_up()
    expect(page.locator("#service-shop-vouchers .liveness")).to_contain_text("lyon-3 Live")

    NodeSync.objects.filter(node="lyon-1").update(state="Unreachable", reason="Timeout", message="no answer in 5 s")
    expect(page.locator("#node-lyon-1")).to_contain_text("no answer in 5 s")
    expect(page.locator("#service-shop-cart .liveness")).to_contain_text("lyon-1 Unreachable")

    sample.delete_service("shop", "vouchers")
    expect(page.locator("#service-shop-vouchers")).to_have_count(0)
    expect(details).to_have_attribute("open", "")
    assert page.evaluate("window.loadedOnce")


def test_the_page_of_a_service_follows_too_and_says_when_it_is_gone(visit):
    page = visit.page
    page.get_by_role("link", name="orders").click()
    expect(page.get_by_role("heading", name="orders")).to_be_visible()
    page.locator("[data-connection='live']").wait_for()
    page.evaluate("window.loadedOnce = true")
    expect(page.locator("#service")).to_contain_text("2 of 3 ready")
    sample.set_pod("shop", "orders-2", ip="10.20.2.12", ready=True)
    expect(page.locator("#service")).to_contain_text("3 of 3 ready")
    sample.delete_service("shop", "orders")
    expect(page.locator("#service")).to_contain_text("This Service was deleted")
    assert page.evaluate("window.loadedOnce")


def test_a_filter_narrows_the_list_while_typing_and_stays_when_things_change(visit):
    page = visit.page
    page.get_by_label("Name or cluster IP").fill("ca")
    expect(page.locator("#services tbody tr")).to_have_count(2)
    expect(page).to_have_url(re.compile(r"q=ca"))
    sample.add_service("shop", "cards")
    expect(page.locator("#services tbody tr")).to_have_count(3)
    page.get_by_label("Namespace").select_option("data")
    expect(page.locator("#services tbody tr")).to_have_count(1)
    page.go_back()
    expect(page.locator("#services tbody tr")).to_have_count(3)
    expect(page.get_by_label("Name or cluster IP")).to_have_value("ca")


def test_a_session_that_ends_leads_to_the_login(visit):
    from django.contrib.sessions.models import Session

    Session.objects.all().delete()
    sample.add_service("shop", "vouchers")
    visit.page.get_by_role("button", name="Log in").wait_for()
    assert "next=" in visit.page.url


def test_the_theme_is_kept(visit):
    page = visit.page
    page.get_by_role("button", name="Theme: automatic").click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser, server, size, theme, request, pytestconfig):
    get_user_model().objects.create_superuser("ana", password=PASSWORD)
    sample.build_shop()
    visit = Visit(browser, server, size=size, theme=theme)
    visit.go("/ui/")
    seen = {"login": visit.overflow_px()}
    visit.log_in("ana", PASSWORD)
    paths = {"overview": "/ui/", "service": "/ui/services/shop/orders/", "none": "/ui/?q=nothing-like-it"}
    for name, path in paths.items():
        visit.open(path)
        seen[name] = visit.overflow_px()
    assert visit.complaints == []
    visit.go("/nowhere")
    seen["404"] = visit.overflow_px()
    visit.context.close()
    assert set(seen.values()) == {0}, seen
