"""Lists: pages that belong together, and the state of any revision the log still holds."""

import json
import random
from datetime import timedelta

import pytest

from services_app import changes, store
from services_app.spec import kinds
from services_app.spec.errors import BadRequest, Expired, ServerTimeout
from services_app.spec.selectors import parse_field_selector, parse_label_selector
from services_app.store.listing import place
from tests.store.conftest import ACTOR, World


def names(page: store.Page) -> list[str]:
    return [json.loads(text)["metadata"]["name"] for text in page.documents]


def label(name: str, **labels: str) -> None:
    def change(service):
        service["metadata"]["labels"] = labels
        return service

    store.update(kinds.SERVICE, "shop", name, change, actor=ACTOR)


def test_later_pages_show_the_state_of_the_first(world):
    for name in "abcdef":
        world.service(name)
    first = store.list(kinds.SERVICE, "shop", limit=2)
    assert first.remaining == 4
    before = store.list(kinds.SERVICE, "shop")
    world.delete(kinds.SERVICE, "c")
    world.service("bb")
    label("d", changed="yes")
    world.delete(kinds.SERVICE, "e")
    world.service("e")
    second = store.list(kinds.SERVICE, "shop", limit=2, continue_token=first.continue_token)
    third = store.list(kinds.SERVICE, "shop", limit=9, continue_token=second.continue_token)
    assert second.remaining == 2
    assert (second.revision, third.revision, third.continue_token) == (first.revision, first.revision, "")
    assert first.documents + second.documents + third.documents == before.documents


def test_pages_with_selectors_show_the_state_of_the_first(world):
    for name in "abcd":
        world.service(name)
        label(name, app="web")
    selector = parse_label_selector("app=web")
    first = store.list(kinds.SERVICE, "shop", labels=selector, limit=1)
    label("b", app="other")
    label("c", app="web", more="yes")
    world.service("bb")
    label("bb", app="web")
    rest = store.list(kinds.SERVICE, "shop", labels=selector, limit=9, continue_token=first.continue_token)
    assert names(first) + names(rest) == ["a", "b", "c", "d"]
    fields = parse_field_selector(kinds.SERVICE, "metadata.name!=c,spec.type=ClusterIP")
    at_first = store.list(kinds.SERVICE, "shop", labels=selector, fields=fields, at=first.revision)
    assert names(at_first) == ["a", "b", "d"]
    assert names(store.list(kinds.SERVICE, "shop", labels=selector, fields=fields)) == ["a", "bb", "d"]


def test_every_revision_of_a_random_history_can_be_listed(world):
    """The state at each revision, put together by hand while writing, is what a list of that revision says."""
    chance = random.Random(36)
    states: dict[int, list[str]] = {changes.head(): store.list(kinds.SERVICE, "shop").documents}
    present: set[str] = set()
    for _ in range(40):
        name = chance.choice("abcdefgh")
        if name not in present:
            world.service(name)
            present.add(name)
        elif chance.random() < 0.5:
            label(name, turn=str(chance.randrange(1000)))
        else:
            world.delete(kinds.SERVICE, name)
            present.discard(name)
        states[changes.head()] = store.list(kinds.SERVICE, "shop").documents
    for revision, documents in states.items():
        for limit in (0, 3):
            page = store.list(kinds.SERVICE, "shop", at=revision, limit=limit)
            found = [*page.documents]
            while page.continue_token:
                page = store.list(kinds.SERVICE, "shop", limit=limit, continue_token=page.continue_token)
                found += page.documents
            assert found == documents
            assert page.revision == revision


def test_namespaces_are_sorted_as_the_keys_of_kubernetes(db):
    for name in ("a", "a-b", "a0"):
        World(name).namespace_exists()
        World(name).service("x")
    page = store.list(kinds.SERVICE, None, limit=2)
    rest = store.list(kinds.SERVICE, None, limit=2, continue_token=page.continue_token)
    found = [json.loads(text)["metadata"]["namespace"] for text in page.documents + rest.documents]
    assert found == ["a-b", "a", "a0"]
    assert sorted([("a", "x"), ("a-b", "x"), ("a0", "x")], key=lambda key: place(*key)) == [(n, "x") for n in found]


def test_a_token_older_than_the_log_tells_how_to_go_on(world):
    for name in "abc":
        world.service(name)
    first = store.list(kinds.SERVICE, "shop", limit=1)
    world.service("bb")
    changes.compact(keep=timedelta(0))
    with pytest.raises(Expired) as refusal:
        store.list(kinds.SERVICE, "shop", limit=1, continue_token=first.continue_token)
    status = refusal.value.status()
    assert (status["code"], status["reason"]) == (410, "Expired")
    rest = store.list(kinds.SERVICE, "shop", limit=9, continue_token=status["metadata"]["continue"])
    assert names(rest) == ["b", "bb", "c"]
    assert rest.revision == changes.head()


def test_a_revision_outside_the_log_is_refused(world):
    world.service("a")
    first = changes.head()
    world.service("b")
    changes.compact(keep=timedelta(0))
    with pytest.raises(Expired):
        store.list(kinds.SERVICE, "shop", at=first)
    with pytest.raises(ServerTimeout) as refusal:
        store.list(kinds.SERVICE, "shop", at=changes.head() + 1)
    assert refusal.value.status()["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


@pytest.mark.parametrize("token", ["", "x", "bm8=", "eyJ2IjoidGltb25lbC8xIiwicnYiOi05LCJzdGFydCI6WyIiLCJhIl19"])
def test_a_token_nobody_gave_out_is_refused(world, token):
    if token:
        with pytest.raises(BadRequest):
            store.list(kinds.SERVICE, "shop", limit=1, continue_token=token)
    else:
        assert store.list(kinds.SERVICE, "shop", limit=1, continue_token=token).documents == []


def test_a_selector_with_a_nul_selects_nothing(world):
    world.service("a")
    fields = parse_field_selector(kinds.SERVICE, "metadata.name=a\0")
    assert store.list(kinds.SERVICE, "shop", fields=fields).documents == []
