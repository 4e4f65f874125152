"""How long a change takes from the API to the packets of the last node.

The clock runs from sending the write over HTTPS to the first connection that the new endpoint answers on the last
node. The Service has one endpoint, a Pod in a container whose address changes with each write; so an answer names
the change it belongs to. Every node asks its own connection every two milliseconds until then.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from services_app.lab.client import CORE, ApiClient, pod, service
from services_app.lab.namespaces import Message, outcome
from services_app.lab.network import Node

PORT = 9376
CYCLE = 40  # addresses taken in turn: one overtaken by the next changes is told from one not reached
OVERTAKING = 30


@dataclass(frozen=True)
class Round:
    """Times of one round, in milliseconds, in order of the changes; answered_ms: until the API answered the write."""

    times_ms: tuple[float, ...]
    answered_ms: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        return percentile(self.times_ms, 50)

    @property
    def p99_ms(self) -> float:
        return percentile(self.times_ms, 99)


def percentile(values: tuple[float, ...] | list[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def middle(rounds: list[Round]) -> Round:
    """The round with the median p99."""
    return sorted(rounds, key=lambda r: r.p99_ms)[(len(rounds) - 1) // 2]


class Convergence:
    """A Service with one endpoint that moves; a context manager.

    `namespace` must exist; its objects stay until it is deleted.
    """

    def __init__(self, nodes: Sequence[Node], api: ApiClient, namespace: str) -> None:
        self._nodes = nodes
        self._api = api
        self._namespace = namespace
        self._container = container = nodes[0].containers[0]
        self._names = [f"{namespace}-{i}" for i in range(CYCLE)]
        self._addresses = [container.add_address(100 + i) for i in range(CYCLE)]
        for name, address in zip(self._names, self._addresses, strict=True):
            container.serve(name, PORT, address=address)
        labels = {"app": "moving"}
        record = pod("moving", labels, nodes[0].name, {"app": (PORT, "TCP")}, address=self._addresses[0])
        api.create(f"{CORE}/namespaces/{namespace}/pods", record)
        made = api.create(
            f"{CORE}/namespaces/{namespace}/services", service("moving", labels, [{"port": 80, "targetPort": PORT}])
        )
        self._virtual_ip: str = made["spec"]["clusterIP"]
        self._next = 1
        for waiting in [self._until(node, self._names[:1], 60) for node in nodes]:
            outcome(waiting, 70)

    def __enter__(self) -> "Convergence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address in self._addresses:
            self._container.stop_serving(PORT, address=address)

    @property
    def made(self) -> int:
        """How many changes were made so far."""
        return self._next - 1

    def measure(self, changes: int, interval_ms: float = 100) -> Round:
        """One change every interval, whether the one before has arrived or not. Raises ProbeFailed if one never does."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            paced = self._paced(changes, interval_ms / 1000)
            arrivals = [pool.submit(self._change, number) for number in paced]
            times = [arrival.result(timeout=60) for arrival in arrivals]
        return Round(tuple(last for last, _ in times), tuple(answered for _, answered in times))

    def _paced(self, changes: int, interval_s: float) -> Iterator[int]:
        begin = time.monotonic()
        for i in range(changes):
            time.sleep(max(begin + i * interval_s - time.monotonic(), 0))
            yield self._next
            self._next += 1

    def _change(self, number: int) -> tuple[float, float]:
        """Milliseconds until the last node answers with that change or a later one, and until the write is answered."""
        names = [self._names[(number + i) % CYCLE] for i in range(OVERTAKING)]
        path = f"{CORE}/namespaces/{self._namespace}/pods/moving"
        body = {"metadata": {"annotations": {"timonel.io/pod-ip": self._addresses[number % CYCLE]}}}
        waiting = [self._until(node, names, 10) for node in self._nodes]
        begin = time.monotonic()
        self._api.request("PATCH", path, body)
        answered = time.monotonic()
        last = max(outcome(w, 20)["at"] for w in waiting)
        return (last - begin) * 1000, (answered - begin) * 1000

    def _until(self, node: Node, names: list[str], deadline_s: float) -> "Future[Message]":
        return node.ask_until(self._virtual_ip, 80, names, deadline_s=deadline_s)


def fill(api: ApiClient, nodes: Sequence[Node], namespace: str, count: int, progress: Callable[[str], None]) -> None:
    """Other Services of the cluster: so many, each with three endpoints on three nodes."""
    api.ensure_namespace(namespace)
    labels = {"app": "other"}
    for i, node in enumerate(nodes):
        record = pod(f"other-{i}", labels, node.name, {"app": (PORT, "TCP")}, address=node.containers[0].address)
        api.create(f"{CORE}/namespaces/{namespace}/pods", record)
    ports: list[dict[str, Any]] = [{"port": 80, "targetPort": PORT}]

    def create(i: int) -> None:
        api.create(f"{CORE}/namespaces/{namespace}/services", service(f"other-{i}", labels, ports))

    begin = time.monotonic()
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done, _ in enumerate(pool.map(create, range(count)), start=1):
            if done % 250 == 0:
                progress(f"{done} of {count} Services in {time.monotonic() - begin:.1f} s")


def three_rounds(convergence: Convergence, changes: int, progress: Callable[[str], None]) -> Round:
    """The round with the median p99 of three, after a warm-up."""
    convergence.measure(max(changes // 10, 5))
    rounds = []
    for number in range(3):
        rounds.append(convergence.measure(changes))
        answered_ms = percentile(rounds[-1].answered_ms, 50)
        progress(
            f"round {number + 1}: p50 {rounds[-1].p50_ms:.0f} ms, p99 {rounds[-1].p99_ms:.0f} ms; "
            f"the write is answered after {answered_ms:.0f} ms (p50)"
        )
    return middle(rounds)
