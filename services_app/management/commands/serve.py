"""The control plane on this machine, until Ctrl-C."""

import signal
import threading

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from services_app.local.supervisor import Stack


class Command(BaseCommand):
    """The control plane alone."""

    help = "Run the control plane: PostgreSQL and Redis of its own (unless DATABASE_URL, REDIS_URL), web, worker, beat."
    requires_system_checks = []

    def handle(self, **_: object) -> None:
        host, port = settings.TIMONEL_BIND
        stack = Stack(
            settings.DATA_DIR,
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            web_processes=settings.TIMONEL_WEB_PROCESSES,
            workers=settings.TIMONEL_WORKER_PROCESSES,
            database_url=settings.GIVEN_DATABASE_URL,
            redis_url=settings.GIVEN_REDIS_URL,
            say=self.stdout.write,
        )
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        try:
            stack.start()
        except RuntimeError as err:
            raise CommandError(str(err)) from err
        self.stdout.write(
            f"\nTimonel runs.\n  page        {stack.url}/  (admin, password in {stack.data_dir}/admin-password)\n"
            f"  kubectl     export KUBECONFIG={stack.kubeconfig}\n  logs        {stack.data_dir}/log/\nCtrl-C ends it.\n"
        )
        try:
            ended.wait()
        finally:
            self.stdout.write("stopping …")
            stack.stop()
