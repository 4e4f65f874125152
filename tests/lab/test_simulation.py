"""The simulation of many nodes against cases that can be worked out by hand, and against what was measured."""

from dataclasses import replace

import pytest

from services_app.lab.simulation import Costs, Plant, Recording, Simulation, simulate, workers_needed

FREE = Costs(
    wake_ms=0,
    worker_cpu_ms=0,
    database_cpu_ms=0,
    node_cpu_ms=0,
    node_ms=(0,),
    ask_worker_cpu_ms=0,
    ask_database_cpu_ms=0,
)


def last_s(plant: Plant, costs: Costs, changes: int = 3) -> float:
    times = Simulation(replace(plant, asks=False), costs).changes_s(changes)
    assert len(times) == changes
    assert max(times) == pytest.approx(min(times), rel=0.01)
    return times[0]


def test_one_interpreter_does_one_push_after_the_other():
    costs = replace(FREE, wake_ms=10, worker_cpu_ms=4)
    assert last_s(Plant(nodes=100), costs) == pytest.approx(0.01 + 100 * 0.004)


def test_waiting_for_nodes_goes_on_in_so_many_threads_at_once():
    assert last_s(Plant(nodes=100, threads=32), replace(FREE, node_ms=(50,))) == pytest.approx(4 * 0.05)
    assert last_s(Plant(nodes=100, threads=100), replace(FREE, node_ms=(50,))) == pytest.approx(0.05)


def test_the_database_is_one_for_all_workers():
    costs = replace(FREE, database_cpu_ms=2)
    assert last_s(Plant(nodes=100, workers=4, database_processors=2), costs) == pytest.approx(100 * 0.002 / 2, rel=0.05)


def test_nodes_on_the_same_machine_take_its_processors():
    costs = replace(FREE, node_cpu_ms=10, node_ms=(10,))
    assert last_s(Plant(nodes=100, processors=2), costs) == pytest.approx(100 * 0.01 / 2)
    assert last_s(Plant(nodes=100, threads=100), costs) == pytest.approx(0.01)


def test_workers_share_the_nodes_by_their_shards():
    costs = replace(FREE, worker_cpu_ms=40)
    one, four = (last_s(Plant(nodes=2000, workers=workers), costs, changes=1) for workers in (1, 4))
    assert one / 4 < four < one / 3  # shards are not quite even


def test_asking_nodes_all_the_time_takes_its_share_of_the_worker():
    costs = replace(FREE, worker_cpu_ms=1, ask_worker_cpu_ms=2)
    simulation = Simulation(Plant(nodes=500), costs)
    times = simulation.changes_s(20)
    pushing, asking = 20 * 500 * 0.001 / (sum(times) + 20 * 0.5), 500 * 0.002 / 5.5
    assert simulation.busy["worker"] == pytest.approx(pushing + asking, rel=0.05)
    assert sum(times) / 20 == pytest.approx(0.5 / (1 - asking), rel=0.15)


def test_it_says_of_the_recorded_nodes_what_was_measured():
    recording = Recording.read()
    assert recording.nodes == 200
    assert simulate(recording.plant, recording.costs, 20).p50_s * 1000 == pytest.approx(recording.p50_ms, rel=0.15)


def test_the_fewest_workers_are_found():
    costs = replace(FREE, worker_cpu_ms=10)
    plant = Plant(nodes=1000, asks=False)
    needed = workers_needed(plant, costs, 2)
    assert needed
    assert simulate(replace(plant, workers=needed), costs).p99_s <= 2
    assert simulate(replace(plant, workers=needed - 1), costs).p99_s > 2
    assert workers_needed(plant, replace(costs, wake_ms=3000), 2) is None


def test_a_recording_is_read_as_it_was_written(tmp_path):
    recording = Recording(replace(FREE, node_ms=(1.5, 2.0)), 12, 2, 84.0)
    recording.write(tmp_path / "costs.json")
    assert Recording.read(tmp_path / "costs.json") == recording
