"""Virtual servers of IPVS: which a family's elements ask for, which the kernel has, and the commands between the two."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from agents import process, ruleset
from agents.errors import AgentError
from agents.state import Change
from agents.view import View

DEFAULT_SCHEDULER = "rr"
# Of the packet mark, where connections go by a mark: "translated by us", and with a group "by this virtual server".
OURS, BY_MARK = 0x20000000, 0x40000000
FLAGS = ruleset.SOURCE_RANGES | ruleset.LOCAL_POLICY


# Virtual servers as they should be


class Key(NamedTuple):
    """What a virtual server is known by: protocol, address and port; or "fwm" or "fwm6", "", and a mark."""

    kind: str
    address: str
    port: int

    @property
    def group(self) -> str:
        """The group in the mark."""
        return f"0x{self.port & ruleset.GROUP:08x}"

    def __str__(self) -> str:
        """As ipvsadm's arguments."""
        if self.kind.startswith("fwm"):
            return f"-f {self.port}{' -6' if self.kind == 'fwm6' else ''}"
        option = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}[self.kind]
        return f"{option} {_endpoint(self.address, self.port)}"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True)
class Server:
    """endpoints: "address:port" -> weight, 0 for those that take nobody new. affinity_s: how long a client keeps its endpoint."""

    scheduler: str
    affinity_s: int | None
    endpoints: Mapping[str, int]
    is_udp: bool = False

    def options(self, key: Key) -> str:
        """Of a command that makes it or changes it to this."""
        mask = " -M 128" if ":" in key.address else ""
        lasting = "" if self.affinity_s is None else f" -p {self.affinity_s}{mask}"
        return f"{key} -s {self.scheduler}{lasting} -b flag-3"


class Wanted:
    """The virtual servers that a family's elements ask for.

    schedulers: group -> name, and "" -> the node's; those of all families, kept by somebody else.
    """

    def __init__(self, family: ruleset.Family, schedulers: Mapping[str, str]) -> None:
        self._family, self._schedulers = family, schedulers
        self._view = View()
        self._own: frozenset[str] = frozenset()  # the node's addresses
        self._addresses: frozenset[str] = frozenset()  # those with node ports
        self._by_mark: dict[str, set[str]] = {}  # mark -> keys of frontends and node ports
        self._diverting: dict[str, set[str]] = {}  # group -> marks of `to_cluster` that lead to it

    def follow(self, change: Change) -> set[Key]:
        """Note a change; the virtual servers that may be others now. O(change)."""
        keys: set[Key] = set()
        for element, mark in change.deletes.items():
            if element.startswith(("frontends ", "nodeports ")):
                _discard(self._by_mark, mark, element)
            elif element.startswith("to_cluster "):
                keys.add(self._mark_key(mark))
                _discard(self._diverting, mark, element.split()[1])
        for element, mark in change.adds.items():
            if element.startswith(("frontends ", "nodeports ")):
                self._by_mark.setdefault(mark, set()).add(element)
            elif element.startswith("to_cluster "):
                keys.add(self._mark_key(mark))
                self._diverting.setdefault(mark, set()).add(element.split()[1])
        marks = {
            mark for side in (change.deletes, change.adds) for mark in side.values() if mark in self._view.to_cluster
        }
        touched = self._view.follow(change)
        keys |= {self._mark_key(self._view.to_cluster[mark]) for mark in marks & self._view.to_cluster.keys()}
        for element in touched.frontends:
            keys |= self._keys(element)
        for group in touched.groups:
            keys |= self.of_group(group)
        if "without_node_ports" in touched.sets:
            keys |= self.move(self._own)
        return keys

    def of_group(self, group: str) -> set[Key]:
        """The virtual servers with a group's endpoints."""
        found = {self._mark_key(group)} if group in self._diverting else set()
        number = int(group, 16)
        for flags in (0, ruleset.SOURCE_RANGES, ruleset.LOCAL_POLICY, FLAGS):
            for element in self._by_mark.get(f"0x{flags | number:08x}", ()):
                found |= self._keys(element)
        return found

    def everything(self) -> set[Key]:
        """All virtual servers."""
        found = {self._mark_key(group) for group in self._diverting}
        for element in self._view.frontends:
            found |= self._keys(element)
        return found

    def move(self, own: frozenset[str]) -> set[Key]:
        """Follow the node's addresses; the virtual servers of node ports that come and go."""
        closed = [ip_network(text) for text in self._view.sets["without_node_ports"]]
        addresses = frozenset(text for text in own if not any(ip_address(text) in network for network in closed))
        changed, self._own, self._addresses = addresses ^ self._addresses, own, addresses
        found = set()
        for element in self._view.frontends if changed else ():
            if element.startswith("nodeports "):
                found |= self._keys(element, changed)
        return found

    def server(self, key: Key) -> Server | None:
        """What a virtual server should be, None: not there. Without endpoints it is kept for its connections alone."""
        if key.kind.startswith("fwm"):
            group = key.group
            if group not in self._diverting:
                return None
        else:
            frontend = self._view.frontends.get(f"frontends {key.address} . {key.kind} . {key.port}")
            if frontend is None and key.address in self._addresses:
                frontend = self._view.frontends.get(f"nodeports {key.kind} . {key.port}")
            if frontend is None:
                return None
            group = frontend.group
        held = self._view.group(group)
        weights = Counter(_endpoint(*endpoint) for endpoint in held.endpoints)
        endpoints = {**{_endpoint(*endpoint): 0 for endpoint in held.kept}, **weights}
        by_default = self._schedulers.get("") or (DEFAULT_SCHEDULER if len({*weights.values()}) < 2 else "wrr")
        scheduler = self._schedulers.get(group) or ("mh" if held.is_by_source_hash else by_default)
        affinity_s = held.affinity_s
        if affinity_s is not None and key.kind.startswith("fwm"):
            # IPVS does not translate the port where clients are remembered by mark; their hash keeps them as well.
            affinity_s, scheduler = None, "mh"
        return Server(scheduler, affinity_s, endpoints, self._is_udp(key))

    def _is_udp(self, key: Key) -> bool:
        if not key.kind.startswith("fwm"):
            return key.kind == "udp"
        marks = self._diverting.get(key.group, ())
        return any(" udp . " in element for mark in marks for element in self._by_mark.get(mark, ()))

    def _mark_key(self, group: str) -> Key:
        return Key("fwm6" if self._family.ip == "ip6" else "fwm", "", int(group, 16) | OURS | BY_MARK)

    def _keys(self, element: str, addresses: Iterable[str] | None = None) -> set[Key]:
        """A frontend's virtual servers; addresses: those of node ports."""
        container, _, rest = element.partition(" ")
        parts = rest.split(" . ")
        if container == "frontends":
            return {Key(parts[1], parts[0], int(parts[2]))}
        wanted = self._addresses if addresses is None else addresses
        return {Key(parts[0], address, int(parts[1])) for address in wanted}


