"""Protobuf bodies, as Go clients send them; spelled here by hand from the message's definition."""

import pytest

from services_app.spec import kinds, objects
from services_app.spec.errors import ApiError, BadRequest, UnsupportedMediaType
from services_app.spec.protobuf import PROTOBUF, decode


def varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def part(field: int, body: bytes | str) -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def body(kind: str, message: bytes, version: str = "v1") -> bytes:
    about = part(1, version) + part(2, kind)
    return b"k8s\0" + part(1, about) + part(2, message) + part(3, "") + part(4, "")


METADATA = part(1, "web") + part(2, "") + part(8, b"") + part(11, part(1, "app") + part(2, "web"))
PORT = (
    part(1, "http")
    + part(2, "TCP")
    + number(3, 80)
    + part(4, number(1, 1) + number(2, 0) + part(3, "web"))
    + number(5, 0)
)
OTHER_PORT = part(1, "dns") + part(2, "UDP") + number(3, 53) + part(4, number(1, 0) + number(2, 5353) + part(3, ""))
SPEC = (
    part(1, PORT) + part(1, OTHER_PORT) + part(2, part(1, "app") + part(2, "web")) + part(3, "") + part(4, "NodePort")
)


def test_a_service_is_read_as_from_json() -> None:
    message = part(1, METADATA) + part(2, SPEC) + part(3, part(1, b""))
    document, warnings = objects.decode_with_warnings(kinds.SERVICE, body("Service", message), PROTOBUF)
    assert warnings == []
    assert document["metadata"]["name"] == "web"
    assert document["metadata"]["labels"] == {"app": "web"}
    assert document["spec"]["type"] == "NodePort"
    assert document["spec"]["selector"] == {"app": "web"}
    assert document["spec"]["ports"] == [
        {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"},
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353},
    ]


def test_times_and_negative_numbers() -> None:
    metadata = part(1, "a") + part(8, number(1, 1_700_000_000))
    affinity = part(1, number(1, (1 << 64) - 5))
    document = decode(body("Service", part(1, metadata) + part(2, part(14, affinity))))
    assert document["metadata"]["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert document["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] == -5


def test_a_kind_without_numbers_is_refused_with_what_to_send() -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json"):
        decode(body("Pod", b""))


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"k8s\0\xff\xff", b"k8s\0" + b"\x80" * 20, body("Service", b"\x0a\x7f"), body("Service", b"\x0b")],
)
def test_what_is_no_message_is_a_bad_request(text: bytes) -> None:
    with pytest.raises(ApiError) as found:
        decode(text)
    assert isinstance(found.value, BadRequest | UnsupportedMediaType)
