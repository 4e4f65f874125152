"""Mode ipvs: the kernel's virtual servers share connections out, tables `ip timonel_ipvs` and `ip6 timonel_ipvs` say whose.

Each frontend is a virtual server by its address, protocol and port, a node port one on each of the node's addresses. Where
clients on the node take other endpoints than those outside (`to_cluster`), a virtual server by mark serves them.

How a connection goes: after conntrack and other people's NAT, chain `services` gives ct mark and verdict as in mode nftables;
what is to be balanced is let through. A rule of the host (priority 84) delivers what carries bit ROUTE here, whatever
its address, so that no Service's address has to be the node's: nobody answers ARP for it and no daemon listens on it.
`input` takes the bit off, or the packet would be routed by it again. IPVS translates there, or on the way out of a process,
and conntrack follows it (net.ipv4.vs.conntrack): so `postrouting` may masquerade, and flows can be ended by their mark.

An endpoint that left takes no new connections (weight 0) and goes when it has none any more; of UDP it goes at once.
Virtual servers have no names: ours carry the scheduler flag "flag-3", which no scheduler knows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents import host, netlink, nftables, process, ruleset
from agents.errors import AgentError, InvalidResource, Refused
from agents.pace import Pace
from agents.state import Change, Elements
from agents.virtual_servers import BY_MARK, FLAGS, OURS, Held, Key, Server, Wanted, commands, read

DRIVER = "ipvs"  # "scheduler" -> the node's; "scheduler 0x00000005" -> a group's
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")
ROUTE = 0x10000000  # of the packet mark: "deliver here"; the other bits are in agents/virtual_servers.py
TABLE = PRIORITY = "84"  # of routes, and of the rule that leads there
SETTINGS = {
    "net/ipv4/vs/conntrack": "1",
    # Flows leave an endpoint that is gone, and clients one that takes no new connections.
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
}
DRAIN_S = 2.0
_NOT_MARKED = ("slots", "pick")  # elements that the tables have no use for
_SERVERS = Path("/proc/net/ip_vs")


class IpvsRefused(Refused):
    """ipvsadm or IPVS in the kernel did."""

    def __init__(self, message: str) -> None:
        super().__init__("IpvsFailed", message)


def lacks() -> str:
    """Why this host has no IPVS, "" when it has."""
    if process.find("ipvsadm") is None:
        return "ipvsadm is not installed; install package ipvsadm"
    if not _SERVERS.exists() and process.find("modprobe") is not None:
        process.run(["modprobe", "-q", "ip_vs"])
    return "" if _SERVERS.exists() else "this kernel has no IPVS (modprobe ip_vs does not help)"


def check(key: str, value: str) -> None:
    """Raises InvalidResource for anything but the exact forms of the driver's resources."""
    if not re.fullmatch(r"scheduler(?: 0x0[0-9a-f]{7})?", key) or value not in SCHEDULERS:
        raise InvalidResource(f"cannot read resource {key[:100]!r} -> {value[:100]!r}: no IPVS scheduler")


# The tables


