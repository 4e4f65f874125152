"""Options and rules of the whole suite; the servers it runs on are tests/servers.py."""

import os

import pytest
from hypothesis import settings

settings.register_profile("timonel", deadline=None)  # how long a machine takes says nothing
settings.load_profile("timonel")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files; read the diff afterwards")


def pytest_collection_modifyitems(items):
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="makes network namespaces, which needs root")
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _ranges_are_read_anew():
    """Revisions come again after a rollback, so what a process keeps by revision must not outlive a test."""
    from services_app.store import ranges

    ranges.forget()
