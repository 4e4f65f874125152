"""An external load balancer as clouds have it: asks each node's health check port, and sends connections to the healthy ones.

Run in a place. Argument: JSON of {"nodes": {name: [address, health check port, node port]}, "probe_s", "interval_s"}. A node is
left after two bad answers one after the other, and taken again after a good one. When standard input ends it prints
{"asked", "failed": [[node, why]], "backends": {name: times}, "left": {node: times}}.
"""

import http.client
import itertools
import json
import sys
import threading
import time
from collections import Counter
from typing import Any

from services_app.lab.place import ask_once

BAD_ANSWERS = 2


class Balancer:
    """The nodes and who of them is healthy."""

    def __init__(self, nodes: dict[str, tuple[str, int, int]], probe_s: float) -> None:
        self.nodes, self._probe_s = nodes, probe_s
        self.healthy: tuple[str, ...] = ()
        self.left: Counter[str] = Counter()
        self.ended = threading.Event()

    def watch(self) -> None:
        """Ask the health check ports until the end."""
        bad = dict.fromkeys(self.nodes, BAD_ANSWERS)
        while not self.ended.wait(self._probe_s):
            for name, (address, port, _) in self.nodes.items():
                bad[name] = 0 if self._is_well(address, port) else bad[name] + 1
                self.left[name] += bad[name] == BAD_ANSWERS
            self.healthy = tuple(name for name, times in bad.items() if times < BAD_ANSWERS)

    @staticmethod
    def _is_well(address: str, port: int) -> bool:
        connection = http.client.HTTPConnection(address, port, timeout=1)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def main() -> None:
    given = json.loads(sys.argv[1])
    balancer = Balancer({name: tuple(way) for name, way in given["nodes"].items()}, given["probe_s"])
    threading.Thread(target=balancer.watch, daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), balancer.ended.set()), daemon=True).start()
    backends: Counter[str] = Counter()
    failed: list[Any] = []
    for turn in itertools.count():
        if balancer.ended.is_set():
            break
        if healthy := balancer.healthy:
            name = healthy[turn % len(healthy)]
            address, _, port = balancer.nodes[name]
            try:
                backends[ask_once("tcp", address, port, 2)["backend"]] += 1
            except OSError as err:
                failed.append([name, str(err)])
        time.sleep(given["interval_s"])
    asked = backends.total() + len(failed)
    print(json.dumps({"asked": asked, "failed": failed, "backends": backends, "left": balancer.left}))


if __name__ == "__main__":
    main()
