"""Names on the node: Knot holds the cluster's zones on loopback, unbound answers clients in front of it.

Knot changes record by record in a transaction and answers from the next query on; unbound does not keep what comes
from it, follows aliases to names outside and forwards everything else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import re
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address
from pathlib import Path

from agents import files
from agents.daemons import Daemon
from agents.errors import AgentError, InvalidResource
from agents.knot import Control, Item
from agents.state import Change

logger = logging.getLogger(__name__)

SCHEMA_VERSION = "1.1.0"  # of the Kubernetes DNS specification, told by the zone
KNOT_ADDRESS, KNOT_PORT = "127.0.0.1", 8053
_NAME = r"(?:[a-z0-9_*](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_TTL = re.compile(r"[0-9]{1,9}")
MAX_NAME_LENGTH = 254  # with the final dot
_RECORD = re.compile(rf"(?P<owner>{_NAME}) (?P<type>A|AAAA|PTR|CNAME|SRV) (?P<data>[0-9a-z_.:* -]+)")
_DATA = {
    "A": re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}"),
    "AAAA": re.compile(r"[0-9a-f:]+(?:\.[0-9.]+)?"),
    "PTR": re.compile(_NAME),
    "CNAME": re.compile(_NAME),
    "SRV": re.compile(rf"[0-9]{{1,5}} [0-9]{{1,5}} [0-9]{{1,5}} {_NAME}"),
}


@dataclass(frozen=True)
class Zones:
    """What the servers are set up for. domain: the cluster's, without final dot. reverse: with final dot."""

    domain: str
    listen: str
    reverse: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (f"{self.domain}.", *self.reverse)

    def zone_of(self, owner: str) -> str | None:
        """The zone that holds a name, None when none does."""
        for suffix in self._suffixes:
            if owner.endswith(suffix) or owner == suffix[1:]:
                return suffix[1:]
        return None

    @cached_property
    def _suffixes(self) -> list[str]:
        return sorted((f".{zone}" for zone in self.all), key=len, reverse=True)


def parse(key: str, value: str) -> tuple[str, str, str, str]:
    """(owner, type, data, ttl) of a resource. Raises InvalidResource for what Knot would refuse, too."""
    match = _RECORD.fullmatch(key)
    if match is None or not _TTL.fullmatch(value) or not _is_data(match["type"], match["data"]):
        raise InvalidResource(f"cannot read record {key[:100]!r} with lifetime {value[:20]!r}")
    if len(match["owner"]) > MAX_NAME_LENGTH:
        raise InvalidResource(f"cannot read record {key[:100]!r}: its name is too long")
    return match["owner"], match["type"], match["data"], value


def _is_data(kind: str, data: str) -> bool:
    if not _DATA[kind].fullmatch(data):
        return False
    words = data.split()
    if kind == "AAAA":
        try:
            IPv6Address(data)
        except ValueError:
            return False
    elif kind == "SRV" and any(int(number) > 65535 for number in words[:3]):
        return False
    return kind in ("A", "AAAA") or len(words[-1]) <= MAX_NAME_LENGTH


