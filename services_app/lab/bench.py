"""`timonel bench`: the figures of docs/benchmarks.md, each taken on the running system through its public faces.

An area measures a running cluster; AREAS is all there is to add one.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from services_app.lab import connections, dataplane, fanout, pages, simulation, throughput
from services_app.lab.client import CORE
from services_app.lab.cluster import Cluster
from services_app.lab.convergence import Convergence, fill, percentile, three_rounds
from services_app.lab.demo import make_empty
from services_app.lab.network import Node
from services_app.lab.simulation import Plant, Recording
from services_app.lab.watchers import fan_out_ms

Say = Callable[[str], None]

CHANGES = 200
SIZES = (10, 1000)
PRESENT = 10_000
WATCHERS, WATCHED_CHANGES = 1000, 50
SIMULATED_NODES, LOADS = 500, 100
REST_S = 3.0  # until an agent rests after a push
MODES = ("nftables", "iptables")  # in which connections are measured among PRESENT Services
PROXIED = 1000  # Services of mode userspace: it is for no more
FANOUT_NODES, FANOUT_CHANGES = 200, 50
SIMULATED = 5000  # nodes


@dataclass(frozen=True)
class Figure:
    """One number by its name. aim: what it should not exceed, or with at_least not fall below; None without."""

    name: str
    value: float
    aim: float | None = None
    at_least: bool = False


def convergence(cluster: Cluster, say: Say) -> list[Figure]:
    """Three nodes, nftables: 200 changes of one endpoint, one every 100 ms, among 10 and 1,000 Services."""
    figures = []
    present = 0
    for size in SIZES:
        cluster.api.ensure_namespace(f"other-{size}")
        fill(cluster.api, cluster.lab.nodes, f"other-{size}", size - present - 1, say)
        name = f"moving-{size}"
        cluster.api.ensure_namespace(name)
        say(f"{CHANGES} changes among {size} Services, three rounds")
        with Convergence(cluster.lab.nodes, cluster.api, name) as moving:
            measured = three_rounds(moving, CHANGES, say)
        present = size
        figures.append(Figure(f"convergence.p50_ms.services_{size}", round(measured.p50_ms, 1)))
        figures.append(Figure(f"convergence.p99_ms.services_{size}", round(measured.p99_ms, 1), 150))
    return figures


def api(cluster: Cluster, say: Say) -> list[Figure]:
    """Three nodes that are pushed to meanwhile; 8 clients fill up to 10,000 Services, then one asks."""
    measured = throughput.measure(cluster.api, present=PRESENT, clients=8, requests=500, say=say)
    return [
        Figure("api.creates_per_s", round(measured.creates_per_s)),
        Figure("api.create.p50_ms", round(measured.create_p50_ms, 1), 10),
        Figure("api.create.p99_ms", round(measured.create_p99_ms, 1), 30),
        Figure("api.get.p50_ms", round(measured.get_p50_ms, 1), 3),
        Figure("api.list_10000_s", round(measured.list_s, 2), 0.3),
    ]


def watch(cluster: Cluster, say: Say) -> list[Figure]:
    """1,000 watches over four web processes: from a write's answer until the last watch has heard of it."""
    rounds = []
    fan_out_ms(cluster.api, "watched", watchers=WATCHERS, changes=10)
    for number in range(3):
        times = fan_out_ms(cluster.api, f"watched-{number}", watchers=WATCHERS, changes=WATCHED_CHANGES)
        rounds.append((percentile(times, 99), percentile(times, 50)))
        say(f"round {number + 1}: p50 {rounds[-1][1]:.0f} ms, p99 {rounds[-1][0]:.0f} ms")
    p99, p50 = sorted(rounds)[1]
    return [
        Figure("watch.fanout_1000.p50_ms", round(p50)),
        Figure("watch.fanout_1000.p99_ms", round(p99), 250),
    ]


