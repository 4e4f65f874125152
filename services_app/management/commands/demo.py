"""Three nodes on this machine, real manifests, a proof, and a page to look at until Ctrl-C."""

import signal
import threading
from types import FrameType

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser

from services_app.lab.demo import FAILURES, Demo


class Command(BaseCommand):
    """The demo."""

    help = "Show Timonel at work: three nodes on this machine, real manifests, and a proof read from outside."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="Check every line of the proof and stop: exit 0 or 1.")

    def handle(self, *, once: bool, **_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        demo = Demo(
            settings.DATA_DIR / "demo", settings.DATA_DIR / "proof.json", bind=settings.TIMONEL_BIND, say=self._say
        )
        try:
            is_proven = demo.run(None if once else threading.Event().wait)
        except KeyboardInterrupt:
            raise CommandError("stopped before the proof was complete", returncode=130) from None
        except FAILURES as err:
            raise CommandError(str(err)) from err
        if not is_proven:
            raise CommandError(f"{len(demo.proof.failed)} lines of the proof are not as expected")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once; while everything is taken down another Ctrl-C must not leave half of it behind."""
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt
