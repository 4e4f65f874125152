"""Requests and journal lines, read from JSON so that what thousands of owners say takes little room.

`json.loads` makes every text and list of a push before the first is used; what is freed of that later leaves holes that are of no
use: a fifth of what an agent had at rest. Here each owner is put into its lasting form before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable
from json.decoder import WHITESPACE, JSONDecodeError, JSONDecoder, scanstring  # type: ignore[attr-defined]
from sys import intern
from typing import Any

Message = dict[str, Any]
_Read = tuple[Any, int]  # a value, and where it ends

_decode = JSONDecoder().raw_decode


def read(text: str) -> Message:
    """The object that `json.loads` makes of a text, with tuples for an owner's resources. Raises ValueError, RecursionError."""
    values: dict[str, str] = {}  # each text once: many Services have the same endpoints
    found, end = _object(text, _skip(text, 0), lambda key, at: _owners(text, at, values) if key == "owners" else None)
    if _skip(text, end) != len(text):
        raise JSONDecodeError("Extra data", text, end)
    return found


def _owners(text: str, at: int, values: dict[str, str]) -> _Read | None:
    if text[at : at + 1] != "{":
        return None
    return _object(text, at, lambda _, start: _resources(text, start, values))


def _resources(text: str, at: int, values: dict[str, str]) -> _Read:
    resources, end = _decode(text, at)
    if isinstance(resources, list) and {*map(type, resources)} <= {list}:  # a text or an object of three is none
        try:
            resources = [(intern(driver), key, values.setdefault(value, value)) for driver, key, value in resources]
        except (TypeError, ValueError):
            pass  # not [driver, key, value]; who judges it says so
    return resources, end


def _object(text: str, at: int, read_value: Callable[[str, int], _Read | None]) -> tuple[Message, int]:
    """The object that begins there, and where it ends. read_value: key, start -> (value, end), or None for any other value."""
    if text[at : at + 1] != "{":
        raise JSONDecodeError("Expecting an object", text, at)
    found: Message = {}
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting a name in double quotes", text, at)
        key, at = scanstring(text, at + 1)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("Expecting ':'", text, at)
        at = _skip(text, at + 1)
        value, at = read_value(key, at) or _decode(text, at)
        found[key] = value
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return found, at + 1
        if text[at : at + 1] != ",":
            raise JSONDecodeError("Expecting ',' or '}'", text, at)
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    """Where what is no white space begins."""
    match = WHITESPACE.match(text, at)
    return match.end() if match else at
