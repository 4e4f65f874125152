"""Flows the kernel remembers, and how many for how long. For UDP: where an endpoint went away they would stay for ever.

A TCP connection ends by itself; a UDP flow lives as long as packets keep coming. So after a commit the flows of a
group to endpoints it lost are forgotten, those to an address that has just become a Service's, and those of clients
that a Service's source ranges no longer let in. Connections carry the group id as their mark; a frontend with the Local
policy leads to two groups (`to_cluster`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from agents import process
from agents.errors import AgentError
from agents.ruleset import group_of
from agents.state import Change

UNTRANSLATED = ["--mark", "0"]
_DELETE = ["-D", "-p", "udp"]
Slot = tuple[str, str, str]  # group, the endpoint's address and port


class UdpFlows:
    """Knows which groups of an address family are UDP, and says which flows end with a change."""

    def __init__(self, family: str) -> None:
        """family: "ipv4" or "ipv6", as conntrack says it."""
        self._family = ["-f", family]
        self._frontends: dict[str, set[str]] = {}  # mark -> its UDP frontends and node ports
        self._groups: dict[str, set[str]] = {}  # mark with flags -> the groups its connections may have
        self._marks: dict[str, set[str]] = {}  # the same, the other way round
        self._slots: Counter[Slot] = Counter()  # how many a UDP group has of each endpoint

    def refill(self, elements: Iterable[tuple[str, str]]) -> None:
        """Start again from all elements."""
        self._frontends, self._groups, self._marks = {}, {}, {}
        self._slots.clear()
        slots: list[tuple[str, str]] = []
        for key, value in elements:
            if key.startswith("slots "):
                slots.append((key, value))
            elif is_udp_frontend(key):
                self._frontends.setdefault(value, set()).add(key)
                self._relate(value, group_of(value))
            elif key.startswith("to_cluster "):
                self._relate(key.split()[1], value)
        if self._marks:
            self._slots.update(_slots((key, value) for key, value in slots if self._is_udp(_group_of_slot(key))))

    def follow(self, change: Change) -> list[list[str]]:
        """Note a change; the arguments of the conntrack commands to run once it is committed. O(change)."""
        for key, value in change.adds.items():
            if is_udp_frontend(key):
                self._relate(value, group_of(value))
            elif key.startswith("to_cluster "):
                self._relate(key.split()[1], value)
        gone = list(_slots(change.deletes.items()))
        were_udp = {group for group in {slot[0] for slot in gone} if self._is_udp(group)}
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
        # Where no group is UDP and none loses a slot, as in the first push of many, they need not be read.
        new = list(_slots(change.adds.items())) if self._marks or gone else []
        self._slots.subtract(gone)
        self._slots.update(slot for slot in new if self._is_udp(slot[0]))
        # To hold fewer slots than before, or another one, is no loss.
        emptied = [slot for slot in {*gone} if self._slots[slot] <= 0]
        for slot in emptied:
            del self._slots[slot]
        commands += [
            ["--mark", group, "--reply-src", address, "--reply-port-src", port]
            for group, address, port in sorted({*emptied} - {*new})
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
                self._unrelate(value, group_of(value))
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


def _slots(elements: Iterable[tuple[str, str]]) -> Iterator[Slot]:
    for key, value in elements:
        if key.startswith("slots "):
            address, _, port = value.partition(" . ")
            yield _group_of_slot(key), address, port


def _group_of_slot(key: str) -> str:
    """Of "slots 0x00000001 . 7"; of another key what is no group."""
    return key[6:16]


# Size and timeouts


# What a control plane may ask for -> the kernel's settings, below /proc/sys
_TIMEOUTS = {
    "tcp-established": "net/netfilter/nf_conntrack_tcp_timeout_established",
    "tcp-close-wait": "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "udp": "net/netfilter/nf_conntrack_udp_timeout",
    "udp-stream": "net/netfilter/nf_conntrack_udp_timeout_stream",
}
_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
_MAX, _BUCKETS = "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_buckets"
SETTINGS = (*_TIMEOUTS.values(), _LIBERAL, _MAX, _BUCKETS)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def is_setting(name: str, value: str) -> bool:
    """Whether it is an exact form: "max" = "PER_CORE MIN", "tcp-be-liberal" = "1", a timeout = its seconds."""
    if name == "max":
        return len(value.split(" ")) == 2 and all(map(_NUMBER.fullmatch, value.split(" ")))
    if name == "tcp-be-liberal":
        return value == "1"
    return name in _TIMEOUTS and bool(_NUMBER.fullmatch(value))


def settings(elements: Mapping[str, str]) -> dict[str, str]:
    """The kernel's settings that a host's elements ask for ("conntrack max" and so on), in the order to write them.

    As kube-proxy, a table of at least MIN connections, with a bucket for every four (k8s v1.36 cmd/kube-proxy/app).
    """
    found = {}
    for key, value in elements.items():
        word, _, name = key.partition(" ")
        if word != "conntrack":
            continue
        if name == "max":
            per_core, least = map(int, value.split(" "))
            number = min(max(per_core * (os.cpu_count() or 1), least), 2**31 - 1)
            found[_MAX] = str(number)
            # More were made for a reason. The kernel rounds up to whole pages.
            buckets = -(-number // 4 // 8192) * 8192
            found[_BUCKETS] = str(max(_read(_BUCKETS), buckets))
        else:
            found[_TIMEOUTS.get(name, _LIBERAL)] = value
    return found


def _read(name: str) -> int:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return 0


# Flows


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
