"""One worker in the foreground."""

import os

from django.core.management import BaseCommand

from services_app.local.supervisor import worker_argv


class Command(BaseCommand):
    """One worker."""

    help = "Run one worker: pushes to nodes and periodic tasks (`timonel serve` starts one by itself)."
    requires_system_checks = []

    def handle(self, **_: object) -> None:
        argv = worker_argv()
        os.execv(argv[0], argv)
