"""What open pages are told, and that they are told at all."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection
from django.test import AsyncClient, Client
from django.utils import timezone

from services_app.models import NodeOperation, NodeSync
from services_app.web import live
from tests.web import sample

PATIENCE_S = 30  # how long a test waits before it calls something missing; nothing is measured


def written(work, *arguments, **options):
    """Do it in a thread of its own, as another process would, and give its connection back."""

    def run():
        try:
            return work(*arguments, **options)
        finally:
            connection.close()

    return sync_to_async(run, thread_sensitive=False)()


async def events_until(stream: AsyncIterator[bytes], name: str) -> list[str]:
    """The names of all events up to the one that is waited for."""
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while name not in seen:
            text = (await anext(stream)).decode()
            seen += [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    return seen


def run_with_stream(scenario) -> None:
    """The scenario, with a stream of events that has said hello."""

    async def run():
        stream = live.event_stream()
        try:
            assert await events_until(stream, "hello") == ["hello"]
            await scenario(stream)
        finally:
            await stream.aclose()

    asyncio.run(run())


@pytest.fixture
def shop(transactional_db):
    sample.add_node("node-1", "192.0.2.1")
    sample.add_service("shop", "web")


def test_a_changed_object_renews_services_and_nodes(shop):
    async def scenario(stream):
        await written(sample.change_service, "shop", "web", ports=[{"port": 81}])
        assert set(await events_until(stream, "services")) <= {"alive", "nodes", "services"}

    run_with_stream(scenario)


@pytest.mark.parametrize(
    "report",
    [
        pytest.param({"state": "Unreachable"}, id="state"),
        pytest.param({"applied_revision": 1}, id="applied revision"),
        pytest.param({"message": "no answer"}, id="message"),
        pytest.param({"rejected": {"shop/web": {"reason": "BadPort", "message": "no"}}}, id="refusal"),
        pytest.param({"problems": [{"reason": "NftMissing", "message": "install it"}]}, id="problem"),
    ],
)
def test_what_a_node_reports_renews_the_page_although_no_object_changed(shop, report):
    async def scenario(stream):
        await written(NodeSync.objects.update, **report)
        await events_until(stream, "services")

    run_with_stream(scenario)


def test_the_page_is_told_without_redis(shop, settings):
    settings.REDIS_URL = "unix:///nowhere/redis.sock"

    async def scenario(stream):
        await written(sample.change_service, "shop", "web", ports=[{"port": 81}])
        await events_until(stream, "services")

    run_with_stream(scenario)


def test_two_pages_share_one_reader_and_the_last_one_ends_it(shop):
    async def scenario(stream):
        other = live.event_stream()
        await events_until(other, "hello")
        assert len(live.pulse()._tasks) == 2
        await other.aclose()
        assert live.pulse()._tasks
        await written(sample.delete_service, "shop", "web")
        await events_until(stream, "services")
        await stream.aclose()
        assert not live.pulse()._tasks

    run_with_stream(scenario)


def test_a_stream_without_a_login_says_so_and_ends(transactional_db):
    async def run():
        response = await AsyncClient().get("/ui/events")
        assert response["Content-Type"] == "text/event-stream"
        return [part async for part in response.streaming_content]

    assert asyncio.run(run()) == [b"event: signed-out\ndata:\n\n"]


def test_a_stream_with_a_login_says_hello(transactional_db):
    user = get_user_model().objects.create_user("ana")
    browser = Client()
    browser.force_login(user)
    session = browser.cookies["sessionid"].value
    assert SessionStore(session_key=session).exists(session)

    async def run():
        client = AsyncClient()
        client.cookies["sessionid"] = session
        response = await client.get("/ui/events")
        assert response["Cache-Control"] == "no-store"
        stream = response.streaming_content
        try:
            return await events_until(aiter(stream), "hello")
        finally:
            await stream.aclose()

    assert asyncio.run(run()) == ["hello"]


def test_only_what_moved_is_renewed():
    before = live.Sight(revision=7, nodes="a", beat=1)
    assert live._events(None, before) == b"event: hello\ndata: 7\n\n"
    assert b"services" not in live._events(before, live.Sight(revision=7, nodes="a", beat=2))
    for after in (live.Sight(revision=8, nodes="a", beat=1), live.Sight(revision=7, nodes="b", beat=1)):
        assert live._events(before, after).count(b"event: ") == 2
    step = live._events(before, live.Sight(revision=7, nodes="a", beat=1, operations="b"))
    assert b"event: operations\n" in step
    assert b"services" not in step


def test_the_sight_moves_with_every_step_of_an_operation(transactional_db):
    operation = NodeOperation.objects.create(node="node-1", verb="Enrol", by="ana")
    seen = [live.read_sight()]
    for values in ({"steps": [{"text": "logged in", "at": ""}]}, {"state": "Done", "ended_at": timezone.now()}):
        NodeOperation.objects.filter(pk=operation.pk).update(**values)
        seen.append(live.read_sight())
    assert len({sight.operations for sight in seen}) == 3
