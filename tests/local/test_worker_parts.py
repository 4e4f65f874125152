"""Several workers: each has its part of the shards, and hears of all its nodes in one message a shard."""

import argparse
import re

import pytest

from services_app.local.supervisor import SHARDS, worker_argv
from services_app.management.commands.worker import _part
from services_app.push import pusher, tasks


def shards_of(argv: list[str]) -> list[int]:
    queues = argv[argv.index("-Q") + 1].split(",")
    assert queues[0] == "default"
    return [int(queue.removeprefix("push-")) for queue in queues[1:]]


@pytest.mark.parametrize("parts", [1, 3, 4, SHARDS])
def test_each_shard_belongs_to_one_worker(parts):
    owned = [shards_of(worker_argv(part, parts)) for part in range(1, parts + 1)]
    assert sorted(shard for shards in owned for shard in shards) == [*range(SHARDS)]
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_a_part_is_judged():
    assert [_part(text) for text in ("1/1", "2/4", "64/64")] == [(1, 1), (2, 4), (64, 64)]
    for text in ("0/4", "5/4", "1/65", "2", "a/b", "1/4/2", "-1/4"):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            _part(text)


def test_nodes_of_other_workers_are_told_in_a_message_a_shard(monkeypatch):
    sent = []
    monkeypatch.setattr(tasks.push_nodes, "apply_async", lambda arguments, **options: sent.append((arguments, options)))
    names = [f"node-{number}" for number in range(500)]
    tasks._start_pushes({name: pusher.Wanted("192.0.2.1", False, 0) for name in names})
    assert len(sent) <= SHARDS
    assert sorted(name for (shard,), _ in sent for name in shard) == sorted(names)
    for (shard,), options in sent:
        assert {tasks.queue_of(name) for name in shard} == {options["queue"]}
