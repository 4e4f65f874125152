"""A world in the mode of the class under test."""

from collections.abc import Iterator

import pytest

from tests.planes.world import World


@pytest.fixture(scope="class")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(request.cls.mode) as world:
        yield world
