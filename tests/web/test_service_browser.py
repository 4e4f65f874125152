"""Creating, changing and deleting Services in a real browser: as a person does, with the keyboard too."""

import json
import re

import pytest
from django.contrib.auth import get_user_model
from playwright.sync_api import expect

from services_app.models import Service
from tests.web import sample
from tests.web.chromium import NARROW, WIDE, Visit, chromium
from tests.web.conftest import PASSWORD
from tests.web.test_manifests import NAMESPACE, SERVICE

pytestmark = [pytest.mark.browser, pytest.mark.slow]
expect.set_options(timeout=30_000)

EDIT = "/ui/services/shop/orders/edit/"


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
    # A request that a newer one replaced is no complaint, though htmx prints it.
    assert [text for text in made.complaints if not text.startswith(("htmx:afterRequest", "htmx:sendAbort"))] == []
    made.context.close()


def spec_of(name: str) -> dict:
    return json.loads(Service.objects.get(namespace="shop", name=name).document)["spec"]


def test_a_service_is_created_by_form_after_two_errors_were_mended(visit):
    page = visit.page
    page.get_by_role("link", name="New Service").first.click()
    page.get_by_label("Name", exact=True).first.fill("Vouchers")
    page.get_by_label("Namespace").fill("shop")
    page.get_by_label("Type").select_option("NodePort")
    node_port = page.get_by_label("Node port")
    expect(node_port).to_be_visible()
    page.get_by_label("Port", exact=True).fill("80")
    node_port.fill("80")
    page.get_by_role("button", name="Add label").first.click()
    expect(page.get_by_label("Key").first).to_be_focused()
    page.keyboard.type("app")
    page.keyboard.press("Tab")
    page.keyboard.type("vouchers")
    page.get_by_role("button", name="Create", exact=True).click()

    summary = page.get_by_role("alert").filter(has_text="2 things are wrong")
    expect(summary).to_be_focused()
    expect(page.get_by_label("Name", exact=True).first).to_have_attribute("aria-invalid", "true")
    expect(node_port).to_have_attribute("aria-invalid", "true")
    expect(node_port).to_have_value("80")
    assert not Service.objects.filter(name__iexact="vouchers").exists()

    summary.get_by_role("link", name="metadata.name").click()
    expect(page.get_by_label("Name", exact=True).first).to_be_focused()
    page.get_by_label("Name", exact=True).first.fill("vouchers")
    node_port.fill("30099")
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_text("Service shop/vouchers was created.")).to_be_visible()
    expect(page.get_by_role("heading", name="vouchers")).to_be_visible()
    assert spec_of("vouchers")["selector"] == {"app": "vouchers"}
    assert spec_of("vouchers")["ports"][0]["nodePort"] == 30099


def test_enter_in_a_field_previews_and_never_removes_a_row(visit):
    page = visit.page
    visit.open(EDIT)
    page.get_by_label("Target port").fill("9090")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="This will change")).to_be_focused()
    expect(page.locator(".diff-added")).to_contain_text("targetPort: 9090")
    page.get_by_role("button", name="Back to the form").click()
    expect(page.get_by_label("Target port")).to_have_value("9090")
    page.get_by_role("button", name="Preview", exact=True).last.click()
    expect(page.get_by_role("heading", name="This will change")).to_be_focused()
    page.get_by_role("button", name="Apply", exact=True).first.click()
    expect(page.get_by_text("Service shop/orders was changed.")).to_be_visible()
    assert spec_of("orders")["ports"][0]["targetPort"] == 9090


def test_rows_come_and_go_and_what_is_typed_stays(visit):
    page = visit.page
    visit.open(EDIT)
    page.evaluate("window.loadedOnce = true")
    page.get_by_label("Name", exact=True).first.fill("http")
    page.get_by_label("External IPs").fill("203.0.113.7")
    page.get_by_role("button", name="Add port").click()
    second = page.get_by_role("group", name="Port 2")
    expect(second.get_by_label("Name")).to_be_focused()
    second.get_by_label("Port", exact=True).fill("443")
    second.get_by_label("Name").fill("https")
    page.get_by_role("button", name="Remove port 80").click()
    expect(second).to_have_count(0)
    expect(page.get_by_label("Port", exact=True)).to_have_value("443")
    expect(page.get_by_label("External IPs")).to_have_value("203.0.113.7")
    page.get_by_role("button", name="Apply", exact=True).last.click()
    expect(page.get_by_text("Service shop/orders was changed.")).to_be_visible()
    assert [port["port"] for port in spec_of("orders")["ports"]] == [443]


