"""The host around the rules: what it lacks, what it is, and the few settings that Services need of it."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from agents import conntrack, files, iptables, process, ruleset
from agents.dns import Zones
from agents.errors import AgentError, InvalidResource

logger = logging.getLogger(__name__)

Problem = dict[str, Any]

ROUTE_PROTOCOL = "84"  # marks our routes in the kernel's tables
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
# IP version -> the resource that holds the node's address; one host has at most one of each that counts
_NODE_ADDRESS = {4: "node-address", 6: "node-address6"}
_SYSCTL = Path("/proc/sys")
_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?)*")
# command -> (package, what it is for, reason when it is missing)
_TOOLS = {
    "nft": ("nftables", "Service addresses", "NftMissing"),
    "ip": ("iproute2", "addresses and routes", "IpMissing"),
    "conntrack": ("conntrack", "UDP Services", "ConntrackMissing"),
    "knotd": ("knot", "Service names", "KnotMissing"),
    "unbound": ("unbound", "Service names", "UnboundMissing"),
}


_TRIAL_GROUPS = (("groups 0x00000001", "goto aff_10_2"), ("groups 0x00000002", "goto hash_2"))


def preflight() -> list[Problem]:
    """What keeps this host from being a node: {"reason", "message"} each, with what to install or do."""
    problems = []
    if os.geteuid() != 0:
        problems.append({"reason": "NotRoot", "message": "the agent does not run as root; allow it by sudo"})
    missing = {tool: why for tool, why in _TOOLS.items() if process.find(tool) is None}
    for tool, (package, purpose, reason) in missing.items():
        problems.append(
            {"reason": reason, "message": f"{tool} is not installed ({purpose} need it): install package {package}"}
        )
    if "nft" not in missing and os.geteuid() == 0:
        problems += [problem for family in ruleset.FAMILIES.values() for problem in _nft_problems(family)]
    return problems


def _nft_problems(family: ruleset.Family) -> list[Problem]:
    """Whether nft and the kernel take what the tables are made of; nothing is changed."""
    text = ruleset.skeleton(family, ruleset.chains_of(dict(_TRIAL_GROUPS)))
    trial = text.replace(family.table, f"{family.table}_trial")
    try:
        done = process.run(["nft", "-c", "-f", "-"], text=trial, reason="NftTimeout")
    except AgentError as err:
        return [{"reason": err.reason, "message": err.message}]
    if not done.returncode:
        return []
    why = process.first_line(done.stderr)
    if family is ruleset.IPV4:
        return [{"reason": "NftUnsupported", "message": f"this kernel or nft lacks what Services need: {why}"}]
    # No reason to keep a host out of a cluster that may have no IPv6.
    message = f"this kernel or nft lacks what Services with IPv6 need: {why}"
    return [{"reason": "NftIPv6Unsupported", "message": message, "blocking": False}]


def facts() -> dict[str, str]:
    """What the host is: kernel, operating system, machine, name, the nft and iptables that load the rules."""
    try:
        pairs = [line.partition("=") for line in Path("/etc/os-release").read_text().splitlines()]
        names = {key: value.strip('"') for key, _, value in pairs}
    except OSError:
        names = {}
    return {
        "kernel": platform.release(),
        "os": names.get("PRETTY_NAME", platform.system()),
        "machine": platform.machine(),
        "hostname": socket.gethostname(),
        "nftables": _nft_version(),
        "iptables": _iptables_version(),
    }


def _nft_version() -> str:
    """As in "1.0.6"; "" when there is no nft, or none that answers."""
    if process.find("nft") is None:
        return ""
    try:
        words = process.run(["nft", "--version"]).stdout.split()
    except AgentError:
        return ""
    return words[1].removeprefix("v") if len(words) > 1 else ""


def _iptables_version() -> str:
    """As in "1.8.9 (nf_tables)": where mode iptables puts its rules; "" when there is none."""
    try:
        return str(iptables.choose() or "")
    except AgentError:
        return ""


def boot_id() -> str:
    """Another one after each start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def links() -> set[str]:
    """The names of the host's interfaces, without the loopback."""
    return {name for _, name in socket.if_nameindex() if name != "lo" and '"' not in name}


def let_bridges_turn_back() -> None:
    """Let a container behind a bridge reach itself by a Service's address; no-op where bridged packets skip netfilter.

    Where they do not, the kernel turns the packet back inside the bridge, which a port does only in hairpin mode. As
    kubelet, set it on the ports of containers and never on those of real links. Raises AgentError HostFailed.
    """
    if "1" not in (setting("net/bridge/bridge-nf-call-iptables"), setting("net/bridge/bridge-nf-call-ip6tables")):
        return
    for link in json.loads(_ip("-j", "-d", "link", "show", "type", "veth") or "[]"):
        port = link.get("linkinfo", {})
        if port.get("info_slave_kind") == "bridge" and not port.get("info_slave_data", {}).get("hairpin"):
            _ip("link", "set", "dev", link["ifname"], "type", "bridge_slave", "hairpin", "on")


