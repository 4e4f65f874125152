"""HAProxy and nginx as mode userspace runs them: ports of this host that lead to endpoints, TCP in one, UDP in the other.

Both are daemons of their own that outlive the agent, and drop root. Which port belongs to what is decided by
agents/userspace.py.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import re
import resource
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents import files, process
from agents.daemons import Daemon
from agents.errors import AgentError
from agents.pace import Pace

Endpoint = tuple[str, int]  # address, port
Servers = Mapping[Endpoint, int]  # endpoint -> its weight, 1 for all that are alike

MAX_SERVERS = 4095  # of one listener: HAProxy's limit for round robin
MAX_WEIGHT = 256
MAX_FILES = 200_000  # HAProxy has two for a connection; the host's own limit may be lower
MAX_FLOWS = 32_768  # of UDP at a time
_HEAD = "# Written by Timonel's agent; changes are lost."
_DONE = {"", "New server registered."}
_PROMPT = "\n> "
_MANY_BYTES = 8000  # of commands at once; HAProxy takes 16 kB


@dataclass(frozen=True, order=True)
class Listener:
    """A TCP port on every address of the host. affinity_s: how long a client keeps its endpoint, 0 for not at all."""

    version: int
    port: int
    affinity_s: int = 0

    @property
    def name(self) -> str:
        """What HAProxy calls it."""
        return f"tcp{self.version}_{self.port}" + (f"_{self.affinity_s}" if self.affinity_s else "")


class HAProxy:
    """The TCP proxy. Servers come and go at run time; only new listeners need a new process.

    That one inherits sockets and remembered clients; the old one ends with its last connection. Servers stand in the
    file at each start, but are not written there at every change: nobody but the agent starts HAProxy.
    Every failure is an AgentError ProxyMissing or ProxyFailed.
    """

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self._config = directory / "haproxy.cfg"
        self._socket = run_directory / "haproxy.sock"
        self._daemon = Daemon(
            ["haproxy", "-D", "-f", str(self._config), "-p", str(run_directory / "haproxy.pid")],
            run_directory / "haproxy.pid",
            directory / "haproxy.log",
            "Proxy",
        )
        self._pid: int | None = None
        self._held: dict[str, dict[str, int]] = {}  # listener -> server -> weight; 0: gone but for its connections
        self._looks = Pace()

    @property
    def is_running(self) -> bool:
        return self._daemon.pid is not None

    def serve(self, peer_port: int, servers: Mapping[Listener, Servers]) -> None:
        """Listen on exactly these ports with exactly these servers; what runs stays when it has the listeners.

        peer_port: of 127.0.0.1, where a new process learns from the old one which client had which server.
        """
        general = _general(self._socket, peer_port)
        if self.is_running and self._runs(general, {listener.name for listener in servers}):
            self._pid, self._held = self._daemon.pid, self._read()
            self.update(servers)
            return
        text = [general, f"    description {_digest(general)}\n"]
        for listener, held in sorted(servers.items()):
            text += [_section(listener), *(f"    server {_name(e)} {_at(e)} weight {w}\n" for e, w in held.items())]
        files.replace(self._config, "".join(text))
        before = self._daemon.pid
        if before is None:
            self._socket.unlink(missing_ok=True)
            self._daemon.start()
        else:
            inherit = ["-x", str(self._socket)] if self._socket.exists() else []
            self._daemon.replace(*inherit, "-sf", str(before), timeout_s=60)
        self._pid = self._daemon.pid
        self._held = {
            listener.name: {_name(endpoint): weight for endpoint, weight in held.items()}
            for listener, held in servers.items()
        }

    def update(self, servers: Mapping[Listener, Servers]) -> None:
        """Give these listeners exactly these servers; connections to those that go are kept. O(change)."""
        commands: list[str] = []
        for listener, wanted in servers.items():
            held = self._held.setdefault(listener.name, {})
            for endpoint, weight in wanted.items():
                name = _name(endpoint)
                server, now = f"{listener.name}/{name}", held.get(name)
                if now is None:
                    commands += [f"add server {server} {_at(endpoint)} weight {weight}", f"enable server {server}"]
                elif now != weight:
                    commands += [f"set server {server} weight {weight}"]
                    commands += [] if now else [f"set server {server} state ready"]
                held[name] = weight
            for name in held.keys() - {_name(endpoint) for endpoint in wanted}:
                if held[name]:
                    commands.append(f"set server {listener.name}/{name} state maint")
                    held[name] = 0
            if not wanted and listener.affinity_s:
                commands.append(f"clear table {listener.name}")
        for said in self._ask(commands):
            if said not in _DONE:
                raise AgentError("ProxyFailed", f"haproxy refuses a change: {process.first_line(said)}")
        self._remove()

    def difference(self) -> str:
        """What is other than this process made it, in a few words; "" for nothing. Servers are compared by a pace."""
        if self._daemon.pid is None:
            return "haproxy has ended"
        if self._daemon.pid != self._pid:
            return "somebody started another haproxy"
        if not self._looks.is_due():
            return ""
        began = time.monotonic()
        self._remove()
        found = self._read()
        others = sorted(listener for listener, held in self._held.items() if found.get(listener, {}) != held)
        self._looks.note(began)
        return f"somebody changed haproxy's servers of {', '.join(others[:5])}" if others else ""

    @property
    def connections(self) -> int:
        """How many connections of clients it has now; 0 when it does not say."""
        with contextlib.suppress(AgentError):
            told = dict(line.split(": ", 1) for line in self._ask(["show info"])[0].splitlines() if ": " in line)
            return int(told.get("CurrConns", "0"))  # without those to this socket
        return 0

    def has(self, peer_port: int, servers: Mapping[Listener, Servers]) -> bool:
        """Whether what runs, whoever started it, has these listeners and servers."""
        if not self.is_running or not self._runs(_general(self._socket, peer_port), {one.name for one in servers}):
            return False
        found = self._read()
        return all(
            {name: weight for name, weight in found.get(listener.name, {}).items() if weight}
            == {_name(endpoint): weight for endpoint, weight in held.items()}
            for listener, held in servers.items()
        )

    def leave(self) -> None:
        """Listen no longer; the process ends with its last connection."""
        if (number := self._daemon.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGUSR1)
        self._pid, self._held = None, {}

    def _runs(self, general: str, listeners: set[str]) -> bool:
        """Whether the process has these general settings and listeners."""
        try:
            info, proxies = self._ask(["show info"])[0], self._ask(["show stat -1 1 -1"])[0]
        except AgentError:
            return False  # it hangs, or has lost its socket: a new one is started
        found = {line.split(",", 1)[0] for line in proxies.splitlines() if line.startswith("tcp")}
        return f"\ndescription: {_digest(general)}\n" in info and found == listeners

    def _read(self) -> dict[str, dict[str, int]]:
        """Listener -> server -> weight, 0 in maintenance. O(servers)."""
        found: dict[str, dict[str, int]] = {}
        for line in self._ask(["show servers state"])[0].splitlines():
            words = line.split(" ", 8)
            if len(words) == 9 and words[0] != "#":
                found.setdefault(words[1], {})[words[3]] = 0 if words[6] != "0" else int(words[7])
        return found

    def _remove(self) -> None:
        """Delete the servers that are gone and have lost their last connection."""
        gone = [
            (listener, name) for listener, held in self._held.items() for name, weight in held.items() if not weight
        ]
        if gone:
            for (listener, name), said in zip(gone, self._ask([f"del server {one}/{name}" for one, name in gone])):
                if "still has connections" not in said:
                    del self._held[listener][name]

    def _ask(self, commands: Sequence[str]) -> list[str]:
        """What HAProxy says to each, in order."""
        found: list[str] = []
        start = 0
        while start < len(commands):
            size, end = 0, start
            while end < len(commands) and (end == start or size + len(commands[end]) < _MANY_BYTES):
                size += len(commands[end]) + 1
                end += 1
            found += self._answers(commands[start:end])
            start = end
        return found

    def _answers(self, commands: Sequence[str]) -> list[str]:
        said = b""
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(10)
                control.connect(str(self._socket))
                control.sendall("\n".join(["prompt", *commands, "quit"]).encode() + b"\n")
                while part := control.recv(1 << 18):
                    said += part
        except OSError as err:
            raise AgentError("ProxyFailed", f"cannot reach haproxy at {self._socket}: {err}") from err
        # A prompt follows each answer, that to "prompt" as well: without, some answers end with an empty line, some not.
        answers = said.decode(errors="replace").split(_PROMPT)[1:-1]
        if len(answers) != len(commands):
            raise AgentError("ProxyFailed", f"haproxy at {self._socket} hung up amid its answers")
        return [answer.strip("\n") for answer in answers]


def _general(control: Path, peer_port: int) -> str:
    user = _first("haproxy", "nobody")
    return f"""{_HEAD}
