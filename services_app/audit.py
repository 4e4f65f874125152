"""Records for auditors beside the log of changes: what was refused, who was given rights; and how long all is kept.

Writes of API objects are in the log; when it drops them, `changes.compact` moves them to the same table as these.
Nothing here holds a Secret's value: the log keeps Secrets sealed, and of what was refused only the sentence is kept.
"""

import json
import logging
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connection
from django.db.models import QuerySet
from django.utils import timezone

from services_app.models import AuditEntry, AuditRecord

logger = logging.getLogger(__name__)

ADDED, MODIFIED, DELETED, REFUSED = "ADDED", "MODIFIED", "DELETED", "REFUSED"
ID_LENGTH = 128  # of a request's id; a client may send what it likes
DROPPED_AT_ONCE = 10_000

_INSERT = """
INSERT INTO services_app_auditrecord
       (id, revision, at, verb, kind, namespace, name, "user", request_id, document, previous, message)
VALUES (nextval('services_app_auditrecord_other'),
        coalesce((SELECT revision FROM services_app_controlplane WHERE id = 1), 0),
        %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def request_id(headers: Mapping[str, str]) -> str:
    """The id a request is known by: the one that it brings as Audit-ID or X-Request-Id, else a new one."""
    given = headers.get("Audit-ID") or headers.get("X-Request-Id") or ""
    return "".join(c for c in given if c.isprintable())[:ID_LENGTH] or str(uuid.uuid4())


def record(
    verb: str,
    kind: str,
    name: str,
    *,
    user: str,
    request_id: str,
    namespace: str = "",
    after: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    message: str = "",
) -> None:
    """Note what is no write of an API object. after, before: values that JSON knows. One statement."""
    texts = [
        json.dumps(value, separators=(",", ":"), default=str) if value is not None else None
        for value in (after, before)
    ]
    values = (verb, kind, namespace, name, user, request_id, *texts, message)
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT, [timezone.now(), *(v.replace("\0", "\N{REPLACEMENT CHARACTER}") if v else v for v in values)]
        )


def refused(kind: str, name: str, message: str, *, user: str, request_id: str, namespace: str = "") -> None:
    """Note a write that somebody may not do."""
    logger.warning("refused: %r user=%r request=%s reason=forbidden", message, user, request_id)
    try:
        record(REFUSED, kind, name, user=user, request_id=request_id, namespace=namespace, message=message)
    except DatabaseError as err:
        logger.error("cannot record a refusal: %s reason=database_away", err)


def writes_of(kind: str, namespace: str, name: str) -> QuerySet[AuditEntry]:
    """The recorded writes of the objects that have or had this name, the newest first."""
    return AuditEntry.objects.exclude(verb=REFUSED).filter(kind=kind, namespace=namespace, name=name)


def drop_old(*, keep: timedelta) -> int:
    """Drop records older than `keep`, a piece at a time; how many went."""
    limit = timezone.now() - keep
    dropped = 0
    while True:
        piece = AuditRecord.objects.filter(at__lt=limit).order_by("at").values("pk")[:DROPPED_AT_ONCE]
        count, _ = AuditRecord.objects.filter(pk__in=piece).delete()
        dropped += count
        if count < DROPPED_AT_ONCE:
            return dropped
