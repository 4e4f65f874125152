"""`timonel node enroll | list | remove | confirm-key`."""

import getpass
import sys
from typing import Any

import paramiko
from django.core.management import BaseCommand, CommandError, CommandParser

from services_app.models import NodeAccess
from services_app.push import enroll, operations, snapshot
from services_app.push.errors import NodeError
from services_app.spec.errors import ApiError


class Command(BaseCommand):
    """Nodes: enrol, list, remove, confirm a changed host key."""

    help = "Enrol a Linux host as a node, list nodes, remove one, confirm a changed host key."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add = actions.add_parser("enroll", help="make a host a node")
        add.add_argument("name")
        add.add_argument("address", help="where its sshd listens")
        add.add_argument("--user", default="root", help="a login that is root or may use sudo without a password")
        add.add_argument("--port", type=int, default=22)
        add.add_argument("--identity", help="a private key file that opens the first login")
        add.add_argument("--password-stdin", action="store_true", help="read the login's password from standard input")
        add.add_argument("--fingerprint", help="the host key's SHA256 fingerprint, instead of being asked")
        add.add_argument(
            "--node-ip", default="", help="the node's own address when it is not ADDRESS; for IPv4 and IPv6: A,B"
        )
        add.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
        actions.add_parser("list", help="nodes and how far they are")
        remove = actions.add_parser("remove", help="clean a node up and forget it")
        remove.add_argument("name")
        remove.add_argument("--forget", action="store_true", help="only drop the records: for a host that is gone")
        confirm = actions.add_parser("confirm-key", help="accept the host key a node shows now")
        confirm.add_argument("name")
        confirm.add_argument("--fingerprint", required=True)

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, "_" + action.replace("-", "_"))(**options)
        except NodeError as err:
            raise CommandError(f"{err.reason}: {err.message}") from err
        except ApiError as err:
            raise CommandError(err.message) from err

    def _enroll(self, **options: Any) -> None:
        host = enroll.Host(
            name=options["name"],
            address=options["address"],
            port=options["port"],
            user=options["user"],
            key=_read_key(options["identity"]) if options["identity"] else None,
            password=sys.stdin.readline().rstrip("\n") if options["password_stdin"] else None,
            node_ip=options["node_ip"],
            labels=dict(_pair(text) for text in options["label"]),
        )
        if host.key is None and host.password is None:
            raise CommandError("say how to log in: --identity FILE or --password-stdin")

        def confirm(shown: str) -> bool:
            if options["fingerprint"]:
                return shown == options["fingerprint"]
            return input("Is this the host's key? Type yes to go on: ").strip().lower() == "yes"

        operation = operations.enrolment(host, by=_person())
        for step in operations.recorded(operation, lambda: enroll.enroll(host, confirm, by=operation.by)):
            self.stdout.write(f"  {step.text}")
        self.stdout.write(self.style.SUCCESS(f"{host.name} is enrolled"))

    def _list(self, **_: Any) -> None:
        newest = snapshot.newest_owner_revision()
        rows = [("NAME", "ADDRESS", "STATE", "APPLIED", "BEHIND", "REASON", "MESSAGE")]
        for access in NodeAccess.objects.select_related("sync").order_by("node"):
            sync = access.sync
            behind = str(max(newest - sync.applied_revision, 0))
            rows.append(
                (access.node, access.address, sync.state, str(sync.applied_revision), behind, sync.reason, sync.message)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            self.stdout.write("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def _remove(self, **options: Any) -> None:
        if options["forget"]:
            operations.forget(options["name"], by=_person())
            self.stdout.write(f"node {options['name']} forgotten; what it holds on its host stays there")
            return
        for step in operations.removal(options["name"], by=_person()):
            self.stdout.write(f"  {step.text}")

    def _confirm_key(self, **options: Any) -> None:
        operations.confirm_key(options["name"], options["fingerprint"], by=_person())
        self.stdout.write(f"the host key of {options['name']} is confirmed")


def _person() -> str:
    """Who types this, as the records call him: no user of the dashboard has a name with a space."""
    return f"{getpass.getuser()} (command line)"


def _read_key(path: str) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, paramiko.SSHException, ValueError) as err:
        raise CommandError(f"cannot read the key {path}: {err}") from err


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise CommandError(f"--label {text!r} is no KEY=VALUE")
    return key, value
