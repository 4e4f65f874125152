"""docker-compose.yml, tried for real."""

import signal
from types import FrameType

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser

from services_app.lab.compose import ComposeCheck, ComposeFailed, NoEngine


class Command(BaseCommand):
    """The check of the compose stack."""

    help = "Build and run docker-compose.yml, prove that it works and survives restarts, and take it down again."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--required", action="store_true", help="Fail without a container engine, instead of skipping."
        )

    def handle(self, *, required: bool, **_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        check = ComposeCheck(self._say)
        try:
            is_proven = check.run()
        except NoEngine as err:
            if required:
                raise CommandError(str(err)) from err
            self.stdout.write(f"SKIPPED, nothing was checked: {err}")
            return
        except KeyboardInterrupt:
            raise CommandError("stopped before the check was complete", returncode=130) from None
        except ComposeFailed as err:
            raise CommandError(str(err)) from err
        finally:
            if check.proof.lines:
                check.proof.write(settings.DATA_DIR / "compose-proof.json")
        lines = check.proof.lines
        self._say(f"{len(lines) - len(check.proof.failed)} of {len(lines)} lines as expected")
        if not is_proven:
            raise CommandError("\n".join(["not as expected:", *(f"  {line}" for line in check.proof.failed)]))

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once; while everything is taken down another Ctrl-C must not leave half of it behind."""
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt
