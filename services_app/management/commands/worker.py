"""One worker in the foreground."""

import argparse
import os
import re

from django.core.management import BaseCommand, CommandParser

from services_app.local.supervisor import SHARDS, worker_argv


class Command(BaseCommand):
    """One worker."""

    help = "Run one worker: pushes to nodes and periodic tasks (`timonel serve` starts its workers by itself)."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--part",
            type=_part,
            default=(1, 1),
            metavar="N/OF",
            help="with several workers: which of them this is, as 2/4. Each node belongs to one",
        )

    def handle(self, *, part: tuple[int, int], **_: object) -> None:
        argv = worker_argv(*part)
        os.execv(argv[0], argv)


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,2})/([0-9]{1,2})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of <= SHARDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not N/OF, as 2/4, with N from 1 to OF and OF up to {SHARDS}")
    return number, of
