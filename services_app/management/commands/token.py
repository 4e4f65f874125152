"""`timonel token issue | revoke | list`."""

import uuid
from datetime import timedelta
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from services_app import audit
from services_app.management.commands.grant import find_user, operator
from services_app.models import ApiToken


class Command(BaseCommand):
    """API tokens: issue one, revoke one, list them."""

    help = "Issue bearer tokens of the API, shown once; revoke them; list them."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        issue = actions.add_parser("issue", help="print a new token; it cannot be shown again")
        issue.add_argument("user")
        issue.add_argument("name", help="what it is for")
        issue.add_argument("--seconds", type=int, help="how long it is valid; without this or --days, for ever")
        issue.add_argument("--days", type=int)
        issue.add_argument("--create", action="store_true", help="make the user when there is none of the name")
        revoke = actions.add_parser("revoke", help="end a token at once")
        revoke.add_argument("user")
        revoke.add_argument("name")
        actions.add_parser("list", help="tokens and their ends")

    def handle(self, *, action: str, **options: Any) -> None:
        with transaction.atomic():
            getattr(self, f"_{action}")(**options)

    def _issue(self, *, user: str, name: str, seconds: int | None, days: int | None, create: bool, **_: Any) -> None:
        valid_s = seconds if seconds is not None else days * 86400 if days is not None else None
        if valid_s is not None and not 0 < valid_s <= 100 * 365 * 86400:
            raise CommandError("write a time of at least a second and at most a hundred years")
        expires_at = timezone.now() + timedelta(seconds=valid_s) if valid_s is not None else None
        plain = ApiToken.issue(find_user(user, create=create), name, expires_at)
        _record(audit.ADDED, name, user, expires_at)
        self.stdout.write(plain)

    def _revoke(self, *, user: str, name: str, **_: Any) -> None:
        rows = ApiToken.objects.filter(user__username=user, name=name)
        if not rows:
            raise CommandError(f"{user} has no token {name}")
        for row in rows:
            _record(audit.DELETED, name, user, row.expires_at)
            row.delete()
        self.stdout.write(f"revoked: {name} of {user}")

    def _list(self, **_: Any) -> None:
        for row in ApiToken.objects.select_related("user").order_by("user__username", "name"):
            ends = f"until {row.expires_at:%Y-%m-%d %H:%M} UTC" if row.expires_at else "for ever"
            self.stdout.write(f"{row.user.get_username()}  {row.name}  {ends}")


def _record(verb: str, name: str, user: str, expires_at: Any) -> None:
    said = {"name": name, "user": user, "expires_at": expires_at}
    audit.record(verb, "apitokens", name, user=operator(), request_id=str(uuid.uuid4()), after=said)
