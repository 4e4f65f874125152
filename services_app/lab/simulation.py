"""A change's way to thousands of nodes, simulated from what pushes to two hundred real ones took.

Discrete events: steps that need a processor take it in turn, everything else is time that passes. What is modelled:

- A worker process runs one thread at a time (the interpreter's lock), and has so many threads for pushes.
- A node's shard says which worker has its session; one worker hears of a change and starts the pushes of all, its own
  directly and the others by a message a shard.
- A push: processor time in the worker, twice the database, the node's own time and the way to it, which is drawn from
  the recorded ones.
- Nodes are asked whether they are well every few seconds, by the same workers and database.
- Everything on one machine shares its processors, nodes included when they run there, too; otherwise nodes have their own.

Not modelled: lost packets, broken sessions (opening one costs some ten pushes), changes so close that one push carries
several of them, and what the broker adds beyond the processor time of its messages.
"""

import heapq
import json
import random
import zlib
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from services_app.lab.convergence import percentile

RECORDED = Path(__file__).parent / "push-costs.json"
SHARDS = 64
MESSAGE_CPU_MS = 1.0  # of a message to another worker, in the one that sends and the one that gets it; assumed
HEARTBEAT_S = 5.5  # on average: the sweep of every second finds a node whose last report is five seconds old

Steps = Generator["float | Resource", None, None]


@dataclass(frozen=True)
class Costs:
    """What was recorded, in milliseconds. *_cpu_ms: of a processor.

    wake_ms: from sending a write until its pushes begin, and what else a push waits for. node_ms: how long single nodes
    worked at one. ask_*: of a node that has nothing to get.
    """

    wake_ms: float
    worker_cpu_ms: float
    database_cpu_ms: float
    node_cpu_ms: float
    node_ms: tuple[float, ...]
    ask_worker_cpu_ms: float
    ask_database_cpu_ms: float

    def told(self) -> str:
        node_ms = percentile(self.node_ms, 50)
        return (
            f"worker {self.worker_cpu_ms:.1f}, database {self.database_cpu_ms:.1f} and node {self.node_cpu_ms:.1f} of a "
            f"processor, {node_ms:.1f} until the node is done, {self.wake_ms:.1f} for all the rest; asking a node "
            f"{self.ask_worker_cpu_ms:.1f} of the worker, {self.ask_database_cpu_ms:.1f} of the database"
        )


@dataclass(frozen=True)
class Recording:
    """Costs, and where they come from: so many nodes on one machine, and how long a change took to the last (median)."""

    costs: Costs
    nodes: int
    processors: int
    p50_ms: float

    @classmethod
    def read(cls, path: Path = RECORDED) -> "Recording":
        fields = json.loads(path.read_text(encoding="utf-8"))
        costs = fields.pop("costs")
        return cls(Costs(**{**costs, "node_ms": tuple(costs["node_ms"])}), **fields)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @property
    def plant(self) -> "Plant":
        return Plant(self.nodes, processors=self.processors, database_processors=self.processors)


@dataclass(frozen=True)
class Plant:
    """What runs the control plane. processors: of the one machine everything shares; None: each part has its own."""

    nodes: int
    workers: int = 1
    threads: int = 32
    database_processors: int = 8
    processors: int | None = None
    asks: bool = True


class Resource:
    """So many may have it at once; the others wait in their order."""

    def __init__(self, clock: "Clock", capacity: int) -> None:
        self._clock = clock
        self.capacity = self._free = capacity
        self._waiting: deque[Steps] = deque()
        self.busy_s = 0.0  # summed over all who had it with `used`

    def take(self, process: Steps) -> bool:
        """Whether the process has it at once; otherwise it goes on when its turn comes."""
        if self._free:
            self._free -= 1
            return True
        self._waiting.append(process)
        return False

    def give_back(self) -> None:
        if self._waiting:
            self._clock.start(self._waiting.popleft())
        else:
            self._free += 1

    def used(self, seconds: float) -> Steps:
        """Wait for it, have it for so long, give it back."""
        yield self
        yield seconds
        self.busy_s += seconds
        self.give_back()


