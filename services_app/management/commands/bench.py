"""Figures of the running system into bench.json, and a table."""

import shutil
import time

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser

from services_app.lab import bench
from services_app.lab.demo import FAILURES


class Command(BaseCommand):
    """The benchmarks."""

    help = "Measure the running system through its public faces; figures are merged into bench.json."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--only", choices=sorted([*bench.AREAS, *bench.WORKED_OUT]), help="One area instead of all."
        )

    def handle(self, *, only: str | None, **_: object) -> None:
        begin = time.monotonic()
        directory = settings.DATA_DIR / "bench"
        results = settings.DATA_DIR / "bench.json"

        def say(line: str) -> None:
            self.stdout.write(f"{time.monotonic() - begin:6.1f} s  {line}")
            self.stdout.flush()

        try:
            figures = bench.run(directory, results, only, say)
        except FAILURES as err:
            raise CommandError(str(err)) from err
        shutil.rmtree(directory, ignore_errors=True)
        self.stdout.write(f"\n{bench.table(figures)}\n\nmerged into {results}")
