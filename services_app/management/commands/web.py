"""One web process: ASGI over HTTPS, on a socket that the supervisor hands down or that it binds itself."""

import socket
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management import BaseCommand, CommandParser


class Command(BaseCommand):
    """One web process."""

    help = "Run one web process (usually started by `timonel serve`)."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--fd", type=int, help="A listening socket to serve instead of binding TIMONEL_BIND.")
        parser.add_argument("--certificate", help="The server's certificate; plain HTTP without one.")
        parser.add_argument("--key", help="The certificate's private key.")

    def handle(self, *, fd: int | None, certificate: str | None, key: str | None, **_: Any) -> None:
        host, port = settings.TIMONEL_BIND
        config = uvicorn.Config(
            "services_app.asgi:application",
            host=host,
            port=port,
            loop="uvloop",
            http="httptools",
            lifespan="off",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            access_log=False,
            log_level="warning",
            backlog=1024,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        server = uvicorn.Server(config)
        server.run(sockets=[socket.socket(fileno=fd)] if fd is not None else None)