def test_what_is_typed_survives_a_change_by_somebody_else_and_both_are_kept(visit):
    page = visit.page
    visit.open(EDIT)
    page.evaluate("window.loadedOnce = true")
    page.get_by_label("Target port").fill("9090")
    sample.catch_up()  # a new status alone is no matter for the form
    sample.change_service("shop", "orders", selector={"app": "theirs"})
    notice = page.locator("#changed")
    expect(notice).to_contain_text("tester changed this Service")
    expect(page.get_by_label("Target port")).to_have_value("9090")
    page.get_by_role("button", name="Apply", exact=True).last.click()
    expect(page.get_by_role("heading", name="Somebody else changed this Service meanwhile")).to_be_visible()
    expect(page.locator(".diff-added").filter(has_text="app: theirs")).to_be_visible()
    expect(page.locator(".diff-added").filter(has_text="targetPort: 9090")).to_be_visible()
    expect(page.get_by_label("Value").first).to_have_value("theirs")
    assert page.evaluate("window.loadedOnce")
    page.get_by_role("button", name="Apply", exact=True).last.click()
    expect(page.get_by_text("Service shop/orders was changed.")).to_be_visible()
    assert spec_of("orders")["selector"] == {"app": "theirs"}
    assert spec_of("orders")["ports"][0]["targetPort"] == 9090


def test_a_form_that_cannot_be_sent_says_so_and_keeps_what_was_typed(visit):
    page = visit.page
    visit.open(EDIT)
    page.get_by_label("Target port").fill("9090")
    visit.context.clear_cookies(name="csrftoken")
    page.get_by_role("button", name="Apply", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text="This could not be sent (status 403)")
    expect(alert).to_be_visible()
    expect(page.get_by_label("Target port")).to_have_value("9090")
    page.route("**/edit/", lambda route: route.abort())
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="This could not be sent. What")).to_be_visible()
    assert spec_of("orders")["ports"][0]["targetPort"] == 8080
    visit.complaints.clear()


def test_yaml_is_mended_previewed_and_applied(visit):
    page = visit.page
    visit.open("/ui/services/")
    page.get_by_role("link", name="Apply YAML").click()
    text = page.get_by_label("One or more documents")
    manifest = (NAMESPACE + "---\n" + SERVICE).replace("shop", "lab")
    text.fill(manifest.replace("selector:", "selectr:"))
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.get_by_text('unknown field "spec.selectr"')).to_be_visible()
    text.fill(manifest)
    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.get_by_role("heading", name="This will happen")).to_be_visible()
    expect(text).to_be_hidden()
    page.get_by_role("button", name="Apply", exact=True).first.click()
    expect(page.get_by_role("heading", name="Done")).to_be_visible()
    page.get_by_role("link", name="Service lab/web").click()
    expect(page.get_by_role("heading", name="web")).to_be_visible()


def test_the_text_of_a_service_is_changed_while_it_lives(visit):
    page = visit.page
    visit.open("/ui/services/shop/orders/")
    page.get_by_role("link", name="Edit as YAML").click()
    text = page.get_by_label("Service", exact=True)
    written = text.input_value()
    text.fill(written.replace("targetPort: 8080", "targetPort: 7070"))
    sample.add_pod("shop", "orders-9", app="orders", ip="10.20.1.99", node="lyon-1")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.get_by_text("Service shop/orders was changed.")).to_be_visible()
    expect(page.locator("#service")).to_contain_text("10.20.1.99:7070")


def test_deleting_asks_first_and_says_what_goes(visit):
    page = visit.page
    visit.open("/ui/services/shop/orders/")
    page.get_by_role("link", name="Delete").click()
    expect(page.get_by_role("listitem").filter(has_text="the cluster IP 10.96.")).to_be_visible()
    page.get_by_role("link", name="Keep it").click()
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete orders").click()
    expect(page.get_by_text("Service shop/orders was deleted.")).to_be_visible()
    expect(page.locator("#service-shop-orders")).to_have_count(0)


