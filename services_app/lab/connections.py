"""What a node's rules cost a new connection: through the first and the last of many Services, against none at all.

Client and backend are processes of the same machine, kept to one processor: it has nothing else to do then, and a
connection costs what both sides and the rules between them take there. Beside the measured node stands its twin,
wired alike and without any rule, which is asked in turn with it.
"""

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services_app.lab.dataplane import FIRST_ADDRESS
from services_app.lab.network import Node

Say = Callable[[str], None]

DIRECT = "direct"
ENDPOINTS = 10
# Entries of ended connections stay this short: the table would be full after a few seconds.
SHORT_MEMORY = ("nf_conntrack_tcp_timeout_close", "nf_conntrack_tcp_timeout_time_wait")


@dataclass(frozen=True)
class Rates:
    """Connections a second by name, medians; DIRECT is one of them."""

    per_s: Mapping[str, float]

    def ratio(self, name: str) -> float:
        """Against direct connections."""
        return self.per_s[name] / self.per_s[DIRECT]

    def extra_us(self, name: str) -> float:
        """What a connection costs more than a direct one, in microseconds of a processor."""
        return 1e6 / self.per_s[name] - 1e6 / self.per_s[DIRECT]


def prepare(node: Node, twin: Node, port: int) -> None:
    """Open the endpoints, in the second container of both, and have the node forget ended connections soon. Once."""
    for place in (node, twin):
        place.containers[1].prober.ask("sink", port=port, cpu=_cpu())
    for number in range(ENDPOINTS):
        node.containers[1].add_address(FIRST_ADDRESS + number)
    settings = " ".join(f"/proc/sys/net/netfilter/{name}" for name in SHORT_MEMORY)
    node.run(["/bin/sh", "-c", f"for setting in {settings}; do echo 1 >$setting; done"])


def _cpu() -> int:
    """The processor of everything that is timed."""
    return max(os.sched_getaffinity(0))


def measure(
    node: Node,
    twin: Node,
    targets: Mapping[str, tuple[str, int]],
    port: int,
    *,
    rounds: int = 5,
    seconds: float = 1.5,
    say: Say,
) -> Rates:
    """Connections from a node to each target, and from its twin to what is behind it, in turn; name -> (host, port).

    port: where the endpoints listen that were prepared.
    """
    cpu = _cpu()
    asked: list[tuple[str, Node, tuple[str, int]]] = [(DIRECT, twin, (twin.containers[1].address, port))]
    asked += [(name, node, target) for name, target in targets.items()]
    found: dict[str, list[float]] = {name: [] for name, _, _ in asked}
    for number in range(rounds + 1):
        for name, place, (host, at_port) in asked:
            wanted_s = seconds if number else 0.3  # the first round warms up
            reply = place.prober.ask("connect", wait_s=60, host=host, port=at_port, cpu=cpu, seconds=wanted_s)
            if number:
                found[name].append(reply["count"] / reply["seconds"])
    for name, rates in found.items():
        say(f"{name}: {', '.join(f'{rate:.0f}' for rate in rates)} connections/s")
    return Rates({name: statistics.median(rates) for name, rates in found.items()})
