"""The host around the rules: what it lacks, what it is, and the few settings that Services need of it."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

from agents import process
from agents.dns import Zones
from agents.errors import AgentError, InvalidResource

Problem = dict[str, Any]

ROUTE_PROTOCOL = "84"  # marks our routes in the kernel's tables
_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?)*")
# command -> (package, what it is for, reason when it is missing)
_TOOLS = {
    "nft": ("nftables", "Service addresses", "NftMissing"),
    "ip": ("iproute2", "addresses and routes", "IpMissing"),
    "conntrack": ("conntrack", "UDP Services", "ConntrackMissing"),
    "knotd": ("knot", "Service names", "KnotMissing"),
    "unbound": ("unbound", "Service names", "UnboundMissing"),
}


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
        try:
            done = process.run(["nft", "-c", "-f", "-"], text=_TRIAL, reason="NftTimeout")
        except AgentError as err:
            problems.append({"reason": err.reason, "message": err.message})
        else:
            if done.returncode:
                why = process.first_line(done.stderr)
                problems.append(
                    {"reason": "NftUnsupported", "message": f"this kernel or nft lacks what Services need: {why}"}
                )
    return problems


_TRIAL = """table ip timonel_trial {
\tmap slots { type mark . classid : ipv4_addr . inet_service; }
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta priority set numgen random mod 2
\t\tmeta l4proto { tcp, udp } dnat ip to ct mark . meta priority map @slots
\t}
}
"""


def facts() -> dict[str, str]:
    """What the host is: kernel, operating system, machine, name, the nft that loads the rules."""
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
    try:
        if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() != "1":
            return
    except OSError:
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
        if word == "node-address" and not rest and "%" not in value:
            ip_address(value)
            return
        if word == "dns-listen" and not rest and str(IPv4Address(value)) == value:
            return
        if word == "route" and not value and str(IPv4Network(rest)) == rest:
            return
        if word == "zone" and not rest and len(value) < 254 and _DOMAIN.fullmatch(value):
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


def settle(elements: Mapping[str, str]) -> None:
    """Make addresses, routes and forwarding what the elements say. Raises AgentError HostFailed."""
    if not elements:
        return
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    try:
        if forwarding.read_text().strip() != "1":
            forwarding.write_text("1\n")
    except OSError as err:
        raise AgentError("HostFailed", f"cannot switch on forwarding in {forwarding}: {err.strerror}") from err
    if listen := elements.get("dns-listen"):
        _ip("address", "replace", f"{listen}/32", "dev", "lo", "scope", "host")  # never a source of other traffic
    address = elements.get("node-address", "")
    source = ["src", address] if ":" not in address and is_own(address) else []
    wanted = {key.partition(" ")[2] for key in elements if key.startswith("route ")}
    for line in _ip("-o", "route", "show", "proto", ROUTE_PROTOCOL).splitlines():
        network = line.split()[0] if line.split() else ""
        if network and network not in wanted and f"{network}/32" not in wanted:
            _ip("route", "del", network, "proto", ROUTE_PROTOCOL)
    for network in sorted(wanted):
        # A process here may call a Service on a host without a default route; forwarded packets never see this.
        _ip("route", "replace", network, "dev", "lo", *source, "proto", ROUTE_PROTOCOL)


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


def restore(elements: Mapping[str, str]) -> None:
    """Take back what `settle` did, as far as it can be told apart; forwarding stays on."""
    if listen := elements.get("dns-listen"):
        process.run(["ip", "address", "del", f"{listen}/32", "dev", "lo"])
    process.run(["ip", "route", "flush", "proto", ROUTE_PROTOCOL])


def _ip(*arguments: str) -> str:
    done = process.run(["ip", *arguments], reason="HostFailed")
    if done.returncode:
        raise AgentError("HostFailed", f"ip {' '.join(arguments)}: {process.first_line(done.stderr)}")
    return done.stdout
