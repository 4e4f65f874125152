"""Plays a recorded case against Timonel's API: in this process, or over HTTP against any server."""

import http.client
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from django.test import Client

from tests.conformance.comparison import (
    MISSING,
    Bindings,
    MismatchError,
    events_of,
    in_any_order,
    managers_of,
    without_texts,
)

STREAM_S = 30.0  # how long a watch may stay open
ATTEMPTS = 3  # at what has to match eventually, with a round of background work between

Step = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back. warnings: how many the Warning headers hold."""

    status: int
    content_type: str
    warnings: int
    body: bytes

    @property
    def document(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return MISSING


class Transport(Protocol):
    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer: ...

    def stream(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, during: Callable[[], None]
    ) -> Answer: ...


def _warnings(texts: list[str]) -> int:
    return sum(len(re.findall(r'299 \S+ "', text)) for text in texts)


class InProcess:
    """Requests through Django, in the test's own transaction."""

    def __init__(self) -> None:
        self.client = Client()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        media = headers.pop("Content-Type", "")
        response = self.client.generic(method, path, body or b"", content_type=media, headers=headers, secure=True)
        content_type = response.headers.get("Content-Type", "").split(";")[0]
        return Answer(
            response.status_code, content_type, _warnings([response.headers.get("Warning", "")]), response.content
        )

    def stream(self, *_: Any, **__: Any) -> Answer:
        raise NotImplementedError("a stream needs a server")


class OverHttp:
    """Requests to any server, a connection for each. url: its address; tls: how its certificate is judged, for https."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self.address, self.tls = urlsplit(url), tls

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(self.address.netloc, timeout=STREAM_S, context=self.tls)
        return http.client.HTTPConnection(self.address.netloc, timeout=STREAM_S)

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        return self.stream(method, path, headers, body, lambda: None)

    def stream(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, during: Callable[[], None]
    ) -> Answer:
        connection = self._connection()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            during()
            content_type = response.headers.get_content_type()
            warnings = _warnings(response.headers.get_all("Warning") or [])
            return Answer(response.status, content_type, warnings, response.read())
        finally:
            connection.close()


class Player:
    """background: one round of the work that happens outside requests, or the time to wait for it.

    attempts: at what has to match eventually. cleans_up: the server is kept, and others come after.
    """

    def __init__(
        self,
        transport: Transport,
        token: str,
        background: Callable[[], None],
        *,
        attempts: int = ATTEMPTS,
        cleans_up: bool = False,
    ) -> None:
        self.transport, self.token, self.background = transport, token, background
        self.attempts, self.cleans_up = attempts, cleans_up

    def play(self, case: dict[str, Any]) -> None:
        """Raise MismatchError, with a note saying at which step, where an answer differs."""
        bindings = Bindings(f"conf-{uuid.uuid4().hex[:8]}")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": bindings.variables["ns"]}}
        self._send({"method": "POST", "path": "/api/v1/namespaces", "body": namespace}, bindings)
        try:
            for number, step in enumerate(case["steps"], 1):
                try:
                    self._step(step, bindings)
                except Exception as err:
                    err.add_note(f"step {number}: {step['request']['method']} {step['request']['path']}")
                    raise
        finally:
            if self.cleans_up:
                self._clean_up(case, bindings)

    def _clean_up(self, case: dict[str, Any], bindings: Bindings) -> None:
        place = "/api/v1/namespaces/{ns}"
        paths = [*case.get("cleanup", ()), f"{place}/services", f"{place}/pods?gracePeriodSeconds=0", place]
        for path in paths:
            self._send({"method": "DELETE", "path": path}, bindings)

    def _step(self, step: Step, bindings: Bindings) -> None:
        if step.get("delay"):
            self.background()
        if step.get("watch"):
            self._watch(step, bindings)
        elif step.get("eventually"):
            self._poll(step, bindings)
        elif "repeat" in step:
            for index in range(step["repeat"]):
                bindings.variables |= {"i": str(index), "ip": f"10.200.{index // 250}.{index % 250 + 1}"}
                self._once(step, bindings)
        else:
            self._once(step, bindings)

    def _once(self, step: Step, bindings: Bindings) -> None:
        self._check(step, bindings, self._send(step["request"], bindings))

    def _poll(self, step: Step, bindings: Bindings) -> None:
        for attempt in range(self.attempts):
            trial = bindings.copy()
            try:
                self._once(step, trial)
            except MismatchError:
                if attempt == self.attempts - 1:
                    raise
                self.background()
            else:
                bindings.values = trial.values
                return

    def _watch(self, step: Step, bindings: Bindings) -> None:
        def during() -> None:
            for inner in step.get("during", ()):
                self._step(inner, bindings)

        answer = self._send(step["request"], bindings, during)
        recorded = step["response"].get("events")
        self._check(step, bindings, answer)
        if recorded is not None:
            got = without_texts(events_of(answer.body))
            bindings.match(without_texts(recorded), got, "$events", step.get("match", "subset"))

    def _check(self, step: Step, bindings: Bindings, answer: Answer) -> None:
        response = step["response"]
        document = answer.document
        if answer.status != response["status"]:
            said = document.get("message") if isinstance(document, dict) else None
            raise MismatchError("status", response["status"], f"{answer.status} {said or answer.body[:80]!r}")
        if "contentType" in response:
            bindings.match(response["contentType"], answer.content_type, "contentType")
        if "warnings" in response:
            bindings.match(response["warnings"], answer.warnings, "warnings")
        if "managers" in response:
            bindings.match(response["managers"], managers_of(document), "managers")
        if "body" in response:
            expected, got = (
                in_any_order(without_texts(body), step.get("unordered", [])) for body in (response["body"], document)
            )
            bindings.match(expected, got, mode=step.get("match", "exact"))

    def _send(self, request: Step, bindings: Bindings, during: Callable[[], None] | None = None) -> Answer:
        headers = {"Accept": "application/json", "Authorization": f"Bearer {self.token}", "User-Agent": "corpus"}
        if "body" in request and "headers" not in request:
            headers["Content-Type"] = "application/json"
        headers |= bindings.fill(request.get("headers") or {})
        headers = {name: value for name, value in headers.items() if value is not None}
        body = None
        if "raw" in request:
            body = bindings.fill(request["raw"]).encode()
        elif "body" in request:
            body = json.dumps(bindings.fill(request["body"])).encode()
        path = bindings.fill(request["path"], quoted=True)
        if during is not None:
            return self.transport.stream(request["method"], path, headers, body, during)
        return self.transport.send(request["method"], path, headers, body)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Return when the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)