def test_order_filter_and_page_stay_when_things_change(visit):
    page = visit.page
    visit.open("/ui/services/")
    page.get_by_role("link", name="Name", exact=True).click()
    expect(page).to_have_url(re.compile(r"sort=name"))
    page.get_by_label("Name, cluster IP or node port").fill("o")
    names = page.locator("#services tbody a")
    expect(names).to_have_text(["cart", "metrics", "orders", "payments", "postgres", "storefront"], use_inner_text=True)
    expect(page).to_have_url(re.compile(r"q=o"))
    expect(page.get_by_role("columnheader", name="Name", exact=True)).to_have_attribute("aria-sort", "ascending")
    sample.add_service("shop", "north")
    expect(names).to_have_text(
        ["cart", "metrics", "north", "orders", "payments", "postgres", "storefront"], use_inner_text=True
    )


def test_a_text_is_copied(visit):
    page = visit.page
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=visit.url)
    visit.open("/ui/services/shop/storefront/")
    copy = page.get_by_role("button", name="Copy 192.0.2.11:30080")
    copy.evaluate("""button => {
        const original = button.outerHTML;
        window.shown = new Promise(resolve => new MutationObserver(() => {
            Idiomorph.morph(button, original); // as when the fragment is renewed in this very moment
            resolve([button.getAttribute("aria-label"), button.className]);
        }).observe(button, {attributeFilter: ["aria-label"]}));
    }""")
    copy.click()
    label, classes = page.evaluate("window.shown")
    assert (label, "is-copied" in classes) == ("Copied", True)
    assert page.evaluate("navigator.clipboard.readText()") == "192.0.2.11:30080"
    expect(copy).to_be_visible()


def test_where_a_connection_goes_is_asked_from_the_page_of_a_service(visit):
    page = visit.page
    visit.open("/ui/services/shop/storefront/")
    page.get_by_role("link", name="Where a connection goes").click()
    expect(page.get_by_text("delivered to one of 3")).to_be_visible()
    page.get_by_label("To", exact=True).select_option("node 30080 tcp")
    page.get_by_label("From", exact=True).fill("203.0.113")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_text("'203.0.113' is not an IP address")).to_be_visible()
    page.get_by_label("From", exact=True).fill("203.0.113.9")
    page.get_by_role("button", name="Explain").click()
    group = page.get_by_role("region", name="lyon-1")
    expect(group.get_by_role("row", name="10.20.1.11:8080 the client 1 of 3")).to_be_visible()
    group.get_by_text("How lyon-1 decides").click()
    expect(group.get_by_text("nodeports tcp . 30080")).to_be_visible()
    sample.set_pod("shop", "storefront-2", ip="10.20.2.11", ready=False)
    expect(group.get_by_role("row", name="10.20.1.11:8080 the client 1 of 2")).to_be_visible()
    expect(group.get_by_text("nodeports tcp . 30080")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert visit.overflow_px() <= 0


def test_a_text_that_may_not_be_copied_is_shown(visit):
    page = visit.page
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.add_init_script(
        "navigator.clipboard.writeText = () => Promise.reject(new DOMException('', 'NotAllowedError'))"
    )
    visit.open("/ui/services/shop/storefront/")
    with page.expect_event("dialog") as dialog:
        page.get_by_role("button", name="Copy 192.0.2.11:30080").click()
    assert dialog.value.default_value == "192.0.2.11:30080"


def test_the_page_of_a_service_stays_open_where_it_was_opened(visit):
    page = visit.page
    visit.open("/ui/services/shop/orders/")
    page.locator("#document summary").click()
    expect(page.locator("#document pre")).to_contain_text("app: orders")
    sample.change_service("shop", "orders", selector={"app": "new"})
    expect(page.locator("#document pre")).to_contain_text("app: new")
    expect(page.locator("#document")).to_have_attribute("open", "")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_wider_than_the_window(browser, server, size):
    get_user_model().objects.create_superuser("ana", password=PASSWORD)
    sample.build_shop()
    visit = Visit(browser, server, size=size)
    visit.log_in("ana", PASSWORD)
    seen = {}
    for path in (
        "/ui/services/", "/ui/services/new/", "/ui/apply/", "/ui/services/shop/storefront/",
        "/ui/services/shop/storefront/edit/", "/ui/services/shop/storefront/yaml/",
        "/ui/services/shop/storefront/delete/",
    ):  # fmt: skip
        visit.open(path)
        seen[path] = visit.overflow_px()
    visit.open("/ui/services/new/")
    visit.page.get_by_label("Name", exact=True).first.fill("Not a name " + "x" * 80)
    visit.page.get_by_role("button", name="Create", exact=True).click()
    visit.page.get_by_role("alert").first.wait_for()
    seen["errors"] = visit.overflow_px()
    assert visit.complaints == []
    visit.context.close()
    assert set(seen.values()) == {0}, seen
