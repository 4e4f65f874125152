"""Watches in this process: what is told, in which order, and what happens to those who do not keep up."""

import asyncio
import json
import random
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connections

from services_app import changes, store
from services_app.api import auth, feed, paths, watch
from services_app.models import ApiToken, Grant
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists, Conflict, Forbidden, NotFound
from services_app.spec.selectors import parse_label_selector

ACTOR = store.Actor("tester")
SERVICES = "/api/v1/namespaces/shop/services"

pytestmark = pytest.mark.django_db(transaction=True)


def make_namespace(name: str = "shop") -> None:
    store.create(kinds.NAMESPACE, {"metadata": {"name": name}}, namespace="", actor=ACTOR)


def make_service(name: str, **labels: str) -> int:
    document = {"metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}
    return store.create(kinds.SERVICE, document, namespace="shop", actor=ACTOR).revision


def set_labels(name: str, **labels: str) -> None:
    def change(document):
        document["metadata"]["labels"] = labels
        return document

    store.update(kinds.SERVICE, "shop", name, change, actor=ACTOR)


in_thread = sync_to_async(thread_sensitive=False)


def closing(function, *arguments, **named):
    """In a thread of its own, with a connection that goes with it."""

    def run():
        try:
            return function(*arguments, **named)
        finally:
            connections.close_all()

    return in_thread(run)()


def events_of(piece: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in piece.splitlines()]


def open_watch(query: str, path: str = SERVICES, limit_s: float = 20.0):
    target = paths.parse(path)
    assert target is not None
    return watch._events(watch.parse(target, query, ""), limit_s)


async def told(stream, wanted: int) -> list[dict[str, Any]]:
    """The next events, as many as wanted."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(found) < wanted:
            found += events_of(await anext(stream))
    return found


def run(scenario) -> None:
    async def whole() -> None:
        try:
            await scenario()
        finally:
            feed.feed().stop()

    asyncio.run(whole())


# --- a watch against the list


@dataclass
class Replica:
    """What a client holds who lists, watches, and applies every event."""

    selector: str = ""
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 0
    problems: list[str] = field(default_factory=list)

    def apply(self, event: dict[str, Any]) -> None:
        document = event["object"]
        version = int(document["metadata"]["resourceVersion"])
        if event["type"] == "BOOKMARK":
            if version < self.version:
                self.problems.append(f"a bookmark goes back from {self.version} to {version}")
            self.version = version
            return
        name = document["metadata"]["name"]
        is_known = name in self.objects
        if version <= self.version and not document.get("initial"):
            self.problems.append(f"{event['type']} {name} at {version} after {self.version}")
        if (event["type"] == "ADDED") == is_known:
            self.problems.append(f"{event['type']} {name}, which is {'known' if is_known else 'unknown'}")
        self.version = version
        if event["type"] == "DELETED":
            self.objects.pop(name, None)
        else:
            self.objects[name] = document


async def follow(replica: Replica, until: asyncio.Event, chance: random.Random) -> None:
    """List once, then watch, coming again from the last version now and then as an informer does."""
    selector = parse_label_selector(replica.selector) if replica.selector else None
    page = await closing(store.list, kinds.SERVICE, "shop", labels=selector)
    replica.objects = {document["metadata"]["name"]: document for document in map(json.loads, page.documents)}
    replica.version = page.revision
    suffix = f"&labelSelector={replica.selector}" if replica.selector else ""
    while not until.is_set() or replica.version < await closing(changes.head):
        stream = open_watch(f"resourceVersion={replica.version}&allowWatchBookmarks=true{suffix}", limit_s=2.1)
        stays = chance.randrange(1, 40)
        async for piece in stream:
            for event in events_of(piece):
                assert event["type"] != "ERROR", event
                replica.apply(event)
                stays -= 1
            if stays <= 0 and not until.is_set():
                break
        await stream.aclose()


def write_at_random(seed: int, turns: int) -> None:
    chance = random.Random(seed)
    try:
        for _ in range(turns):
            name = chance.choice("abcdefgh")
            with suppress(AlreadyExists, NotFound, Conflict):
                what = chance.random()
                if what < 0.4:
                    make_service(name, tier=chance.choice(("front", "back")))
                elif what < 0.75:
                    set_labels(name, tier=chance.choice(("front", "back")), turn=str(chance.randrange(10**6)))
                else:
                    store.delete(kinds.SERVICE, "shop", name, actor=ACTOR)
    finally:
        connections.close_all()


@pytest.mark.parametrize("seed", [1, 36, 4])
def test_replaying_the_events_gives_the_list_while_others_write(seed):
    make_namespace()

    async def scenario() -> None:
        chance = random.Random(seed)
        replicas = [Replica(selector) for selector in ("", "tier=front", "tier!=front", "turn", "")]
        done = asyncio.Event()
        writers = [threading.Thread(target=write_at_random, args=(seed * 100 + n, 60)) for n in range(3)]
        for writer in writers:
            writer.start()
        followers = [asyncio.create_task(follow(replica, done, chance)) for replica in replicas]
        for writer in writers:
            await in_thread(writer.join)()
        done.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*followers)
        for replica in replicas:
            assert replica.problems == []
            selector = parse_label_selector(replica.selector) if replica.selector else None
            page = await closing(store.list, kinds.SERVICE, "shop", labels=selector)
            assert sorted(replica.objects) == [json.loads(text)["metadata"]["name"] for text in page.documents]
            for text in page.documents:
                document = json.loads(text)
                assert replica.objects[document["metadata"]["name"]] == document

    run(scenario)


# --- from where


def test_a_version_the_log_no_longer_reaches_is_an_error_event():
    make_namespace()
    before = make_service("a")
    make_service("b")
    changes.compact(keep=timedelta(0))

    async def scenario() -> None:
        (event,) = [event async for piece in open_watch(f"resourceVersion={before}") for event in events_of(piece)]
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert event["object"]["kind"] == "Status"

    run(scenario)


def test_a_running_watch_does_not_notice_a_compaction():
    make_namespace()
    after = make_service("a")

    async def scenario() -> None:
        stream = open_watch(f"resourceVersion={after}")
        assert await anext(stream) == b""
        await closing(set_labels, "a", turn="1")
        assert [event["type"] for event in await told(stream, 1)] == ["MODIFIED"]
        await closing(changes.compact, keep=timedelta(0))
        await closing(set_labels, "a", turn="2")
        (event,) = await told(stream, 1)
        assert event["object"]["metadata"]["labels"] == {"turn": "2"}
        await stream.aclose()

    run(scenario)


def test_a_log_cut_under_the_reader_ends_the_stream_with_an_error():
    """As after the machine has slept for hours: what was missed is gone, and every watcher must hear of it."""
    make_namespace()
    after = make_service("a")

    async def scenario() -> None:
        source = feed.feed()
        stream = open_watch(f"resourceVersion={after}")
        assert await anext(stream) == b""
        for task in source._tasks:
            task.cancel()
        await closing(set_labels, "a", turn="1")
        await closing(changes.compact, keep=timedelta(0))
        await closing(set_labels, "a", turn="2")
        await source._catch_up()
        (event,) = await told(stream, 1)
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run(scenario)


def test_a_backlog_cut_while_it_is_read_is_an_error_and_no_gap():
    make_namespace()
    after = make_service("a")
    for turn in range(3):
        set_labels("a", turn=str(turn))

    async def scenario() -> None:
        listener = await feed.feed().join(after, "services")
        assert listener.recent is None  # this process has read none of it
        await closing(changes.compact, keep=timedelta(0))
        with pytest.raises(changes.LogCut):
            async for _ in feed.feed().backlog(listener):
                pass

    run(scenario)


def test_initial_events_wait_for_the_version_asked_for():
    make_namespace()
    newest = make_service("a")

    async def scenario() -> None:
        query = f"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion={newest + 1}"
        stream = open_watch(query)
        assert [event["type"] for event in await told(stream, 1)] == ["ADDED"]
        await closing(make_namespace, "elsewhere")  # no event for this watcher, and yet the version has come
        (event,) = await told(stream, 1)
        assert event["type"] == "BOOKMARK"
        assert event["object"]["metadata"]["annotations"] == {watch.INITIAL_EVENTS_END: "true"}
        assert int(event["object"]["metadata"]["resourceVersion"]) == newest + 1
        await stream.aclose()

    run(scenario)


def test_a_bookmark_shortly_before_the_end_names_the_newest_version():
    make_namespace()
    after = make_service("a")

    async def scenario() -> None:
        stream = open_watch(f"resourceVersion={after}&allowWatchBookmarks=true", limit_s=2.3)
        assert await anext(stream) == b""
        await closing(make_namespace, "elsewhere")
        head = await closing(changes.head)
        events = [event async for piece in stream for event in events_of(piece)]
        assert [(event["type"], event["object"]["metadata"]["resourceVersion"]) for event in events] == [
            ("BOOKMARK", str(head))
        ]

    run(scenario)


# --- many watchers


def test_an_event_is_encoded_once_for_all_who_get_it_in_the_same_form():
    make_namespace()
    after = make_service("a", app="web")

    async def scenario() -> None:
        forms = (
            ("", ""),
            ("&labelSelector=app", ""),
            ("", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"),
        )
        target = paths.parse(SERVICES)
        streams = [
            watch._events(watch.parse(target, f"resourceVersion={after}{query}", accept), 20.0)
            for query, accept in forms
            for _ in range(50)
        ]
        await asyncio.gather(*(anext(stream) for stream in streams))
        watch._line.cache_clear()
        watch._decoded.cache_clear()
        await closing(set_labels, "a", app="web", turn="1")
        pieces = await asyncio.gather(*(anext(stream) for stream in streams))
        assert len(set(pieces)) == 2
        assert watch._line.cache_info().misses == 2
        assert watch._decoded.cache_info().misses == 2  # the object after and before the write
        for stream in streams:
            await stream.aclose()

    run(scenario)


def test_a_reader_that_stalls_is_let_go_and_holds_nobody_back(monkeypatch):
    monkeypatch.setattr(feed, "AT_MOST", 20)
    make_namespace()
    after = make_service("a")

    async def scenario() -> None:
        slow = open_watch(f"resourceVersion={after}")
        quick = open_watch(f"resourceVersion={after}")
        assert [await anext(slow), await anext(quick)] == [b"", b""]
        for turn in range(30):
            await closing(set_labels, "a", turn=str(turn))
            (event,) = await told(quick, 1)
            assert event["object"]["metadata"]["labels"] == {"turn": str(turn)}
        # All it was sent before it fell behind, then the end: it comes again with the last version it saw.
        events = [event async for piece in slow for event in events_of(piece)]
        assert [event["object"]["metadata"]["labels"]["turn"] for event in events] == [str(n) for n in range(20)]
        await quick.aclose()

    run(scenario)


def test_a_change_of_another_kind_or_namespace_is_nothing_to_a_watcher():
    make_namespace()
    after = make_service("a")

    async def scenario() -> None:
        stream = open_watch(f"resourceVersion={after}", limit_s=1.0)
        assert await anext(stream) == b""
        await closing(partial(make_namespace, "other"))
        await closing(
            store.create,
            kinds.SERVICE,
            {"metadata": {"name": "b"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
            namespace="other",
            actor=ACTOR,
        )
        assert b"".join([piece async for piece in stream]) == b""

    run(scenario)


def test_secrets_and_the_second_face_of_events_are_told_as_they_are_handed_out():
    make_namespace()
    after = make_service("a")
    secret = {"metadata": {"name": "db"}, "type": "example.org/own", "stringData": {"password": "s3cret"}}
    store.create(kinds.SECRET, secret, namespace="shop", actor=ACTOR)
    store.delete(kinds.SECRET, "shop", "db", actor=ACTOR)
    about = {"kind": "Service", "namespace": "shop", "name": "a"}
    event = {"metadata": {"name": "e"}, "involvedObject": about, "reason": "Tested", "message": "it works"}
    store.create(kinds.EVENT, event, namespace="shop", actor=ACTOR)

    async def scenario() -> None:
        for query in ("", "&fieldSelector=type%3Dexample.org/own"):
            stream = open_watch(f"resourceVersion={after}{query}", "/api/v1/namespaces/shop/secrets")
            added, deleted = await told(stream, 2)
            assert (added["type"], deleted["type"]) == ("ADDED", "DELETED")
            assert added["object"]["data"] == deleted["object"]["data"] == {"password": "czNjcmV0"}
            await stream.aclose()
        path = "/apis/events.k8s.io/v1/namespaces/shop/events"
        for query in (f"resourceVersion={after}", "fieldSelector=regarding.name%3Da"):
            stream = open_watch(query, path)
            (seen,) = await told(stream, 1)
            assert (seen["object"]["apiVersion"], seen["object"]["note"]) == ("events.k8s.io/v1", "it works")
            await stream.aclose()

    run(scenario)


# --- who may no longer watch


def test_a_watch_ends_when_its_user_may_no_longer_watch_and_is_not_begun_again(monkeypatch):
    monkeypatch.setattr(watch, "JUDGED_S", 0.05)
    monkeypatch.setattr(auth, "KEPT_S", 0.0)
    make_namespace()
    user = get_user_model().objects.create_user("dev")
    grant = Grant.objects.create(role="view", namespace="shop", user=user)
    headers = {"authorization": f"Bearer {ApiToken.issue(user, 'watch')}"}
    authorize = partial(watch._authorize, headers, paths.read(SERVICES))

    async def scenario() -> None:
        await closing(authorize)
        stream = watch._events(watch.parse(paths.parse(SERVICES), "", ""), 60.0, authorize)
        assert await anext(stream) == b""
        await closing(make_service, "web")
        (event,) = await told(stream, 1)
        assert event["object"]["metadata"]["name"] == "web"
        await closing(grant.delete)
        async with asyncio.timeout(10):
            assert [piece async for piece in stream] == []
        with pytest.raises(Forbidden, match='cannot watch resource "services"'):
            await closing(authorize)

    run(scenario)


def test_a_watch_is_judged_as_the_one_who_is_stood_in_for():
    make_namespace()
    root = get_user_model().objects.create_superuser("root")
    get_user_model().objects.create_user("dev")
    headers = {"authorization": f"Bearer {ApiToken.issue(root, 'watch')}"}
    watch._authorize(headers, paths.read(SERVICES))
    with pytest.raises(Forbidden, match='User "dev" cannot watch'):
        watch._authorize({**headers, "impersonate-user": "dev"}, paths.read(SERVICES))