peers timonel
    peer timonel 127.0.0.1:{peer_port}
defaults
    mode tcp
    balance roundrobin
    retries 3
    option redispatch 1
    option tcpka
    timeout connect 3s
    timeout client 5d
    timeout server 5d
global
    user {user}
    group {_group_of(user)}
    fd-hard-limit {MAX_FILES}
    localpeer timonel
    stats socket {control} mode 600 level admin expose-fd listeners
"""


def _section(listener: Listener) -> str:
    kind = "ip" if listener.version == 4 else "ipv6"
    bind = f"ipv4@:{listener.port}" if listener.version == 4 else f"ipv6@:{listener.port} v6only"
    text = f"listen {listener.name}\n    bind {bind}\n"
    if listener.affinity_s:
        text += f"    stick-table type {kind} size 1m expire {listener.affinity_s}s peers timonel\n    stick on src\n"
    return text


class Nginx:
    """The UDP proxy: a port for each endpoint. Which endpoint a flow takes is decided before, by the rules.

    So a reload, which makes nginx forget its flows, moves none of them. Every failure is an AgentError ProxyMissing or
    ProxyFailed.
    """

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self._config, self._run = directory / "nginx.conf", run_directory
        self._log = directory / "nginx.log"
        self._daemon = Daemon(
            ["nginx", "-c", str(self._config), "-e", str(self._log)],
            run_directory / "nginx.pid",
            self._log,
            "Proxy",
        )

    @property
    def is_running(self) -> bool:
        return self._daemon.pid is not None

    def serve(self, ports: Mapping[Endpoint, int]) -> None:
        """Send what comes to these ports to their endpoints; returns when all are open."""
        text = self._text(ports)
        is_new = files.replace(self._config, text)
        if not self.is_running:
            self.end_orphans()
            if ports:
                self._daemon.start()
        elif is_new:
            self._daemon.reload()
        deadline = time.monotonic() + 10
        for (address, _), port in ports.items():
            while _is_free(socket.SOCK_DGRAM, 6 if ":" in address else 4, port):
                if time.monotonic() > deadline:
                    # Read again the next time.
                    self._config.unlink(missing_ok=True)
                    raise AgentError("ProxyFailed", f"nginx does not open its ports; {self._log} says why")
                time.sleep(0.005)

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()
        self.end_orphans()

    def end_orphans(self) -> None:
        """Without the master: a worker goes on when that is killed, and keeps the ports."""
        if self.is_running:
            return
        here = os.readlink("/proc/self/ns/pid")
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                is_ours = (entry / "comm").read_text() == "nginx\n" and os.readlink(entry / "cwd") == str(self._run)
                if is_ours and os.readlink(entry / "ns/pid") == here:
                    os.kill(int(entry.name), signal.SIGKILL)

    def _text(self, ports: Mapping[Endpoint, int]) -> str:
        files = min(2 * MAX_FLOWS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        user = _first("www-data", "nginx", "nobody")
        module = stream_module()
        lines = [
            _HEAD,
            *([f"load_module {module};"] if module else []),
            f"user {user} {_group_of(user)};",
            "worker_processes 1;",  # with more, the packets of one client might go two ways
            f"worker_rlimit_nofile {files};",
            "worker_shutdown_timeout 60s;",
            f"working_directory {self._run};",
            f"pid {self._run}/nginx.pid;",
            f"error_log {self._log} crit;",
            f"events {{ worker_connections {files}; }}",
            "stream {",
            "    proxy_timeout 180s;",
        ]
        for endpoint, port in ports.items():
            listen = f"[::]:{port} udp ipv6only=on" if ":" in endpoint[0] else f"{port} udp"
            lines.append(f"    server {{ listen {listen}; proxy_pass {_at(endpoint)}; }}")
        return "\n".join([*lines, "}"]) + "\n"


def stream_module() -> str | None:
    """The file of nginx's stream module, "" when it is built in, None when there is none. Raises AgentError."""
    done = process.run(["nginx", "-V"], reason="ProxyFailed")
    if "--with-stream=dynamic" in done.stderr:
        found = re.search(r"--modules-path=(\S+)", done.stderr)
        path = f"{found[1] if found else '/usr/lib/nginx/modules'}/ngx_stream_module.so"
        return path if os.path.exists(path) else None
    return "" if "--with-stream" in done.stderr else None


