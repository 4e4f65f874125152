"""A place of the lab: a set of Linux namespaces that stands for a host, a container or a switch.

Nothing of it has a name outside: it lives as long as its keeper (place.py hold), which lives as long as the
lab's process. However that one ends, the kernel takes processes, links, rules and mounts away with it.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from services_app.lab import place as place_module

Message = dict[str, Any]
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
# Read through a descriptor: inside a place the file may be hidden; as text it would match every pgrep.
_PLACE_SOURCE = os.memfd_create("timonel-lab-place")
os.write(_PLACE_SOURCE, Path(place_module.__file__).read_bytes())
PLACE = [PYTHON, "-I", "-S", f"/proc/self/fd/{_PLACE_SOURCE}"]


class LabError(RuntimeError):
    """The lab itself does not work, whatever is tried on it."""


class ProbeFailed(RuntimeError):
    """A probe ended without the answer it waited for; the text is the reason."""


class Companion:
    """A process of place.py that answers JSON requests; any thread may ask."""

    def __init__(self, argv: Sequence[str], what: str) -> None:
        self._what = what
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Message]] = {}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(_PLACE_SOURCE,))
        threading.Thread(target=self._read, name=f"lab {what}", daemon=True).start()

    def start(self, op: str, **arguments: Any) -> "Future[Message]":
        """The reply to come, {"ok": bool, …}."""
        reply: Future[Message] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = reply
            stream = self._process.stdin
            assert stream is not None
            try:
                stream.write(json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n")
                stream.flush()
            except OSError as err:
                self._waiting.pop(number, None)
                raise LabError(f"cannot ask the {self._what}: {err}") from err
        return reply

    def ask(self, op: str, wait_s: float = 30.0, **arguments: Any) -> Message:
        """Raises ProbeFailed when the reply is a refusal, LabError when the companion is gone or silent."""
        return outcome(self.start(op, **arguments), wait_s)

    def close(self) -> None:
        """Only after its place ended: until then what runs inside holds the pipes."""
        self._process.kill()
        self._process.wait(timeout=10)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us
            for line in stream:
                reply = json.loads(line)
                with self._lock:
                    waiting = self._waiting.pop(reply.pop("id"), None)
                if waiting:
                    waiting.set_result(reply)
        with self._lock:
            for waiting in self._waiting.values():
                waiting.set_exception(LabError(f"the {self._what} ended"))
            self._waiting.clear()


def outcome(reply: "Future[Message]", wait_s: float = 30.0) -> Message:
    """The reply of Companion.start, when it has come. Raises as Companion.ask."""
    try:
        message = reply.result(timeout=wait_s)
    except TimeoutError as err:
        raise LabError(f"no reply from inside the lab in {wait_s:.0f} s") from err
    if not message.pop("ok"):
        raise ProbeFailed(message["reason"])
    return message


class Place:
    """One host, container or switch. Its addresses, of IPv4 and IPv6, are set by the lab that wires it."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        private: bool = False,
        files: Mapping[str, tuple[str, int]] | None = None,
        append: Mapping[str, str] | None = None,
        erase: Sequence[str] = (),
    ) -> None:
        """directory: of this place alone, made here. private: files of its own over this machine's; files,
        append and erase change them before anything runs. Raises LabError."""
        self.name = name
        self.address = self.address6 = ""
        self._directory = directory
        directory.mkdir(parents=True)
        config = {
            "hostname": name,
            "directory": str(directory),
            "private": private,
            "files": dict(files or {}),
            "append": dict(append or {}),
            "erase": list(erase),
        }
        self._background: list[subprocess.Popen[bytes]] = []
        self._prober: Companion | None = None
        self._backends: Companion | None = None
        self._starting = threading.Lock()
        self._keeper = subprocess.Popen(
            [*PLACE, "hold"],
            pass_fds=(_PLACE_SOURCE,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(config).encode() + b"\n")
        self._keeper.stdin.flush()
        ready = self._keeper.stdout.readline()
        if not ready:
            assert self._keeper.stderr is not None
            cause = self._keeper.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.close()
            raise LabError(f"cannot make namespaces for {name}: {cause}")
        self.pid: int = json.loads(ready)["pid"]

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv here, from outside; root only."""
        namespaces = ["--mount", "--uts", "--net", "--pid"]
        return ["nsenter", f"--target={self.pid}", *namespaces, "--wdns=/", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout_s: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end. Raises LabError when it fails (unless check is False) or takes longer."""
        try:
            done = subprocess.run(
                self.inside(argv), input=input, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as err:
            raise LabError(f"cannot run {' '.join(argv)} on {self.name}: not done in {timeout_s:.0f} s") from err
        if check and done.returncode:
            cause = (done.stderr or done.stdout).strip()
            raise LabError(f"cannot run {' '.join(argv)} on {self.name}: {cause or f'exit code {done.returncode}'}")
        return done

    def background(self, argv: Sequence[str], log: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start and leave running; it ends with the place at the latest."""
        process = subprocess.Popen(self.inside(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._background.append(process)
        return process

    def resume(self) -> None:
        """Let the nsenter of each background process go on: it stops itself when its child is stopped."""
        for process in self._background:
            process.send_signal(signal.SIGCONT)

    def processes(self) -> dict[int, str]:
        """This place's processes but the lab's own: process id as this machine counts -> command line."""
        found = {}
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                if os.readlink(entry / "ns/pid") == here:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    command = b" ".join(words).decode(errors="replace").strip()
                    if command and PLACE[-1] not in command and int(entry.name) != self.pid:
                        found[int(entry.name)] = command
        return found

    def kill(self, pattern: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal this place's processes whose command line the pattern is found in; how many there were.

        Killed ones are gone when it returns.
        """
        found = {pid: command for pid, command in self.processes().items() if re.search(pattern, command)}
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while number == signal.SIGKILL and found.items() & self.processes().items() and time.monotonic() < deadline:
            time.sleep(0.005)
        return len(found)

    @property
    def prober(self) -> Companion:
        with self._starting:
            if self._prober is None:
                self._prober = self._companion("probe")
            return self._prober

    def ask(self, host: str, port: int, *, protocol: str = "tcp", timeout_s: float = 2.0) -> Message:
        """What answers there: {"backend", "address", "port", "client", "client_port"}. Raises ProbeFailed."""
        answer: Message = self.ask_often(host, port, 1, protocol=protocol, timeout_s=timeout_s)[0]
        if "error" in answer:
            raise ProbeFailed(answer["error"])
        return answer

    def refusal(self, host: str, port: int, *, protocol: str = "tcp", tries: int = 5) -> str:
        """Why nobody answers there: "refused", what the kernel says here, "timeout", or "" when somebody does.

        Silence is asked again: a host sends only a few ICMP errors at once (RFC 4443, 2.4 f).
        """
        reason = ""
        for _ in range(tries):
            reason = str(self.ask_often(host, port, 1, protocol=protocol, timeout_s=0.5)[0].get("error", ""))
            if reason != "timeout":
                break
        return reason

    def ask_often(
        self, host: str, port: int, count: int, *, protocol: str = "tcp", timeout_s: float = 2.0
    ) -> list[Message]:
        """As many answers, one connection each; {"error": reason} for those that failed."""
        reply = self.prober.ask(
            "ask",
            wait_s=count * timeout_s + 10,
            host=host,
            port=port,
            protocol=protocol,
            count=count,
            timeout_s=timeout_s,
        )
        answers: list[Message] = reply["answers"]
        return answers

    def ask_until(
        self,
        host: str,
        port: int,
        backends: Sequence[str] | str | None,
        *,
        protocol: str = "tcp",
        deadline_s: float = 20.0,
        interval_ms: float = 2.0,
        timeout_s: float = 0.1,
    ) -> "Future[Message]":
        """Starts polling until one of the backends answers, None: until nobody does. Read with outcome():
        {"at": seconds of time.monotonic, "tries", "answer"}."""
        return self.prober.start(
            "ask_until",
            host=host,
            port=port,
            backends=[backends] if isinstance(backends, str) else backends,
            protocol=protocol,
            deadline_s=deadline_s,
            interval_ms=interval_ms,
            timeout_s=timeout_s,
        )

    def lookup(self, name: str, kind: str, server: str, *, timeout_s: float = 2.0) -> tuple[str, list[str]]:
        """Code and sorted answers. Raises ProbeFailed."""
        reply = self.prober.ask("lookup", name=name, type=kind, server=server, timeout_s=timeout_s)
        return reply["code"], reply["answers"]

    def lookup_until(
        self, name: str, kind: str, server: str, answers: Sequence[str], *, deadline_s: float = 20.0
    ) -> "Future[Message]":
        return self.prober.start(
            "lookup_until", name=name, type=kind, server=server, answers=list(answers), deadline_s=deadline_s
        )

    def stream(
        self,
        key: str,
        host: str,
        port: int,
        *,
        protocol: str = "tcp",
        interval_ms: float = 20.0,
        timeout_s: float = 0.5,
        kept: bool = False,
    ) -> None:
        """Ask all the time from now on: by new connections, or with kept over a single one."""
        self.prober.ask(
            "stream",
            key=key,
            host=host,
            port=port,
            protocol=protocol,
            interval_ms=interval_ms,
            timeout_s=timeout_s,
            kept=kept,
        )

    def stream_end(self, key: str) -> Message:
        """What became of it: {"asked", "failed", "failures", "longest_gap_ms", "backends": name -> count}."""
        return self.prober.ask("stream_end", key=key)

    def serve(self, backend: str, port: int, *, protocol: str = "tcp", address: str = "") -> None:
        """Open a backend on this place's address; it answers with its name, its address and the client's."""
        with self._starting:
            if self._backends is None:
                self._backends = self._companion("serve")
        self._backends.ask("listen", backend=backend, port=port, protocol=protocol, address=address or self.address)

    def stop_serving(self, port: int, *, protocol: str = "tcp", address: str = "") -> None:
        """Close that listener; its open connections stay."""
        if self._backends:
            self._backends.ask("close", port=port, protocol=protocol, address=address or self.address)

    def _companion(self, role: str) -> Companion:
        return Companion(self.inside([*PLACE, role]), f"{role} process of {self.name}")

    def close(self) -> None:
        """End everything here."""
        assert self._keeper.stdin is not None
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait(timeout=10)
        for companion in (self._prober, self._backends):
            if companion:
                companion.close()
        self.resume()
        for process in self._background:
            process.wait(timeout=10)
        for stream in (self._keeper.stdout, self._keeper.stderr):
            if stream:
                stream.close()
        with contextlib.suppress(OSError):
            self._directory.rmdir()
