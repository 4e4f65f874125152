"""Ten thousand connections are shared out by chance, and evenly."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.planes.world import Given, World

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(300),
]
PLACES = ("inside", "other", "neighbour")
PICKS = 10_000
CRITICAL = 18.4  # of χ² with two degrees of freedom: above it in one of 10,000 runs


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World("nftables") as world:
        yield world


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_the_choice_is_even(world: World, mode: str) -> None:
    world.configure(mode)
    world.send(web=Given(dict.fromkeys(PLACES, "ready")))
    client, way = world.node, world.way("web", "cluster ip", 4)
    picked = Counter(answer.get("backend") for answer in client.ask_often(*way, PICKS))
    assert picked.keys() == set(PLACES), picked
    mean = PICKS / len(PLACES)
    assert sum((count - mean) ** 2 / mean for count in picked.values()) < CRITICAL, picked
