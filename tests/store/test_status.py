"""What nodes report becomes conditions."""

import pytest

from services_app import store
from services_app.spec import kinds
from services_app.store import status
from tests.store.conftest import ACTOR
from tests.web.sample import add_node

pytestmark = pytest.mark.django_db


def programmed(world, name: str) -> tuple[str, str]:
    conditions = world.get(kinds.SERVICE, name).get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "Programmed"), ("", ""))


def test_services_that_a_node_refuses_hold_no_other_back(world, monkeypatch):
    monkeypatch.setattr(status, "AT_ONCE", 2)
    refused = {f"shop/bad-{number}": {"reason": "KernelRefused", "message": "no"} for number in range(5)}
    for owner in refused:
        world.service(owner.removeprefix("shop/"))
    world.service("web")
    add_node("n1", "192.0.2.11", rejected=refused)
    store.settle_programmed(actor=ACTOR)
    assert programmed(world, "web") == ("True", "AllNodes")
    assert {programmed(world, owner.removeprefix("shop/")) for owner in refused} == {("False", "KernelRefused")}