def dashboard(cluster: Cluster, say: Say) -> list[Figure]:
    """The pages among 10,000 Services and 500 simulated nodes beside the three real ones."""
    say(f"{PRESENT} Services and {SIMULATED_NODES} nodes")
    throughput.fill(cluster.api, PRESENT, clients=8)
    pages.simulate_nodes(cluster.api, cluster.stack.database_url, SIMULATED_NODES)
    browser = pages.Browser(cluster.api)
    browser.log_in("admin", cluster.stack.admin_password)
    paths = {
        "overview": "/ui/",
        "services": "/ui/services/",
        "service": f"/ui/services/{throughput.NAMESPACE}/many-1/",
        "nodes": "/ui/nodes/",
        "node": f"/ui/nodes/{cluster.lab.nodes[0].name}/",
        "allocators": "/ui/ranges/",
        "history": "/ui/history/",
        "explain": f"/ui/services/{throughput.NAMESPACE}/many-1/explain/",
    }
    figures = []
    for name, path in paths.items():
        browser.load(path)
        times = [browser.load(path) for _ in range(LOADS)]
        say(f"{name}: p50 {percentile(times, 50):.0f} ms, p95 {percentile(times, 95):.0f} ms")
        figures.append(Figure(f"page.{name}.p95_ms", round(percentile(times, 95)), 300))
    return figures


def one_node(cluster: Cluster, say: Say) -> list[Figure]:
    """One node: changes among 100 Services; then 10,000 with ten endpoints each are loaded, changed and connected to."""
    node = cluster.lab.nodes[0]
    cluster.enrol([node])
    figures = _changes(cluster, node, 100, say)
    with dataplane.Held(cluster, node) as held:
        _fill_held(held, "many", PRESENT, 10, say)
        kernel_s = dataplane.kernel_load_s(cluster.lab.neighbour, held.elements())
        figures += [
            Figure("node.kernel_load_s", round(kernel_s, 2), 1),
            Figure("node.full_load_s", round(dataplane.full_load_s(held, say), 2), 3),
            Figure("node.reload_s", round(dataplane.reload_s(held, say), 2), 3),
        ]
        held.empty()
        with dataplane.watched_memory(node) as peak:
            held.push()
        held.settle()
        time.sleep(REST_S)
        figures += [
            Figure("agent.rss_mib.rest", round(dataplane.resident_mib(held.agent_pid())), 100),
            Figure("agent.rss_mib.loading", round(peak[0]), 400),
        ]
        figures += _changes(cluster, node, PRESENT, say, agent=held.agent_pid())
        figures.append(_burst(cluster, node, say))
        connections.prepare(cluster.lab.nodes[0], cluster.lab.nodes[1], dataplane.PORT)
        for mode in MODES:
            say(f"connections in mode {mode}")
            held.serve_by(mode)
            figures += _connections(cluster, mode, PRESENT, say)
    return figures


def proxied(cluster: Cluster, say: Say) -> list[Figure]:
    """One node: connections among 1,000 Services with ten endpoints in mode userspace."""
    node = cluster.lab.nodes[0]
    cluster.enrol([node])
    with dataplane.Held(cluster, node) as held:
        _fill_held(held, "many", PROXIED, 10, say)
        held.serve_by("userspace")
        connections.prepare(cluster.lab.nodes[0], cluster.lab.nodes[1], dataplane.PORT)
        return _connections(cluster, "userspace", PROXIED, say)


def big_loads(cluster: Cluster, say: Say) -> list[Figure]:
    """One node: 5,000 Services with 50 endpoints from empty, and what the kernel takes for 1,000 with 100."""
    node = cluster.lab.nodes[0]
    cluster.enrol([node])
    with dataplane.Held(cluster, node) as held:
        _fill_held(held, "fifty", 5000, 50, say)
        figures = [Figure("node.load_250k_s", round(dataplane.full_load_s(held, say), 2), 8)]
        _fill_held(held, "hundred", 1000, 100, say)
        kernel_s = dataplane.kernel_load_s(cluster.lab.neighbour, held.elements("hundred"))
    return [*figures, Figure("node.kernel_load_1000x100_s", round(kernel_s, 2))]


