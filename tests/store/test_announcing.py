"""What is told after a commit: every head in the end, the first at once, a burst together."""

import threading
import time
from itertools import pairwise

import pytest
import redis
from django.conf import settings

from services_app import changes


@pytest.fixture
def told():
    """Heads as they come over Redis."""
    client = redis.Redis.from_url(settings.REDIS_URL)
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(changes.CHANNEL)
    listener.get_message(timeout=2)
    yield lambda timeout_s: message["data"] if (message := listener.get_message(timeout=timeout_s)) else None
    listener.close()
    client.close()


@pytest.fixture
def wakes(monkeypatch):
    """Moments at which pushers were woken."""
    moments: list[float] = []
    monkeypatch.setattr(changes, "wake_pushers", [lambda: moments.append(time.monotonic())])
    time.sleep(changes.WAKE_PAUSE_S)
    return moments


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_newest_head_of_a_burst_is_told_and_the_burst_not_one_by_one(told, wakes):
    begin = time.monotonic()
    heads = range(10**12, 10**12 + 500)
    for head in heads:
        changes.announce(head, for_nodes=True)
    took_s = time.monotonic() - begin
    seen = []
    while not seen or seen[-1] != str(heads[-1]).encode():
        message = told(5)
        assert message is not None, seen[-3:]
        seen.append(message)
    assert len(seen) < len(heads)
    wait_until(lambda: wakes and wakes[-1] > begin + took_s - changes.WAKE_PAUSE_S)
    assert len(wakes) <= took_s / changes.WAKE_PAUSE_S + 2
    assert all(later - earlier >= changes.WAKE_PAUSE_S * 0.9 for earlier, later in pairwise(wakes))


def test_pauses_grow_while_it_is_wanted_without_end_and_start_over_when_it_is_not():
    now = 1000.0
    pace = changes.Pace(0.03, 0.24, clock=lambda: now)
    assert pace.wait_s() == 0
    pauses = []
    for wanted in (1, 2, 3, 5, 9, 9, 1, 2):
        now += pace.wait_s()
        pace.note(wanted=wanted)
        pauses.append(round(pace.wait_s(), 6))
    assert pauses == [0.03, 0.06, 0.12, 0.24, 0.24, 0.24, 0.03, 0.06]


def test_what_comes_every_100_ms_does_not_keep_the_long_pause_of_a_burst_before_it():
    now = 1000.0
    pace = changes.Pace(0.03, 0.24, clock=lambda: now)
    for wanted in (1, 4, 8, 16, 16):
        now += pace.wait_s()
        pace.note(wanted=wanted)
    now += pace.wait_s()
    pace.note(wanted=3)  # in 240 ms
    assert round(pace.wait_s(), 6) == 0.03


def test_changes_without_end_wake_less_often_and_one_after_them_at_once(wakes):
    head, begin = 10**12 + 2000, time.monotonic()
    while len(wakes) < 5:
        head += 1
        changes.announce(head, for_nodes=True)
        time.sleep(0.002)
    assert wakes[-1] - begin >= (changes.WAKE_PAUSE_S * (1 + 2 + 4) + changes.LONGEST_PAUSE_S) * 0.9
    quiet = threading.Event()
    quiet.wait(changes.LONGEST_PAUSE_S * 2)  # the last of them has been told, and its pause is over
    before = len(wakes)
    changes.announce(head + 1, for_nodes=True)
    wait_until(lambda: len(wakes) > before)
    changes.announce(head + 2, for_nodes=True)
    wait_until(lambda: len(wakes) == before + 2)


def test_a_wake_follows_the_last_change(told, wakes):
    """A change right after a wake has one of its own, once the pause is over."""
    changes.announce(10**12 + 1000, for_nodes=True)
    wait_until(lambda: len(wakes) == 1)
    changes.announce(10**12 + 1001, for_nodes=True)
    wait_until(lambda: len(wakes) == 2)
    changes.announce(10**12 + 1002, for_nodes=False)
    threading.Event().wait(changes.WAKE_PAUSE_S * 3)
    assert len(wakes) == 2
