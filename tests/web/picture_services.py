"""Pictures of the Services pages in both themes and widths, to look at: set TIMONEL_PICTURES to a directory and run
`python -m pytest tests/web/picture_services.py`. Not collected with the suite, as picture.py.
"""

import os
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model

from tests.web import sample
from tests.web.chromium import NARROW, WIDE, Visit, chromium
from tests.web.conftest import PASSWORD

PAGES = {
    "services": "/ui/services/",
    "service": "/ui/services/shop/orders/",
    "service-node-port": "/ui/services/shop/storefront/",
    "new": "/ui/services/new/",
    "edit": "/ui/services/shop/storefront/edit/",
    "edit-yaml": "/ui/services/shop/storefront/yaml/",
    "explain": "/ui/services/shop/storefront/explain/",
    "explain-local": "/ui/services/shop/storefront/explain/?to=node+30080+tcp&from=203.0.113.9",
    "explain-error": "/ui/services/shop/storefront/explain/?from=10.0.0",
    "explain-headless": "/ui/services/data/postgres/explain/",
    "delete": "/ui/services/shop/storefront/delete/",
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


@pytest.mark.skipif("TIMONEL_PICTURES" not in os.environ, reason="TIMONEL_PICTURES names no directory")
def test_pictures_to_look_at(shop):
    directory = Path(os.environ["TIMONEL_PICTURES"])
    with chromium() as browser:
        for theme in ("light", "dark"):
            for width, size in (("wide", WIDE), ("narrow", NARROW)):
                visit = Visit(browser, shop, size=size, theme=theme)
                visit.log_in("admin", PASSWORD)
                for name, path in PAGES.items():
                    visit.open(path)
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
