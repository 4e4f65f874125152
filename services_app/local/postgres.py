"""An embedded PostgreSQL: own data directory, reached by a socket inside it only.

PostgreSQL refuses to run as root; then it runs as the user `postgres`, who must be able to reach the data directory.
"""

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

from services_app.local import processes

USER = "timonel"
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # A writer that dies in a transaction must not hold the counter row for long.
    "client_connection_check_interval": "2s",
    "idle_in_transaction_session_timeout": "60s",
    "autovacuum_naptime": "10s",
    "log_min_duration_statement": "500",
}


class Postgres:
    """One server. `start` returns once it answers; `url` is a DATABASE_URL."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self.data, self.run, self.log = directory / "data", directory / "run", directory / "log"
        self.durable = durable
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/timonel?host={self.run}"

    def prepare(self) -> None:
        """Make the data directory if there is none. Raises RuntimeError with what to do."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            self._hand_over()
        if not (self.data / "PG_VERSION").exists():
            # A first start that was interrupted leaves half a directory behind.
            shutil.rmtree(self.data, ignore_errors=True)
            self._call(
                "initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8"
            )

    def _hand_over(self) -> None:
        owner = pwd.getpwnam("postgres")
        for path in (self.directory, self.run):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        parent = self.directory.parent
        while parent != parent.parent:
            if not parent.stat().st_mode & 0o001:
                raise RuntimeError(
                    f"cannot start PostgreSQL: its user may not enter {parent}. "
                    "Set TIMONEL_DATA_DIR to a directory every user may enter, for instance /var/lib/timonel-control"
                )
            parent = parent.parent

    def argv(self) -> list[str]:
        """How to run the server in the foreground."""
        options = dict(SETTINGS, unix_socket_directories=str(self.run))
        if not self.durable:
            options.update(fsync="off", synchronous_commit="off", full_page_writes="off")
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        return [*_as_postgres(), _binary("postgres"), "-D", str(self.data), *flags]

    def start(self, timeout_s: float = 30) -> None:
        self.prepare()
        self.process = processes.start(self.argv(), log=self.log)
        self.wait(timeout_s)

    def wait(self, timeout_s: float = 30) -> None:
        """Return once the database answers; made when it is not there. Raises RuntimeError with the log's end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = subprocess.run(
                [_binary("psql"), "-h", str(self.run), "-U", USER, "-d", "postgres", "-Atqc",
                 "SELECT count(*) FROM pg_database WHERE datname = 'timonel'"],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
            if found.returncode == 0:
                if found.stdout.strip() == "0":
                    subprocess.run(
                        [_binary("createdb"), "-h", str(self.run), "-U", USER, "timonel"], timeout=30, check=True
                    )
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL does not answer after {timeout_s} s; its log ends:\n{processes.tail(self.log)}")

    def stop(self) -> None:
        """Fast shutdown: running transactions are rolled back."""
        if self.process is not None:
            processes.stop(self.process, timeout_s=20, sign=signal.SIGINT)
            self.process = None

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*_as_postgres(), _binary(name), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {(done.stderr or done.stdout).strip()}")


def _as_postgres() -> list[str]:
    if os.geteuid() != 0:
        return []
    # --pdeathsig: the change of user clears what our own process asked for.
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT"]


def _binary(name: str) -> str:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4].split(".")[0]))
    if versions:
        return str(versions[-1])
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(
            f"{name} is not installed; run `make packages`, or set DATABASE_URL to a PostgreSQL that runs"
        )
    return found