def check(key: str, value: str) -> None:
    """Raises InvalidResource for anything but the exact forms of a host's resources."""
    word, _, rest = key.partition(" ")
    try:
        # A scope ("fe80::1%...") may hold any text, and what is listened on gets into a server's file.
        if word in _NODE_ADDRESS.values() and not rest and "%" not in value:
            ip_address(value)
            return
        if word == "dns-listen" and not rest and str(IPv4Address(value)) == value:
            return
        if word == "route" and not value and "%" not in rest and str(ip_network(rest)) == rest:
            return
        if word == "conntrack" and conntrack.is_setting(rest, value):
            return
        if word == "zone" and not rest and len(value) < 254 and _DOMAIN.fullmatch(value):
            return
        if word == "mode" and not rest and value.isascii() and value.isalpha() and len(value) < 20:
            return
        if word == "reverse" and not value and rest.endswith(".") and len(rest) < 255 and _DOMAIN.fullmatch(rest[:-1]):
            return
    except ValueError:
        pass
    raise InvalidResource(f"cannot read host setting {key[:100]!r} = {value[:100]!r}")


def zones(elements: Mapping[str, str]) -> Zones | None:
    """What the name servers should be set up for; None when nothing is."""
    if "zone" not in elements or "dns-listen" not in elements:
        return None
    reverse = sorted(key.partition(" ")[2] for key in elements if key.startswith("reverse "))
    return Zones(elements["zone"], elements["dns-listen"], tuple(reverse))


class Before:
    """Kernel settings as they were before Timonel changed them, on disk until the cleanup gives them back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, name: str, value: str) -> None:
        """Give a setting (a path below /proc/sys) a value; what it was first is noted. Raises AgentError HostFailed."""
        old = setting(name)
        if old == value:
            return
        noted = self._read()
        try:
            if old is not None:
                self._note({**noted, name: [noted.get(name, [old])[0], value]})
            (_SYSCTL / name).write_text(f"{value}\n")
        except OSError as err:
            raise AgentError("HostFailed", f"cannot set {name} to {value}: {err.strerror}") from err

    def restore(self) -> None:
        """Give back what nobody else has changed since."""
        self.give_back(self._read())
        self._path.unlink(missing_ok=True)

    def give_back(self, names: Iterable[str]) -> None:
        """The same of these settings alone, as far as they are noted."""
        noted = self._read()
        given = [name for name in names if name in noted]
        for name in given:
            old, ours = noted.pop(name)
            if setting(name) == ours:
                try:
                    (_SYSCTL / name).write_text(f"{old}\n")
                except OSError as err:
                    logger.warning("cannot set %s back to %s: %s reason=HostFailed", name, old, err.strerror)
        if given:
            self._note(noted)

    def _note(self, noted: Mapping[str, list[str]]) -> None:
        files.replace(self._path, json.dumps(noted))

    def _read(self) -> dict[str, list[str]]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            return {}


def setting(name: str) -> str | None:
    """A kernel setting's value, None when there is no such setting."""
    try:
        return (_SYSCTL / name).read_text().strip()
    except OSError:
        return None


def settle(elements: Mapping[str, str], before: Before) -> None:
    """Make addresses, routes and forwarding what the elements say. Raises AgentError HostFailed."""
    if not elements:
        return
    if listen := elements.get("dns-listen"):
        _ip("address", "replace", f"{listen}/32", "dev", "lo", "scope", "host")  # never a source of other traffic
    networks, addresses = _networks(elements), _node_addresses(elements)
    before.set(FORWARDING[4], "1")
    _settle_conntrack(elements, before)
    _settle_routes(4, networks[4], ["dev", "lo", *(["src", addresses[4]] if is_own(addresses[4]) else [])])
    if setting(FORWARDING[6]) is None:
        return  # a host without IPv6
    if networks[6] and setting(FORWARDING[6]) != "1":
        _keep_router_advertisements(before)
        before.set(FORWARDING[6], "1")
    # Unlike IPv4's, IPv6 routes by way of lo reject: the range is said to be on the link of the node's address, where
    # nothing of it is ever looked for, because a Service's address is translated before.
    via = ["dev", device, "src", addresses[6]] if networks[6] and (device := _device_of(addresses[6])) else []
    _settle_routes(6, networks[6] if via else set(), via)


def _settle_routes(version: int, wanted: set[str], via: list[str]) -> None:
    """A process here may call a Service on a host without a default route; forwarded packets never see these."""
    whole = "/32" if version == 4 else "/128"
    for line in _ip(f"-{version}", "-o", "route", "show", "proto", ROUTE_PROTOCOL).splitlines():
        network = line.split()[0] if line.split() else ""
        if network and network not in wanted and f"{network}{whole}" not in wanted:
            _ip(f"-{version}", "route", "del", network, "proto", ROUTE_PROTOCOL)
    for network in sorted(wanted):
        _ip(f"-{version}", "route", "replace", network, *via, "proto", ROUTE_PROTOCOL)


