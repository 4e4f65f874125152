"""A crowd of watches over HTTPS, each on a connection of its own, and when each heard of which version."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

import uvloop

from services_app.lab.client import CORE, ApiClient, service

OPENING_AT_ONCE = 32
_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')


class Watchers:
    """So many watches of a collection, from one version on; a context manager, entered once all are answered.

    `heard`: for each watch the versions it was told, in its order.
    """

    def __init__(self, api: ApiClient, collection: str, version: str, count: int) -> None:
        parts = urlsplit(api.url)
        self._host, self._port, self._tls = parts.hostname or "", parts.port or 443, api.tls
        self._request = (
            f"GET {collection}?watch=1&resourceVersion={version} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {api.token}\r\nAccept: application/json\r\n\r\n"
        ).encode()
        self.heard: list[list[str]] = [[] for _ in range(count)]
        self._counts: dict[str, int] = {}
        self._complete: dict[str, float] = {}  # version -> when the last watch heard of it, of time.perf_counter
        self._news = threading.Condition()
        self._opened = 0
        self._failure: BaseException | None = None
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="watchers", daemon=True)

    def __enter__(self) -> "Watchers":
        self._thread.start()
        try:
            self._wait(lambda: self._opened == len(self.heard), 120, "open all watches")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(30)

    def last_heard(self, version: str, timeout_s: float = 60.0) -> float:
        """When the last watch was told of a version, of `time.perf_counter`; waits for it. Raises RuntimeError."""
        self._wait(lambda: version in self._complete, timeout_s, f"tell every watch of version {version}")
        return self._complete[version]

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._news:
            self._news.wait_for(lambda: self._failure is not None or condition(), timeout_s)
            if not condition():
                raise RuntimeError(f"cannot {what}: {self._failure or f'not done after {timeout_s:.0f} s'}")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._watch_all())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except Exception as err:  # top of a thread; told by whoever waits
            with self._news:
                self._failure = err
                self._news.notify_all()
        finally:
            self._loop.close()

    async def _watch_all(self) -> None:
        gate = asyncio.Semaphore(OPENING_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for number in range(len(self.heard)):
                group.create_task(self._watch(number, gate))

    async def _watch(self, number: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 22)
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"watch {number} was answered {head.splitlines()[0].decode()}")
            # The server sends an empty piece at once, or the first events; from here on nothing is missed.
        with self._news:
            self._opened += 1
            self._news.notify_all()
        try:
            line = b""
            while size := int(await reader.readline(), 16):
                *lines, line = (line + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
                for complete in lines:
                    self._note(number, complete)
            raise RuntimeError(f"the server ended watch {number}")
        finally:
            writer.close()

    def _note(self, number: int, line: bytes) -> None:
        found = _VERSION.search(line)
        if found is None:
            raise RuntimeError(f"watch {number} was told what has no version: {line[:200].decode(errors='replace')}")
        version = found[1].decode()
        self.heard[number].append(version)
        count = self._counts[version] = self._counts.get(version, 0) + 1
        if count == len(self.heard):
            with self._news:
                self._complete[version] = time.perf_counter()
                self._news.notify_all()


def fan_out_ms(api: ApiClient, namespace: str, *, watchers: int, changes: int) -> list[float]:
    """For each change of a Service: milliseconds from the write's answer until the last watch has heard of it."""
    api.ensure_namespace(namespace)
    services = f"{CORE}/namespaces/{namespace}/services"
    made = api.create(services, service("watched", {"app": "watched"}, [{"port": 80}]))
    times = []
    with Watchers(api, services, made["metadata"]["resourceVersion"], watchers) as crowd:
        for number in range(changes):
            written = api.request(
                "PATCH", f"{services}/watched", {"metadata": {"annotations": {"example.org/round": str(number)}}}
            )
            answered = time.perf_counter()
            heard = crowd.last_heard(written["metadata"]["resourceVersion"])
            times.append(max(heard - answered, 0.0) * 1000)
            time.sleep(0.05)
    return times
