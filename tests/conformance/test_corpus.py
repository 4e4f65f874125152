"""Timonel answers as kube-apiserver v1.36 did: recorded conversations, held again (README.md)."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from django.db import connections
from django.test import override_settings

from services_app import store
from services_app.api import auth
from services_app.models import Namespace
from tests.conformance.conftest import DUAL
from tests.conformance.player import InProcess, OverHttp, Player

HERE = Path(__file__).parent
AT_ONCE = 8  # watches end by the clock, so they are read side by side


def _cases() -> Iterator[dict]:
    for path in sorted((HERE / "cases").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def _expected_failures() -> dict[str, str]:
    """Case -> why it does not pass yet."""
    lines = (HERE / "expected_failures.txt").read_text().splitlines()
    pairs = (line.split(None, 1) for line in lines if line and not line.startswith("#"))
    return {pair[0]: pair[1] for pair in pairs}


CASES = {f"{case['area']}/{case['name']}": case for case in _cases()}
EXPECTED_FAILURES = _expected_failures()


def _is_streamed(case: dict) -> bool:
    return any(step.get("watch") for step in case["steps"])


def _marks(name: str) -> Iterator[pytest.MarkDecorator]:
    if name in EXPECTED_FAILURES:
        yield pytest.mark.xfail(reason=EXPECTED_FAILURES[name], strict=True)
    if any("repeat" in step for step in CASES[name]["steps"]):
        yield pytest.mark.slow


def _params(*, streamed: bool) -> list:
    return [
        pytest.param(name, id=name, marks=[*_marks(name)])
        for name, case in CASES.items()
        if _is_streamed(case) == streamed
    ]


def _work_in_background() -> None:
    """What Celery does every few seconds."""
    store.reap_pods(actor=store.Actor("tidy"))
    going = Namespace.objects.filter(document__contains='"phase":"Terminating"').values_list("name", flat=True)
    for name in [*going]:
        store.finish_namespace(name, actor=store.Actor("tidy"), at_most=2000)


@pytest.mark.parametrize("name", _params(streamed=False))
def test_answers_are_those_of_kubernetes(name, cluster, db):
    auth._known.clear()
    is_dual = CASES[name]["config"] == "dual"
    with override_settings(TIMONEL_SERVICE_CIDRS=DUAL) if is_dual else nullcontext():
        store.ensure_ranges()
        Player(InProcess(), cluster.token, _work_in_background).play(CASES[name])


@pytest.fixture(scope="module")
def streamed(request, cluster, server):
    """Case -> its run, of all selected cases with watches; they are on their way at once."""
    wanted = [item.callspec.params["name"] for item in request.session.items if "streamed" in item.fixturenames]

    def play(name: str) -> None:
        try:
            Player(OverHttp(f"http://127.0.0.1:{server}"), cluster.token, lambda: None).play(CASES[name])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(play, name) for name in dict.fromkeys(wanted)}


@pytest.mark.parametrize("name", _params(streamed=True))
def test_watches_are_those_of_kubernetes(name, streamed: dict[str, Future[None]]):
    streamed[name].result(timeout=120)


def test_expected_failures_name_cases_in_order():
    assert EXPECTED_FAILURES.keys() <= CASES.keys()
    assert [*EXPECTED_FAILURES] == sorted(EXPECTED_FAILURES)