def _keep_router_advertisements(before: Before) -> None:
    """A host that forwards ignores them where accept_ra is 1, and would lose its default route some minutes later."""
    for path in sorted((_SYSCTL / "net/ipv6/conf").glob("*/accept_ra")):
        name = path.parent.name
        if name not in ("all", "default", "lo") and setting(f"net/ipv6/conf/{name}/accept_ra") == "1":
            before.set(f"net/ipv6/conf/{name}/accept_ra", "2")


def _device_of(address: str, timeout_s: float = 3.0) -> str:
    """The link by which an own IPv6 address is known, "" when it is not this host's.

    Waits while the kernel asks the link whether somebody else has the address: until then it is no source.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = json.loads(_ip("-j", "-6", "address", "show", "to", f"{address}/128") or "[]") if address else []
        names = [link["ifname"] for link in found if link.get("addr_info")]
        if not names:
            return ""
        if is_own(address) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if names[0] != "lo":
        return str(names[0])
    defaults = json.loads(_ip("-j", "-6", "route", "show", "default") or "[]")
    return str(next((route["dev"] for route in defaults if route.get("dev")), ""))


def _settle_conntrack(elements: Mapping[str, str], before: Before) -> None:
    """What cannot be set is no reason to leave Services out of force: `conntrack_problem` tells of it."""
    wanted = conntrack.settings(elements)
    before.give_back(name for name in conntrack.SETTINGS if name not in wanted)
    for name, value in wanted.items():
        if _is_writable(name):
            before.set(name, value)
        elif setting(name) not in (None, value):
            logger.warning("cannot set %s to %s: it is read-only here reason=ConntrackNotSized", name, value)


def conntrack_problem(elements: Mapping[str, str]) -> Problem | None:
    """What of conntrack's size and timeouts this host does not let be set."""
    wanted = conntrack.settings(elements)
    left = [name for name, value in wanted.items() if setting(name) != value and not _is_writable(name)]
    if not left:
        return None
    message = "; ".join(
        f"{name} is {setting(name) or 'missing'}, not {wanted[name]}, and read-only here" for name in left
    )
    return {"reason": "ConntrackNotSized", "message": message, "blocking": False}


def _is_writable(name: str) -> bool:
    """Whether a kernel setting is there and ours to set: in a container or namespace some are the host's."""
    return os.access(_SYSCTL / name, os.W_OK)


def is_settled(elements: Mapping[str, str]) -> bool:
    """Whether addresses, routes and forwarding still are what `settle` made of them. No process is started."""
    if not elements:
        return True
    listen = elements.get("dns-listen")
    if listen and not is_own(listen):
        return False
    if any(setting(name) != value and _is_writable(name) for name, value in conntrack.settings(elements).items()):
        return False
    networks, addresses = _networks(elements), _node_addresses(elements)
    for version in (4, 6):
        if setting(FORWARDING[version]) is None or (version == 6 and not networks[6]):
            continue
        if setting(FORWARDING[version]) != "1":
            return False
        if is_own(addresses[version]):
            sources = {_source_to(str(ip_network(network).network_address)) for network in networks[version]}
            if sources - {addresses[version]}:
                return False
    return True


def _source_to(address: str) -> str:
    """The address a process here would have towards another, "" when there is no way. Sends nothing."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _networks(elements: Mapping[str, str]) -> dict[int, set[str]]:
    """IP version -> the Service ranges a route is wanted for."""
    found: dict[int, set[str]] = {4: set(), 6: set()}
    for key in elements:
        word, _, network = key.partition(" ")
        if word == "route":
            found[6 if ":" in network else 4].add(network)
    return found


def _node_addresses(elements: Mapping[str, str]) -> dict[int, str]:
    """IP version -> the node's address, "" for none."""
    first, second = (elements.get(key, "") for key in _NODE_ADDRESS.values())
    if ":" in first:  # as agents before IPv6 were told
        first, second = "", second or first
    return {4: first, 6: second}


def is_own(address: str) -> bool:
    """Whether an address is one of this host's."""
    if not address:
        return False
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def restore(elements: Mapping[str, str], before: Before) -> None:
    """Take back what `settle` did, as far as nobody else has changed it since."""
    if listen := elements.get("dns-listen"):
        process.run(["ip", "address", "del", f"{listen}/32", "dev", "lo"])
    for version in (4, 6):
        process.run(["ip", f"-{version}", "route", "flush", "proto", ROUTE_PROTOCOL])
    before.restore()


def _ip(*arguments: str) -> str:
    done = process.run(["ip", *arguments], reason="HostFailed")
    if done.returncode:
        raise AgentError("HostFailed", f"ip {' '.join(arguments)}: {process.first_line(done.stderr)}")
    return done.stdout
