"""What runs inside a lab's namespaces: their keeper, the prober and the backends.

Standard library only, because it is copied into each place and started there by itself. Three roles:

    hold    makes the namespaces, and keeps them until its standard input ends; init of the place's processes
    probe   opens connections and asks names on request; many requests at once
    serve   backends that say who they are

probe and serve speak JSON lines: a request {"id": n, "op": …}, a reply {"id": n, "ok": true, …} or
{"id": n, "ok": false, "reason": word}.
"""

import _socket
import asyncio
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID = 0x1000, 0x4000, 0x40000, 0x2
PR_SET_PDEATHSIG = 1

# Written by a node's operator or by Timonel's agent; in the lab kept in memory over this machine's files.
PRIVATE_DIRECTORIES = ("/etc", "/var", "/usr/local", "/opt", "/home", "/srv", "/root")


# --- hold ---


def hold(config: Message) -> None:
    """Be a place until standard input ends. Prints {"pid": its init as this machine counts} when it is ready.

    config: hostname; directory, an empty one for its memory file system; private, whether it has files of its
    own; files, path -> [text, mode]; append, path -> text; erase, a list of paths.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot make namespaces")
    is_ready, says_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(is_ready)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _furnish(libc, config)
        os.write(says_ready, b"y")
        os.close(says_ready)
        _reap_for_ever()
    os.close(says_ready)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # Ctrl-C reaches the whole group; the lab's owner decides when to end
        signal.signal(number, signal.SIG_IGN)
    if os.read(is_ready, 1) != b"y":
        sys.exit(1)
    print(json.dumps({"pid": child}), flush=True)
    while os.read(0, 4096):
        pass
    os.kill(child, signal.SIGKILL)  # with a PID namespace's init all its processes end
    os.waitpid(child, 0)


def _furnish(libc: ctypes.CDLL, config: Message) -> None:
    def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
        if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
            raise OSError(ctypes.get_errno(), f"cannot mount {kind or source} on {target}")

    libc.sethostname(config["hostname"].encode(), len(config["hostname"]))
    mount("none", "/", "", MS_REC | MS_PRIVATE, "")
    mount("proc", "/proc", "proc", MS_NOSUID, "")
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv6/conf/default/accept_dad", "w") as file:
        # Otherwise an IPv6 address can hardly be used for two seconds: the kernel asks whether somebody has it.
        file.write("0\n")
    with contextlib.suppress(OSError):  # only for /sys/class/net; refused in some containers
        mount("sysfs", "/sys", "sysfs", MS_NOSUID, "")
    if not config["private"]:
        return
    own = config["directory"]
    mount("tmpfs", own, "tmpfs", MS_NOSUID, "mode=755")
    for path in PRIVATE_DIRECTORIES:
        if os.path.isdir(path):
            layer = own + "/layers" + path
            for part in ("upper", "work"):
                os.makedirs(f"{layer}/{part}")
            mode = os.stat(path)
            os.chmod(layer + "/upper", mode.st_mode)
            mount("overlay", path, "overlay", 0, f"lowerdir={path},upperdir={layer}/upper,workdir={layer}/work")
    for path, permissions in (("/tmp", 0o1777), ("/run", 0o755)):
        os.mkdir(own + path)
        os.chmod(own + path, permissions)
    mount(own + "/tmp", "/tmp", "", MS_BIND, "")
    mount(own + "/run", "/run", "", MS_BIND, "")
    for path in config["erase"]:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)
    for path, (text, permissions) in config["files"].items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, permissions), "w") as file:
            file.write(text)
        os.chmod(path, permissions)
    for path, text in config["append"].items():
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def _reap_for_ever() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


# --- probe ---


def probe() -> None:
    """Answer requests from standard input, each in a thread of its own, until it ends."""
    writing = threading.Lock()
    streams: dict[str, Stream] = {}

    def answer(request: Message) -> None:
        try:
            reply = {"ok": True, **PROBES[request["op"]](request, streams)}
        except OSError as err:
            reply = {"ok": False, "reason": _reason(err)}
        except Exception as err:  # top of a request: the asker is told
            reply = {"ok": False, "reason": f"{type(err).__name__}: {err}"}
        with writing:
            print(json.dumps({"id": request["id"], **reply}), flush=True)

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()
    os._exit(0)


def _reason(err: OSError) -> str:
    if isinstance(err, TimeoutError):
        return "timeout"
    if isinstance(err, ConnectionRefusedError):
        return "refused"
    return (err.strerror or str(err)).lower()


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def ask_once(protocol: str, host: str, port: int, timeout_s: float) -> Message:
    """What the backend behind host and port says about itself and about this client."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family_of(host), kind) as s:
        s.settimeout(timeout_s)
        s.connect((host, port))
        if protocol == "udp":
            s.send(b"?\n")
            said = s.recv(4096)
        else:
            # Reset instead of FIN: thousands of connections would leave every local port in TIME_WAIT.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            said = _read_line(s)
    return json.loads(said)


