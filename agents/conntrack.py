"""Flows the kernel remembers for UDP: where an endpoint went away they would go there for ever.

A TCP connection ends by itself; a UDP flow lives as long as packets keep coming. So after a commit the flows of a
group to endpoints it lost are forgotten, and those to an address that has just become a Service's.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents import process
from agents.errors import AgentError
from agents.state import Change

UNTRANSLATED = ["--mark", "0"]


class UdpFlows:
    """Knows which groups are UDP, and forgets flows after changes."""

    def __init__(self) -> None:
        self._frontends: dict[str, set[str]] = {}  # group -> its UDP frontends and node ports

    def refill(self, elements: Iterable[tuple[str, str]]) -> None:
        """Start again from all elements."""
        self._frontends = {}
        for key, value in elements:
            if is_udp_frontend(key):
                self._frontends.setdefault(value, set()).add(key)

    def follow(self, change: Change) -> list[list[str]]:
        """Note a change; the conntrack commands to run once it is committed."""
        groups = set(self._frontends)
        commands: list[list[str]] = []
        for key, group in change.deletes.items():
            if is_udp_frontend(key):
                self._frontends.get(group, set()).discard(key)
                if change.adds.get(key) != group:
                    commands.append([*_to(key), "--mark", group])
        for key, group in change.adds.items():
            if is_udp_frontend(key):
                self._frontends.setdefault(group, set()).add(key)
                if key not in change.deletes:
                    # What was sent there before it was a Service's address.
                    commands.append([*_to(key), *UNTRANSLATED])
        groups |= {group for group, keys in self._frontends.items() if keys}
        for group in [group for group, keys in self._frontends.items() if not keys]:
            del self._frontends[group]
        return commands + [
            ["--mark", group, "--reply-src", address, "--reply-port-src", port]
            for group, address, port in sorted(_lost(change))
            if group in groups
        ]


def _lost(change: Change) -> set[tuple[str, str, str]]:
    """(group, address, port) of endpoints that are in a slot no longer. Moving to another slot is no loss."""
    return _endpoints(change.deletes.items()) - _endpoints(change.adds.items())


def _endpoints(elements: Iterable[tuple[str, str]]) -> set[tuple[str, str, str]]:
    found = set()
    for key, value in elements:
        if key.startswith("slots "):
            address, _, port = value.partition(" . ")
            found.add((key.split()[1], address, port))
    return found


def is_udp_frontend(key: str) -> bool:
    return key.startswith(("frontends ", "nodeports ")) and " udp . " in key


def _to(key: str) -> list[str]:
    """The arguments that select what is sent to a frontend ("frontends IP . udp . PORT") or node port."""
    container, _, rest = key.partition(" ")
    parts = rest.split(" . ")
    if container == "frontends":
        return ["--orig-dst", parts[0], "--orig-port-dst", parts[2]]
    return ["--orig-port-dst", parts[1]]


def forget(commands: Iterable[list[str]]) -> list[str]:
    """Run the commands; sentences about those that failed. To find nothing is no failure."""
    problems = []
    for arguments in commands:
        try:
            done = process.run(["conntrack", "-D", "-p", "udp", *arguments], reason="ConntrackFailed")
        except AgentError as err:
            problems.append(err.message)
            continue
        if done.returncode and "0 flow entries" not in done.stderr:
            problems.append(f"conntrack {' '.join(arguments)}: {process.first_line(done.stderr)}")
    return problems
