"""Watches replayed against lists and the log, while many write and servers are killed: nothing lost, nothing twice."""

import http.client
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused
from services_app.local.supervisor import Stack
from services_app.spec.selectors import parse_label_selector
from tests.clients.conftest import connect

Document = dict[str, Any]
Event = tuple[str, str, str, int]  # type, namespace, name, version

SPACES = ("first", "second")
SELECTORS = ("tier=front", "tier!=front", "tier in (front,back),turn", "!tier")
BROKEN = (OSError, http.client.HTTPException, json.JSONDecodeError)


@pytest.fixture(scope="module")
def durable() -> Iterator[Stack]:
    """A control plane that may lose its database's process at any time."""
    directory = Path(tempfile.mkdtemp(prefix="timonel-watched-"))
    directory.chmod(0o755)
    try:
        with Stack(directory, "127.0.0.1:0") as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Follower(threading.Thread):
    """Lists once, then watches, and comes again with the last version it was told when the stream ends or breaks."""

    def __init__(self, stack: Stack, collection: str, selector: str = "") -> None:
        super().__init__(daemon=True)
        self.stack, self.collection, self.selector = stack, collection, selector
        self.query = f"labelSelector={quote(selector)}&" if selector else ""
        self.objects: dict[tuple[str, str], Document] = {}
        self.events: list[Event] = []
        self.problems: list[str] = []
        self.version = self.listed_at = 0
        self.streams = 0
        self.until: int | None = None  # the version after which it may go
        self.chance = random.Random(collection + selector)
        self.take_list()

    def take_list(self) -> None:
        listed = self.ask(lambda connection, headers: self.fetch(connection, headers))
        self.objects = {key_of(item): item for item in listed["items"]}
        self.version = self.listed_at = int(listed["metadata"]["resourceVersion"])

    def fetch(self, connection: http.client.HTTPSConnection, headers: dict[str, str]) -> Document:
        connection.request("GET", f"{self.collection}?{self.query}", headers=headers)
        answer: Document = json.loads(connection.getresponse().read())
        return answer

    def ask(self, what: Callable[[http.client.HTTPSConnection, dict[str, str]], Any]) -> Any:
        with closing(connect(self.stack)) as connection:
            return what(connection, {"Authorization": f"Bearer {self.stack.token}"})

    def is_done(self) -> bool:
        return self.until is not None and self.version >= self.until

    def run(self) -> None:
        while not self.is_done() and not self.problems:
            try:
                self.ask(self.watch)
            except BROKEN:
                time.sleep(0.05)

    def watch(self, connection: http.client.HTTPSConnection, headers: dict[str, str]) -> None:
        # A short time now and then, so that streams end in every way there is.
        limit_s = self.chance.choice([3, 4, 7])
        query = f"{self.query}watch=1&allowWatchBookmarks=true&resourceVersion={self.version}&timeoutSeconds={limit_s}"
        connection.request("GET", f"{self.collection}?{query}", headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            if response.status < 500:
                self.problems.append(f"a watch from {self.version} was answered {response.status} {response.read()!r}")
            time.sleep(0.05)
            return
        self.streams += 1
        while line := response.readline():
            self.take(json.loads(line))
            if self.is_done():
                return

    def take(self, event: Document) -> None:
        document, kind = event["object"], event["type"]
        if kind == "ERROR":
            self.problems.append(f"after {self.version}: {document}")
            return
        version = int(document["metadata"]["resourceVersion"])
        if kind == "BOOKMARK":
            if version < self.version:
                self.problems.append(f"a bookmark goes back from {self.version} to {version}")
            self.version = version
            return
        key = key_of(document)
        if version <= self.version:
            self.problems.append(f"{kind} {key} at {version} after {self.version}")
        if (kind == "ADDED") == (key in self.objects):
            self.problems.append(f"{kind} {key}, which is {'known' if key in self.objects else 'unknown'}")
        self.version = version
        self.events.append((kind, *key, version))
        if kind == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = document


def key_of(document: Document) -> tuple[str, str]:
    return document["metadata"]["namespace"], document["metadata"]["name"]


def write_at_random(stack: Stack, seed: int, until: threading.Event) -> None:
    """Create, change and delete a few ConfigMaps in two namespaces; what breaks on the way may have been done or not."""
    chance = random.Random(seed)
    api = ApiClient(stack.kubeconfig)
    while not until.is_set():
        collection = f"{CORE}/namespaces/{chance.choice(SPACES)}/configmaps"
        name = chance.choice("abcdef")
        labels = {"tier": chance.choice(("front", "back")), "turn": str(chance.randrange(1000))}
        kept = {key: value for key, value in labels.items() if chance.random() < 0.8}
        try:
            what = chance.random()
            if what < 0.35:
                api.create(collection, {"metadata": {"name": name, "labels": kept}})
            elif what < 0.75:
                dropped: Document = {key: kept.get(key) for key in labels}
                api.request("PATCH", f"{collection}/{name}", {"metadata": {"labels": dropped}, "data": labels})
            else:
                api.request("DELETE", f"{collection}/{name}")
        except ApiRefused as err:
            if err.code not in (404, 409, 500, 503):
                raise
            if err.code >= 500:
                time.sleep(0.05)
        except BROKEN:
            time.sleep(0.05)


def kill_at_random(stack: Stack, chance: random.Random, rounds: int, pause_s: float) -> None:
    """By turns a web process, the database, Redis, and everything at once; the supervisor starts it again."""
    parts = ["web", "web", "everything", "postgres", "web", "redis", "everything"]
    for number in range(rounds):
        time.sleep(pause_s)
        part = parts[number % len(parts)]
        roles = ("web", "worker", "beat", "postgres", "redis") if part == "everything" else (part,)
        pids = [pid for role in roles for pid in stack.pids_of(role)]
        for pid in pids if part != "web" else chance.sample(pids, min(1, len(pids))):
            os.kill(pid, signal.SIGKILL)


def retried(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            return what()
        except (ApiRefused, *BROKEN):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def logged(stack: Stack, after: int) -> list[tuple[str, str, str, int, dict[str, str] | None, dict[str, str] | None]]:
    """The log itself: type, namespace, name, version, labels, labels before; of ConfigMaps in the two namespaces."""
    program = f"""
import json
from services_app.models import Change
labels = lambda text: None if text is None else json.loads(text)["metadata"].get("labels", {{}})
rows = Change.objects.filter(kind="configmaps", revision__gt={after}, namespace__in={SPACES!r}).order_by("revision")
print(json.dumps([(r.verb, r.namespace, r.name, r.revision, labels(r.document), labels(r.previous)) for r in rows]))
"""
    return [
        tuple(row) for row in json.loads(stack.manage("shell", "-v0", "-c", program).stdout.strip().splitlines()[-1])
    ]


def expected(log: list[Any], follower: Follower) -> list[Event]:
    """What a watcher must have been told, by the log."""
    selector = parse_label_selector(follower.selector) if follower.selector else None

    def selects(labels: dict[str, str] | None) -> bool:
        return labels is not None and (selector is None or selector.matches(labels))

    found: list[Event] = []
    for verb, space, name, version, labels, before in log:
        if version <= follower.listed_at or (
            "/namespaces/" in follower.collection and space not in follower.collection
        ):
            continue
        now, was = verb != "DELETED" and selects(labels), verb != "ADDED" and selects(before)
        if now or was:
            found.append(("MODIFIED" if now and was else "ADDED" if now else "DELETED", space, name, version))
    return found


def play(stack: Stack, seed: int, rounds: int, pause_s: float) -> None:
    api = ApiClient(stack.kubeconfig)
    for space in SPACES:
        api.ensure_namespace(space)
    everywhere, one = f"{CORE}/configmaps", f"{CORE}/namespaces/{SPACES[0]}/configmaps"
    followers = [
        Follower(stack, collection, selector) for collection in (everywhere, one) for selector in ("", *SELECTORS)
    ]
    done = threading.Event()
    writers = [threading.Thread(target=write_at_random, args=(stack, seed * 100 + n, done)) for n in range(3)]
    for thread in (*followers, *writers):
        thread.start()
    try:
        kill_at_random(stack, random.Random(seed), rounds, pause_s)
        time.sleep(pause_s)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    # The last write, which everybody who selects anything sees or is told of by a bookmark.
    last = retried(
        lambda: api.apply(one, {"metadata": {"name": f"last-{seed}", "labels": {"tier": "front", "turn": "0"}}})
    )
    head = int(last["metadata"]["resourceVersion"])
    for follower in followers:
        follower.until = head
    for follower in followers:
        follower.join(90)
        assert follower.problems == []
        assert not follower.is_alive(), f"{follower.collection} {follower.selector} stays at {follower.version}"
    log = logged(stack, min(follower.listed_at for follower in followers))
    assert log
    for follower in followers:
        assert follower.events == [event for event in expected(log, follower) if event[3] <= follower.version]
        assert follower.streams > 1
        listed = retried(lambda follower=follower: follower.ask(follower.fetch))
        # Items of a list do not repeat their kind.
        held = {key: {**item, "kind": None, "apiVersion": None} for key, item in follower.objects.items()}
        assert {key_of(item): {**item, "kind": None, "apiVersion": None} for item in listed["items"]} == held


def test_events_are_the_log_and_give_the_list_whatever_is_killed(durable: Stack) -> None:
    play(durable, seed=1, rounds=3, pause_s=1.5)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_events_are_the_log_for_minutes_of_kills(durable: Stack) -> None:
    play(durable, seed=2, rounds=35, pause_s=3.0)
