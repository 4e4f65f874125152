#!/usr/bin/env python3
"""A workload: answers every HTTP request on its ports with its name and its caller's address, as JSON.

backend.py NAME PORT...
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def handler_of(name: str) -> type[BaseHTTPRequestHandler]:
    """The answers of a backend of this name."""

    class Introduction(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own, client = self.connection.getsockname(), self.client_address
            said = {"backend": name, "address": own[0], "port": own[1], "client": client[0], "client_port": client[1]}
            body = json.dumps(said).encode() + b"\n"
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line for each request would drown the stack's log."""

    return Introduction


class Backend(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main(name: str, *ports: str) -> None:
    servers = [Backend(("", int(port)), handler_of(name)) for port in ports]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
