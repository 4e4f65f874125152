"""Seal what is sealed with the present key, where an old one did: Secrets, and their texts in the log and the records."""

import json
from collections.abc import Iterator
from typing import Any

from django.db.models import Model

from services_app import models
from services_app.spec import kinds
from services_app.spec.errors import InternalError
from services_app.store import forms

AT_ONCE = 500


def reseal() -> tuple[int, list[str]]:
    """(texts sealed anew, what could not be opened). May run while the control plane works, and again.

    Nothing that is handed out changes: no new versions, no events.
    """
    done, failed = 0, []
    secrets = models.Secret.objects.all()
    # The log comes before the records: compaction moves rows from there to here meanwhile, never back.
    changes = models.Change.objects.filter(kind=kinds.SECRET.plural)
    records = models.AuditRecord.objects.filter(kind=kinds.SECRET.plural)
    for rows, columns in (
        (secrets, ("document",)),
        (changes, ("document", "previous")),
        (records, ("document", "previous")),
    ):
        for row in _all(rows):
            for column in columns:
                try:
                    done += _reseal(row, column)
                except InternalError as err:
                    failed.append(err.message)
    return done, list(dict.fromkeys(failed))


def _all(rows: Any) -> Iterator[Any]:
    """The rows, some at a time: no lock and no snapshot is held over all of them."""
    last = None
    while True:
        piece = rows.order_by("pk") if last is None else rows.order_by("pk").filter(pk__gt=last)
        found = list(piece[:AT_ONCE])
        yield from found
        if len(found) < AT_ONCE:
            return
        last = found[-1].pk


def _reseal(row: Model, column: str) -> int:
    """Seal one text anew unless it is, or somebody wrote another meanwhile: that one is sealed with the new key."""
    text = getattr(row, column)
    if text is None or forms.SEALED not in json.loads(text):
        return 0
    anew = forms.resealed_text(kinds.SECRET, text)
    if anew == text:
        return 0
    rows = type(row)._default_manager.filter(pk=row.pk, **{column: text})
    return rows.update(**{column: anew})