def _discard(held: dict[str, set[str]], key: str, value: str) -> None:
    held.get(key, set()).discard(value)
    if not held.get(key):
        held.pop(key, None)


# Virtual servers as they are


@dataclass
class Held:
    """A virtual server in the kernel. endpoints: "address:port" -> (weight, number of connections, also of those that end).

    active: its connections that do not end yet.
    """

    scheduler: str
    affinity_s: int | None
    is_ours: bool
    endpoints: dict[str, tuple[int, int]]
    active: int = field(default=0, compare=False)

    def is_like(self, server: Server, leaving: Iterable[str]) -> bool:
        """Whether it is what it should be; leaving: endpoints that may be there with weight 0."""
        others = {name: weight for name, (weight, _) in self.endpoints.items() if server.endpoints.get(name) != weight}
        return (
            self.is_ours
            and (self.scheduler, self.affinity_s) == (server.scheduler, server.affinity_s)
            and server.endpoints.keys() <= self.endpoints.keys()
            and others.keys() <= set(leaving)
            and not any(others.values())
        )


_SERVER = re.compile(
    r"(?P<kind>TCP|UDP|SCTP|FWM) +(?:\[?(?P<address>[0-9a-f:.]+?)\]?:)?(?P<port>[0-9]+)(?P<six> IPv6)? (?P<scheduler>\S+)"
    r"(?: \((?P<flags>[^)]*)\))?(?: persistent (?P<affinity>[0-9]+))?.*"
)


def read() -> dict[Key, Held]:
    """Every virtual server in the kernel. Raises AgentError IpvsFailed. O(everything)."""
    done = process.run(["ipvsadm", "-Ln"], timeout_s=30.0, reason="IpvsFailed")
    if done.returncode:
        raise AgentError("IpvsFailed", f"cannot read IPVS: {process.first_line(done.stderr)}")
    return parse(done.stdout)


def parse(text: str) -> dict[Key, Held]:
    """From what `ipvsadm -Ln` says."""
    found: dict[Key, Held] = {}
    held: Held | None = None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["->"] and held and len(words) == 6 and words[3].isdigit():
            weight = int(words[3]) if words[2] == "Masq" else -1  # none of ours
            held.endpoints[words[1]] = weight, int(words[4]) + int(words[5])
            held.active += int(words[4])
        elif match := _SERVER.fullmatch(line.rstrip()):
            key = Key(match["kind"].lower() + ("6" if match["six"] else ""), match["address"] or "", int(match["port"]))
            # Flags that a scheduler has no name for are not spelled: sh and mh show "()".
            is_ours = match["flags"] in ("flag-3", "")
            affinity = match["affinity"]
            held = found[key] = Held(match["scheduler"], int(affinity) if affinity else None, is_ours, {})
    return found


def commands(key: Key, old: Server | None, new: Server | None, leaving: set[str]) -> tuple[list[str], list[str]]:
    """Lines for `ipvsadm -R` that make a virtual server another one: before new connections get there, and after.

    leaving: its endpoints with weight 0; changed to what it is then.
    """
    first: list[str] = []
    then: list[str] = []
    if new is None or (not new.endpoints and old is None):
        if old is not None:
            then.append(f"-D {key}")
        leaving.clear()
        return first, then
    if old is None:
        first.append(f"-A {new.options(key)}")
    elif (old.scheduler, old.affinity_s) != (new.scheduler, new.affinity_s):
        first.append(f"-E {new.options(key)}")
    had = {} if old is None else old.endpoints
    for name, weight in new.endpoints.items():
        if had.get(name) != weight:
            verb = "-e" if name in had or name in leaving else "-a"
            first.append(f"{verb} {key} -r {name} -m -w {weight}")
        leaving.discard(name)
    for name in had.keys() - new.endpoints.keys():
        if new.is_udp:
            then.append(f"-d {key} -r {name}")
        else:
            then.append(f"-e {key} -r {name} -m -w 0")
            leaving.add(name)
    if not new.endpoints and not leaving:
        then.append(f"-D {key}")
    return first, then
