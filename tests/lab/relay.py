"""A TCP connection that takes its time, between a control plane and a node."""

import contextlib
import queue
import socket
import threading
import time


class Relay:
    """A way to a node that takes its time; ended with its context."""

    def __init__(self, address: str, port: int, delay_s: float) -> None:
        self.delay_s = delay_s
        self._target = (address, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target, timeout=10)
                server.settimeout(None)
                for source, sink in ((client, server), (server, client)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    pieces: queue.Queue[tuple[float, bytes]] = queue.Queue()
                    threading.Thread(target=self._read, args=(source, pieces), daemon=True).start()
                    threading.Thread(target=self._write, args=(sink, pieces), daemon=True).start()

    def _read(self, source: socket.socket, pieces: "queue.Queue[tuple[float, bytes]]") -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            pieces.put((time.monotonic() + self.delay_s, data))

    def _write(self, sink: socket.socket, pieces: "queue.Queue[tuple[float, bytes]]") -> None:
        with contextlib.suppress(OSError), sink:
            while True:
                due, data = pieces.get()
                time.sleep(max(due - time.monotonic(), 0))
                if not data:
                    return
                sink.sendall(data)
