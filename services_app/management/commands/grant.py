"""`timonel grant give | take | list`."""

import getpass
import uuid
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import transaction

from services_app import audit
from services_app.models import Grant
from services_app.spec import names

Document = dict[str, Any]


def operator() -> str:
    """Who runs a command, for the record."""
    return f"timonel:command ({getpass.getuser()})"


def find_user(name: str, *, create: bool) -> Any:
    """The user of this name; made without a password, so that only tokens open, when that is wanted."""
    model = get_user_model()
    user = model.objects.filter(username=name).first()
    if user is None and not create:
        raise CommandError(f"there is no user {name}; --create makes one without a password")
    if user is None:
        user = model.objects.create_user(name)
        audit.record(
            audit.ADDED, "users", name, user=operator(), request_id=str(uuid.uuid4()), after={"username": name}
        )
    return user


class Command(BaseCommand):
    """Grants: give one, take one back, list them."""

    help = "Give users and groups view, edit or admin, in a namespace or everywhere; take it back; list what is given."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        give = actions.add_parser("give", help="give a role")
        give.add_argument("--create", action="store_true", help="make the user when there is none of the name")
        for action in (give, actions.add_parser("take", help="take a role back")):
            action.add_argument("role", choices=Grant.Role.values)
            _add_subject(action)
            where = action.add_mutually_exclusive_group(required=True)
            where.add_argument("-n", "--namespace", help="in this namespace")
            where.add_argument("--everywhere", action="store_true", help="in all, with the cluster-wide kinds")
        actions.add_parser("list", help="who may do what, where")

    def handle(self, *, action: str, **options: Any) -> None:
        if action == "list":
            for row in Grant.objects.select_related("user", "group"):
                self.stdout.write(f"{row}  (by {row.given_by or 'unknown'}, {row.given_at:%Y-%m-%d %H:%M} UTC)")
            return
        with transaction.atomic():
            self.stdout.write((self._give if action == "give" else self._take)(_wanted(options)))

    def _give(self, wanted: Document) -> str:
        row, created = Grant.objects.get_or_create(**wanted, defaults={"given_by": operator()})
        if not created:
            return f"{row}: given already"
        _record(audit.ADDED, row)
        return f"given: {row}"

    def _take(self, wanted: Document) -> str:
        row = Grant.objects.filter(**wanted).first()
        if row is None:
            raise CommandError(f"there is no such grant: {Grant(**wanted)}")
        _record(audit.DELETED, row)
        row.delete()
        return f"taken back: {row}"


def _add_subject(action: ArgumentParser) -> None:
    who = action.add_mutually_exclusive_group(required=True)
    who.add_argument("--user")
    who.add_argument("--group")
    who.add_argument("--everybody", action="store_true", help="all who are known: system:authenticated")


def _wanted(options: Document) -> Document:
    """The columns of the grant that the options name. Raises CommandError."""
    namespace = options["namespace"] or ""
    if namespace and (problems := names.label_problems(namespace)):
        raise CommandError(f"{namespace!r} is no name of a namespace: {problems[0]}")
    user = group = None
    if options["user"]:
        user = find_user(options["user"], create=bool(options.get("create")))
    elif options["group"]:
        group = Group.objects.filter(name=options["group"]).first()
        if group is None:
            raise CommandError(f"there is no group {options['group']}; the admin makes groups")
    return {
        "role": options["role"],
        "namespace": namespace,
        "user": user,
        "group": group,
        "everyone": bool(options["everybody"]),
    }


def _record(verb: str, row: Grant) -> None:
    said = {"role": row.role, "subject": row.subject, "namespace": row.namespace}
    audit.record(
        verb, "grants", str(row), namespace=row.namespace, user=operator(), request_id=str(uuid.uuid4()), after=said
    )
