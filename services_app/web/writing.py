"""Writing to an object that a person has had on the screen: it must still be what was shown.

A resourceVersion would not do: the status moves it, and a Service gets a new status a moment after every change.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services_app.changes import encode
from services_app.models import Change
from services_app.spec import kinds
from services_app.web.yaml_text import writable

Document = dict[str, Any]


class ChangedMeanwhile(Exception):
    """Somebody else changed the object since it was shown. current: the whole document as it is now."""

    def __init__(self, current: Document) -> None:
        super().__init__("the object was changed meanwhile")
        self.current = current


def built_on(shown: Document, change: Callable[[Document], Document]) -> Callable[[Document], Document]:
    """The change for `store.update`, refused with ChangedMeanwhile unless the object is still what was shown.

    shown: the writable part of the object, as a page carries it along.
    """

    def checked(current: Document) -> Document:
        if writable(current) != shown:
            raise ChangedMeanwhile(current)
        return change(current)

    return checked


def shown_text(document: Document) -> str:
    """What a page carries along: the writable part of the object it shows."""
    return encode(writable(document))


def read_shown(text: str) -> Document | None:
    """The writable part back from a page; None when it is none."""
    try:
        shown = json.loads(text)
    except ValueError:
        return None
    is_object = isinstance(shown, dict) and all(isinstance(shown.get(key), dict) for key in ("metadata", "spec"))
    return shown if is_object else None


def mark_of(document: Document) -> str:
    """A short mark of an object's writable part: equal marks, equal parts."""
    return hashlib.sha256(shown_text(document).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LastWrite:
    """Who changed a Service's writable part last, as far as the log says."""

    user: str
    at: Any


def last_write(namespace: str, name: str) -> LastWrite | None:
    """The newest write of a Service that was more than a new status; None when the log no longer holds it."""
    rows = Change.objects.filter(kind=kinds.SERVICE.plural, namespace=namespace, name=name).order_by("-revision")
    for change in rows[:20]:
        if change.previous is None or writable(json.loads(change.previous)) != writable(json.loads(change.document)):
            return LastWrite(change.user, change.at)
    return None
