"""Writes by a person at a page: with the rights the API asks for, and only to what that person has seen.

A resourceVersion would not tell what was seen: the status moves it, and a Service gets a new status a moment after
every change. So a page carries the writable part of the object it shows.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from services_app import audit, store
from services_app.api import auth
from services_app.changes import encode
from services_app.spec import kinds
from services_app.spec.kinds import Kind
from services_app.web.yaml_text import writable

Document = dict[str, Any]


def create(
    request: HttpRequest, kind: Kind, document: Document, *, namespace: str, dry_run: bool = False
) -> store.Stored:
    """Store a new object for the one who asks. Raises Forbidden, and what `store.create` raises."""
    require_right(request, "create", kind, namespace, before=None, wanted=document)
    return store.create(kind, document, namespace=namespace, actor=_actor_of(request), dry_run=dry_run)


def update(
    request: HttpRequest,
    kind: Kind,
    namespace: str,
    name: str,
    change: Callable[[Document], Document],
    *,
    dry_run: bool = False,
) -> store.Stored:
    """Change an object for the one who asks. Raises Forbidden, and what `store.update` and `change` raise."""

    def allowed(current: Document) -> Document:
        wanted = change(current)
        require_right(request, "update", kind, namespace, before=current, wanted=wanted)
        return wanted

    return store.update(kind, namespace, name, allowed, actor=_actor_of(request), dry_run=dry_run)


def delete(request: HttpRequest, kind: Kind, namespace: str, name: str, *, uid: str) -> store.Stored:
    """Delete the object with this uid for the one who asks. Raises Forbidden, and what `store.delete` raises."""
    require_right(request, "delete", kind, namespace, before={"metadata": {"name": name}}, wanted=None)
    return store.delete(kind, namespace, name, actor=_actor_of(request), preconditions={"uid": uid})


def require_right(
    request: HttpRequest, verb: str, kind: Kind, namespace: str, *, before: Document | None, wanted: Document | None
) -> None:
    """Raise Forbidden when the one who asks may not do this; every write of the pages comes through here.

    before: the object as stored, None when it is created. wanted: as it would be stored, None when it is deleted.
    """
    actor = _actor_of(request)
    auth.require_right(request.user, actor.request_id, verb, kind, namespace, before=before, wanted=wanted)


def _actor_of(request: HttpRequest) -> store.Actor:
    """Who writes, for the log."""
    return store.Actor(request.user.get_username(), audit.request_id(request.headers), manager="timonel-dashboard")


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
    """Who changed a Service's writable part last, as far as the records say."""

    user: str
    at: Any


def last_write(namespace: str, name: str) -> LastWrite | None:
    """The newest write of a Service that was more than a new status; None when no record holds it any more."""
    for change in audit.writes_of(kinds.SERVICE.plural, namespace, name)[:20]:
        after = json.loads(change.document or "null")
        if change.previous is None or writable(json.loads(change.previous)) != writable(after):
            return LastWrite(change.user, change.at)
    return None
