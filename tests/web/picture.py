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
PAGES = {"overview": "/ui/", "service": "/ui/services/shop/orders/", "none": "/ui/?q=nothing", "missing": "/nowhere"}


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
                    visit.page.screenshot(path=directory / f"{name}-{theme}-{width}.png", full_page=True)
                visit.context.close()