class Names:
    """Both servers and the records in them. Every failure is an AgentError DnsFailed or DnsMissing."""

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self._directory, self._run = directory / "dns", run_directory
        self._knot_run, self._unbound_run = run_directory / "knot", run_directory / "unbound"
        self._control = str(self._knot_run / "knot.sock")
        self._knot_conf, self._unbound_conf = self._directory / "knot.conf", self._directory / "unbound.conf"
        self._loaded_file = self._directory / "knot.loaded"
        self._knot = Daemon(
            ["knotd", "-c", str(self._knot_conf), "-d"], self._knot_run / "knot.pid", self._directory / "knot.log"
        )
        self._unbound = Daemon(
            ["unbound", "-c", str(self._unbound_conf)],
            self._unbound_run / "unbound.pid",
            self._directory / "unbound.log",
        )
        self.zones: Zones | None = None

    @property
    def is_running(self) -> bool:
        """Whether what should run does; nothing should without zones."""
        return self.zones is None or (self._knot.pid is not None and self._unbound.pid is not None)

    def start(self, zones: Zones, elements: Mapping[str, str]) -> None:
        """Run both servers for these zones with exactly these records; what runs and is right stays.

        When only the reverse zones differ they read their set-up again and go on answering all the while: a restarted
        Knot knows no name until the last record is back, and would deny them.
        """
        had = self.zones
        goes_on = had is not None and (had.domain, had.listen) == (zones.domain, zones.listen) and self.is_running
        self._make_directories()
        texts = {self._knot_conf: self._knot_text(zones)}
        changed = files.replace(self._knot_conf, texts[self._knot_conf])
        for zone in zones.all:
            # Read at the start alone: a text that an older agent wrote is no reason to keep Knot running on it.
            path = self._directory / f"{zone}zone"
            texts[path] = _zone_text(zone, is_domain=zone == zones.all[0])
            if files.replace(path, texts[path]):
                changed = True
                goes_on = goes_on and had is not None and zone not in had.all
        self.zones = zones
        # Another agent may have been killed between writing these and telling Knot.
        loaded = hashlib.sha256("".join(texts.values()).encode()).hexdigest()
        if (changed or self._loaded not in ("", loaded)) and not (goes_on and self._is_reloaded()):
            self._knot.stop()
        self._knot.start()
        files.replace(self._loaded_file, loaded)
        self._sync(elements)
        # Not before: whoever comes again after a failure must find that unbound has yet to be told.
        if files.replace(self._unbound_conf, self._unbound_text(zones)):
            if goes_on:
                self._unbound.reload()
            else:
                self._unbound.stop()
        self._unbound.start()
        _wait_for_answer(zones.listen, zones.all[-1])

    @property
    def _loaded(self) -> str:
        """What stands for the set-up that Knot was told last, "" when that is unknown."""
        try:
            return self._loaded_file.read_text()
        except OSError:
            return ""

    def _is_reloaded(self) -> bool:
        """Whether Knot has taken its new set-up over."""
        try:
            with Control(self._control) as control:
                control.ask("reload")
        except AgentError as err:
            logger.warning("knotd is started anew: %s reason=%s", err, err.reason)
            return False
        return True

    def commit(self, change: Change) -> None:
        """Apply a change of records: all of a zone's at once. Records that no zone holds are left out."""
        if not change or self.zones is None:
            return
        commands: dict[str, list[Item]] = {}
        for verb, elements in (("zone-unset", change.deletes), ("zone-set", change.adds)):
            for key, ttl in elements.items():
                owner, kind, data = key.split(" ", 2)
                zone = self.zones.zone_of(owner)
                if zone is None:
                    # Left from another Service range or domain; no reason to hold all other names back.
                    logger.warning("%s %s is left out reason=NoZone", owner, kind)
                    continue
                item = {"cmd": verb, "zone": zone, "owner": owner, "type": kind, "data": data}
                if verb == "zone-set":
                    item["ttl"] = ttl
                commands.setdefault(zone, []).append(item)
        with Control(self._control) as control:
            for zone, items in commands.items():
                self._transaction(control, zone, items)

    def stop(self) -> None:
        """End both servers."""
        self._unbound.stop()
        self._knot.stop()
        self.zones = None

    def _transaction(self, control: Control, zone: str, items: Iterable[Item]) -> None:
        try:
            control.ask("zone-begin", zone=zone)
        except AgentError:
            # An agent that was killed left one open.
            control.ask("zone-abort", zone=zone)
            control.ask("zone-begin", zone=zone)
        try:
            control.ask_all(items)
            control.ask("zone-commit", zone=zone)
        except AgentError:
            control.ask("zone-abort", zone=zone)
            raise

    def _sync(self, elements: Mapping[str, str]) -> None:
        """Compare what Knot holds with what it should, and change the difference."""
        assert self.zones is not None
        held: dict[str, str] = {}
        deadline = time.monotonic() + 10
        while True:
            try:
                with Control(self._control) as control:
                    for zone in self.zones.all:
                        items = control.ask("zone-read", zone=zone)
                        if not any(item["type"] == "SOA" for item in items):
                            # What is set now would be gone once its file is read.
                            raise AgentError("DnsFailed", f"knotd has not loaded zone {zone} yet")
                        for item in items:
                            if item["type"] in _DATA and item["owner"] not in self.zones.all:
                                held[f"{item['owner']} {item['type']} {item['data']}"] = item["ttl"]
                break
            except AgentError:
                # It has just been started: the socket and the zones come a moment later.
                if time.monotonic() > deadline:
                    raise
                held = {}
                time.sleep(0.02)
        deletes = {key: ttl for key, ttl in held.items() if elements.get(key) != ttl}
        adds = {key: ttl for key, ttl in elements.items() if held.get(key) != ttl}
        self.commit(Change(deletes, adds))

    def _make_directories(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._run.mkdir(parents=True, exist_ok=True)
        for directory, user in ((self._knot_run, "knot"), (self._unbound_run, "unbound")):
            directory.mkdir(exist_ok=True)
            if _exists(user):
                entry = pwd.getpwnam(user)
                os.chown(directory, entry.pw_uid, entry.pw_gid)

    def _knot_text(self, zones: Zones) -> str:
        lines = [
            "# Written by Timonel's agent; changes are lost.",
            "server:",
            f"    rundir: {self._knot_run}",
            f"    pidfile: {self._knot.pid_file}",
            f"    listen: {KNOT_ADDRESS}@{KNOT_PORT}",
            *(["    user: knot:knot"] if _exists("knot") else []),
            "    udp-workers: 1",
            "    tcp-workers: 1",
            "    background-workers: 1",
            "control:",
            f"    listen: {self._control}",
            "log:",
            "  - target: syslog",
            "    any: warning",
            "database:",
            f"    storage: {self._knot_run}",
            "template:",
            "  - id: default",
            f"    storage: {self._directory}",
            '    file: "%s.zone"',
            "    zonefile-sync: -1",
            "    zonefile-load: whole",
            "    journal-content: none",
            "    semantic-checks: off",
            "zone:",
            *(f"  - domain: {zone}" for zone in zones.all),
        ]
        return "\n".join(lines) + "\n"

    def _unbound_text(self, zones: Zones) -> str:
        lines = [
            "# Written by Timonel's agent; changes are lost.",
            "server:",
            f"    interface: {zones.listen}",
            "    ip-freebind: yes",
            "    access-control: 0.0.0.0/0 allow",
            "    do-daemonize: yes",
            f'    username: "{"unbound" if _exists("unbound") else ""}"',
            '    chroot: ""',
            f'    directory: "{self._unbound_run}"',
            f'    pidfile: "{self._unbound.pid_file}"',
            "    use-syslog: no",
            '    logfile: ""',
            "    verbosity: 0",
            "    num-threads: 1",
            '    module-config: "iterator"',
            "    do-not-query-localhost: no",
            # With a Service's SRV record come its addresses.
            "    minimal-responses: no",
            "    hide-identity: yes",
            "    hide-version: yes",
            *(f'    local-zone: "{zone}" transparent' for zone in zones.all),
            "remote-control:",
            "    control-enable: no",
        ]
        for zone in zones.all:
            lines += [
                "stub-zone:",
                f'    name: "{zone}"',
                f"    stub-addr: {KNOT_ADDRESS}@{KNOT_PORT}",
                "    stub-no-cache: yes",
            ]
        upstream = upstream_servers(zones.listen)
        if upstream:
            lines += ["forward-zone:", '    name: "."', *(f"    forward-addr: {address}" for address in upstream)]
        return "\n".join(lines) + "\n"


def upstream_servers(own: str, path: str = "/etc/resolv.conf") -> list[str]:
    """The host's name servers, without this node's own address."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return []
    words = [line.split() for line in text.splitlines()]
    found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return [address for address in found if address != own and "%" not in address]


def _zone_text(zone: str, *, is_domain: bool) -> str:
    """A zone without any record of ours; what follows comes through the control socket."""
    lines = [f"{zone} 5 SOA ns.dns.{zone} hostmaster.{zone} 1 7200 1800 86400 5", f"{zone} 5 NS ns.dns.{zone}"]
    if is_domain:
        lines.append(f'dns-version.{zone} 5 TXT "{SCHEMA_VERSION}"')
    return "\n".join(lines) + "\n"


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _wait_for_answer(address: str, zone: str, timeout_s: float = 5.0) -> None:
    """Until the server at an address knows the zone's SOA. Raises AgentError DnsFailed."""
    name = b"".join(bytes([len(label)]) + label.encode() for label in zone.rstrip(".").split(".")) + b"\0"
    question = struct.pack("!6H", 0x5449, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 6, 1)
    deadline = time.monotonic() + timeout_s
    last = "no answer"
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.2)
            try:
                client.connect((address, 53))
                client.send(question)
                answer = client.recv(4096)
            except OSError as err:
                last = str(err)
                time.sleep(0.02)
                continue
        if answer[:2] == question[:2] and answer[3] & 15 == 0:
            return
        last = f"answer code {answer[3] & 15}"
        time.sleep(0.02)
    raise AgentError("DnsFailed", f"unbound at {address} does not answer for {zone}: {last}. Is port 53 taken there?")
