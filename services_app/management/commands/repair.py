"""Compare allocations and endpoints with what Services say, tell of every difference, mend what is due."""

from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser

from services_app import store
from services_app.plan.checks import SIGHTINGS_BEFORE_LATE


class Command(BaseCommand):
    """One look at allocations and endpoints."""

    help = (
        "Compare claimed addresses, ports and derived endpoints with what Services say. What is missing is restored at "
        f"once, what leaked is freed when seen {SIGHTINGS_BEFORE_LATE} times in a row."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check", action="store_true", help="only look: write nothing, exit 1 when something is wrong"
        )

    def handle(self, *, check: bool, **_: Any) -> None:
        if check:
            wrong = store.check_everything()
            for sentence in wrong:
                self.stdout.write(sentence)
            if wrong:
                raise CommandError(f"{len(wrong)} things are not as they should be; `timonel repair` mends what it can")
            self.stdout.write("everything is as it should be")
            return
        sightings = store.repair(actor=store.Actor("timonel:repair"))
        for sighting in sightings:
            state = "mended" if sighting.mended else f"seen {sighting.count} times" if sighting.count > 1 else "seen"
            self.stdout.write(f"{state}: {sighting.finding} ({sighting.finding.reason}; {sighting.finding.mend.value})")
        if not sightings:
            self.stdout.write("everything is as it should be")
