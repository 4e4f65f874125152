"""Flows the kernel remembers for UDP: where an endpoint went away they would go there for ever.

A TCP connection ends by itself; a UDP flow lives as long as packets keep coming. So after a commit the flows of a
group to endpoints it lost are forgotten, those to an address that has just become a Service's, and those of clients
that a Service's source ranges no longer let in. Connections carry the group id as their mark; a frontend with the Local
policy leads to two groups (`to_cluster`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agents import process
from agents.errors import AgentError
from agents.state import Change

UNTRANSLATED = ["--mark", "0"]
_DELETE = ["-D", "-p", "udp"]
_GROUP = 0x0FFFFFFF


class UdpFlows:
    """Knows which groups of an address family are UDP, and says which flows end with a change."""

    def __init__(self, family: str) -> None:
        """family: "ipv4" or "ipv6", as conntrack says it."""
        self._family = ["-f", family]
        self._frontends: dict[str, set[str]] = {}  # mark -> its UDP frontends and node ports
        self._groups: dict[str, set[str]] = {}  # mark with flags -> the groups its connections may have
        self._marks: dict[str, set[str]] = {}  # the same, the other way round

    def refill(self, elements: Iterable[tuple[str, str]]) -> None:
        """Start again from all elements."""
        self._frontends, self._groups, self._marks = {}, {}, {}
        for key, value in elements:
            if is_udp_frontend(key):
                self._frontends.setdefault(value, set()).add(key)
                self._relate(value, _group(value))
            elif key.startswith("to_cluster "):
                self._relate(key.split()[1], value)

    def follow(self, change: Change) -> list[list[str]]:
        """Note a change; the arguments of the conntrack commands to run once it is committed. O(change)."""
        for key, value in change.adds.items():
            if is_udp_frontend(key):
                self._relate(value, _group(value))
            elif key.startswith("to_cluster "):
                self._relate(key.split()[1], value)
        lost = sorted(_lost(change))
        were_udp = {group for group, _, _ in lost if self._is_udp(group)}
        commands: list[list[str]] = []
        for key, mark in change.deletes.items():
            if is_udp_frontend(key):
                self._frontends.get(mark, set()).discard(key)
                if change.adds.get(key) != mark:
                    commands += [[*_to(key), "--mark", group] for group in sorted(self._groups.get(mark, ()))]
        for key, mark in change.adds.items():
            if is_udp_frontend(key):
                self._frontends.setdefault(mark, set()).add(key)
                if key not in change.deletes:
                    # What was sent there before it was a Service's address.
                    commands.append([*_to(key), *UNTRANSLATED])
        for key in change.deletes:
            if key.startswith("source_ranges "):
                _, mark, _, clients = key.split()
                commands += [
                    [*_to(frontend), "--mark", group, "--orig-src", clients]
                    for frontend in sorted(self._frontends.get(mark, ()))
                    for group in sorted(self._groups.get(mark, ()))
                ]
        commands += [
            ["--mark", group, "--reply-src", address, "--reply-port-src", port]
            for group, address, port in lost
            if group in were_udp or self._is_udp(group)
        ]
        self._forget(change)
        return [[*self._family, *command] for command in commands]

    def _is_udp(self, group: str) -> bool:
        return any(self._frontends.get(mark) for mark in self._marks.get(group, ()))

    def _forget(self, change: Change) -> None:
        for key, value in change.deletes.items():
            if is_udp_frontend(key) and not self._frontends.get(value):
                self._frontends.pop(value, None)
                self._unrelate(value, _group(value))
            elif key.startswith("to_cluster ") and change.adds.get(key) != value:
                self._unrelate(key.split()[1], value)

    def _relate(self, mark: str, group: str) -> None:
        self._groups.setdefault(mark, set()).add(group)
        self._marks.setdefault(group, set()).add(mark)

    def _unrelate(self, mark: str, group: str) -> None:
        for index, key, value in ((self._groups, mark, group), (self._marks, group, mark)):
            index.get(key, set()).discard(value)
            if not index.get(key):
                index.pop(key, None)


def _group(mark: str) -> str:
    """The group id in a frontend's mark, without flags."""
    return f"0x{int(mark, 16) & _GROUP:08x}"


def _lost(change: Change) -> set[tuple[str, str, str]]:
    """(group, address, port) of endpoints that are in a slot no longer. Moving to another slot is no loss."""
    gone = _endpoints(change.deletes.items())
    return gone - _endpoints(change.adds.items()) if gone else gone


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


def forget(commands: Sequence[list[str]]) -> list[str]:
    """Run the commands; sentences about those that failed. To find nothing is no failure."""
    if len(commands) > 1:
        lines = "".join(f"{' '.join([*_DELETE, *command])}\n" for command in commands)
        try:
            done = process.run(["conntrack", "--load-file", "-"], text=lines, timeout_s=60, reason="ConntrackFailed")
        except AgentError as err:
            return [err.message]
        if not done.returncode:
            return []
    # One by one: conntrack before 1.4.7 takes no list, and of a list that failed the rest was not done.
    problems = []
    for arguments in commands:
        try:
            done = process.run(["conntrack", *_DELETE, *arguments], reason="ConntrackFailed")
        except AgentError as err:
            problems.append(err.message)
            continue
        if done.returncode and "0 flow entries" not in done.stderr:
            problems.append(f"conntrack {' '.join(arguments)}: {process.first_line(done.stderr)}")
    return problems
