"""The page for auditors: who wrote what, when, what it said before and says now, and what was refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.forms import DateTimeField
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from services_app import audit
from services_app.api import auth
from services_app.models import AuditEntry
from services_app.spec import kinds
from services_app.web.overview import NUL
from services_app.web.views import page
from services_app.web.yaml_text import DiffLine, changed_paths, differences

PER_PAGE = 50
# Kinds of records that are no objects of the API
GRANTS, ACCESS = "grants", ("apitokens", "users", "groups")
VERBS = {audit.ADDED: "created", audit.MODIFIED: "changed", audit.DELETED: "deleted", audit.REFUSED: "was refused"}
_COUNTED = (
    "metadata.resourceVersion",
    "metadata.managedFields",
)  # what the server counts: no change that was asked for


@dataclass(frozen=True)
class HistoryFilter:
    """What the auditor asked for; every field may be empty. since, until: as typed. before: where the page goes on."""

    user: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    request: str = ""
    verb: str = ""
    since: str = ""
    until: str = ""
    before: str = ""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "HistoryFilter":
        """As the parameters of the page say."""
        return cls(**{name: query.get(name, "").strip() for name in cls.__dataclass_fields__})

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__dataclass_fields__ if name != "before")

    @property
    def errors(self) -> Sequence[str]:
        """What cannot be read of it."""
        return [
            f"{name.capitalize()} {value!r} is no moment: write 2026-03-01 or 2026-03-01 14:30 (UTC)."
            for name, value in (("since", self.since), ("until", self.until))
            if value and _moment(value) is None
        ]

    def queryset(self, user: Any) -> QuerySet[AuditEntry]:
        """The records that fit and may be seen, the newest first; none for what cannot be."""
        rows = AuditEntry.objects.filter(visible_to(user))
        if self.errors or NUL in "".join(getattr(self, name) for name in self.__dataclass_fields__):
            return rows.none()
        wanted = {
            "user": self.user,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "request_id": self.request,
            "verb": self.verb,
            "at__gte": _moment(self.since),
            "at__lt": _moment(self.until),
        }
        rows = rows.filter(**{column: value for column, value in wanted.items() if value})
        revision, _, identity = self.before.partition(".")
        if revision.isdecimal() and identity.lstrip("-").isdecimal() and len(self.before) < 40:
            rows = rows.filter(Q(revision__lt=int(revision)) | Q(revision=int(revision), id__gt=int(identity)))
        return rows

    def older(self, last: AuditEntry) -> str:
        """The query of the page that goes on after a record."""
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__ if getattr(self, name)}
        return urlencode({**kept, "before": f"{last.revision}.{last.pk}"})


def _moment(text: str) -> datetime | None:
    """A moment as people and browsers write it; without a zone it is UTC. None for what is none."""
    if not text:
        return None
    try:
        found = DateTimeField().clean(text.removesuffix("Z"))
    except ValidationError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def visible_to(user: Any) -> Q:
    """The records a user may see: of what he may list, and of grants where he may give them."""
    seen = auth.places(user, "list", kinds.SERVICE)
    open_kinds = ~Q(kind__in=[kinds.SECRET.plural, GRANTS, *ACCESS])
    allowed = open_kinds & _within(seen)
    allowed |= Q(kind=kinds.SECRET.plural) & _within(auth.places(user, "list", kinds.SECRET))
    to_grant = auth.places_to_grant(user)
    allowed |= Q(kind__in=[GRANTS, *ACCESS] if to_grant is None else [GRANTS]) & _within(to_grant)
    return allowed & _within(seen)  # every role sees what view does: said once more, an index finds a namespace by it


def _within(places: frozenset[str] | None) -> Q:
    return Q() if places is None else Q(namespace__in=places)


@dataclass(frozen=True)
class HistoryRow:
    """One record as the page shows it. lines: empty for what is not shown, as a Secret's values."""

    entry: AuditEntry
    verb: str
    fields: Sequence[str] = ()
    lines: Sequence[DiffLine] = ()

    @property
    def object(self) -> str:
        return "/".join(part for part in (self.entry.kind, self.entry.namespace, self.entry.name) if part)


def row_of(entry: AuditEntry) -> HistoryRow:
    """A record, with the difference it made."""
    verb = VERBS.get(entry.verb, entry.verb)
    if entry.kind == kinds.SECRET.plural or entry.verb == audit.REFUSED:
        return HistoryRow(entry, verb)
    after = json.loads(entry.document) if entry.document and entry.verb != audit.DELETED else None
    before = json.loads(entry.previous or entry.document or "null") if entry.verb != audit.ADDED else None
    before, after = _without_counts(before), _without_counts(after)
    fields = changed_paths(before, after) if before and after else []
    return HistoryRow(entry, verb, fields, differences(before, after or {}))


def _without_counts(document: Any) -> Any:
    """A document without what the server counts."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return document
    left = {key: value for key, value in document["metadata"].items() if f"metadata.{key}" not in _COUNTED}
    return {**document, "metadata": left}


@page
def history(request: HttpRequest) -> HttpResponse:
    """The records that fit, the newest first."""
    wanted = HistoryFilter.from_query(request.GET.dict())
    found = list(wanted.queryset(request.user)[: PER_PAGE + 1])
    rows = [row_of(entry) for entry in found[:PER_PAGE]]
    context = {
        "wanted": wanted,
        "rows": rows,
        "older": wanted.older(found[PER_PAGE - 1]) if len(found) > PER_PAGE else "",
        "kinds": [*dict.fromkeys(kind.plural for kind in kinds.STORED), GRANTS, *ACCESS],
        "verbs": VERBS.items(),
    }
    return render(request, "web/history.html", context)
