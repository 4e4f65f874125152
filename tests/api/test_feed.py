"""The one reader of the log that feeds a process's watches."""

import asyncio

import pytest
from asgiref.sync import sync_to_async

from services_app import changes, store
from services_app.api.feed import Feed
from services_app.spec import kinds

ACTOR = store.Actor("tester")


def make_namespace(name: str) -> None:
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    store.create(kinds.NAMESPACE, document, namespace="", actor=ACTOR)


@pytest.mark.django_db(transaction=True)
def test_listeners_that_come_at_the_same_moment_are_told_everything_once():
    async def scenario() -> None:
        feed = Feed()
        after = await sync_to_async(changes.head)()
        joined = await asyncio.gather(*(feed.join(after) for _ in range(8)))
        try:
            await sync_to_async(make_namespace)("told-once")
            async with asyncio.timeout(10):
                told = [(await listener.queue.get()).revision for listener in joined]
            assert told == [after + 1] * 8
            # Who comes later gets what is kept in memory: each change once as well.
            late = await feed.join(after)
            assert [change.revision async for part in feed.backlog(late) for change in part] == [after + 1]
            await asyncio.sleep(0.2)
            assert all(listener.queue.empty() for listener in joined)
        finally:
            feed.stop()

    asyncio.run(scenario())
