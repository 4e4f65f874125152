"""Mode userspace: connections are redirected to ports of this host, where proxies take them to endpoints.

Tables `ip timonel_userspace` and `ip6 timonel_userspace` have the maps and policies of mode nftables. Only what a group
leads to differs: a TCP group to its listener in HAProxy (`listeners`), which takes the endpoints in turn and tries
another when one does not answer; a UDP group to a chain of its own, which takes the endpoints in turn for each flow and
redirects to nginx' port of the endpoint. Ports are random and nobody's else; who comes to them without having been
redirected is rejected. They stay the same as long as what they are for, and some more listen already, so that a new
Service seldom needs another process of HAProxy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from agents import conntrack, files, nftables, proxies, ruleset
from agents.errors import Refused
from agents.proxies import Endpoint, Listener
from agents.ruleset import Family
from agents.state import Change, Element, Elements, Refusal
from agents.view import Group, View, protocols

logger = logging.getLogger(__name__)

GroupKey = tuple[str, str]  # driver, the group's id

PORTS = (*range(20000, 30000), *range(61000, 65536))  # beside those for node ports and the usual ones of clients
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PASSED_ON = (
    "frontends",
    "nodeports",
    "to_cluster",
    "cluster_ips",
    "pod_cidrs",
    "source_ranges",
    "without_node_ports",
)
_SPARE_LISTENERS = 8  # of each kind at least, when they are made; an eighth of those in use at least
_SETTLE_S = 0.1  # until HAProxy has accepted what was redirected to it last


def lacks() -> str:
    """What this host has not, "" for nothing."""
    return proxies.lacks()


def judge(resources: Mapping[Element, str]) -> Refusal | None:
    """Why an owner cannot be served in this mode, None when it can."""
    if "sctp" in protocols((key, value) for (_, key), value in resources.items()):
        return Refusal(
            "ProtocolUnsupported",
            "mode userspace does not proxy SCTP; have this node serve in mode nftables, iptables or ipvs",
        )
    if any(key.startswith("groups ") and value.startswith("goto hash_") for (_, key), value in resources.items()):
        return Refusal(
            "SourceHashUnsupported", "mode userspace cannot choose by the client's address: use sessionAffinity"
        )
    slots = Counter((driver, key.split()[1]) for driver, key in resources if key.startswith("slots "))
    if slots and max(slots.values()) > proxies.MAX_SERVERS:
        why = f"mode userspace takes {proxies.MAX_SERVERS} endpoints of a Service's port, not {max(slots.values())}"
        return Refusal("TooManyEndpoints", why)
    return None


@dataclass(frozen=True)
class News:
    """What an assignment of ports brought: any change; TCP or UDP ports that nobody listens on yet."""

    is_any: bool
    has_tcp: bool
    has_udp: bool

    def __bool__(self) -> bool:
        return self.is_any


class Ports:
    """Which port of this host is for what; in a file, so that a new process of the agent knows it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.listeners: dict[GroupKey, Listener] = {}
        self.spare: set[Listener] = set()
        self.udp: dict[Endpoint, int] = {}
        self.peer = 0
        try:
            held = json.loads(path.read_text())
            for driver, group, *listener in held["listeners"]:
                self.listeners[driver, group] = Listener(*listener)
            self.spare = {Listener(*listener) for listener in held["spare"]}
            self.udp = {(address, port): own for address, port, own in held["udp"]}
            self.peer = held["peer"]
        except (OSError, ValueError, TypeError, KeyError):
            self.listeners, self.spare, self.udp, self.peer = {}, set(), {}, 0

    @property
    def tcp(self) -> set[Listener]:
        """Every listener, in use or not."""
        return {*self.listeners.values(), *self.spare}

    def save(self) -> None:
        """Raises AgentError DiskFull."""
        held = {
            "listeners": [[*key, *_fields(listener)] for key, listener in self.listeners.items()],
            "spare": [_fields(listener) for listener in self.spare],
            "udp": [[*endpoint, port] for endpoint, port in self.udp.items()],
            "peer": self.peer,
        }
        files.replace(self._path, json.dumps(held))

    def take(self, key: GroupKey, version: int, affinity_s: int) -> bool:
        """Give a group a listener of this kind; whether it is one that nobody listens on yet."""
        if found := next((one for one in self.spare if (one.version, one.affinity_s) == (version, affinity_s)), None):
            self.spare.discard(found)
            self.listeners[key] = found
            return False
        self.listeners[key] = Listener(version, self._free(socket.SOCK_STREAM), affinity_s)
        return True

    def assign(self, served: Mapping[GroupKey, Served | None]) -> News:
        """Give these groups the ports they need, and take back what they do not, which is not spare yet."""
        changed = has_tcp = has_udp = False
        for key, one in served.items():
            has, version = self.listeners.get(key), 4 if key[0] == ruleset.IPV4.driver else 6
            wanted = (version, one.group.affinity_s or 0) if one and one.is_tcp else None
            if wanted != ((has.version, has.affinity_s) if has else None):
                changed = True
                self.listeners.pop(key, None)
                if wanted and self.take(key, *wanted):
                    has_tcp = True
            for endpoint in one.udp_endpoints if one else ():
                if endpoint not in self.udp:
                    self.take_udp(endpoint)
                    changed = has_udp = True
        return News(changed, has_tcp, has_udp)

    def drop_udp(self, kept: Set[Endpoint]) -> None:
        """Take back the ports of endpoints that are not among these."""
        self.udp = {endpoint: port for endpoint, port in self.udp.items() if endpoint in kept}

    def trial(self) -> Ports:
        """Another that may be changed without harm."""
        other = Ports(self._path)
        other.listeners, other.spare, other.udp = dict(self.listeners), set(self.spare), dict(self.udp)
        other.peer = self.peer
        return other

    def take_udp(self, endpoint: Endpoint) -> None:
        """Give an endpoint a port."""
        self.udp[endpoint] = self._free(socket.SOCK_DGRAM)

    def stock(self) -> None:
        """Have spare listeners of every kind in use, and not too many."""
        in_use = Counter((one.version, one.affinity_s) for one in self.listeners.values())
        spare: dict[tuple[int, int], list[Listener]] = {}
        for one in sorted(self.spare):
            spare.setdefault((one.version, one.affinity_s), []).append(one)
        self.spare = set()
        for kind, count in in_use.items():
            wanted, held = max(_SPARE_LISTENERS, count // 8), spare.get(kind, [])
            self.spare |= set(held[: 2 * wanted])
            with contextlib.suppress(Refused):  # without any it works as well
                for _ in range(wanted - len(held)):
                    self.spare.add(Listener(kind[0], self._free(socket.SOCK_STREAM), kind[1]))

    def settle(self, *, is_haproxy_running: bool, is_nginx_running: bool) -> None:
        """Have every port free that must be opened: somebody may have taken it since it was chosen."""
        if not self.peer:
            self.peer = self._free(socket.SOCK_STREAM)
        if not is_haproxy_running:
            self.spare = {one for one in self.spare if proxies.is_free(socket.SOCK_STREAM, one.port)}
            for key, one in list(self.listeners.items()):
                if not proxies.is_free(socket.SOCK_STREAM, one.port):
                    self.listeners[key] = Listener(one.version, self._free(socket.SOCK_STREAM), one.affinity_s)
            if not proxies.is_free(socket.SOCK_STREAM, self.peer):
                self.peer = self._free(socket.SOCK_STREAM)
        if not is_nginx_running:
            for endpoint, port in list(self.udp.items()):
                if not proxies.is_free(socket.SOCK_DGRAM, port):
                    self.take_udp(endpoint)

    @cached_property
    def _candidates(self) -> list[int]:
        try:
            first, last = (int(word) for word in _EPHEMERAL.read_text().split())
        except (OSError, ValueError):
            first, last = 32768, 60999
        return [port for port in PORTS if not first <= port <= last]

    def _free(self, kind: socket.SocketKind) -> int:
        """A random port that nobody uses. Raises Refused when there is none."""
        taken = {self.peer, *(one.port for one in self.tcp)} if kind == socket.SOCK_STREAM else {*self.udp.values()}
        for port in random.sample(self._candidates, len(self._candidates)):
            if port not in taken and proxies.is_free(kind, port):
                return port
        raise Refused("PortsExhausted", f"mode userspace has no port left for another listener: {len(taken)} are taken")


def _fields(listener: Listener) -> tuple[int, int, int]:
    return listener.version, listener.port, listener.affinity_s


# The tables


@dataclass(frozen=True)
class Redirecting(ruleset.Family):
    """A family's table in this mode: the policies of mode nftables, and groups that lead to proxies.

    rules: of UDP groups' chains, whose names change with them. Who comes to a port in `guarded` without having been
    redirected is rejected, as is who comes to HAProxy's peer (`peer`) and is not HAProxy.
    """

    rules: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @property
    def version(self) -> int:
        return 4 if self.ip == "ip" else 6

    @property
    def sets(self) -> dict[str, str]:
        shared = super().sets
        return {
            **{name: shared[name] for name in (*_PASSED_ON, "groups", "generation")},
            "listeners": "map listeners { type mark : inet_service; }",
            "guarded": "set guarded { type inet_proto . inet_service; }",
            "peer": "set peer { type inet_service; }",
        }

    @property
    def derived(self) -> dict[str, tuple[str, str]]:
        return {}

    @property
    def containers(self) -> tuple[str, ...]:
        return (*_PASSED_ON, "groups", "listeners", "guarded", "peer")

    @property
    def ready_chains(self) -> tuple[str, ...]:
        return ()

    def chains_of(self, elements: Mapping[str, str]) -> Counter[str]:
        return Counter(value.removeprefix("goto ") for value in elements.values() if value.startswith("goto udp_"))

    def chain_rules(self, chain: str) -> tuple[str, ...]:
        return self.rules[chain]

    @property
    def guards(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain -> (its hook, its rules)."""
        return {
            "guard": (
                "type filter hook input priority filter; policy accept;",
                (
                    "meta l4proto . th dport @guarded ct status ! dnat meta l4proto tcp reject with tcp reset",
                    "meta l4proto . th dport @guarded ct status ! dnat reject",
                ),
            ),
            "guard_peer": (
                "type filter hook output priority filter; policy accept;",
                (f'oifname "lo" tcp dport @peer meta skuid != {proxies.user_id()} reject with tcp reset',),
            ),
        }

    @property
    def fixed_chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        # What a proxy sends is no translated packet: the mark for that stays out.
        chains = {
            name: (hook, tuple(rule for rule in rules if not rule.startswith("meta mark set")))
            for name, (hook, rules) in ruleset.policies(self).items()
        }
        to_haproxy = ("", ("meta l4proto tcp redirect to :ct mark map @listeners", "drop"))
        return {"to_haproxy": to_haproxy, **chains, **self.guards}

    def guarded(self, ports: Ports, left: Iterable[Listener] = ()) -> dict[str, str]:
        """The elements that keep everybody off the listeners who was not redirected. left: those that are about to be spare."""
        found = {f"guarded tcp . {one.port}": "" for one in {*ports.tcp, *left} if one.version == self.version}
        for (address, _), port in ports.udp.items():
            if (":" in address) == (self.version == 6):
                found[f"guarded udp . {port}"] = ""
        return {**found, f"peer {ports.peer}": ""} if ports.peer else found


def families() -> dict[str, Redirecting]:
    """Driver -> its family, for one plane: that knows the rules of its chains."""
    return {
        family.driver: Redirecting(
            family.driver,
            family.ip,
            family.address,
            family.node_port_address,
            family.affinity,
            family.client,
            "timonel_userspace",
        )
        for family in (ruleset.IPV4, ruleset.IPV6)
    }


def _guard_script(family: Redirecting, ports: Ports) -> str:
    """The guards alone, over whatever there is: before anybody listens."""
    table, sets = family.table, family.sets
    lines = [f"table {table} {{", *(f"\t{sets[name]}" for name in ("guarded", "peer"))]
    lines += [f"\tchain {name} {{ {hook} }}" for name, (hook, _) in family.guards.items()]
    lines += ["}", *(f"flush chain {table} {name}" for name in family.guards)]
    lines += [f"add rule {table} {name} {rule}" for name, (_, rules) in family.guards.items() for rule in rules]
    lines += [f"add element {table} {key.replace(' ', ' { ', 1)} }}" for key in family.guarded(ports)]
    return "\n".join(lines) + "\n"


def _udp_rules(family: Family, group: Group, ports: Mapping[Endpoint, int]) -> tuple[str, ...]:
    """The rules of a UDP group's chain: one endpoint's port after the other, or the one the client had."""
    own = [ports[endpoint] for endpoint in group.endpoints]
    if group.affinity_s is None:
        turns = ", ".join(f"{turn} : {port}" for turn, port in enumerate(own))
        return (f"meta l4proto udp redirect to :numgen inc mod {len(own)} map {{ {turns} }}",)
    # meta priority is the scratch register for a port because its type (classid) has a name; see agents/ruleset.py.
    remembered = f"{family.client} . ct mark"
    different = list(dict.fromkeys(own))
    known = ", ".join(_classid(port) for port in different)
    turns = ", ".join(f"{turn} : {_classid(port)}" for turn, port in enumerate(own))
    back = ", ".join(f"{_classid(port)} : {port}" for port in different)
    return (
        "meta priority set none",
        f"meta priority set {remembered} map @affinity",
        f"meta priority != {{ {known} }} delete @affinity {{ {remembered} : meta priority }}",
        f"meta priority != {{ {known} }} meta priority set numgen inc mod {len(own)} map {{ {turns} }}",
        f"update @affinity {{ {remembered} timeout {group.affinity_s}s : meta priority }}",
        f"meta l4proto udp redirect to :meta priority map {{ {back} }}",
    )


def _classid(port: int) -> str:
    return f"0:{port:x}"


class _Side:
    """An address family: what should be."""

    def __init__(self, family: Redirecting) -> None:
        self.family, self._view = family, View()
        self._protocols: dict[str, Counter[str]] = {}  # mark -> protocol -> how many frontends
        self._marks: dict[str, Counter[str]] = {}  # group of `to_cluster` -> marks that lead to it

    def follow(self, change: Change) -> tuple[Change, set[str]]:
        """Note a change: what it says of elements that are passed on, and the groups it may have changed. O(change)."""
        touched = self._view.follow(change)
        groups = set(touched.groups)
        passed = Change({}, {})
        for step, elements, kept in ((-1, change.deletes, passed.deletes), (1, change.adds, passed.adds)):
            for key, value in elements.items():
                container, _, rest = key.partition(" ")
                if container in ("frontends", "nodeports"):
                    _count(self._protocols, value, rest.split(" . ")[-2], step)
                    groups.add(ruleset.group_of(value))
                    groups |= {self._view.to_cluster[value]} if value in self._view.to_cluster else set()
                elif container == "to_cluster":
                    _count(self._marks, value, rest, step)
                    groups.add(value)
                if container in _PASSED_ON:
                    kept[key] = value
        return passed, groups

    def served(self, number: str) -> Served | None:
        """What is done for a group; None for nothing, because nothing leads to it or it only drops."""
        flags = (0, ruleset.SOURCE_RANGES, ruleset.LOCAL_POLICY, ruleset.SOURCE_RANGES | ruleset.LOCAL_POLICY)
        own = [f"0x{int(number, 16) | flag:08x}" for flag in flags]
        group = self._view.group(number)
        for mark in (*own, *self._marks.get(number, ())):
            for protocol in self._protocols.get(mark, ()):
                return None if group.verdict == "drop" else Served(protocol, group)
        return None


def _count(counts: dict[str, Counter[str]], key: str, item: str, step: int) -> None:
    held = counts.setdefault(key, Counter())
    held[item] += step
    if not held[item]:
        del held[item]
    if not held:
        del counts[key]


@dataclass(frozen=True)
class Served:
    """A group that refuses, or that leads to endpoints by a protocol."""

    protocol: str
    group: Group

    @property
    def is_tcp(self) -> bool:
        return self.protocol == "tcp" and self.group.verdict == "balance"

    @property
    def udp_endpoints(self) -> tuple[Endpoint, ...]:
        """All that have flows by UDP, also those of weight 0, which get no new ones."""
        return (*self.group.endpoints, *self.group.kept) if self.protocol == "udp" else ()

    @property
    def servers(self) -> dict[Endpoint, int]:
        """Endpoint -> weight; one that is there twice has twice as much."""
        shares = Counter(self.group.endpoints)
        most = max(shares.values(), default=1)
        return {e: n if most <= proxies.MAX_WEIGHT else -(-n * proxies.MAX_WEIGHT // most) for e, n in shares.items()}

    def elements(self, key: GroupKey, family: Redirecting, ports: Ports) -> dict[str, str]:
        """The elements of its table; the family has the rules of the chain they lead to."""
        _, number = key
        if self.group.verdict == "refuse":
            return {f"groups {number}": "goto refuse"}
        if self.is_tcp:
            return {f"groups {number}": "goto to_haproxy", f"listeners {number}": str(ports.listeners[key].port)}
        if self.protocol == "udp":
            rules = _udp_rules(family, self.group, ports.udp)
            chain = f"udp_{number[2:]}_{hashlib.sha256(repr(rules).encode()).hexdigest()[:16]}"
            family.rules[chain] = rules
            return {f"groups {number}": f"goto {chain}"}
        return {}


class Userspace:
    """The plane: tables, HAProxy and nginx."""

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self._directory, self._run = directory / "userspace", run_directory / "userspace"
        self._haproxy = proxies.HAProxy(self._directory, self._run)
        self._nginx = proxies.Nginx(self._directory, self._run)
        self._families = families()
        self._tables = nftables.Tables(families=self._families, memory=self._directory / "chains.json")
        self._sides: dict[str, _Side] = {}  # what is in force; only `refill` or `take_over` may follow when it is empty
        self._served: dict[GroupKey, Served] = {}
        self._guarded: dict[str, Set[str]] = {}  # driver -> elements of the table that guard listeners
        self._forgettable: list[list[str]] = []  # flows that end as soon as the change is in force

    @cached_property
    def _ports(self) -> Ports:
        return Ports(self._directory / "ports.json")

    # What a plane does

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Apply a change: proxies first, then both tables in one transaction, then what is not needed any more."""
        changes = {driver: changes[driver] for driver in self._families if changes.get(driver)}
        if missing := changes.keys() - self._sides.keys():
            why = f"cannot change tables of mode userspace that are not there yet, or not known: {', '.join(sorted(missing))}"
            raise Refused("ProxyUnknown", why)
        sides, self._sides = self._sides, {}  # whatever fails on the way, everything is looked at again
        passed: dict[str, Change] = {}
        before: dict[GroupKey, Served | None] = {}
        for driver, change in changes.items():
            passed[driver], groups = sides[driver].follow(change)
            before |= {(driver, number): self._served.get((driver, number)) for number in groups}
        old = {key: was.elements(key, sides[key[0]].family, self._ports) for key, was in before.items() if was}
        now = {key: sides[key[0]].served(key[1]) for key in before}
        self._note(now)
        left = self._prepare(now, passed)
        for key, served in now.items():
            family, change = sides[key[0]].family, passed[key[0]]
            had, has = old.get(key, {}), served.elements(key, family, self._ports) if served else {}
            change.deletes.update(had.items() - has.items())
            change.adds.update(has.items() - had.items())
        self._tables.commit(passed)
        for driver, change in passed.items():
            for element, value in change.deletes.items():
                if value.startswith("goto ") and change.adds.get(element) != value:
                    self._families[driver].rules.pop(value.removeprefix("goto "), None)
        self._sides = sides
        self._finish(left)

    def refill(self, elements: Elements, links: Iterable[str]) -> None:
        """Make everything exactly this; established connections go on. O(everything)."""
        self._sides = {}
        state = _State(self._families, elements)
        self._note({**dict.fromkeys(self._served), **state.served})
        left = self._prepare({**dict.fromkeys(self._ports.listeners), **state.served}, None)
        for family in self._families.values():
            family.rules.clear()
        self._tables.refill(state.elements(self._served, self._ports, left), ())
        self._finish(left)
        self._be_known(state)

    def take_over(self, elements: Elements, links: Iterable[str]) -> None:
        """Go on with what another process left for these elements."""
        state = _State(self._families, elements)
        self._served = state.served
        self._tables.take_over(state.elements(self._served, self._ports), ())
        if self._ports.tcp:
            self._haproxy.serve(self._ports.peer, self._servers())
        self._be_known(state)
        self._finish([])

    def difference(self, elements: Elements | None) -> str:
        """See Plane."""
        if elements is None:
            if not self._sides:
                return "what is in the tables of mode userspace is unknown"
            return self._tables.difference(None) or self._difference_of_proxies()
        state = _State(self._families, elements)
        if not state.has_ports(self._ports):
            return "there are Services without a port of this host"
        self._served = state.served
        if other := self._tables.difference(state.elements(self._served, self._ports)):
            return other
        if self._ports.tcp and not self._haproxy.has(self._ports.peer, self._servers()):
            return "haproxy does not serve what it should"
        return "nginx has ended" if self._ports.udp and not self._nginx.is_running else ""

    def objection(self, elements: Elements, links: Iterable[str]) -> str:
        """Why nft or the kernel would not take exactly these, or there are not ports enough; nothing is changed."""
        state, trial = _State(self._families, elements), self._ports.trial()
        try:
            trial.assign(state.served)
        except Refused as err:
            return err.message
        return self._tables.objection(state.elements(state.served, trial), ())

    def set_links(self, links: Iterable[str]) -> bool:
        """Interfaces are no matter here: what comes back comes to the proxy."""
        return False

    def delete(self) -> str:
        """Take everything off the host. Connections that HAProxy has go on until they end."""
        flows = [[*_ip_version(one), "--reply-port-src", str(port)] for one, port in self._ports.udp.items()]
        self._tables.delete()
        said = ""
        if self._haproxy.is_running:
            time.sleep(_SETTLE_S)
            if kept := self._haproxy.connections:
                said = f"{kept} connection{'s' if kept > 1 else ''} stay{'' if kept > 1 else 's'} with haproxy until they end"
            self._haproxy.leave()
        self._nginx.stop()
        for problem in conntrack.forget(flows):
            logger.warning("%s reason=ConntrackFailed", problem)
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.rmtree(self._run, ignore_errors=True)
        self._sides, self._served, self._guarded, self._forgettable = {}, {}, {}, []
        self.__dict__.pop("_ports", None)
        return said

    def leftovers(self) -> list[str]:
        """The tables that are there."""
        return self._tables.leftovers()

    # Steps

    def _note(self, now: Mapping[GroupKey, Served | None]) -> None:
        """Have these groups served from now on; the flows of endpoints that left are forgotten later."""
        for key, served in now.items():
            was = self._served.pop(key, None)
            if served is not None:
                self._served[key] = served
            lost = {*was.udp_endpoints} - {*(served.udp_endpoints if served else ())} if was else set()
            self._forgettable += [
                [*_ip_version(endpoint), "--mark", key[1], "--reply-port-src", str(self._ports.udp[endpoint])]
                for endpoint in sorted(lost)
                if endpoint in self._ports.udp
            ]

    def _prepare(self, now: Mapping[GroupKey, Served | None], passed: dict[str, Change] | None) -> list[Listener]:
        """Have proxies ready for these groups; listeners that nothing leads to once the tables are changed.

        passed: the change of the tables that will follow, which is completed; None where they will be refilled.
        """
        ports, is_whole = self._ports, passed is None
        self._run.mkdir(parents=True, exist_ok=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        if is_whole:
            before = dict(ports.udp)
            self._nginx.end_orphans()
            ports.settle(is_haproxy_running=self._haproxy.is_running, is_nginx_running=self._nginx.is_running)
            used = {endpoint for one in self._served.values() for endpoint in one.udp_endpoints}
            self._forgettable += [
                [*_ip_version(endpoint), "--reply-port-src", str(port)]
                for endpoint, port in before.items()
                if endpoint not in used or ports.udp[endpoint] != port
            ]
        left = {key: ports.listeners[key] for key in now if key in ports.listeners}
        news = ports.assign(now)
        left = {key: listener for key, listener in left.items() if ports.listeners.get(key) != listener}
        if news.has_tcp:
            ports.stock()
        if news.has_udp:
            ports.drop_udp({endpoint for one in self._served.values() for endpoint in one.udp_endpoints})
        if news or is_whole:
            ports.save()
        if passed is None:
            nftables.run_nft(
                "".join(_guard_script(family, ports) for family in self._listening()), self._tables.timeout_s
            )
        elif news.has_tcp or news.has_udp:
            self._guard(passed, left.values())
        # What a group leaves serves it until the tables lead elsewhere.
        still = {listener: self._served[key].servers for key, listener in left.items() if key in self._served}
        if news.has_tcp or is_whole:
            if ports.tcp or left:
                self._haproxy.serve(
                    ports.peer, {**self._servers(), **{listener: {} for listener in left.values()}, **still}
                )
        else:
            changed = {ports.listeners[key]: one.servers for key, one in now.items() if one and one.is_tcp}
            self._haproxy.update({**changed, **still})
        if news.has_udp or is_whole:
            self._nginx.serve(ports.udp)
        return list(left.values())

    def _finish(self, left: list[Listener]) -> None:
        """What follows when the tables lead to other places."""
        if left:
            self._haproxy.update({listener: {} for listener in left})
            self._ports.spare.update(left)
            self._ports.save()
        commands, self._forgettable = self._forgettable, []
        for problem in conntrack.forget(commands):
            logger.warning("%s reason=ConntrackFailed", problem)

    def _servers(self) -> dict[Listener, dict[Endpoint, int]]:
        """Of every listener."""
        found: dict[Listener, dict[Endpoint, int]] = {listener: {} for listener in self._ports.tcp}
        for key, one in self._served.items():
            if one.is_tcp:
                found[self._ports.listeners[key]] = one.servers
        return found

    def _guard(self, passed: dict[str, Change], left: Iterable[Listener]) -> None:
        """Keep everybody off the listeners that are about to be, and with the change that follows off those only."""
        wanted = {driver: self._families[driver].guarded(self._ports, left).keys() for driver in self._guarded}
        self._tables.commit(
            {driver: Change({}, dict.fromkeys(held - self._guarded[driver], "")) for driver, held in wanted.items()}
        )
        for driver, held in wanted.items():
            gone = dict.fromkeys(self._guarded[driver] - held, "")
            passed.setdefault(driver, Change({}, {})).deletes.update(gone)
        self._guarded = {**wanted}

    def _be_known(self, state: _State) -> None:
        self._sides = state.sides
        self._guarded = {driver: side.family.guarded(self._ports).keys() for driver, side in state.sides.items()}

    def _listening(self) -> list[Redirecting]:
        """Those that have listeners, and IPv4."""
        drivers = {key[0] for key in self._served} | {ruleset.IPV4.driver}
        return [family for driver, family in self._families.items() if driver in drivers]

    def _difference_of_proxies(self) -> str:
        if self._ports.tcp and (other := self._haproxy.difference()):
            return other
        return "nginx has ended" if self._ports.udp and not self._nginx.is_running else ""


def _ip_version(endpoint: Endpoint) -> list[str]:
    """The arguments by which conntrack looks in the endpoint's address family."""
    return ["-f", "ipv6" if ":" in endpoint[0] else "ipv4"]


class _State:
    """What elements ask for. served: by group."""

    def __init__(self, families: Mapping[str, Redirecting], elements: Elements) -> None:
        self._families = families
        self.sides: dict[str, _Side] = {}
        self.served: dict[GroupKey, Served] = {}
        self._passed: dict[str, dict[str, str]] = {}
        for driver, family in families.items():
            held = elements.get(driver) or {}
            if not held and family.ip != "ip":
                continue
            side = self.sides[driver] = _Side(family)
            change, groups = side.follow(Change(adds=dict(held)))
            self._passed[driver] = change.adds
            for number in groups:
                if served := side.served(number):
                    self.served[driver, number] = served

    def has_ports(self, ports: Ports) -> bool:
        """Whether every group has the ports that it needs."""
        return all(
            (key in ports.listeners or not one.is_tcp) and all(endpoint in ports.udp for endpoint in one.udp_endpoints)
            for key, one in self.served.items()
        )

    def elements(
        self, served: Mapping[GroupKey, Served], ports: Ports, left: Iterable[Listener] = ()
    ) -> dict[str, dict[str, str]]:
        """Driver -> all elements of its table. left: listeners that are about to be spare."""
        found = {
            driver: {**held, **self._families[driver].guarded(ports, left)} for driver, held in self._passed.items()
        }
        for key, one in served.items():
            found[key[0]] |= one.elements(key, self._families[key[0]], ports)
        return found
