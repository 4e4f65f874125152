"""A pytest plugin: one PostgreSQL and one Redis of the tests' own, started once a run and gone afterwards.

Loaded before Django's settings are read. The servers belong to the process that pytest was started in; xdist's workers
share them, each with a database of its own.
"""

import os
import shutil
import tempfile
from pathlib import Path

from services_app.local.postgres import Postgres
from services_app.local.redis_server import RedisServer

_started: list[Postgres | RedisServer] = []
_directory: Path | None = None


def _start_servers() -> None:
    """Before Django's settings are read: they take the addresses from the environment."""
    global _directory
    if os.environ.get("TIMONEL_TEST_SERVERS"):
        return  # a worker of xdist
    _directory = Path(tempfile.mkdtemp(prefix="timonel-test-"))
    _directory.chmod(0o755)
    # Nothing here outlives the run, so nothing waits for the disk.
    postgres = Postgres(_directory / "postgres", durable=False)
    redis = RedisServer(_directory / "redis")
    for server in (postgres, redis):
        server.start()
        _started.append(server)
    os.environ["TIMONEL_TEST_SERVERS"] = str(os.getpid())
    os.environ["TIMONEL_DATA_DIR"] = str(_directory / "data")
    os.environ["DATABASE_URL"] = postgres.url
    os.environ["REDIS_URL"] = redis.url
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # playwright runs its own loop around tests


# At import: pytest-django reads the settings before any hook is called.
_start_servers()


def pytest_unconfigure(config):
    for server in reversed(_started):
        server.stop()
    _started.clear()
    if _directory is not None:
        shutil.rmtree(_directory, ignore_errors=True)
