"""How fast the API takes and gives Services: over HTTPS with kept connections, as clients come."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from services_app.lab.client import CORE, ApiClient, service

Say = Callable[[str], None]

NAMESPACE = "throughput"
SERVICES = f"{CORE}/namespaces/{NAMESPACE}/services"


@dataclass(frozen=True)
class Throughput:
    """Milliseconds a request, Services a second, seconds until the last byte of a whole list."""

    creates_per_s: float
    create_p50_ms: float
    create_p99_ms: float
    get_p50_ms: float
    list_s: float


def measure(api: ApiClient, *, present: int, clients: int, requests: int, say: Say) -> Throughput:
    """Fill a namespace with `present` Services from several clients, then ask with one: creates, gets, whole lists."""
    api.ensure_namespace(NAMESPACE)
    for number in range(50):
        _create(api, f"warm-{number}")
    say(f"{clients} clients create {present} Services")
    creates_per_s = present / fill(api, present, clients)
    say(f"one client, {requests} creates, {requests} gets, 5 lists")
    creates = sorted(_timed_ms(lambda n=n: _create(api, f"one-{n}")) for n in range(requests))  # type: ignore[misc]
    gets = [_timed_ms(lambda n=n: api.request("GET", f"{SERVICES}/one-{n}")) for n in range(requests)]  # type: ignore[misc]
    # Until the last byte: what decoding takes depends on the client's language, and in Python is several times as long.
    lists = [_timed_ms(lambda: api.read(SERVICES)) / 1000 for _ in range(5)]
    return Throughput(
        creates_per_s,
        statistics.median(creates),
        creates[int(len(creates) * 0.99)],
        statistics.median(gets),
        statistics.median(lists),
    )


def fill(api: ApiClient, present: int, clients: int) -> float:
    """So many Services from several clients at once; the seconds it took."""
    api.ensure_namespace(NAMESPACE)
    numbers = itertools.count()
    failures: list[Exception] = []

    def fill() -> None:
        try:
            while (number := next(numbers)) < present:
                _create(api, f"many-{number}")
        except Exception as err:  # top of a thread; told below
            failures.append(err)

    threads = [threading.Thread(target=fill) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"cannot fill the namespace: {failures[0]}") from failures[0]
    return time.perf_counter() - begin


def _create(api: ApiClient, name: str) -> None:
    api.create(SERVICES, service(name, {"app": name}, [{"port": 80}]))


def _timed_ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000