def _read_line(s: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\n"):
        more = s.recv(4096)
        if not more:
            raise ConnectionResetError(0, "closed without an answer")
        said += more
    return said


def _target(request: Message) -> tuple[str, str, int, float]:
    return request.get("protocol", "tcp"), request["host"], request["port"], request.get("timeout_s", 2.0)


def _ask(request: Message, _streams: Any) -> Message:
    """{"answers": [{"backend", "address", "port", "client", "client_port"} or {"error"}]}, count of them."""
    answers: list[Message] = []
    for _ in range(request.get("count", 1)):
        try:
            answers.append(ask_once(*_target(request)))
        except OSError as err:
            answers.append({"error": _reason(err)})
    return {"answers": answers}


def _poll(request: Message, is_reached: Callable[[], Any]) -> Message:
    """Ask again and again; {"at": when reached on the machine's monotonic clock, "tries", "answer"}."""
    deadline = time.monotonic() + request.get("deadline_s", 10.0)
    interval_s = request.get("interval_ms", 2.0) / 1000
    tries, last = 0, "nothing asked"
    while time.monotonic() < deadline:
        tries += 1
        try:
            reached, last = is_reached()
            if reached:
                return {"at": time.monotonic(), "tries": tries, "answer": last}
        except OSError as err:
            last = _reason(err)
        time.sleep(interval_s)
    raise TimeoutError(0, f"last answer after {tries} tries: {last}")


def _ask_until(request: Message, _streams: Any) -> Message:
    """As _poll; reached when one of `backends` answers, or with "backends": null when nobody does."""
    protocol, host, port, timeout_s = _target(request)
    wanted = request["backends"]

    def is_reached() -> tuple[bool, Any]:
        try:
            said = ask_once(protocol, host, port, timeout_s)
        except OSError as err:
            if wanted is None:
                return True, _reason(err)
            raise
        return wanted is not None and said["backend"] in wanted, said

    return _polled(request, is_reached)


def _ask_each_until(request: Message, _streams: Any) -> Message:
    """As _poll, of many at once; reached when of `wanted`, {host: names of backends}, each host was answered by one."""
    protocol, port, timeout_s = request.get("protocol", "tcp"), request["port"], request.get("timeout_s", 0.1)
    waiting = dict(request["wanted"])

    def is_reached() -> tuple[bool, Any]:
        for host in [*waiting]:
            try:
                if ask_once(protocol, host, port, timeout_s)["backend"] in waiting[host]:
                    del waiting[host]
            except OSError:
                continue
        return not waiting, f"{len(waiting)} are missing"

    return _polled(request, is_reached)


def _polled(request: Message, is_reached: Callable[[], Any]) -> Message:
    try:
        return _poll(request, is_reached)
    except TimeoutError as err:
        raise LookupError(err.strerror) from None


class Stream(threading.Thread):
    """One question every interval_ms, by a new connection each time or all over one, until stopped."""

    def __init__(self, request: Message) -> None:
        super().__init__(daemon=True)
        self.target = _target(request)
        self.interval_s = request.get("interval_ms", 20.0) / 1000
        self.is_kept = request.get("kept", False)
        self.stopping = threading.Event()
        self.backends: Counter[str] = Counter()
        self.failures: list[Message] = []
        self.longest_gap_s = 0.0

    def run(self) -> None:
        try:
            ask = self._kept_connection() if self.is_kept else lambda: ask_once(*self.target)
        except OSError as err:
            self.failures.append({"at": time.monotonic(), "reason": _reason(err)})
            return
        last = time.monotonic()
        while not self.stopping.wait(self.interval_s):
            try:
                self.backends[ask()["backend"]] += 1
            except OSError as err:
                self.failures.append({"at": time.monotonic(), "reason": _reason(err)})
            else:
                self.longest_gap_s, last = max(self.longest_gap_s, time.monotonic() - last), time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last)

    def _kept_connection(self) -> Callable[[], Message]:
        protocol, host, port, timeout_s = self.target
        s = socket.socket(family_of(host), socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        s.settimeout(timeout_s)
        s.connect((host, port))
        if protocol == "tcp":
            _read_line(s)

        def ask() -> Message:
            s.send(b"?\n")
            return json.loads(_read_line(s).splitlines()[-1])  # answers to questions given up may come first

        return ask

    def report(self) -> Message:
        return {
            "asked": self.backends.total() + len(self.failures),
            "failed": len(self.failures),
            "failures": self.failures[:50],
            "longest_gap_ms": self.longest_gap_s * 1000,
            "backends": dict(self.backends),
        }


def _stream(request: Message, streams: dict[str, Stream]) -> Message:
    streams[request["key"]] = stream = Stream(request)
    stream.start()
    return {}


def _stream_end(request: Message, streams: dict[str, Stream]) -> Message:
    """Stream.report() of the stream that ends."""
    stream = streams.pop(request["key"])
    stream.stopping.set()
    stream.join(timeout=10)
    return stream.report()


def _sink(request: Message, _streams: Any) -> Message:
    """Accept connections on `port` of every address, and close them, as long as this process lives."""
    listener = socket.create_server(("", request["port"]), backlog=4096)

    def accept() -> None:
        _keep_to(request.get("cpu"))
        take = listener._accept  # type: ignore[attr-defined]  # the bare descriptor: a fifth of the cost
        while True:
            with contextlib.suppress(ConnectionError):
                os.close(take()[0])

    threading.Thread(target=accept, daemon=True).start()
    return {}


def _connect(request: Message, _streams: Any) -> Message:
    """Connections one after the other for `seconds`; {"count", "seconds", "cpu_s": of this thread}."""
    target = (request["host"], request["port"])
    family, reset = family_of(request["host"]), struct.pack("ii", 1, 0)
    plain = _socket.socket  # what socket.socket adds costs as much as a connection's rules
    _keep_to(request.get("cpu"))
    count = 0
    cpu_s, begin = time.thread_time(), time.perf_counter()
    while time.perf_counter() < begin + request["seconds"]:
        for _ in range(50):
            s = plain(family, socket.SOCK_STREAM)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)  # or every local port is soon in TIME_WAIT
            s.connect(target)
            s.close()
        count += 50
    return {"count": count, "seconds": time.perf_counter() - begin, "cpu_s": time.thread_time() - cpu_s}


