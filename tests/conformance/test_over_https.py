"""The recorded conversations with whole control planes, over HTTPS and with a token, as any client has them."""

import shutil
import ssl
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from services_app.local.supervisor import Stack
from tests.conformance.player import OverHttp, Player
from tests.conformance.test_corpus import CASES, EXPECTED_FAILURES

RANGES = {"single": "10.96.0.0/16", "dual": "10.96.0.0/16,fd00:10:96::/112"}
# What is different over a wire; all else is the same code in tests/conformance/test_corpus.py.
OF_THE_WIRE = {"discovery", "dual-stack", "field-validation", "media", "method", "namespaces", "table", "watch"}
STREAMS_AT_ONCE = 6  # they end by the clock


@pytest.fixture(scope="module", params=RANGES)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="timonel-corpus-"))
    directory.chmod(0o755)
    environment = {"TIMONEL_SERVICE_CIDRS": RANGES[request.param]}
    try:
        with Stack(directory, "127.0.0.1:0", durable=False, environment=environment) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def config_of(stack: Stack) -> str:
    return next(name for name, ranges in RANGES.items() if stack.environment["TIMONEL_SERVICE_CIDRS"] == ranges)


def play(stack: Stack, cases: Iterable[str]) -> None:
    """All of them; those that fail are those that are expected to."""
    transport = OverHttp(stack.url, ssl.create_default_context(cafile=str(stack.ca)))
    player = Player(transport, stack.token, lambda: time.sleep(0.2), attempts=60, cleans_up=True)
    failed: dict[str, str] = {}

    def play_one(name: str) -> None:
        try:
            player.play(CASES[name])
        except Exception as err:  # a mismatch, a broken connection, an answer of odd shape
            failed[name] = f"{err} {getattr(err, '__notes__', '')}"

    streamed = [name for name in cases if any(step.get("watch") for step in CASES[name]["steps"])]
    for name in cases:
        if name not in streamed:
            play_one(name)
    with ThreadPoolExecutor(STREAMS_AT_ONCE) as pool:
        list(pool.map(play_one, streamed))
    wrong: dict[str, Any] = {name: why for name, why in failed.items() if name not in EXPECTED_FAILURES}
    wrong |= {name: "passes, and is listed as failing" for name in cases if name in EXPECTED_FAILURES.keys() - failed}
    assert wrong == {}


def test_what_depends_on_the_wire(stack: Stack) -> None:
    config = config_of(stack)
    play(stack, [name for name, case in CASES.items() if case["config"] == config and case["area"] in OF_THE_WIRE])


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_everything(stack: Stack) -> None:
    play(stack, [name for name, case in CASES.items() if case["config"] == config_of(stack)])