@dataclass(frozen=True)
class Marking(ruleset.Family):
    """A family's table in this mode: the elements of mode nftables, without endpoints."""

    @property
    def sets(self) -> dict[str, str]:
        kept = {name: text for name, text in super().sets.items() if name not in _NOT_MARKED}
        # Kernels before 6.4 do not ask a map as if it were a set.
        return {**kept, "served": kept["frontends"].replace("map frontends", "set served").replace(" : mark", "")}

    @property
    def derived(self) -> dict[str, tuple[str, str]]:
        return {**super().derived, "frontends": ("served", "{0}")}

    @property
    def kept(self) -> tuple[str, ...]:
        return ()

    def chain_rules(self, chain: str) -> tuple[str, ...]:
        return ("accept",)

    @property
    def fixed_chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        common, ip = super().fixed_chains, self.ip
        is_local = f"ct mark & 0x{ruleset.LOCAL_POLICY:08x} != 0"
        routed = f"meta mark set meta mark | 0x{ROUTE:08x}"
        by_mark = BY_MARK | OURS
        hook, (_, _, _, *masquerade) = common["postrouting"]
        restricted, *_ = common["flagged"][1]
        return {
            "refuse": common["refuse"],
            **{
                chain: (
                    "",
                    (
                        "ct mark set ct mark map @to_cluster",
                        f"meta mark set ct mark | 0x{mark:08x}",
                        "ct mark vmap @groups",
                        "drop",
                    ),
                )
                for chain, mark in (("from_here", by_mark), ("from_pods", by_mark | ROUTE))
            },
            "flagged": (
                "",
                (
                    restricted,
                    f"{is_local} fib saddr type local goto from_here",
                    f"{is_local} {ip} saddr @pod_cidrs goto from_pods",
                    f"ct mark set ct mark & 0x{ruleset.GROUP:08x}",
                    "ct mark vmap @groups",
                    "drop",
                ),
            ),
            "dispatch": (
                "",
                (
                    f"meta mark set meta mark | 0x{OURS:08x}",
                    f"ct mark & 0x{FLAGS:08x} != 0 goto flagged",
                    "ct mark vmap @groups",
                    "drop",
                ),
            ),
            "services": common["services"],
            # After the NAT of others: what they translated is none of ours any more.
            "prerouting": (
                "type filter hook prerouting priority dstnat + 1; policy accept;",
                (
                    f"{ip} daddr . meta l4proto . th dport @served {routed}",
                    # Errors about what a Service sent, above all that it was too big.
                    f"meta l4proto {'icmp' if ip == 'ip' else 'ipv6-icmp'} ct state related ct direction original "
                    f"ct original {ip} daddr . ct original protocol . ct original proto-dst @served {routed}",
                    "ct state new goto services",
                ),
            ),
            "input": (
                "type filter hook input priority filter; policy accept;",
                (f"meta mark & 0x{ROUTE:08x} != 0x00000000 meta mark set meta mark ^ 0x{ROUTE:08x}",),
            ),
            "output": ("type filter hook output priority -99; policy accept;", ("ct state new goto services",)),
            "postrouting": (
                hook,
                (
                    f"meta mark & 0x{OURS:08x} == 0x00000000 return",
                    f"meta mark & 0x{BY_MARK:08x} != 0x00000000 meta mark set 0x{OURS:08x}",
                    f"meta mark set meta mark ^ 0x{OURS:08x}",
                    *masquerade,
                ),
            ),
        }


FAMILIES = {
    family.driver: Marking(family.driver, family.ip, family.address, family.node_port_address, "", "", "timonel_ipvs")
    for family in (ruleset.IPV4, ruleset.IPV6)
}


def _marked(elements: Elements) -> dict[str, dict[str, str]]:
    """The part of elements that the tables hold."""
    return {
        driver: {key: value for key, value in elements.get(driver, {}).items() if key.split(" ")[0] not in _NOT_MARKED}
        for driver in FAMILIES
    }


# Around them


def _is_delivered(version: int) -> bool:
    """Whether what carries the mark is for this host, whatever its address. Starts no process."""
    return netlink.is_for_this_host("240.0.0.1" if version == 4 else "100::1", mark=ROUTE)  # nobody's address


def _deliver(version: int) -> None:
    """Let the host take what carries the mark."""
    if _is_delivered(version):
        return
    ip, mark = f"-{version}", f"0x{ROUTE:x}/0x{ROUTE:x}"
    process.run(["ip", ip, "rule", "add", "fwmark", mark, "lookup", TABLE, "priority", PRIORITY], reason="HostFailed")
    process.run(["ip", ip, "route", "replace", "local", "default", "dev", "lo", "table", TABLE], reason="HostFailed")
    if not _is_delivered(version):
        raise AgentError("HostFailed", f"IPv{version} packets for Services are not delivered here; look at `ip rule`")


