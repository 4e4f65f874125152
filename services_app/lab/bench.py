"""`timonel bench`: the figures of docs/benchmarks.md, each taken on the running system through its public faces.

An area measures a running cluster; AREAS is all there is to add one.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services_app.lab import pages, throughput
from services_app.lab.cluster import Cluster
from services_app.lab.convergence import Convergence, fill, percentile, three_rounds
from services_app.lab.watchers import fan_out_ms

Say = Callable[[str], None]

CHANGES = 200
SIZES = (10, 1000)
PRESENT = 10_000
WATCHERS, WATCHED_CHANGES = 1000, 50
SIMULATED_NODES, LOADS = 500, 100


@dataclass(frozen=True)
class Figure:
    """One number by its name. aim: what it should not exceed; None without."""

    name: str
    value: float
    aim: float | None = None


def convergence(cluster: Cluster, say: Say) -> list[Figure]:
    """Three nodes, nftables: 200 changes of one endpoint, one every 100 ms, among 10 and 1,000 Services."""
    figures = []
    present = 0
    for size in SIZES:
        cluster.api.ensure_namespace(f"other-{size}")
        fill(cluster.api, cluster.lab, f"other-{size}", size - present - 1, say)
        name = f"moving-{size}"
        cluster.api.ensure_namespace(name)
        say(f"{CHANGES} changes among {size} Services, three rounds")
        with Convergence(cluster.lab, cluster.api, name) as moving:
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
    }
    figures = []
    for name, path in paths.items():
        browser.load(path)
        times = [browser.load(path) for _ in range(LOADS)]
        say(f"{name}: p50 {percentile(times, 50):.0f} ms, p95 {percentile(times, 95):.0f} ms")
        figures.append(Figure(f"page.{name}.p95_ms", round(percentile(times, 95)), 300))
    return figures


@dataclass(frozen=True)
class Area:
    """What is measured, and the web processes it wants."""

    measure: Callable[[Cluster, Say], list[Figure]]
    web_processes: int = 2


AREAS = {
    "convergence": Area(convergence),
    "api": Area(api),
    "watch": Area(watch, web_processes=4),
    "pages": Area(dashboard),
}


def run(directory: Path, results: Path, only: str | None, say: Say) -> list[Figure]:
    """Measure the areas, each on a cluster of its own, and merge the figures into the results file."""
    figures: list[Figure] = []
    for name, area in AREAS.items():
        if only in (None, name):
            with Cluster(directory, web_processes=area.web_processes, say=say) as cluster:
                figures += area.measure(cluster, say)
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
        aim = f"≤ {figure.aim:g}" if figure.aim is not None else ""
        rows.append(f"{figure.name:<{width}}  {figure.value:>10g}  {aim:>8}")
    return "\n".join(rows)