def _keep_to(cpu: "int | None") -> None:
    """Run this thread on one processor alone."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


TYPES = {"A": 1, "CNAME": 5, "PTR": 12, "AAAA": 28, "SRV": 33}


def lookup_once(server: str, name: str, kind: str, timeout_s: float) -> tuple[str, list[str]]:
    """Code ("NOERROR", "NXDOMAIN", …) and the sorted answers of that type, as dig +short prints them."""
    number = random.randrange(65536)
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(timeout_s)
        s.connect((server, 53))
        s.send(struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", TYPES[kind], 1))
        reply = s.recv(4096)
    got, flags, _, answers = struct.unpack_from("!4H", reply)
    if got != number:
        raise ConnectionError(0, "answer to another question")
    code = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}.get(flags & 15, str(flags & 15))
    at = 12 + len(question) + 4
    found = []
    for _ in range(answers):
        _, at = _name_at(reply, at)
        type_number, _, _, size = struct.unpack_from("!2HIH", reply, at)
        at += 10
        if type_number == TYPES[kind]:
            found.append(_value(reply, at, size, kind))
        at += size
    return code, sorted(found)


def _name_at(reply: bytes, at: int) -> tuple[str, int]:
    labels, after = [], 0
    while reply[at]:
        if reply[at] >= 0xC0:
            after = after or at + 2
            at = struct.unpack_from("!H", reply, at)[0] & 0x3FFF
        else:
            labels.append(reply[at + 1 : at + 1 + reply[at]].decode())
            at += 1 + reply[at]
    return ".".join(labels) + ".", after or at + 1


def _value(reply: bytes, at: int, size: int, kind: str) -> str:
    if kind == "A":
        return socket.inet_ntop(socket.AF_INET, reply[at : at + 4])
    if kind == "AAAA":
        return socket.inet_ntop(socket.AF_INET6, reply[at : at + 16])
    if kind == "SRV":
        priority, weight, port = struct.unpack_from("!3H", reply, at)
        return f"{priority} {weight} {port} {_name_at(reply, at + 6)[0]}"
    return _name_at(reply, at)[0]


def _lookup(request: Message, _streams: Any) -> Message:
    code, answers = lookup_once(request["server"], request["name"], request["type"], request.get("timeout_s", 2.0))
    return {"code": code, "answers": answers}


def _lookup_until(request: Message, _streams: Any) -> Message:
    def is_reached() -> tuple[bool, Any]:
        code, answers = lookup_once(request["server"], request["name"], request["type"], request.get("timeout_s", 0.2))
        return answers == sorted(request["answers"]), [code, *answers]

    return _polled(request, is_reached)


PROBES: dict[str, Callable[[Message, dict[str, Stream]], Message]] = {
    "ask": _ask,
    "ask_until": _ask_until,
    "ask_each_until": _ask_each_until,
    "sink": _sink,
    "connect": _connect,
    "stream": _stream,
    "stream_end": _stream_end,
    "lookup": _lookup,
    "lookup_until": _lookup_until,
}


# --- serve ---


class Backends:
    """Listeners by (protocol, address, port). One JSON line for each connection, line and datagram."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str, int], Any] = {}

    async def listen(self, request: Message) -> Message:
        key = (request["protocol"], request["address"], request["port"])
        name = request["backend"]
        if request["protocol"] == "udp":
            loop = asyncio.get_running_loop()
            self.open[key] = (
                await loop.create_datagram_endpoint(lambda: _Datagrams(name, key[1:]), local_addr=key[1:])
            )[0]
        else:
            self.open[key] = await asyncio.start_server(lambda r, w: _converse(name, r, w), *key[1:], backlog=1024)
        return {}

    async def close(self, request: Message) -> Message:
        self.open.pop((request["protocol"], request["address"], request["port"])).close()
        return {}


def _introduction(name: str, own: tuple[Any, ...], client: tuple[Any, ...]) -> bytes:
    said = {"backend": name, "address": own[0], "port": own[1], "client": client[0], "client_port": client[1]}
    return json.dumps(said).encode() + b"\n"


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, name: str, own: tuple[Any, ...]) -> None:
        self.name, self.own = name, own

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(_introduction(self.name, self.own, addr), addr)  # type: ignore[attr-defined]


async def _converse(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    said = _introduction(name, writer.get_extra_info("sockname"), writer.get_extra_info("peername"))
    try:
        writer.write(said)
        while await reader.readline():
            writer.write(said)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve() -> None:
    """Open and close backends on request until standard input ends."""
    backends = Backends()
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    while line := await requests.readline():
        request = json.loads(line)
        try:
            reply = {
                "ok": True,
                **await {"listen": backends.listen, "close": backends.close}[request["op"]](request),
            }
        except OSError as err:
            reply = {"ok": False, "reason": _reason(err)}
        print(json.dumps({"id": request["id"], **reply}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(json.loads(sys.stdin.readline()))
    elif sys.argv[1] == "probe":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        probe()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asyncio.run(serve())