class Servers:
    """Plane of mode ipvs (see agents/planes.py)."""

    def __init__(self, directory: Path) -> None:
        self._tables = nftables.Tables(families=FAMILIES, memory=directory / "ipvs-chains.json")
        self._before = host.Before(directory / "ipvs-before.json")
        self._made: set[Key] = set()  # by this process, whatever flags they have now
        self._forget()

    def _forget(self) -> None:
        self._schedulers: dict[str, str] = {}
        self._wanted = {driver: Wanted(family, self._schedulers) for driver, family in FAMILIES.items()}
        self._servers: dict[Key, Server] = {}
        self._leaving: dict[Key, set[str]] = {}
        self._drained: dict[Key, set[str]] = {}  # of those, the ones that were seen without connections
        self._is_known = False
        self._comparisons = Pace()

    def commit(self, changes: Mapping[str, Change]) -> None:
        """See Plane. First the virtual servers that connections are to get to, last what they no longer do."""
        if not self._is_known:
            raise IpvsRefused("cannot change virtual servers: what is there is unknown")
        keys = self._follow(changes)
        first, then = self._plan(keys, self._servers)
        if changes.get("nft6"):
            self._settle(6)
        marked = {
            driver: Change(_marked({driver: change.deletes})[driver], _marked({driver: change.adds})[driver])
            for driver, change in changes.items()
            if driver in FAMILIES
        }
        self._is_known = False
        _send(first)
        self._tables.commit(marked)
        _send(then)
        self._be_known()

    def refill(self, elements: Elements, links: Iterable[str]) -> None:
        """See Plane. What is right already is left alone."""
        held = self._recall(elements)
        taken = [str(key) for key in self._everything() if key in held and not self._is_mine(key, held[key])]
        if taken:
            raise IpvsRefused(f"cannot make virtual servers that somebody else has: {', '.join(sorted(taken)[:5])}")
        self._settle(*((4, 6) if elements.get("nft6") else (4,)))
        ours = {key for key, server in held.items() if self._is_mine(key, server)}
        first, then = self._plan(self._everything() | ours, self._servers)
        _send(first)
        self._tables.refill(_marked(elements), links)
        _send(then)
        self._be_known()

    def take_over(self, elements: Elements, links: Iterable[str]) -> None:
        """See Plane."""
        self._recall(elements)
        for key in self._servers.keys() & self._everything():
            if server := self._server(key):
                self._servers[key] = server
                self._leaving.get(key, set()).difference_update(server.endpoints)
        self._tables.take_over(_marked(elements), links)
        self._be_known()

    def difference(self, elements: Elements | None) -> str:
        """See Plane. Virtual servers are compared by a pace."""
        if elements is None and not self._is_known:
            return "what virtual servers there are is unknown"
        if other := self._tables.difference(None if elements is None else _marked(elements)):
            return other
        versions = (4, 6) if "nft6" in self._tables.drivers or (elements or {}).get("nft6") else (4,)
        if not all(map(_is_delivered, versions)):
            return f"somebody changed the routing rules: what carries mark 0x{ROUTE:x} is not for this host"
        if others := [name for name, value in SETTINGS.items() if host.setting(name) != value]:
            return f"somebody changed setting {', '.join(others)}"
        if elements is not None:
            return _said(self._compare_with_wanted(self._recall(elements)))
        if not self._comparisons.is_due():
            return ""
        began = time.monotonic()
        found = self._compare(read())
        self._comparisons.note(began)
        return _said(found)

    def _compare_with_wanted(self, held: Mapping[Key, Held]) -> list[Key]:
        """The virtual servers that are not as the elements ask, whatever leaves them."""
        wanted = {key: server for key in self._everything() if (server := self._server(key)) and server.endpoints}
        found = [
            key
            for key, server in wanted.items()
            if key not in held or not held[key].is_like(server, held[key].endpoints)
        ]
        return found + [
            key
            for key, server in held.items()
            if server.is_ours and key not in wanted and any(weight for weight, _ in server.endpoints.values())
        ]

    def _compare(self, held: Mapping[Key, Held]) -> list[Key]:
        """The virtual servers that are not as this process made them; who has drained is noted."""
        self._drained, found = {}, []
        for key, server in self._servers.items():
            leaving = self._leaving.get(key, set())
            if key not in held or not held[key].is_like(server, leaving):
                found.append(key)
                continue
            drained = {name for name in leaving if held[key].endpoints.get(name, (0, 0))[1] == 0}
            if drained:
                self._drained[key] = drained
        return found + [key for key, server in held.items() if server.is_ours and key not in self._servers]

    def objection(self, elements: Elements, links: Iterable[str]) -> str:
        """See Plane."""
        wanted = {driver: Wanted(family, {}) for driver, family in FAMILIES.items()}
        addresses = netlink.own_addresses()
        keys: set[Key] = set()
        for driver, family in wanted.items():
            family.move(addresses[4 if driver == "nft4" else 6])
            family.follow(Change(adds=dict(elements.get(driver) or {})))
            keys |= family.everything()
        for key, server in read().items():
            if key in keys and not self._is_mine(key, server):
                return f"somebody else has a virtual server there: ipvsadm {key}"
        return self._tables.objection(_marked(elements), links)

    def set_links(self, links: Iterable[str]) -> bool:
        """See Plane. Node ports follow the host's addresses, and endpoints that left go without connections."""
        keys = self._move()
        first, then = self._plan(keys, self._servers)
        drained, self._drained = self._drained, {}
        for key, names in drained.items():
            leaving = self._leaving.get(key, set())
            names &= leaving
            leaving -= names
            server = self._servers.get(key)
            if server is None:
                continue
            if server.endpoints or leaving:
                then += [f"-d {key} -r {name}" for name in sorted(names)]
            else:
                then.append(f"-D {key}")
                del self._servers[key]
            if not leaving:
                self._leaving.pop(key, None)
        _send(first + then)
        self._be_known()
        return self._tables.set_links(links)

    def delete(self) -> str:
        """See Plane. Connections get DRAIN_S to end: another mode cannot go on with them."""
        self._forget()
        has_servers, active = process.find("ipvsadm") is not None and _SERVERS.exists(), 0
        deadline = time.monotonic() + DRAIN_S
        while has_servers and (active := self._active()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._tables.delete()
        if has_servers:
            _send([f"-D {key}" for key in self._mine()])
        self._made.clear()
        if process.find("ip") is not None:
            for version in ("-4", "-6"):
                process.run(["ip", version, "rule", "del", "lookup", TABLE, "priority", PRIORITY])
                process.run(["ip", version, "route", "flush", "table", TABLE])
        self._before.restore()
        return f"{active} connection{'s' if active > 1 else ''} that IPVS translated ended" if active else ""

    def leftovers(self) -> list[str]:
        """See Plane."""
        found = self._tables.leftovers()
        if _SERVERS.exists() and process.find("ipvsadm") is not None:
            found += [f"virtual server {key}" for key, server in read().items() if server.is_ours]
        return found

    # What is wanted, and what was made of it

    def _be_known(self) -> None:
        self._is_known, self._made = True, set(self._servers)

    def _is_mine(self, key: Key, held: Held) -> bool:
        return held.is_ours or key in self._made

    def _mine(self) -> dict[Key, Held]:
        return {key: held for key, held in read().items() if self._is_mine(key, held)}

    def _active(self) -> int:
        """How many connections would be lost with our virtual servers."""
        return sum(held.active for held in self._mine().values())

    def _server(self, key: Key) -> Server | None:
        return self._wanted[_driver(key)].server(key)

    def _everything(self) -> set[Key]:
        return {key for wanted in self._wanted.values() for key in wanted.everything()}

    def _follow(self, changes: Mapping[str, Change]) -> set[Key]:
        """Note changes of elements; the virtual servers that may be others now."""
        keys = self._move()
        change = changes.get(DRIVER, Change())
        for element in change.deletes:
            self._schedulers.pop(element.partition(" ")[2], None)
        for element, name in change.adds.items():
            self._schedulers[element.partition(" ")[2]] = name
        for driver, wanted in self._wanted.items():
            if driver in changes:
                keys |= wanted.follow(changes[driver])
            for element in {*change.deletes, *change.adds}:
                group = element.partition(" ")[2]
                keys |= wanted.of_group(group) if group else wanted.everything()
        return keys

    def _move(self) -> set[Key]:
        addresses = netlink.own_addresses()
        keys = self._wanted["nft4"].move(addresses[4])
        return keys | self._wanted["nft6"].move(addresses[6])

    def _recall(self, elements: Elements) -> dict[Key, Held]:
        """Start again from all elements and what is in the kernel, which is given."""
        self._forget()
        self._follow({driver: Change(adds=dict(held)) for driver, held in elements.items() if held})
        held = read()
        for key, found in held.items():
            if self._is_mine(key, found):
                endpoints = {name: weight for name, (weight, _) in found.endpoints.items() if weight}
                scheduler = found.scheduler if found.is_ours else ""  # somebody took the flag off
                self._servers[key] = Server(scheduler, found.affinity_s, endpoints)
                self._leaving[key] = found.endpoints.keys() - endpoints.keys()
        return held

    def _plan(self, keys: Iterable[Key], servers: dict[Key, Server]) -> tuple[list[str], list[str]]:
        """The commands that make these virtual servers what is wanted, which they are noted to be."""
        first: list[str] = []
        then: list[str] = []
        for key in sorted(keys):
            leaving = self._leaving.setdefault(key, set())
            new = self._server(key)
            before, after = commands(key, servers.get(key), new, leaving)
            first += before
            then += after
            if new is not None and (new.endpoints or leaving):
                servers[key] = new
            else:
                servers.pop(key, None)
            if not leaving:
                del self._leaving[key]
        return first, then

    def _settle(self, *versions: int) -> None:
        for name, value in SETTINGS.items():
            self._before.set(name, value)
        for version in versions:
            _deliver(version)


def _driver(key: Key) -> str:
    return "nft6" if key.kind == "fwm6" or ":" in key.address else "nft4"


def _said(others: Iterable[Key]) -> str:
    names = sorted(str(key) for key in others)
    return f"somebody changed virtual server {', '.join(names[:5])}" if names else ""


def _send(lines: list[str]) -> None:
    """Give ipvsadm a list of commands. Raises IpvsRefused when it could not do one of them; the others are done."""
    if not lines:
        return
    text = "".join(f"{line}\n" for line in lines)
    done = process.run(["ipvsadm", "-R"], text=text, timeout_s=10.0 + len(lines) / 100, reason="IpvsFailed")
    if done.returncode or done.stderr:
        raise IpvsRefused(f"cannot change virtual servers: {process.first_line(done.stderr)}")
