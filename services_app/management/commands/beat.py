"""The clock of the periodic tasks in the foreground."""

import os

from django.conf import settings
from django.core.management import BaseCommand

from services_app.local.supervisor import beat_argv


class Command(BaseCommand):
    """The clock."""

    help = "Run the process that starts periodic tasks: one for a control plane (`timonel serve` has its own)."
    requires_system_checks = []

    def handle(self, **_: object) -> None:
        argv = beat_argv(settings.DATA_DIR)
        os.execv(argv[0], argv)
