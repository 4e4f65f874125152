"""The lab: nodes on one link, containers behind them, a client outside. `Lab` is the way in.

              this machine 10.x.0.1        client 10.x.1.10   (another network, routed)
                    |                           |
      ------------ switch 10.x.0.254 / 10.x.1.254 ------------
         |                |                |                |
      node-1 .11       node-2 .12       node-3 .13       neighbour 10.x.0.200   (same link, no node)
         |                |                |
      10.x.101.0/24    10.x.102.0/24    10.x.103.0/24     container bridges, first container .11

Every address has an IPv6 one beside it with the same numbers: 10.x.y.z is fd74:x:0:y::z. Nodes know each other's
container networks, as an operator would set it up; client and neighbour do not. This
machine gains one veth end with the address 10.x.0.1/24 and forwards nothing.
"""

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from services_app.lab.namespaces import LabError, Place

DIRECTORY = Path("/run/timonel-lab")
ORDINARY_USER = "operator"
CONTAINER_BRIDGE = "cbr0"
NEIGHBOUR = 200  # the last part of its address
MOST_NODES, MOST_WITH_CONTAINERS = 240, 150

P = TypeVar("P", bound=Place)

SSHD = r"^(/usr/sbin/)?sshd\b"
SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/lab_host_key
PidFile /run/sshd.pid
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
MaxStartups 200
MaxSessions 100
LogLevel INFO
Subsystem sftp internal-sftp
"""


class Container(Place):
    """A network of its own behind a node."""

    def add_address(self, number: int) -> str:
        """One more address in its node's container network, 10.x.y.NUMBER; 100 and up are free."""
        address = f"{self.address.rpartition('.')[0]}.{number}"
        self.run(["ip", "address", "replace", f"{address}/24", "dev", "eth0"])
        return address


class Node(Place):
    """A host with sshd, files of its own and containers behind it."""

    ssh_port = 22

    def __init__(self, name: str, directory: Path, logs: Path, host_key: Path, authorized_key: str) -> None:
        self.host_key_fingerprint = _fingerprint(host_key)
        self.containers: list[Container] = []
        self._sshd_log = logs / f"{name}-sshd.log"
        home = f"/home/{ORDINARY_USER}"
        super().__init__(
            name,
            directory,
            private=True,
            # root's shell files cost every SSH command a tenth of a second; this machine's keys are no node's.
            erase=("/root/.bashrc", "/root/.profile", "/root/.bash_profile", "/root/.ssh", "/etc/ssh/sshrc"),
            files={
                "/etc/hostname": (f"{name}\n", 0o644),
                "/etc/ssh/lab_host_key": (host_key.read_text(encoding="ascii"), 0o600),
                "/etc/ssh/lab_sshd_config": (SSHD_CONFIG, 0o644),
                "/root/.ssh/authorized_keys": (authorized_key, 0o600),
                f"{home}/.ssh/authorized_keys": (authorized_key, 0o644),
                "/run/sshd/.keep": ("", 0o600),
            },
            append={
                "/etc/hosts": f"127.0.1.1 {name}\n",
                "/etc/passwd": f"{ORDINARY_USER}:x:2999:2999::{home}:/bin/sh\n",
                "/etc/group": f"{ORDINARY_USER}:x:2999:\n",
                "/etc/shadow": f"{ORDINARY_USER}:*:19000:0:99999:7:::\n",
            },
        )
        self.run(["chown", "-R", f"{ORDINARY_USER}:", home])

    def start_sshd(self) -> None:
        """Start the SSH server; returns when it answers on this node's address. Raises LabError."""
        with self._sshd_log.open("ab") as log:
            self.background(["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/lab_sshd_config"], log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.address, self.ssh_port), 1.0) as s,
            ):
                if s.recv(4) == b"SSH-":
                    return
            time.sleep(0.02)
        raise LabError(f"cannot reach sshd of {self.name}: {self._sshd_log.read_text(errors='replace')[-300:]}")

    def stop_sshd(self) -> None:
        """Kill the SSH server and every session of it, as a crash would; returns when its port is free. Raises LabError."""
        deadline = time.monotonic() + 10
        while self.kill(SSHD):
            if time.monotonic() > deadline:
                raise LabError(f"cannot end sshd of {self.name}")
            time.sleep(0.02)

    def kill_agent(self) -> int:
        """Kill the agent's processes without warning; how many there were."""
        return self.kill(r"timonel.*\bserve\b")

    def freeze(self) -> None:
        """Stop every process here without ending it: the node keeps its connections and answers nothing."""
        self.kill("", signal.SIGSTOP)

    def thaw(self) -> None:
        self.kill("", signal.SIGCONT)
        self.resume()


