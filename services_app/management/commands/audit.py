"""`timonel audit export`."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import transaction

from services_app.models import AuditEntry


class Command(BaseCommand):
    """What was written, refused and granted, as JSON lines."""

    help = "Export the audit records as JSON lines, the oldest first: who, when, what, before and after, request id."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        export = actions.add_parser("export", help="write JSON lines to standard output")
        export.add_argument("--since", metavar="MOMENT", help="2026-03-01 or 2026-03-01T14:30 (UTC unless it says)")
        export.add_argument("--until", metavar="MOMENT", help="up to, but without, this moment")
        for name in ("user", "kind", "namespace", "name", "request-id", "verb"):
            export.add_argument(f"--{name}", help=f"only records with this {name.replace('-', ' ')}")

    def handle(self, *, action: str, since: str | None, until: str | None, **options: Any) -> None:
        rows = AuditEntry.objects.order_by("revision", "-id")
        if since:
            rows = rows.filter(at__gte=_moment(since))
        if until:
            rows = rows.filter(at__lt=_moment(until))
        for name in ("user", "kind", "namespace", "name", "request_id", "verb"):
            if options[name] is not None:
                rows = rows.filter(**{name: options[name]})
        try:
            with transaction.atomic():  # a cursor of the server: the records do not have to fit into memory
                for line in _lines(rows.iterator(chunk_size=1000)):
                    self.stdout.write(line)
        except BrokenPipeError:  # the reader has enough
            sys.stderr.close()


def _lines(rows: Iterator[AuditEntry]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(
            {
                "at": row.at.astimezone(UTC).isoformat(),
                "revision": row.revision,
                "verb": row.verb,
                "kind": row.kind,
                "namespace": row.namespace,
                "name": row.name,
                "user": row.user,
                "requestId": row.request_id,
                "message": row.message,
                "before": json.loads(row.previous) if row.previous else None,
                "after": json.loads(row.document) if row.document else None,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as err:
        raise CommandError(f"{text!r} is no moment: write 2026-03-01 or 2026-03-01T14:30") from err
    return found if found.tzinfo else found.replace(tzinfo=UTC)
