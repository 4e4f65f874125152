"""An embedded Redis: broker and wake-up channel, reached by a socket only. It holds nothing that must survive."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from services_app.local import processes


class RedisServer:
    """One server; `url` is a REDIS_URL."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.socket, self.log = directory, directory / "redis.sock", directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def argv(self) -> list[str]:
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("redis-server is not installed; run `make packages`, or set REDIS_URL to one that runs")
        return [
            binary, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no",
            "--dir", str(self.directory), "--daemonize", "no",
        ]  # fmt: skip

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def start(self, timeout_s: float = 15) -> None:
        self.prepare()
        self.process = processes.start(self.argv(), log=self.log)
        self.wait(timeout_s)

    def wait(self, timeout_s: float = 15) -> None:
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)
        raise RuntimeError(f"Redis does not answer after {timeout_s} s; its log ends:\n{processes.tail(self.log)}")

    def stop(self) -> None:
        if self.process is not None:
            processes.stop(self.process, timeout_s=5, sign=signal.SIGTERM)
            self.process = None