class Lab:
    """Nodes, containers, a neighbour and a client. A context manager; several live side by side.

    Everything ends with this process, however it ends; the directories of labs that were killed are removed
    when the next lab starts. Needs root. Raises LabError when the machine cannot.
    """

    def __init__(self, nodes: int = 3, containers: int = 1, *, progress: Callable[[str], None] | None = None) -> None:
        """containers: behind each node; none where there are more than MOST_WITH_CONTAINERS nodes. Raises LabError."""
        most = MOST_WITH_CONTAINERS if containers else MOST_NODES
        if nodes > most:
            raise LabError(f"cannot build a lab of {nodes} nodes: its networks have room for {most}")
        self._node_count = nodes
        self._container_count = containers
        self._progress = progress or (lambda _: None)
        self._open: list[Place] = []
        self._claim: socket.socket | None = None
        self._lock: IO[bytes] | None = None
        self.nodes: list[Node] = []

    def __enter__(self) -> "Lab":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The lab's own files: keys and the log of each sshd."""
        return DIRECTORY / self.name

    @property
    def identity_file(self) -> Path:
        """The private key that every node lets in, as root and as ORDINARY_USER."""
        return self.directory / "client_key"

    def _build(self) -> None:
        if os.geteuid():
            raise LabError("cannot make network namespaces: only root may. Run this as root")
        missing = [c for c in ("ip", "nsenter", "ssh-keygen") if not shutil.which(c)]
        missing += [] if os.access("/usr/sbin/sshd", os.X_OK) else ["sshd"]
        if missing:
            raise LabError(
                f"cannot build the lab: {', '.join(missing)} not found. Install iproute2, util-linux and openssh-server"
            )
        remove_leftovers()
        self._take_network()
        self._progress(f"lab on {self.network}")
        count = self._node_count
        hosts = range(count)
        for name in ("client_key", *(f"node-{i + 1}_host_key" for i in hosts)):
            _make_key(self.directory / name, name)
        with ThreadPoolExecutor(max_workers=4) as pool:
            switch = pool.submit(self._place, Place, "switch")
            client = pool.submit(self._place, Place, "client")
            neighbour = pool.submit(self._place, Place, "neighbour")
            nodes = [pool.submit(self._node, f"node-{i + 1}") for i in hosts]
            containers = [
                [
                    pool.submit(self._place, Container, f"container-{i + 1}-{j + 1}")
                    for j in range(self._container_count)
                ]
                for i in hosts
            ]
            self.switch, self.client, self.neighbour = switch.result(), client.result(), neighbour.result()
            self.nodes = [n.result() for n in nodes]
            for node, inner in zip(self.nodes, containers, strict=True):
                node.containers = [c.result() for c in inner]
        self._wire()
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(Node.start_sshd, self.nodes))

    def _node(self, name: str) -> Node:
        key = self.identity_file.with_suffix(".pub").read_text(encoding="ascii")
        node = Node(name, self.directory / name, self.directory, self.directory / f"{name}_host_key", key)
        self._open.append(node)
        return node

    def _place(self, kind: type[P], name: str) -> P:
        place = kind(name, self.directory / name)
        self._open.append(place)
        return place

    def _take_network(self) -> None:
        """Choose 10.x.0.0/16 that neither this machine nor another lab uses, and hold it until close()."""
        routes = json.loads(_tool(["ip", "-json", "route", "show", "table", "all"]))
        taken = [ipaddress.ip_network(r["dst"], strict=False) for r in routes if r["dst"][0].isdigit()]
        for second in (*range(64, 96), *range(97, 128)):  # 10.96 is the usual Service range
            network = ipaddress.ip_network(f"10.{second}.0.0/16")
            if any(network.overlaps(t) for t in taken if t.version == 4 and t.prefixlen):
                continue
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0timonel-lab-{second}")  # the kernel frees the name when this process ends
            except OSError:
                claim.close()
                continue
            self._claim = claim
            self.network = network
            self._prefix = f"10.{second}"
            self.name = f"timonel-{second}"
            self._link = f"timonel{second}"
            self.host_address = f"{self._prefix}.0.1"
            self._claim_directory()
            return
        raise LabError("cannot choose a network for the lab: every one of 10.64.0.0/16 to 10.127.0.0/16 is in use")

    def _claim_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, mode=0o755)
        self._lock = (self.directory / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _wire(self) -> None:
        p = self._prefix
        link = self._link
        subprocess.run(["ip", "link", "delete", link], capture_output=True, timeout=10, check=False)
        _tool(["ip", "link", "add", link, "type", "veth", "peer", "name", "host", "netns", str(self.switch.pid)])
        _tool(["ip", "address", "add", f"{self.host_address}/24", "dev", link])
        _tool(["ip", "link", "set", link, "up"])

        at_switch = ["link set lo up", "link add br0 type bridge forward_delay 0", "link set br0 up"]
        on_link: list[Place] = [*self.nodes, self.neighbour]
        for place in on_link:
            at_switch.append(f"link add {place.name} type veth peer name eth0 netns {place.pid}")
        for name in ("host", *(place.name for place in on_link)):
            at_switch += [f"link set {name} master br0", f"link set {name} up"]
        at_switch += [
            f"address add {p}.0.254/24 dev br0",
            f"address add {ipv6_of(f'{p}.0.254')}/64 dev br0",
            f"link add client type veth peer name eth0 netns {self.client.pid}",
            "link set client up",
            f"address add {p}.1.254/24 dev client",
            f"address add {ipv6_of(f'{p}.1.254')}/64 dev client",
        ]
        _batch(self.switch, at_switch)
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.switch.run(["/bin/sh", "-c", f"echo 1 >/proc/sys/net/{setting}"])

        self._address(self.client, f"{p}.1.10", f"{p}.1.254")
        self._address(self.neighbour, f"{p}.0.{NEIGHBOUR}", f"{p}.0.254")
        for number, node in enumerate(self.nodes, start=1):
            self._address(node, f"{p}.0.{host_part(number)}", f"{p}.0.254")
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._wire_node, range(1, len(self.nodes) + 1), self.nodes))

    def _address(self, place: Place, address: str, gateway: str) -> None:
        place.address, place.address6 = address, ipv6_of(address)
        _batch(
            place,
            [
                "link set lo up",
                "link set eth0 up",
                f"address add {address}/24 dev eth0",
                f"route add default via {gateway}",
                f"address add {place.address6}/64 dev eth0",
                f"route add default via {ipv6_of(gateway)}",
            ],
        )

    def _wire_node(self, number: int, node: Node) -> None:
        node.run(["/bin/sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
        if not node.containers:
            return
        p = self._prefix
        lines = [
            f"link add {CONTAINER_BRIDGE} type bridge forward_delay 0",
            f"link set {CONTAINER_BRIDGE} up",
            f"address add {p}.{100 + number}.1/24 dev {CONTAINER_BRIDGE}",
            f"address add {ipv6_of(f'{p}.{100 + number}.1')}/64 dev {CONTAINER_BRIDGE}",
        ]
        for j, container in enumerate(node.containers, start=1):
            lines += [
                f"link add veth{j} type veth peer name eth0 netns {container.pid}",
                f"link set veth{j} master {CONTAINER_BRIDGE}",
                f"link set veth{j} up",
            ]
        for other in range(1, len(self.nodes) + 1):
            if other != number:
                gateway = f"{p}.0.{host_part(other)}"
                lines.append(f"route add {p}.{100 + other}.0/24 via {gateway}")
                lines.append(f"route add {ipv6_of(f'{p}.{100 + other}.0')}/64 via {ipv6_of(gateway)}")
        _batch(node, lines)
        for j, container in enumerate(node.containers, start=1):
            self._address(container, f"{p}.{100 + number}.{10 + j}", f"{p}.{100 + number}.1")

    def disconnect(self, node: Node) -> None:
        """Pull the node's cable."""
        self.switch.run(["ip", "link", "set", node.name, "down"])

    def connect(self, node: Node) -> None:
        self.switch.run(["ip", "link", "set", node.name, "up"])

    def lose(self, node: Node, percent: int) -> None:
        """Drop that share of the packets to and from the node; 0 ends it."""
        self.switch.run(["nft", "delete", "table", "bridge", f"lose_{node.name}"], check=False)
        if percent:
            rules = f"""table bridge lose_{node.name} {{ chain forward {{
                type filter hook forward priority 0;
                iifname "{node.name}" numgen random mod 100 < {percent} drop
                oifname "{node.name}" numgen random mod 100 < {percent} drop
            }} }}"""
            self.switch.run(["nft", "-f", "-"], input=rules)

    def delay(self, node: Node, milliseconds: int) -> None:
        """Hold packets to and from the node back; 0 ends it. Raises LabError if the kernel has no netem."""
        for place, device in ((self.switch, node.name), (node, "eth0")):
            place.run(["tc", "qdisc", "delete", "dev", device, "root"], check=False)
            if milliseconds:
                place.run(["tc", "qdisc", "add", "dev", device, "root", "netem", "delay", f"{milliseconds}ms"])

    def close(self) -> None:
        """Take everything down; may be called twice."""
        if self._claim is None:
            return
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda place: place.close(), self._open))
        self._open.clear()
        subprocess.run(["ip", "link", "delete", self._link], capture_output=True, timeout=10, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock:
            self._lock.close()
        with contextlib.suppress(OSError):
            DIRECTORY.rmdir()  # the last one out
        self._claim.close()
        self._claim = None


def remove_leftovers() -> list[str]:
    """Remove the directories of labs whose process was killed; the kernel has taken the rest. Their names."""
    removed = []
    for directory in DIRECTORY.glob("timonel-*"):
        with contextlib.suppress(OSError), (directory / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: whoever made it is gone
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory.name)
    return removed


def host_part(number: int) -> int:
    """The last part of a node's address, by its number from 1."""
    part = 10 + number
    return part if part < NEIGHBOUR else part + 1


def ipv6_of(address: str) -> str:
    """The lab's IPv6 address beside an IPv4 one: fd74:x:0:y::z for 10.x.y.z, with the same decimal digits."""
    _, second, third, last = address.split(".")
    return str(ipaddress.IPv6Address(f"fd74:{second}:0:{third}::{last}"))


def _batch(place: Place, lines: Iterable[str]) -> None:
    # Only its network is entered: the other places' process ids in the lines are this machine's.
    _tool(["nsenter", f"--target={place.pid}", "--net", "ip", "-batch", "-"], input="\n".join(lines) + "\n")


def _tool(argv: list[str], input: str | None = None) -> str:
    done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise LabError(f"cannot run {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _make_key(path: Path, comment: str) -> None:
    _tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"timonel lab {comment}", "-f", str(path)])


def _fingerprint(key: Path) -> str:
    """SHA256:…, as ssh-keygen -l prints it."""
    return _tool(["ssh-keygen", "-l", "-E", "sha256", "-f", str(key.with_name(key.name + ".pub"))]).split()[1]
