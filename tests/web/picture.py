"""Pictures of the sample's shop: `python -m pytest tests/web/picture.py` writes docs/images/services.png.

Not collected with the suite (its name says so): a picture is made when the pages change, and looked at. All pages, both
themes and both widths go to the directory that TIMONEL_PICTURES names.
"""

import os
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model

from tests.web import sample
from tests.web.chromium import NARROW, WIDE, Visit, chromium
from tests.web.conftest import PASSWORD

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PAGES = {
    "overview": "/ui/",
    "services": "/ui/services/",
    "service": "/ui/services/shop/orders/",
    "service-node-port": "/ui/services/shop/storefront/",
    "new": "/ui/services/new/",
    "edit": "/ui/services/shop/storefront/edit/",
    "edit-yaml": "/ui/services/shop/storefront/yaml/",
    "delete": "/ui/services/shop/storefront/delete/",
    "none": "/ui/?q=nothing",
    "missing": "/nowhere",
}
# What comes after a button: name -> path, what is typed, the button.
TEXT = """apiVersion: v1
kind: Namespace
metadata:
  name: lab
---
apiVersion: v1
kind: Service
metadata:
  name: storefront
  namespace: shop
spec:
  type: NodePort
  selector:
    app: storefront
  ports:
  - port: 8080
"""
STEPS = {
    "new-errors": ("/ui/services/new/", {"Name": "Web_1", "Port": "eighty"}, "Create"),
    "edit-preview": ("/ui/services/shop/storefront/edit/", {"Port": "8080", "Target port": "9090"}, "Preview"),
    "apply-preview": ("/ui/apply/", {"One or more documents": TEXT}, "Preview"),
    "apply-errors": ("/ui/apply/", {"One or more documents": TEXT.replace("selector", "selectr")}, "Apply"),
}


@pytest.fixture
def shop(server) -> str:
    get_user_model().objects.create_superuser("admin", password=PASSWORD)
    sample.build_shop()
    return server


def test_picture_for_the_readme(shop):
    with chromium() as browser:
        visit = Visit(browser, shop)
        visit.log_in("admin", PASSWORD)
        visit.page.mouse.move(0, 0)
        visit.page.screenshot(path=IMAGES / "services.png", full_page=True)
    assert (IMAGES / "services.png").stat().st_size < 200_000


@pytest.mark.skipif("TIMONEL_PICTURES" not in os.environ, reason="TIMONEL_PICTURES names no directory")
def test_pictures_to_look_at(shop):
    directory = Path(os.environ["TIMONEL_PICTURES"])
    with chromium() as browser:
        for theme in ("light", "dark"):
            for width, size in (("wide", WIDE), ("narrow", NARROW)):
                visit = Visit(browser, shop, size=size, theme=theme)
                visit.page.goto(shop + "/ui/")
                visit.page.screenshot(path=directory / f"login-{theme}-{width}.png")
                visit.log_in("admin", PASSWORD)
                for name, path in PAGES.items():
                    visit.page.goto(shop + path)
                    if name != "missing":
                        visit.page.locator("[data-connection='live']").wait_for()
                    if name == "service-node-port":
                        visit.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
                    visit.page.screenshot(path=directory / f"{name}-{theme}-{width}.png", full_page=True)
                for name, (path, fields, button) in STEPS.items():
                    visit.open(path)
                    for label, value in fields.items():
                        visit.page.get_by_label(label, exact=True).first.fill(value)
                    visit.page.get_by_role("button", name=button, exact=True).last.click()
                    visit.page.locator("[data-focus]").first.wait_for()
                    visit.page.screenshot(path=directory / f"{name}-{theme}-{width}.png", full_page=True)
                visit.context.close()