def user_id() -> int:
    """Who HAProxy runs as."""
    return pwd.getpwnam(_first("haproxy", "nobody")).pw_uid


def lacks() -> str:
    """What this host has not to run both, "" for nothing."""
    if process.find("haproxy") is None:
        return "haproxy is not installed: install package haproxy"
    if process.find("nginx") is None:
        return "nginx is not installed: install packages nginx-light and libnginx-mod-stream"
    if stream_module() is None:
        return "nginx has no stream module: install package libnginx-mod-stream"
    return ""


def is_free(kind: socket.SocketKind, port: int) -> bool:
    """Whether nobody listens on a port of this host, by IPv4 or IPv6."""
    return _is_free(kind, 4, port) and _is_free(kind, 6, port)


def _is_free(kind: socket.SocketKind, version: int, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if version == 6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("", port))
    except OSError as err:
        return err.errno not in (errno.EADDRINUSE, errno.EACCES)  # a host without IPv6 has all ports free
    return True


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint[0]}:{endpoint[1]}"


def _at(endpoint: Endpoint) -> str:
    return f"[{endpoint[0]}]:{endpoint[1]}" if ":" in endpoint[0] else f"{endpoint[0]}:{endpoint[1]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first(*users: str) -> str:
    """The first of these users that the host has."""
    for user in users:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    return "root"


def _group_of(user: str) -> str:
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
