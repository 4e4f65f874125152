"""The session with the control plane: frames on standard input and output, one request at a time.

A frame is four bytes of length, most significant first, and JSON. Requests have "id" and "op"; answers the same "id"
and "ok"; what comes without being asked has "event".
"""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from agents import host, messages, process, upgrade
from agents.errors import AgentError
from agents.messages import Message
from agents.node import PROGRAM, Node
from agents.state import ApplyError
from agents.version import VERSION

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 256 * 1024 * 1024
WATCH_S = 1.0


class Session:
    """Answers requests about a node until the other side hangs up."""

    def __init__(self, node: Node, source: BinaryIO, sink: BinaryIO) -> None:
        self._node = node
        self._source, self._sink = source, sink
        self._turn = threading.Lock()  # one at a time: a request or the watch
        self._writing = threading.Lock()
        self._is_over = threading.Event()
        self._operations: dict[str, Callable[[Message], Message]] = {
            "hello": self._hello,
            "apply": self._apply,
            "ping": self._ping,
            "upgrade": self._upgrade,
        }

    def run(self) -> None:
        """Returns when the input ends. Raises ValueError when it is no frame."""
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            while self._serve_next():
                pass
        finally:
            self._is_over.set()
            with self._turn:
                pass  # a repair is finished, not torn

    def _serve_next(self) -> bool:
        """Whether there was a request. What it held is free before the next one is waited for."""
        request = self._read()
        if request is None:
            return False
        with self._turn:
            answer = self._answer(request)
            news, self._node.news = self._node.news, []
        self._write({"id": request.get("id"), **answer})
        for reason, message in news:
            self._write({"event": "watch", "reason": reason, "message": message})
        if request.get("op") == "apply" and request.get("since") is None:
            del request, answer
            process.give_memory_back()
        return True

    def _answer(self, request: Message) -> Message:
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            return _refusal("UnknownOperation", f"this agent ({VERSION}) knows no operation {request.get('op')!r}")
        try:
            return {"ok": True, **operation(request)}
        except (AgentError, ApplyError) as err:
            logger.warning("%s: %s reason=%s", request["op"], err, err.reason)
            return _refusal(err.reason, str(err))
        except (KeyError, TypeError, AttributeError) as err:
            logger.exception("%s is malformed", request["op"])
            return _refusal("BadRequest", f"cannot read the request {request['op']}: {type(err).__name__} {err}")
        except OSError as err:
            logger.exception("%s failed", request["op"])
            return _refusal("HostFailed", f"cannot {request['op']}: {err}")

    def _hello(self, request: Message) -> Message:
        """Who this is and what it holds. Never fails for what the host lacks: that is told under "problems"."""
        problems = host.preflight()
        try:
            self._node.ensure()
        except AgentError as err:
            problems.append({"reason": err.reason, "message": err.message})
        problems += self._node.host_problems()
        return {
            "agent": VERSION,
            "node": socket.gethostname(),
            "cluster": self._node.cluster,
            "boot_id": host.boot_id(),
            "problems": problems,
            "facts": {**host.facts(), "mode": self._node.mode},
            "rejected": self._node.rejected(),
            **self._held(),
        }

    def _apply(self, request: Message) -> Message:
        began = time.perf_counter()
        rejected = self._node.apply(request["cluster"], request["revision"], request["since"], request["owners"])
        apply_ms = round((time.perf_counter() - began) * 1000, 3)
        return {**self._held(), "apply_ms": apply_ms, "rejected": rejected, "clock": time.time()}

    def _ping(self, request: Message) -> Message:
        self._node.ensure()
        return {**self._held(), "clock": time.time()}

    def _upgrade(self, request: Message) -> Message:
        """Put a newer agent in this one's place; this one serves on until the other side hangs up."""
        try:
            content = base64.b64decode(request["program"], validate=True)
        except ValueError as err:
            raise AgentError("BadRequest", f"cannot read the program: {err}") from err
        version = upgrade.replace_program(PROGRAM, content, request["signature"], self._node.directory, VERSION)
        logger.info("agent %s replaced by %s", VERSION, version)
        return {"agent": version}

    def _held(self) -> Message:
        serving = {"mode": self._node.mode, "problems": self._node.problems()}
        return {"revision": self._node.revision, "digest": self._node.digest, "serving": serving}

    def _watch(self) -> None:
        """Every second: repair what somebody else broke, and say so."""
        last = ""
        while not self._is_over.wait(WATCH_S):
            with self._turn:
                if self._is_over.is_set():
                    return
                try:
                    found, reason = self._node.watch(), "Repaired"
                except AgentError as err:
                    found, reason = err.message, err.reason
                except OSError as err:
                    found, reason = str(err), "HostFailed"
                news, self._node.news = self._node.news, []
            if found and found != last:
                logger.warning("%s reason=%s", found, reason)
                news = [(reason, found), *news]
            try:
                for told, message in news:
                    self._write({"event": "watch", "reason": told, "message": message})
            except OSError:
                return
            last = found if reason != "Repaired" else ""

    def _read(self) -> Message | None:
        head = self._source.read(4)
        if len(head) < 4:
            return None
        (size,) = struct.unpack(">I", head)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes: the other side does not speak this protocol")
        body = self._source.read(size)
        if len(body) < size:
            return None
        try:
            return messages.read(body.decode())
        except (ValueError, RecursionError) as err:
            raise ValueError(f"a frame that is no JSON object: {err}") from err

    def _write(self, message: Message) -> None:
        body = json.dumps(message, separators=(",", ":")).encode()
        with self._writing:
            self._sink.write(struct.pack(">I", len(body)) + body)
            self._sink.flush()


def _refusal(reason: str, message: str) -> Message:
    return {"ok": False, "reason": reason, "message": message}


def serve(node: Node) -> None:
    """Serve on the process's own standard input and output."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever a tool prints must not get into the frames.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        Session(node, source, sink).run()
    except BrokenPipeError:
        logger.info("the control plane hung up")
