"""`timonel reseal`."""

from cryptography.fernet import InvalidToken
from django.core.management import BaseCommand, CommandError

from services_app.push.keys import reseal_keys
from services_app.store.resealing import reseal


class Command(BaseCommand):
    """Secrets and SSH keys, sealed with the present key."""

    help = (
        "Seal Secrets, their history and the control plane's SSH key with TIMONEL_SECRET_KEY where a key of "
        "TIMONEL_OLD_SECRET_KEYS did. Afterwards the old keys are needed no more."
    )

    def handle(self, **_: object) -> None:
        count, failed = reseal()
        try:
            keys = reseal_keys()
        except InvalidToken as err:
            failed.append("cannot open the SSH key: it was sealed with another key")
            keys = 0
            cause: Exception | None = err
        else:
            cause = None
        self.stdout.write(f"sealed anew: {count} texts of Secrets, {keys} SSH keys")
        if failed:
            raise CommandError("\n".join(failed)) from cause