class Clock:
    """Runs processes, which yield seconds to let pass or a Resource to wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._number = 0
        self._events: list[tuple[float, int, Steps]] = []

    def start(self, process: Steps, after_s: float = 0.0) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + after_s, self._number, process))

    def run(self, main: Steps) -> None:
        """Run a process to its end, and meanwhile all others."""
        self.start(main)
        is_over = False
        while not is_over:
            self.now, _, process = heapq.heappop(self._events)
            for wanted in process:
                if isinstance(wanted, Resource):
                    if not wanted.take(process):
                        break
                else:
                    self.start(process, wanted)
                    break
            else:
                is_over = process is main


class _Worker:
    def __init__(self, clock: Clock, threads: int) -> None:
        self.interpreter = Resource(clock, 1)
        self.threads = Resource(clock, threads)


class Simulation:
    """A control plane with its nodes, and the changes that go out from it."""

    def __init__(self, plant: Plant, costs: Costs, seed: int = 0) -> None:
        self._costs = costs
        self._random = random.Random(seed)
        self._clock = clock = Clock()
        self._workers = [_Worker(clock, plant.threads) for _ in range(plant.workers)]
        self._database = Resource(clock, plant.database_processors)
        self._processors = Resource(clock, plant.processors) if plant.processors else None
        self._nodes = plant.nodes
        numbers = range(1, plant.nodes + 1)
        self._shards = Counter(zlib.crc32(f"node-{number}".encode()) % SHARDS for number in numbers)
        for shard in self._shards.elements() if plant.asks else ():
            worker = self._workers[shard % plant.workers]
            clock.start(self._asking(worker), self._random.uniform(0, HEARTBEAT_S))

    def changes_s(self, count: int, pause_s: float = 0.5) -> list[float]:
        """Of each change the seconds until the last node's report is stored; the next comes after a pause."""
        times: list[float] = []
        self._clock.run(self._changing(count, pause_s, times))
        return times

    @property
    def busy(self) -> dict[str, float]:
        """Share of the time so far in which the busiest worker, and the database's processors, had to do."""
        now = self._clock.now
        return {
            "worker": max(worker.interpreter.busy_s for worker in self._workers) / now,
            "database": self._database.busy_s / now / self._database.capacity,
        }

    def _changing(self, count: int, pause_s: float, times: list[float]) -> Steps:
        for _ in range(count):
            begin = self._clock.now
            yield self._costs.wake_ms / 1000
            everywhere = Resource(self._clock, 0)
            waking = self._random.randrange(len(self._workers))
            self._clock.start(self._waking(waking, everywhere))
            for _ in range(self._nodes):
                yield everywhere
            times.append(self._clock.now - begin)
            yield pause_s

    def _waking(self, here: int, everywhere: Resource) -> Steps:
        """One worker starts all pushes: those of its own shards at once, the others by a message a shard."""
        for shard, count in self._shards.items():
            worker = self._workers[shard % len(self._workers)]
            if worker is self._workers[here]:
                self._start(worker, count, everywhere)
            else:
                yield from self._working(self._workers[here], MESSAGE_CPU_MS)
                self._clock.start(self._hearing(worker, count, everywhere))

    def _hearing(self, worker: _Worker, count: int, everywhere: Resource) -> Steps:
        yield from self._working(worker, MESSAGE_CPU_MS)
        self._start(worker, count, everywhere)

    def _start(self, worker: _Worker, count: int, everywhere: Resource) -> None:
        for _ in range(count):
            self._clock.start(self._pushing(worker, everywhere))

    def _pushing(self, worker: _Worker, everywhere: Resource) -> Steps:
        costs = self._costs
        yield worker.threads
        # What the tables say of the node and what changed; then the way there and back; then the report.
        yield from self._working(worker, costs.worker_cpu_ms / 4)
        yield from self._querying(costs.database_cpu_ms / 2)
        yield from self._working(worker, costs.worker_cpu_ms / 4)
        yield from self._applying(self._random.choice(costs.node_ms))
        yield from self._working(worker, costs.worker_cpu_ms / 4)
        yield from self._querying(costs.database_cpu_ms / 2)
        yield from self._working(worker, costs.worker_cpu_ms / 4)
        worker.threads.give_back()
        everywhere.give_back()

    def _asking(self, worker: _Worker) -> Steps:
        """A node is asked whether it is well, again and again; its own time for that is not noticed."""
        while True:
            yield worker.threads
            yield from self._working(worker, self._costs.ask_worker_cpu_ms)
            yield from self._querying(self._costs.ask_database_cpu_ms)
            worker.threads.give_back()
            yield HEARTBEAT_S

    def _working(self, worker: _Worker, ms: float) -> Steps:
        """One thread at a time has the interpreter; it needs a processor besides where these are shared."""
        yield worker.interpreter
        yield from self._on_processor(ms)
        worker.interpreter.busy_s += ms / 1000
        worker.interpreter.give_back()

    def _querying(self, ms: float) -> Steps:
        yield self._database
        yield from self._on_processor(ms)
        self._database.busy_s += ms / 1000
        self._database.give_back()

    def _applying(self, way_ms: float) -> Steps:
        """way_ms: until an idle node has answered, with its own work."""
        if self._processors is None:
            yield way_ms / 1000
            return
        work_ms = min(self._costs.node_cpu_ms, way_ms)
        yield from self._on_processor(work_ms)
        yield (way_ms - work_ms) / 1000

    def _on_processor(self, ms: float) -> Steps:
        if self._processors is None:
            yield ms / 1000
        else:
            yield from self._processors.used(ms / 1000)


@dataclass(frozen=True)
class Outcome:
    """Of many changes: seconds until the last node; and the share of time in which the busiest part had to do."""

    p50_s: float
    p99_s: float
    busiest: str
    busy: float


def simulate(plant: Plant, costs: Costs, changes: int = 50) -> Outcome:
    """Single changes, one after the other."""
    simulation = Simulation(plant, costs)
    times = simulation.changes_s(changes)
    busiest, busy = max(simulation.busy.items(), key=lambda item: item[1])
    return Outcome(percentile(times, 50), percentile(times, 99), busiest, busy)


def workers_needed(plant: Plant, costs: Costs, p99_s: float, most: int = SHARDS) -> int | None:
    """The fewest workers with which the last of the nodes has 99 of 100 changes in time; None: not with `most`."""
    fewest, enough = 1, most
    if simulate(replace(plant, workers=most), costs, 20).p99_s > p99_s:
        return None
    while fewest < enough:
        middle = (fewest + enough) // 2
        if simulate(replace(plant, workers=middle), costs, 20).p99_s > p99_s:
            fewest = middle + 1
        else:
            enough = middle
    return enough
