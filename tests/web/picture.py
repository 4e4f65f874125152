"""Pictures of the sample's shop: `python -m pytest tests/web/picture.py` writes docs/images/services.png.

Not collected with the suite (its name says so): a picture is made when the pages change, and looked at. All pages, both
themes and both widths go to the directory that TIMONEL_PICTURES names.
"""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from services_app.models import NodeAccess, NodeOperation, NodeSync, Service
from tests.web import sample
from tests.web.chromium import NARROW, WIDE, Visit, chromium
from tests.web.conftest import PASSWORD
from tests.web.ssh_server import ssh_host

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PAGES = {
    "overview": "/ui/",
    "service": "/ui/services/shop/orders/",
    "none": "/ui/?q=nothing",
    "missing": "/nowhere",
    "nodes": "/ui/nodes/",
    "nodes-none": "/ui/nodes/?q=nothing",
    "node": "/ui/nodes/lyon-1/",
    "node-unreachable": "/ui/nodes/porto-2/",
    "node-quarantined": "/ui/nodes/lyon-2/",
    "node-host-key": "/ui/nodes/lyon-2/host-key/",
    "node-remove": "/ui/nodes/lyon-1/remove/",
    "enrol": "/ui/enrolment/?node=lyon-1",
    "admin": "/admin/services_app/service/",
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


def be_busy() -> dict[str, str]:
    """Operations under way, done and failed, and what else makes a node's page full; name -> path."""
    steps = ["192.0.2.11 port 22 shows the host key SHA256:rcv0AX2nhFxX9fGMBnh1gFKuBi2C1ZCDQ4bVtjhBrPc"]
    steps += ["logged in as root", "placed agent 0.1.0+1f0a4c at /usr/local/lib/timonel/agent.pyz"]
    dated = [{"text": step, "at": timezone.now().isoformat()} for step in steps]
    common = {"by": "admin", "address": "192.0.2.11", "user": "root", "steps": dated, "verb": "Enrol"}
    check = "look whether the host has what a node needs"
    soon = timezone.now() + timedelta(hours=1)
    failed = {
        "reason": "NftMissing",
        "message": "lyon-9 cannot be a node yet: nft is not installed (Service addresses need it)",
    }
    made = {
        "running": NodeOperation.objects.create(node="lyon-9", doing=check, seen_at=soon, **common),
        "failed": NodeOperation.objects.create(node="lyon-8", state="Failed", doing=check, **failed, **common),
        "done": NodeOperation.objects.create(node="lyon-1", state="Done", **common),
    }
    facts = {
        "kernel": "6.1.0-18-amd64",
        "os": "Debian GNU/Linux 12 (bookworm)",
        "machine": "x86_64",
        "hostname": "lyon-1",
    }
    NodeSync.objects.filter(node="lyon-1").update(
        facts=facts, rejected={"shop/cart": {"reason": "InvalidResource", "message": "cannot read element"}}
    )
    NodeSync.objects.filter(node="lyon-2").update(
        state="Quarantined", reason="HostKeyChanged", message="the host key of lyon-2 is another than the confirmed one"
    )
    return {name: f"/ui/operations/{operation.pk}/" for name, operation in made.items()}


@pytest.mark.skipif("TIMONEL_PICTURES" not in os.environ, reason="TIMONEL_PICTURES names no directory")
def test_pictures_to_look_at(shop):
    directory = Path(os.environ["TIMONEL_PICTURES"])
    only = os.environ.get("TIMONEL_PICTURES_OF", "")
    pages = {
        **PAGES,
        **be_busy(),
        "admin-object": f"/admin/services_app/service/{Service.objects.get(name='cart').pk}/change/",
    }
    with ssh_host(password=PASSWORD) as host, chromium() as browser:
        NodeAccess.objects.filter(node="lyon-2").update(address="127.0.0.1", port=host.port)
        for theme in ("light", "dark"):
            for width, size in (("wide", WIDE), ("narrow", NARROW)):
                visit = Visit(browser, shop, size=size, theme=theme)
                visit.page.goto(shop + "/ui/")
                visit.page.screenshot(path=directory / f"login-{theme}-{width}.png")
                visit.log_in("admin", PASSWORD)
                for name, path in pages.items():
                    if only and not name.startswith(tuple(only.split(","))):
                        continue
                    visit.page.goto(shop + path)
                    if visit.page.locator("[data-connection]").count():
                        visit.page.locator("[data-connection='live']").wait_for()
                    visit.page.screenshot(path=directory / f"{name}-{theme}-{width}.png", full_page=True)
                if not only or "login" in only:
                    visit.page.goto(shop + "/ui/enrolment/")
                    for label, text in {
                        "Name": "lyon-4",
                        "Address": "localhost",
                        "Port": str(host.port),
                        "Node address": "192.0.2.14",
                    }.items():
                        visit.page.get_by_label(label, exact=True).fill(text)
                    visit.page.get_by_role("button", name="Show its host key").click()
                    visit.page.locator("#fingerprint").wait_for()
                    visit.page.screenshot(path=directory / f"node-login-{theme}-{width}.png", full_page=True)
                visit.context.close()
