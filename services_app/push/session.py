"""Warm sessions to the agents: one SSH channel a node, length-prefixed JSON both ways, one push in flight a node."""

import contextlib
import json
import logging
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from services_app.push import ssh
from services_app.push.errors import NodeError
from services_app.push.link import Link

logger = logging.getLogger(__name__)

Message = dict[str, Any]
AGENT = "/usr/local/lib/timonel/agent.pyz"
REPLY_TIMEOUT_S = 20.0  # longer than the agent waits for a tool of its host, so that it can say which one hangs
GREETING_TIMEOUT_S = 45.0  # it looks at several of them, and may repair everything first
FULL_TIMEOUT_S = 60.0
MAX_FRAME_BYTES = 256 * 1024 * 1024


def agent_command(user: str, command: str) -> str:
    """How the agent is called over SSH; the sudo rule of enrolment allows exactly `serve`."""
    prefix = "" if user == "root" else "sudo -n "
    return f"{prefix}/usr/bin/env python3 {AGENT} {command}"


class AgentSession:
    """The agent of one node, answering. `ask` from one thread at a time per request; replies are matched by number."""

    def __init__(
        self,
        connection: ssh.Connection,
        user: str,
        *,
        cluster: str,
        address: str,
        on_event: Callable[[Message], None] = lambda event: None,
    ) -> None:
        """cluster: the control plane's uid. address: where the node was reached."""
        self.connection, self.cluster, self.address = connection, cluster, address
        self.name = connection.name
        self.on_event = on_event
        self.is_fresh = True  # nothing was pushed over it yet
        self.held: int | None = None  # the revision the agent holds of our cluster, as far as we know
        self.link = Link(connection.socket)
        self.problems: list[Message] = []  # of the host, as the agent told them
        self.serving: Message = {}  # in which mode, and what is amiss with it
        self.told: list[str] | None = None  # the reasons reported last; None before the first report
        self._channel = connection.channel(agent_command(user, "serve"))
        self._channel.settimeout(None)
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Future[Message]] = {}
        self._error: NodeError | None = None
        threading.Thread(target=self._read, name=f"agent {self.name}", daemon=True).start()

    @property
    def is_open(self) -> bool:
        return self._error is None and self.connection.is_open

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()
        self.connection.close()

    def ask(self, message: Message, *, timeout_s: float = REPLY_TIMEOUT_S) -> Message:
        """The reply to a request. Raises NodeError: the agent's own reason, Timeout, ConnectionLost."""
        reply: Future[Message] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._number += 1
            number = self._number
            self._waiting[number] = reply
            body = json.dumps({**message, "id": number}, separators=(",", ":")).encode()
            try:
                self._channel.sendall(struct.pack(">I", len(body)) + body)
            except OSError as err:
                self._waiting.pop(number, None)
                raise NodeError("ConnectionLost", f"the session to {self.name} broke while sending") from err
        began = time.monotonic()
        try:
            answer = reply.result(timeout_s)
        except TimeoutError as err:
            self.close()
            raise NodeError(
                "Timeout",
                f"the agent of {self.name} did not answer within {timeout_s:.0f} s: is the host overloaded or nft stuck?",
            ) from err
        if not answer.get("ok"):
            raise NodeError(answer.get("reason") or "AgentFailed", answer.get("message") or "the agent gave no reason")
        self._note_way(answer, time.monotonic() - began)
        return answer

    def _note_way(self, answer: Message, took_s: float) -> None:
        worked_ms, clock = answer.get("apply_ms"), answer.get("clock")
        if clock is None:
            return  # it did more than answer, for an unknown time
        round_trip_ms = took_s * 1000 - (worked_ms or 0.0)
        self.link.note(round_trip_ms, clock - (time.time() - round_trip_ms / 2000))

    def _read(self) -> None:
        try:
            while True:
                (size,) = struct.unpack(">I", self._exactly(4))
                if size > MAX_FRAME_BYTES:
                    raise NodeError("AgentFailed", f"the agent of {self.name} sent what is no frame")
                message = json.loads(self._exactly(size))
                if "id" not in message:
                    self.on_event(message)
                    continue
                with self._lock:
                    waiting = self._waiting.pop(message["id"], None)
                if waiting is not None:
                    waiting.set_result(message)
        except NodeError as err:
            self._fail(err)
        except (OSError, ValueError, EOFError) as err:
            self._fail(NodeError("ConnectionLost", f"the session to {self.name} broke: {err}"))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._channel.recv(min(size, 1 << 20))
            if not part:
                raise self._ended()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _ended(self) -> NodeError:
        """Why the agent is gone: its exit status and last words tell."""
        words = b""
        with contextlib.suppress(Exception):
            self._channel.settimeout(1)
            words = self._channel.recv_stderr(4096)
        said = words.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else ""
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else -1
        if "can't open file" in last or "No such file" in last:
            return NodeError("AgentMissing", f"there is no agent on {self.name}; enrol the node again")
        if code == 127 or "python3" in last:
            return NodeError("PythonMissing", f"{self.name} has no python3; install it")
        if "password is required" in last:
            return NodeError("SudoRefused", f"sudo on {self.name} asks for a password; enrol the node again")
        return NodeError("AgentEnded", f"the agent of {self.name} ended{f': {last}' if last else ''}")

    def _fail(self, error: NodeError) -> None:
        with self._lock:
            self._error = error
            waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply.set_exception(error)
        self.connection.close()


class SessionPool:
    """The open sessions of this process, by node name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, AgentSession] = {}
        self._in_flight: dict[str, bool] = {}  # node -> somebody asked for another look meanwhile

    def get(self, node: str) -> AgentSession | None:
        """The open session to a node; None when there is none."""
        with self._lock:
            session = self._sessions.get(node)
            if session is not None and not session.is_open:
                del self._sessions[node]
                session = None
        return session

    def put(self, node: str, session: AgentSession) -> None:
        with self._lock:
            old, self._sessions[node] = self._sessions.get(node), session
        if old is not None:
            old.close()

    def drop(self, node: str) -> None:
        with self._lock:
            session = self._sessions.pop(node, None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        with self._lock:
            sessions, self._sessions = [*self._sessions.values()], {}
        for session in sessions:
            session.close()

    def begin(self, node: str) -> bool:
        """Whether the caller may push now; when somebody does already, he will look again."""
        with self._lock:
            if node in self._in_flight:
                self._in_flight[node] = True
                return False
            self._in_flight[node] = False
            return True

    def end(self, node: str) -> bool:
        """Whether somebody asked for another look since `begin` or the last `end`; if not, the turn is over."""
        with self._lock:
            if self._in_flight.get(node):
                self._in_flight[node] = False
                return True
            self._in_flight.pop(node, None)
            return False

    def abandon(self, node: str) -> None:
        """End the turn whatever was asked: the node failed, a later try follows."""
        with self._lock:
            self._in_flight.pop(node, None)
