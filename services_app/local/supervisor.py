"""The whole control plane on one machine, as `timonel serve` and the lab run it.

Start order: lock, certificates, PostgreSQL and Redis (unless addresses of others are given), tables and first objects,
then web, worker and beat. Whatever dies is started again; stopping goes backwards and leaves nothing.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from services_app.local import certificates, kubeconfig, processes
from services_app.local.postgres import Postgres
from services_app.local.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent.parent
SHARDS = 64
BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 5.0  # a child that lived for so long starts with a clean record

Say = Callable[[str], None]


def worker_argv(part: int = 1, parts: int = 1) -> list[str]:
    """A worker that pushes to the nodes of its part of the shards, 1 to `parts`, and does the periodic tasks.

    No two may have a shard in common: a node has one session, and would go from one to the other.
    """
    queues = ",".join(["default", *(f"push-{n:02d}" for n in range(SHARDS) if n % parts == part - 1)])
    options = ["-P", "threads", "-Q", queues, "--without-gossip", "--without-mingle", "-l", "WARNING"]
    return [sys.executable, "-m", "celery", "-q", "-A", "services_app.celery", "worker", *options]


def beat_argv(data_dir: Path) -> list[str]:
    """The one process that starts the periodic tasks; what an earlier one noted in the directory is forgotten."""
    schedule = data_dir / "beat-schedule"
    schedule.unlink(missing_ok=True)
    options = ["-s", str(schedule), "--pidfile=", "-l", "WARNING"]
    return [sys.executable, "-m", "celery", "-q", "-A", "services_app.celery", "beat", *options]


@dataclass
class _Child:
    """One supervised process: how to start it, and how often it fell at once."""

    role: str
    argv: list[str]
    log: Path
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = 10
    pass_fds: tuple[int, ...] = ()
    plain_environment: bool = False
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    falls: int = 0
    start_after: float = field(default=0.0)


class Stack:
    """A control plane in a data directory. start() returns once it answers; use as a context manager to stop it.

    bind: address:port, port 0 for a free one. database_url, redis_url: servers to use instead of embedded ones.
    durable False trades PostgreSQL's crash safety for speed: for tests only.
    """

    def __init__(
        self,
        data_dir: Path,
        bind: str = "127.0.0.1:8443",
        *,
        web_processes: int = 2,
        workers: int = 1,
        database_url: str = "",
        redis_url: str = "",
        environment: dict[str, str] | None = None,
        durable: bool = True,
        say: Say = lambda line: None,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.host, _, port = bind.rpartition(":")
        self.port = int(port)
        self.web_processes = web_processes
        self.workers = workers
        self.postgres = None if database_url else Postgres(self.data_dir / "postgres", durable=durable)
        self.redis = None if redis_url else RedisServer(self.data_dir / "redis")
        self.database_url = database_url or (self.postgres.url if self.postgres else "")
        self.redis_url = redis_url or (self.redis.url if self.redis else "")
        self.extra_environment = environment or {}
        self.say = say
        self.children: list[_Child] = []
        self._stopping = threading.Event()
        self._guard: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._lock_file: int | None = None

    # What it offers

    @property
    def url(self) -> str:
        host = self.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"https://[{host}]:{self.port}" if ":" in host else f"https://{host}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.data_dir / "kubeconfig"

    @property
    def ca(self) -> Path:
        return self.data_dir / "certificates" / "ca.crt"

    @property
    def token(self) -> str:
        return kubeconfig.read_token(self.kubeconfig) or ""

    @property
    def admin_password(self) -> str:
        return (self.data_dir / "admin-password").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the project's commands talk to this stack."""
        return {
            **os.environ,
            **self.extra_environment,
            "DJANGO_SETTINGS_MODULE": "services_app.settings",
            "TIMONEL_DATA_DIR": str(self.data_dir),
            "TIMONEL_BIND": f"{self.host}:{self.port}",
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "PYTHONUNBUFFERED": "1",
        }

    def pids_of(self, role: str) -> list[int]:
        """The running processes of a role: web, worker, beat, postgres, redis."""
        return [c.process.pid for c in self.children if c.role == role and c.process and c.process.poll() is None]

    def manage(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one of the project's commands on this stack. Raises CalledProcessError with its output."""
        return subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )

    # Start and stop

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything. Raises RuntimeError that says what is in the way; nothing is left running then."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock()
        self._listen()
        hosts = [
            h
            for h in dict.fromkeys(["127.0.0.1", "::1", "localhost", self.host.strip("[]")])
            if h not in ("0.0.0.0", "::")
        ]
        files = certificates.ensure(self.data_dir / "certificates", hosts)
        if self.postgres:
            self.say("starting PostgreSQL")
            self.postgres.prepare()
            self._add("postgres", self.postgres.argv(), self.postgres.log, signal.SIGINT, 20, plain=True)
        if self.redis:
            self.say("starting Redis")
            self.redis.prepare()
            self._add("redis", self.redis.argv(), self.redis.log, plain=True)
        if self.postgres:
            self.postgres.wait()
        if self.redis:
            self.redis.wait()
        self.say("preparing tables and first objects")
        try:
            self.manage("prepare", "--server", self.url, "--ca", str(self.ca))
        except subprocess.CalledProcessError as err:
            raise RuntimeError(f"cannot prepare the database:\n{(err.stderr or err.stdout)[-3000:]}") from err
        self.say("starting web, worker and beat")
        self._add_python(files)
        self._guard = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._guard.start()
        self._wait_until_ready()

    def _add_python(self, files: certificates.Certificates) -> None:
        assert self._listener is not None
        manage = [sys.executable, str(ROOT / "manage.py")]
        logs = self.data_dir / "log"
        for number in range(self.web_processes):
            argv = [*manage, "web", "--fd", str(self._listener.fileno()), "--certificate", str(files.server)]
            argv += ["--key", str(files.server_key)]
            self._add("web", argv, logs / f"web-{number}.log", pass_fds=(self._listener.fileno(),))
        for number in range(1, self.workers + 1):
            log = logs / ("worker.log" if number == 1 else f"worker-{number}.log")
            self._add("worker", worker_argv(number, self.workers), log)
        self._add("beat", beat_argv(self.data_dir), logs / "beat.log")

    def stop(self) -> None:
        """End every child, last started first. May be called again."""
        self._stopping.set()
        if self._guard is not None:
            self._guard.join(10)
            self._guard = None
        for child in reversed(self.children):
            if child.process is not None:
                processes.stop(child.process, timeout_s=child.stop_timeout_s, sign=child.stop_signal)
        self.children.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None
        self._stopping.clear()

    def _lock(self) -> None:
        path = self.data_dir / "lock"
        self._lock_file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise RuntimeError(
                f"another control plane runs on {self.data_dir}; stop it, or set TIMONEL_DATA_DIR to another directory"
            ) from err

    def _listen(self) -> None:
        """Bind here, once: a web process that dies leaves the socket, and nobody is refused meanwhile."""
        host = self.host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, self.port))
        except OSError as err:
            listener.close()
            raise RuntimeError(
                f"cannot listen on {self.host}:{self.port}: {err.strerror}; set TIMONEL_BIND to another address and port"
            ) from err
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        self._listener = listener

    def _wait_until_ready(self, timeout_s: float = 60) -> None:
        import http.client
        import ssl

        context = ssl.create_default_context(cafile=str(self.ca))
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            connection = http.client.HTTPSConnection(self.url.removeprefix("https://"), context=context, timeout=5)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        log = self.data_dir / "log" / "web-0.log"
        raise RuntimeError(
            f"the web server does not answer after {timeout_s:.0f} s; its log ends:\n{processes.tail(log)}"
        )

    # Children

    def _add(
        self,
        role: str,
        argv: list[str],
        log: Path,
        stop_signal: int = signal.SIGTERM,
        stop_timeout_s: float = 10,
        *,
        pass_fds: tuple[int, ...] = (),
        plain: bool = False,
    ) -> None:
        child = _Child(role, argv, log, stop_signal, stop_timeout_s, pass_fds, plain)
        self.children.append(child)
        self._spawn(child)

    def _spawn(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        child.process = processes.start(
            child.argv,
            log=child.log,
            env=None if child.plain_environment else self.environment,
            cwd=Path("/") if child.plain_environment else ROOT,
            pass_fds=child.pass_fds,
        )

    def _watch(self) -> None:
        """Start again what died. Runs until stop: children also end when the thread that started them does."""
        while not self._stopping.wait(0.05):
            now = time.monotonic()
            for child in self.children:
                if child.process is None or child.process.poll() is None:
                    continue
                if not child.start_after:
                    # What it left behind (a celery or postgres child) would hold locks and sockets.
                    processes.stop(child.process, timeout_s=0)
                    child.falls = 0 if now - child.started_at > STEADY_S else child.falls + 1
                    pause = BACKOFF_S[min(child.falls, len(BACKOFF_S) - 1)]
                    child.start_after = now + pause
                    self.say(f"{child.role} ended with {child.process.returncode}; starting it again in {pause} s")
                elif now >= child.start_after:
                    child.start_after = 0.0
                    self._spawn(child)
