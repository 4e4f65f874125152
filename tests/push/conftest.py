"""The store's fixtures, for what is pushed of it."""

from tests.store.conftest import committed_world, fresh_snapshots

__all__ = ["committed_world", "fresh_snapshots"]
