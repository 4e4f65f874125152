"""Make the database ready: tables, first objects, an administrator, a token and the kubeconfig. Safe to repeat."""

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, CommandParser, call_command
from django.utils import timezone

from services_app import store
from services_app.local import certificates, kubeconfig
from services_app.models import ApiToken

ADMIN = "admin"


class Command(BaseCommand):
    """Tables, first objects, administrator, token, kubeconfig."""

    help = "Make the database ready: tables, first objects, an administrator, a token and the kubeconfig."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--server", required=True, help="The API's address for the kubeconfig.")
        parser.add_argument(
            "--ca",
            type=Path,
            help="The CA certificate for the kubeconfig; without it, own certificates are made in the data directory.",
        )
        parser.add_argument(
            "--name", action="append", default=[], help="One more name or address that own certificates are for."
        )

    def handle(self, *, server: str, ca: Path | None, name: list[str], **_: object) -> None:
        if ca is None:
            address = urlsplit(server).hostname
            if address is None:
                raise CommandError(f"--server {server!r} names no host: write https://HOST:PORT")
            ca = certificates.ensure(settings.DATA_DIR / "certificates", [address, *name]).ca
        call_command("migrate", verbosity=0, interactive=False)
        store.bootstrap()
        user = _ensure_admin(settings.DATA_DIR / "admin-password")
        path = settings.DATA_DIR / "kubeconfig"
        token = kubeconfig.read_token(path)
        if token is None or not _is_valid(token):
            token = ApiToken.issue(user, "kubeconfig of the administrator")
        kubeconfig.write(path, server=server, ca=ca, token=token)


def _ensure_admin(path: Path):  # type: ignore[no-untyped-def]  # the user model is configurable
    """The administrator; with a new password in the file when there is neither."""
    model = get_user_model()
    user = model.objects.filter(username=ADMIN).first()
    if user is not None and path.exists():
        return user
    password = secrets.token_urlsafe(12)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(password + "\n")
    if user is None:
        return model.objects.create_superuser(username=ADMIN, password=password)
    user.set_password(password)
    user.save()
    return user


def _is_valid(token: str) -> bool:
    row = ApiToken.objects.filter(digest=ApiToken.digest_of(token)).first()
    return row is not None and (row.expires_at is None or row.expires_at > timezone.now())
