"""Clients that are slow, old, odd or impatient, on the wire itself."""

import gzip
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from services_app.api import warning_headers
from services_app.lab.client import CORE, ApiClient, service
from services_app.local.supervisor import Stack
from tests.clients.conftest import connect
from tests.conformance.player import wait_until

Document = dict[str, Any]
BIG = 128 * 1024


@pytest.fixture
def headers(stack: Stack) -> dict[str, str]:
    return {"Authorization": f"Bearer {stack.token}"}


@contextmanager
def raw(stack: Stack) -> Iterator[ssl.SSLSocket]:
    """A TLS connection on which every byte is ours."""
    parts = urlsplit(stack.url)
    tls = ssl.create_default_context(cafile=str(stack.ca))
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as plain:
        with tls.wrap_socket(plain, server_hostname=parts.hostname) as wrapped:
            yield wrapped


def config_map(name: str, **data: str) -> Document:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def response_of(wire: ssl.SSLSocket, method: str = "GET") -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(wire, method=method)
    response.begin()
    return response


# --- how it is asked


def test_http_1_0_is_answered_and_hung_up(stack: Stack) -> None:
    with raw(stack) as wire:
        wire.sendall(f"GET {CORE}/namespaces/default HTTP/1.0\r\nAuthorization: Bearer {stack.token}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head.lower()
    assert json.loads(body)["metadata"]["name"] == "default"


def test_a_body_in_chunks(stack: Stack, headers: dict[str, str], space: str) -> None:
    text = json.dumps(config_map("chunked", word="x" * 5000)).encode()
    pieces = (text[i : i + 700] for i in range(0, len(text), 700))
    with closing(connect(stack)) as connection:
        sent = {**headers, "Content-Type": "application/json"}
        connection.request("POST", f"{CORE}/namespaces/{space}/configmaps", pieces, sent, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 201
        assert json.loads(response.read())["data"]["word"] == "x" * 5000


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_body_beyond_the_limit(stack: Stack, headers: dict[str, str], space: str, chunked: bool) -> None:
    text = json.dumps(config_map("huge", word="x" * 3_200_000)).encode()
    body: Any = (text[i : i + 65536] for i in range(0, len(text), 65536)) if chunked else text
    with closing(connect(stack)) as connection:
        sent = {**headers, "Content-Type": "application/json"}
        connection.request("POST", f"{CORE}/namespaces/{space}/configmaps", body, sent, encode_chunked=chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["reason"] == "RequestEntityTooLarge"


def test_a_client_that_waits_to_be_told_to_continue(stack: Stack, space: str) -> None:
    text = json.dumps(config_map("waited")).encode()
    with raw(stack) as wire:
        wire.sendall(
            f"POST {CORE}/namespaces/{space}/configmaps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert wire.recv(65536).startswith(b"HTTP/1.1 100 ")
        wire.sendall(text)
        assert response_of(wire).status == 201


def test_requests_that_do_not_wait_for_answers(stack: Stack) -> None:
    """Pipelined: all are sent at once, the answers come in their order."""
    one = "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    names = ["default", "kube-system", "kube-public", "default"]
    with raw(stack) as wire:
        text = "".join(one.format(path=f"{CORE}/namespaces/{name}", token=stack.token) for name in names)
        wire.sendall(text.encode())
        answers = b""
        while answers.count(b'"kind":"Namespace"') < len(names):
            answers += wire.recv(65536)
    found = [part.split(b'"', 1)[0].decode() for part in answers.split(b'"name":"')[1:]]
    assert [name for name in found if name in names] == names


def test_head_is_answered_without_a_body(stack: Stack, headers: dict[str, str]) -> None:
    with closing(connect(stack)) as connection:
        connection.request("HEAD", f"{CORE}/namespaces/default", headers=headers)
        response = connection.getresponse()
        assert (response.status, response.read()) == (405, b"")
        connection.request("GET", f"{CORE}/namespaces/default", headers=headers)  # and the connection still works
        assert connection.getresponse().status == 200


@pytest.mark.parametrize(
    "request_line",
    [
        "GET / HTTP/9.9",
        "GET",
        "\0\1\2\3",
        "GET /api/v1/namespaces\x01 HTTP/1.1",
        "get /api/v1 HTTP/1.1",
        "GET http:// HTTP/1.1",
    ],
    ids=["version", "word", "bytes", "control", "case", "address"],
)
def test_no_request_at_all(stack: Stack, api: ApiClient, request_line: str) -> None:
    with raw(stack) as wire:
        wire.sendall(f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        wire.settimeout(10)
        answer = wire.recv(65536)
    assert answer == b"" or answer.split(b" ")[1][:1] in b"4", answer
    assert api.request("GET", f"{CORE}/namespaces/default")["kind"] == "Namespace"


# --- gzip


@pytest.fixture
def much(api: ApiClient, space: str) -> str:
    """A list above the size from which answers are compressed."""
    for number in range(3):
        api.create(f"{CORE}/namespaces/{space}/configmaps", config_map(f"big-{number}", word="abc " * 15_000))
    return f"{CORE}/namespaces/{space}/configmaps"


def test_big_answers_are_compressed_for_those_who_ask(stack: Stack, headers: dict[str, str], much: str) -> None:
    with closing(connect(stack)) as connection:
        answers = {}
        for asked in ("gzip", "deflate, gzip, br", "identity", ""):
            connection.putrequest("GET", much, skip_accept_encoding=True)
            for name, value in {**headers, **({"Accept-Encoding": asked} if asked else {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            answers[asked] = (response.headers, response.read())
    plain = answers[""][1]
    assert len(plain) > BIG
    assert answers["identity"][1] == plain
    assert answers[""][0]["Content-Encoding"] is None
    for asked in ("gzip", "deflate, gzip, br"):
        found, body = answers[asked]
        assert found["Content-Encoding"] == "gzip"
        assert "accept-encoding" in found["Vary"].lower()
        assert int(found["Content-Length"]) == len(body) < len(plain) / 5
        assert gzip.decompress(body) == plain


def test_small_answers_and_watches_are_not_compressed(stack: Stack, headers: dict[str, str], much: str) -> None:
    asked = {**headers, "Accept-Encoding": "gzip"}
    with closing(connect(stack)) as connection:
        for path in (f"{much}?limit=1", f"{much}/big-0", f"{much}?watch=1&timeoutSeconds=1"):
            connection.request("GET", path, headers=asked)
            response = connection.getresponse()
            assert response.status == 200
            assert response.headers["Content-Encoding"] is None
            response.read()


# --- warnings


def test_each_warning_has_a_header_of_its_own(stack: Stack, headers: dict[str, str], space: str) -> None:
    document = service("web", {"app": "web"}, [{"port": 80, "a\nb": 1}], first=1, zwölf=2)
    with closing(connect(stack)) as connection:
        sent = {**headers, "Content-Type": "application/json"}
        connection.request("POST", f"{CORE}/namespaces/{space}/services", json.dumps(document), sent)
        response = connection.getresponse()
        assert response.status == 201
        found = [text.encode("latin1").decode() for text in response.headers.get_all("Warning")]
    # As in Kubernetes: quotes are escaped, and what holds control characters is not said.
    assert found == ['299 - "unknown field \\"spec.first\\""', '299 - "unknown field \\"spec.zwölf\\""']


def test_many_warnings_are_no_more_headers_than_clients_take(stack: Stack, headers: dict[str, str], space: str) -> None:
    document = {**config_map("many"), **{f"x{number}": 1 for number in range(150)}}
    with closing(connect(stack)) as connection:
        sent = {**headers, "Content-Type": "application/json"}
        connection.request("POST", f"{CORE}/namespaces/{space}/configmaps", json.dumps(document), sent)
        response = connection.getresponse()
        assert response.status == 201
        text = ", ".join(response.headers.get_all("Warning"))
    assert [f'\\"x{number}\\"' in text for number in (0, 99)] == [True, True]


def test_many_warnings_are_cut() -> None:
    assert warning_headers.spell(["a", "a", 'b"\\', "c\n"]) == ['299 - "a"', '299 - "b\\"\\\\"']
    cut = warning_headers.spell([f"{number:04}{'x' * 400}" for number in range(100)])
    assert len(cut) == warning_headers.TOTAL // warning_headers.ITEM
    assert {len(line) for line in cut} == {len('299 - ""') + warning_headers.ITEM}


# --- those who come and go, or do not


def test_many_connections_are_kept(stack: Stack, headers: dict[str, str]) -> None:
    connections = [connect(stack) for _ in range(200)]
    try:
        for turn in range(3):
            for connection in connections:
                connection.request("GET", f"{CORE}/namespaces/default", headers=headers)
            for connection in connections:
                response = connection.getresponse()
                assert (response.status, turn) == (200, turn)
                response.read()
                assert connection.sock is not None  # nobody hung up
    finally:
        for connection in connections:
            connection.close()


def test_those_who_leave_amid_everything(stack: Stack, api: ApiClient, space: str) -> None:
    """In a request, in an answer, in a watch: nothing of it is left, and others are served."""
    token = f"Authorization: Bearer {stack.token}\r\n"
    before = {pid: streams_of(pid) for pid in stack.pids_of("web")}
    for _ in range(30):
        with raw(stack) as wire:
            wire.sendall(f"POST {CORE}/namespaces/{space}/configmaps HTTP/1.1\r\nHost: x\r\n{token}".encode())
            wire.sendall(b"Content-Length: 5000\r\n\r\n{")
        with raw(stack) as wire:
            wire.sendall(f"GET {CORE}/namespaces/{space}/configmaps HTTP/1.1\r\nHost: x\r\n{token}\r\n".encode())
        with raw(stack) as wire:
            wire.sendall(f"GET {CORE}/services?watch=1 HTTP/1.1\r\nHost: x\r\n{token}\r\n".encode())
            assert wire.recv(100).startswith(b"HTTP/1.1 200")
    assert api.request("GET", f"{CORE}/namespaces/{space}/configmaps")["items"] == []
    # All 90 are let go; a process may have opened a few to the database meanwhile.
    for pid, count in before.items():
        wait_until(lambda pid=pid, count=count: streams_of(pid) < count + 15, 20)


def streams_of(pid: int) -> int:
    """The open sockets of a process."""
    targets = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return sum(str(target).startswith("socket:") for target in targets)


def test_a_reader_that_stops_holds_nobody_back(
    stack: Stack, api: ApiClient, headers: dict[str, str], space: str
) -> None:
    maps = f"{CORE}/namespaces/{space}/configmaps"
    version = api.request("GET", maps)["metadata"]["resourceVersion"]
    path = f"{maps}?watch=1&resourceVersion={version}&timeoutSeconds=60"
    with raw(stack) as slow, closing(connect(stack)) as quick:
        slow.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}\r\n\r\n".encode())
        quick.request("GET", path, headers=headers)
        stream = quick.getresponse()
        # More than sockets and buffers hold in between.
        for number in range(60):
            api.create(maps, config_map(f"m{number:02}", word=f"{number} " * 100_000 if number % 2 else "x" * 300_000))
        names = [json.loads(stream.readline())["object"]["metadata"]["name"] for _ in range(60)]
        assert names == [f"m{number:02}" for number in range(60)]
        # And when it reads at last, it has missed nothing.
        late = response_of(slow)
        names = [json.loads(late.readline())["object"]["metadata"]["name"] for _ in range(60)]
        assert names == [f"m{number:02}" for number in range(60)]


@pytest.mark.slow
def test_an_idle_watch_is_still_there_after_a_while(
    stack: Stack, api: ApiClient, headers: dict[str, str], space: str
) -> None:
    watch_idly(stack, api, headers, space, 12)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_an_idle_watch_is_still_there_after_minutes(
    stack: Stack, api: ApiClient, headers: dict[str, str], space: str
) -> None:
    watch_idly(stack, api, headers, space, 130)


def watch_idly(stack: Stack, api: ApiClient, headers: dict[str, str], space: str, idle_s: float) -> None:
    maps = f"{CORE}/namespaces/{space}/configmaps"
    with closing(connect(stack, timeout_s=idle_s + 30)) as connection:
        connection.request("GET", f"{maps}?watch=1&allowWatchBookmarks=true", headers=headers)
        stream = connection.getresponse()
        time.sleep(idle_s)
        api.create(maps, config_map("late"))
        while (event := json.loads(stream.readline()))["type"] == "BOOKMARK":
            pass
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "late")
