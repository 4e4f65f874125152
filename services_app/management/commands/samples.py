"""Sample Services for hosts whose workloads run already, as in docker-compose.yml."""

import socket
from pathlib import Path

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser

from services_app.lab import samples
from services_app.lab.client import ApiClient, ApiRefused


class Command(BaseCommand):
    """The samples of the compose stack."""

    help = "Describe the workloads of docker-compose.yml as Pods, apply the sample Services, wait until they are live."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--server", default="", help="The API's address, when it is not the kubeconfig's.")
        parser.add_argument("--kubeconfig", type=Path, default=settings.DATA_DIR / "kubeconfig")
        parser.add_argument("--timeout", type=float, default=60, help="Seconds to wait.")

    def handle(self, *, server: str, kubeconfig: Path, timeout: float, **_: object) -> None:
        api = ApiClient(kubeconfig, server)
        nodes = [f"node-{number}" for number in (1, 2, 3)]
        try:
            addresses = {name: socket.gethostbyname(name) for name in samples.beside_nodes()}
        except socket.gaierror as err:
            raise CommandError(f"cannot find the workloads by name: {err.strerror}") from err
        try:
            samples.publish(api, nodes, addresses, self.stdout.write, timeout_s=timeout)
        except (ApiRefused, OSError) as err:
            raise CommandError(str(err)) from err