def fan_out(cluster: Cluster, say: Say) -> list[Figure]:
    """200 nodes with a sshd each: from sending a write until the last node's report is stored; costs for the simulation."""
    count = len(cluster.lab.nodes)
    fanout.enrol_all(cluster, say)
    with fanout.Fanout(cluster) as moving:
        moving.measure(5)
        times = moving.measure(FANOUT_CHANGES)
        p50, p99 = percentile(times.last_ms, 50), percentile(times.last_ms, 99)
        answered = percentile(times.answered_ms, 50)
        say(f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; the write is answered after {answered:.0f} ms (p50)")
        say("processor time a change: " + ", ".join(f"{role} {ms:.0f} ms" for role, ms in times.cpu_ms.items()))
        costs = moving.record(times)
    recording = Recording(costs, count, len(os.sched_getaffinity(0)), p50)
    recording.write(cluster.directory.with_name("push-costs.json"))
    say(f"a push, in ms: {costs.told()}")
    return [Figure(f"fanout.{count}.p50_ms", round(p50)), Figure(f"fanout.{count}.p99_ms", round(p99), 1000)]


def simulate(say: Say) -> list[Figure]:
    """5,000 nodes with machines of their own, from the recorded costs of a push; no node is reached."""
    recording = Recording.read()
    costs, again = recording.costs, simulation.simulate(recording.plant, recording.costs)
    say(f"a push, in ms: {costs.told()}")
    say(f"{recording.nodes} nodes: {again.p50_s * 1000:.0f} ms simulated, {recording.p50_ms:.0f} ms measured (p50)")
    plant = Plant(SIMULATED)
    figures = []
    for workers in (1, 4, 16):
        found = simulation.simulate(replace(plant, workers=workers), costs)
        say(
            f"{workers} workers: p50 {found.p50_s:.1f} s, p99 {found.p99_s:.1f} s; {found.busiest} busy {found.busy:.0%}"
        )
        figures.append(Figure(f"simulation.{SIMULATED}.p99_s.workers_{workers}", round(found.p99_s, 2)))
    for limit_s in (5, 1):
        needed = simulation.workers_needed(plant, costs, limit_s)
        say(f"p99 within {limit_s} s: {needed or f'not with {simulation.SHARDS}'} workers")
        if needed:
            figures.append(Figure(f"simulation.{SIMULATED}.workers_for_{limit_s}s", needed))
    return figures


def _fill_held(held: dataplane.Held, namespace: str, services: int, endpoints: int, say: Say) -> None:
    """Services over the same Pods, written by the API while the node is left alone, and pushed at once then."""
    dataplane.add_pods(held.cluster.api, namespace, held.node, held.node.containers[1], endpoints)
    held.hold()
    say(f"{services} Services with {endpoints} endpoints each")
    dataplane.add_services(held.cluster.api, namespace, range(services), say)
    say(f"the first push of everything: {held.push():.2f} s")
    held.settle()


def _changes(cluster: Cluster, node: Node, size: int, say: Say, *, agent: int = 0) -> list[Figure]:
    """200 changes of one endpoint among so many Services on one node. agent: the process whose time is told, too."""
    name = f"moving-{size}"
    if size < PRESENT:
        fill(cluster.api, [node], f"other-{size}", size - 1, say)
    cluster.api.ensure_namespace(name)
    say(f"{CHANGES} changes among {size} Services, three rounds")
    with Convergence([node], cluster.api, name) as moving:
        before = dataplane.cpu_s(agent) if agent else 0.0
        measured = three_rounds(moving, CHANGES, say)
        cpu_s = dataplane.cpu_s(agent) - before if agent else 0.0
        made = moving.made
    figures = [Figure(f"node.change.p99_ms.services_{size}", round(measured.p99_ms, 1), 100)]
    return [*figures, Figure("node.change.cpu_ms", round(cpu_s * 1000 / made, 1), 10)] if agent else figures


def _burst(cluster: Cluster, node: Node, say: Say) -> Figure:
    """100 endpoints of 100 Services move at once, ten times."""
    cluster.api.ensure_namespace("burst")
    with dataplane.Burst(cluster.api, node, "burst", 100) as burst:
        burst.measure_ms()
        bursts = [burst.measure_ms() for _ in range(10)]
    say(f"100 changes at once: {', '.join(f'{ms:.0f}' for ms in bursts)} ms")
    return Figure("node.burst100_ms", round(statistics.median(bursts)), 500)


def _connections(cluster: Cluster, mode: str, services: int, say: Say) -> list[Figure]:
    """New connections on a node that serves so many Services by a mode, beside its twin without rules."""
    node, twin = cluster.lab.nodes
    first, last = (
        cluster.api.request("GET", f"{CORE}/namespaces/many/services/many-{number}")["spec"]["clusterIP"]
        for number in (0, services - 1)
    )
    rates = connections.measure(node, twin, {"first": (first, 80), "last": (last, 80)}, dataplane.PORT, say=say)
    infix, aim = ("", 0.7) if mode == "nftables" else (f".{mode}", None)
    figures = []
    for name in ("first", "last"):
        figures.append(Figure(f"node.conn_ratio{infix}.{name}", round(rates.ratio(name), 2), aim, at_least=True))
        figures.append(Figure(f"node.conn_extra_us{infix}.{name}", round(rates.extra_us(name), 1)))
    return figures


@dataclass(frozen=True)
class Area:
    """What is measured, and the cluster it wants. enrols: whether its nodes are enrolled before."""

    measure: Callable[[Cluster, Say], list[Figure]]
    web_processes: int = 2
    nodes: int = 3
    containers: int = 2
    enrols: bool = True


# Name -> what is measured under it, each on a cluster of its own.
AREAS: dict[str, tuple[Area, ...]] = {
    "convergence": (Area(convergence),),
    "api": (Area(api),),
    "watch": (Area(watch, web_processes=4),),
    "pages": (Area(dashboard),),
    "dataplane": (
        Area(one_node, nodes=2, enrols=False),
        Area(proxied, nodes=2, enrols=False),
        Area(big_loads, nodes=1, enrols=False),
    ),
    "fanout": (Area(fan_out, nodes=FANOUT_NODES, containers=0, enrols=False),),
}

# Name -> what is worked out, without any cluster.
WORKED_OUT: dict[str, Callable[[Say], list[Figure]]] = {"simulation": simulate}


def run(directory: Path, results: Path, only: str | None, say: Say) -> list[Figure]:
    """Measure the areas and merge the figures into the results file."""
    figures: list[Figure] = []
    for area in (area for name, areas in AREAS.items() if only in (None, name) for area in areas):
        wanted = asdict(area)
        measure = wanted.pop("measure")
        make_empty(directory)
        with Cluster(directory, **wanted, say=say) as cluster:
            figures += measure(cluster, say)
        merge(results, figures)
    for name, work_out in WORKED_OUT.items():
        if only in (None, name):
            figures += work_out(say)
            merge(results, figures)
    return figures


def merge(results: Path, figures: list[Figure]) -> None:
    """Add to the results file, replacing figures of the same name; it appears whole or not at all."""
    known = json.loads(results.read_text()) if results.exists() else {}
    known.update({figure.name: figure.value for figure in figures})
    new = results.with_name(f"{results.name}.{os.getpid()}")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    new.rename(results)


def table(figures: list[Figure]) -> str:
    width = max(len(figure.name) for figure in figures)
    rows = [f"{'figure':<{width}}  {'value':>10}  {'aim':>8}"]
    for figure in figures:
        aim = f"{'≥' if figure.at_least else '≤'} {figure.aim:g}" if figure.aim is not None else ""
        rows.append(f"{figure.name:<{width}}  {figure.value:>10g}  {aim:>8}")
    return "\n".join(rows)
