"""Health check node ports: whether this node has endpoints of a Service of its own, asked by load balancers over HTTP.
And whether the node as a whole is fit for traffic, where KubeProxyConfiguration's healthzBindAddress says.

Who answers is a process of its own: a load balancer goes on asking while no control plane is connected. The two share
a directory and nothing else. The agent writes `wanted`, which the server reads within a fifth of a second; the server
holds `lock` as long as it runs and writes `problems`. Without `wanted`, or with one of another version, it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import selectors
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agents import files
from agents.errors import AgentError, InvalidResource
from agents.version import VERSION

logger = logging.getLogger(__name__)

LOOK_S = 0.2
LEAVE_S = 1.0  # a server that ends answers who has asked, but waits no longer for who has not
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_LISTENER = re.compile(r"healthz (?:([0-9.]{7,15})|\[([0-9a-f:]{2,39})\]):([1-9][0-9]{0,4})")
_KEY, _VALUE = re.compile(r"port ([1-9][0-9]{0,4})"), re.compile(rf"({_LABEL})/({_LABEL}) (0|[1-9][0-9]{{0,6}})")


@dataclass(frozen=True)
class Check:
    """What is answered on one port: how many ready endpoints of the Service are on this node."""

    namespace: str
    name: str
    endpoints: int


@dataclass(frozen=True)
class Fitness:
    """What is answered about the node. is_eligible: it is to stay, as far as the control plane knows."""

    is_eligible: bool


Address = tuple[str, int]  # "" for every address, and a port


def parse(key: str, value: str) -> tuple[Address, Check | Fitness]:
    """Where and what of a resource ("port 32000", "shop/web 2"; "healthz [::]:10256", "eligible" or "leaving").

    Raises InvalidResource.
    """
    listener = _LISTENER.fullmatch(key)
    if listener and value in ("eligible", "leaving") and int(listener[3]) <= 65535:
        host = listener[1] or listener[2]
        with contextlib.suppress(ValueError):
            if str(ip_address(host)) == host:
                return (host, int(listener[3])), Fitness(value == "eligible")
    port, check = _KEY.fullmatch(key), _VALUE.fullmatch(value)
    if not port or not check or int(port[1]) > 65535:
        raise InvalidResource(f"cannot read health check {key[:100]!r} = {value[:100]!r}")
    return ("", int(port[1])), Check(check[1], check[2], int(check[3]))


class Checks:
    """The agent's side: what should be answered, and the server that does it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted, self._problems, self._lock = (directory / name for name in ("wanted", "problems", "lock"))
        self._elements: dict[str, str] = {}
        self._is_healthy = True
        self._healthy_at = time.time()  # when it last was, in seconds since 1970

    def publish(self, elements: Mapping[str, str], *, is_healthy: bool | None = None) -> None:
        """Answer these from now on; is_healthy: whether what was pushed is in force. Raises AgentError HealthFailed, DiskFull."""
        self._elements = dict(elements)
        if is_healthy is not None:
            if self._is_healthy and not is_healthy:
                self._healthy_at = time.time()
            self._is_healthy = is_healthy
        if not elements and not self._directory.exists():
            return
        if not elements:
            self.stop()
            return
        said = {"version": VERSION, "healthy": self._is_healthy, "ports": self._elements}
        if not self._is_healthy:
            said["healthy_at"] = self._healthy_at
        files.replace(self._wanted, json.dumps(said))
        self.start()

    def tell(self, *, is_healthy: bool) -> None:
        """Say in every answer whether what was pushed is in force."""
        if is_healthy != self._is_healthy:
            self.publish(self._elements, is_healthy=is_healthy)

    @property
    def is_running(self) -> bool:
        """Whether a server runs, or none is wanted."""
        return not self._elements or self._is_locked()

    def start(self, timeout_s: float = 10.0) -> None:
        """Have a server of this version running. Raises AgentError HealthFailed."""
        deadline = time.monotonic() + timeout_s
        while self._is_locked() and self._said().get("version") != VERSION:
            if time.monotonic() > deadline:
                raise AgentError("HealthFailed", "the health check server of another agent does not end")
            time.sleep(0.02)
        if self._is_locked():
            return
        with open(self._directory / "log", "ab") as log:
            started = subprocess.Popen(
                [sys.executable, os.path.abspath(sys.argv[0]), "health", str(self._directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        while not self._is_locked():
            if started.poll() is not None or time.monotonic() > deadline:
                raise AgentError("HealthFailed", f"the health check server does not start; {log.name} says why")
            time.sleep(0.02)

    def problem(self) -> str:
        """The ports that cannot be opened and why; "" for none."""
        said = self._said()
        if not self._elements or said.get("version") != VERSION:
            return ""
        return "; ".join(
            f"cannot answer {_purpose(key, self._elements[key])}: {why}"
            for key, why in sorted(said.get("ports", {}).items())
            if key in self._elements
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the server and leave nothing."""
        self._elements = {}
        self._wanted.unlink(missing_ok=True)
        deadline = time.monotonic() + timeout_s
        while self._is_locked() and time.monotonic() < deadline:
            time.sleep(0.02)
        for path in (self._problems, self._lock, self._directory / "log"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    def _is_locked(self) -> bool:
        try:
            with open(self._lock, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _said(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads(self._problems.read_text()))
        except (OSError, ValueError):
            return {}


def _purpose(key: str, value: str) -> str:
    """What a resource is for, in words."""
    word, _, where = key.partition(" ")
    return f"health checks of {value.split()[0]} on port {where}" if word == "port" else f"/healthz on {where}"


# The server


class _Handler(BaseHTTPRequestHandler):
    """Answers as kube-proxy does (k8s v1.36 pkg/proxy/healthcheck/{service,proxy}_health.go)."""

    server: _Port
    timeout = 5.0
    wbufsize = -1  # an answer leaves in one piece
    server_version, sys_version = f"timonel-agent/{VERSION}", ""

    def do_GET(self) -> None:
        if isinstance(self.server.answer, Check):
            self._answer_for_service(self.server.answer)
        else:
            self._answer_for_node(self.server.answer)

    def _answer_for_service(self, check: Check) -> None:
        """Whatever the path."""
        is_healthy = self.server.mood.is_healthy
        said = {
            "service": {"namespace": check.namespace, "name": check.name},
            "localEndpoints": check.endpoints,
            "serviceProxyHealthy": is_healthy,
        }
        weight = ("X-Load-Balancing-Endpoint-Weight", str(check.endpoints))
        self._send(200 if check.endpoints and is_healthy else 503, json.dumps(said, indent="\t"), weight)

    def _answer_for_node(self, fitness: Fitness) -> None:
        """/healthz is for load balancers; /livez asks for the proxy alone, whatever becomes of the node."""
        path = self.path.partition("?")[0]
        if path not in ("/healthz", "/livez"):
            self.send_error(404)
            return
        mood, now = self.server.mood, time.time()
        said: dict[str, object] = {
            "lastUpdated": _moment(now if mood.is_healthy else mood.healthy_at),
            "currentTime": _moment(now),
        }
        is_well = mood.is_healthy
        if path == "/healthz":
            said["nodeEligible"] = fitness.is_eligible
            is_well = is_well and fitness.is_eligible
        self._send(200 if is_well else 503, json.dumps(said))

    def _send(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", "application/json"),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
            ("Content-Length", str(len(body))),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Checks come every second for ever."""


def _moment(at: float) -> str:
    """A time as Go prints it, which is what kube-proxy says."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1e9):09} +0000 UTC"


@dataclass(frozen=True)
class _Mood:
    """Whether what was pushed is in force, and when it last was, in seconds since 1970."""

    is_healthy: bool
    healthy_at: float


class _Port(ThreadingHTTPServer):
    """One port, on one address of the node or, as "" or "::", on all."""

    request_queue_size = 128
    address_family = socket.AF_INET6

    def __init__(self, address: Address, answer: Check | Fitness, mood: _Mood) -> None:
        self.answer, self.mood = answer, mood
        self.threads: list[threading.Thread] = []  # of those who are being answered
        super().__init__(address, _Handler)
        self.timeout = 0

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks for the host's name

    def process_request(self, request: Any, client_address: Any) -> None:
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self.threads = [*(one for one in self.threads if one.is_alive()), thread]
        thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _PortWithoutIPv6(_Port):
    address_family = socket.AF_INET


def _open(address: Address, answer: Check | Fitness, mood: _Mood) -> _Port:
    if "." in address[0]:
        return _PortWithoutIPv6(address, answer, mood)
    try:
        return _Port(address, answer, mood)
    except OSError as err:
        if address[0] or "family" not in (err.strerror or ""):
            raise
        return _PortWithoutIPv6(address, answer, mood)


class _Server:
    """The ports that are open, by the resource that asked for it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ports: dict[str, _Port] = {}
        self._problems: dict[str, str] = {}

    def follow(self, wanted: Mapping[str, str], mood: _Mood) -> None:
        """Open, change and close ports until they are what is wanted."""
        for key in self._ports.keys() - wanted.keys():
            self._selector.unregister(self._ports[key])
            self._ports.pop(key).server_close()
        self._problems = {}
        for key, value in wanted.items():
            address, answer = parse(key, value)
            if key in self._ports:
                self._ports[key].answer, self._ports[key].mood = answer, mood
                continue
            try:
                self._ports[key] = _open(address, answer, mood)
            except OSError as err:
                self._problems[key] = (err.strerror or str(err)).lower()
            else:
                self._selector.register(self._ports[key], selectors.EVENT_READ, self._ports[key])

    def say(self, path: Path) -> None:
        """Write down which ports could not be opened."""
        files.replace(path, json.dumps({"version": VERSION, "ports": self._problems}))

    @property
    def is_complete(self) -> bool:
        return not self._problems

    def answer(self, timeout_s: float) -> None:
        """Answer who asks in this time."""
        for key, _ in self._selector.select(timeout_s):
            key.data.handle_request()

    def close(self) -> None:
        """Answer who has asked already, and nobody else."""
        deadline = time.monotonic() + LEAVE_S
        while self._selector.select(0) and time.monotonic() < deadline:
            self.answer(0)
        for port in self._ports.values():
            port.server_close()
        for thread in [thread for port in self._ports.values() for thread in port.threads]:
            thread.join(max(0.0, deadline - time.monotonic()))


def serve(directory: Path) -> None:
    """Answer the health checks that a directory asks for, until none are wanted any more."""
    with open(directory / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = _Server()
        try:
            _follow(directory, server)
        finally:
            server.close()


def _follow(directory: Path, server: _Server) -> None:
    """Answer what `wanted` says, until it is gone or another version's."""
    wanted, seen, tried = directory / "wanted", (0, 0), 0.0
    (directory / "problems").unlink(missing_ok=True)
    while True:
        try:
            status = wanted.stat()
            now = (status.st_mtime_ns, status.st_ino)
            if now != seen or (not server.is_complete and time.monotonic() > tried + 1):
                asked = json.loads(wanted.read_text())
                if asked["version"] != VERSION:
                    return
                server.follow(asked["ports"], _Mood(asked["healthy"], asked.get("healthy_at", 0.0)))
                server.say(directory / "problems")
                seen, tried = now, time.monotonic()
        except FileNotFoundError:
            return
        server.answer(LOOK_S)
