"""Enrolment of a Linux host over SSH, step by step, each step told as it happens; safe to repeat.

1. show the host key and have it confirmed; 2. log in with what the operator gave; 3. place the agent; 4. look whether the
host has what a node needs; 5. let the control plane's own key in; 6. a sudo rule for a login other than root; 7. start
rules at boot where systemd runs; 8. claim the agent for this control plane; 9. write the records; 10. first push.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address

import paramiko
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from services_app import store
from services_app.models import ControlPlane, NodeAccess, NodeSync
from services_app.push import ssh, wake
from services_app.push.errors import NodeError
from services_app.push.keys import fingerprint, from_line, own_key, private_key, to_line
from services_app.push.program import current
from services_app.push.session import AGENT, agent_command
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists, NotFound

ACTOR = store.Actor("timonel:enrolment")
CLEANUP_HOLD = timedelta(minutes=2)
UNIT = """[Unit]
Description=Timonel: restore Service rules and names
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/env python3 {agent} restore
KillMode=process

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Host:
    """What the operator says about a host. One of key and password opens the first login."""

    name: str
    address: str
    port: int = 22
    user: str = "root"
    key: paramiko.PKey | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    node_ip: str = ""  # as kubelet's --node-ip: an address, or one of each family with a comma between
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One line of progress: what is done, and what is tried next; `then` is "" when nothing is."""

    text: str
    then: str = ""


def enroll(host: Host, confirm: Callable[[str], bool], *, by: str) -> Iterator[Step]:
    """Enrol a host; yields a Step for each thing done. confirm: fingerprint -> whether it is the right one.

    Raises NodeError with what is in the way; no records are written then, and what was placed on the host is harmless.
    """
    judge(host)
    node_ips = _node_ips(host)
    shown = ssh.host_key(host.name, host.address, host.port)
    print_of = fingerprint(shown)
    yield Step(f"{host.address} port {host.port} shows the host key {print_of}", f"log in as {host.user}")
    if not confirm(print_of):
        raise NodeError(
            "HostKeyNotConfirmed",
            f"the host key {print_of} was not confirmed; nothing was done. Compare it with the host's own "
            "(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
        )
    with _log_in(host, shown) as connection:
        yield Step(f"logged in as {host.user}", "place the agent")
        root = "" if host.user == "root" else "sudo -n "
        was_there = connection.run(f"test -e {AGENT}").code == 0
        try:
            yield from _equip(connection, host, root)
        except NodeError:
            if not was_there:
                # The host is no node: it keeps nothing of ours. An agent that does not even run cannot clean up.
                cleanup = f"/usr/bin/env python3 {AGENT} cleanup || rm -rf {AGENT.rpartition('/')[0]}"
                with contextlib.suppress(NodeError):
                    connection.run(f"{root}sh -c {shlex.quote(cleanup)}")
            raise
    yield Step("the agent belongs to this control plane", "record the node")
    _write_records(host, node_ips, to_line(shown), by)
    yield Step(f"node {host.name} ({', '.join(node_ips)}) recorded", "request the first push")
    wanted: set[int] = {cidr.version for cidr in settings.TIMONEL_SERVICE_CIDRS}
    for missing in sorted(wanted - {ip_address(address).version for address in node_ips}):
        yield Step(
            f"it has no IPv{missing} address and does not reach Services by it: enrol again with --node-ip A,B",
            "request the first push",
        )
    store.adopt_pods(host.name, actor=store.Actor(by))
    wake.request_wake()
    yield Step("first push requested")


def _equip(connection: ssh.Connection, host: Host, root: str) -> Iterator[Step]:
    """Make the host an agent's, ready for the control plane's own login. root: what goes before a command for root."""
    _require(
        connection, f"{root}true", "SudoRefused", f"{host.user} may not use sudo without a password on {host.name}"
    )
    _require(
        connection,
        "/usr/bin/env python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'",
        "PythonMissing",
        f"{host.name} needs Python 3.9 or newer as python3",
    )
    version = _place_agent(connection, root)
    yield Step(f"placed agent {version} at {AGENT}", "look whether the host has what a node needs")
    _preflight(connection, root, host.name)
    yield Step("the host has what a node needs", "let the control plane's key in")
    public = " ".join(own_key().public.split()[:2])
    _authorize(connection, public)
    yield Step("the control plane's key may log in", "write the sudo rule" if root else "see to the start at boot")
    if root:
        _write_sudo_rule(connection, host.user)
        yield Step(f"sudo rule for {host.user} written", "see to the start at boot")
    if _install_unit(connection, root):
        yield Step("rules will be restored at boot (systemd unit timonel-agent)", "claim the agent")
    _require(
        connection,
        f"{root}/usr/bin/env python3 {AGENT} adopt {shlex.quote(_cluster_uid())} --signer {shlex.quote(public)}",
        "AgentFailed",
        "adopt failed",
    )


def judge(host: Host) -> None:
    """Refuse, before anything is touched, what could not be recorded in the end. Raises NodeError, Invalid."""
    _node_ips(host)
    other = NodeAccess.objects.filter(address=host.address, port=host.port).exclude(node=host.name).first()
    if other is not None:
        raise NodeError(
            "HostIsNode", f"{host.address} port {host.port} is the node {other.node} already; a host is one node"
        )
    labels = _labels(host)
    document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": host.name, "labels": labels}}
    try:
        store.create(kinds.NODE, document, namespace="", actor=ACTOR, dry_run=True)
    except AlreadyExists:
        pass  # a second enrolment, or a Node that was described first


def _labels(host: Host) -> dict[str, str]:
    return {"kubernetes.io/hostname": host.name, "kubernetes.io/os": "linux", **host.labels}


def _log_in(host: Host, shown: paramiko.PKey) -> ssh.Connection:
    """With what the operator gave; the control plane's own key is not there yet, so the remedy is another one."""
    try:
        return ssh.connect(
            host.name, host.address, host.port, host.user, expected=shown, key=host.key, password=host.password
        )
    except NodeError as err:
        if err.reason != "AuthenticationFailed":
            raise
        given = "password" if host.key is None else "key"
        raise NodeError(
            err.reason,
            f"{host.name} does not let {host.user} in with this {given}; nothing was done. Try another login (--user), "
            "or another key (--identity) whose public half is in the login's ~/.ssh/authorized_keys",
        ) from err


def _require(connection: ssh.Connection, command: str, reason: str, message: str) -> str:
    done = connection.run(command)
    if done.code:
        said = (done.err or done.out).strip()[-500:]
        raise NodeError(reason, f"{message}: {said}" if said else message)
    return done.out


def _place_agent(connection: ssh.Connection, root: str) -> str:
    """Copy the agent into place, whole or not at all; its version."""
    program = current()
    content = program.content
    directory_on_host = AGENT.rpartition("/")[0]
    script = (
        f"umask 022 && mkdir -p {directory_on_host} && cat > {AGENT}.new && "
        f"test $(wc -c < {AGENT}.new) = {len(content)} && chmod 755 {AGENT}.new && mv {AGENT}.new {AGENT}"
    )
    done = connection.run(f"{root}sh -c {shlex.quote(script)}", stdin=content)
    if done.code:
        raise NodeError("CannotPlaceAgent", f"cannot write {AGENT} on {connection.name}: {done.err.strip()[-500:]}")
    return program.version


def _preflight(connection: ssh.Connection, root: str, name: str) -> None:
    """Raise NodeError with the first thing that the host lacks; the message names all of them."""
    done = connection.run(f"{root}/usr/bin/env python3 {AGENT} preflight", timeout_s=60)
    try:
        problems = json.loads(done.out)["problems"]
    except (ValueError, KeyError, TypeError) as err:
        raise NodeError(
            "AgentFailed", f"the agent does not run on {name}: {(done.err or done.out).strip()[-500:]}"
        ) from err
    blocking = [p for p in problems if p.get("blocking", True)]
    if blocking:
        told = "; ".join(p["message"] for p in blocking)
        raise NodeError(blocking[0]["reason"], f"{name} cannot be a node yet: {told}")


def _authorize(connection: ssh.Connection, public: str) -> None:
    """Let the control plane's key in, once, for commands only: no forwarding, no terminal."""
    body = public.split()[1]
    line = f"restrict {public} timonel control plane"
    script = (
        "umask 077 && mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && cd ~/.ssh && "
        # A last line without its end would swallow ours.
        '{ test -z "$(tail -c 1 authorized_keys)" || echo >> authorized_keys; } && '
        f"{{ grep -qF {shlex.quote(body)} authorized_keys || echo {shlex.quote(line)} >> authorized_keys; }}"
    )
    _require(connection, f"sh -c {shlex.quote(script)}", "CannotAuthorize", "cannot write ~/.ssh/authorized_keys")


def _write_sudo_rule(connection: ssh.Connection, user: str) -> None:
    """Exactly the commands the control plane calls, checked by visudo before it counts."""
    commands = ", ".join(f"/usr/bin/env python3 {AGENT} {word}" for word in ("serve", "cleanup", "status"))
    rule = f"{user} ALL=(root) NOPASSWD: {commands}\n"
    path = "/etc/sudoers.d/timonel"
    script = f"umask 227 && cat > {path}.new && visudo -cqf {path}.new && mv {path}.new {path} || {{ rm -f {path}.new; exit 1; }}"
    done = connection.run(f"sudo -n sh -c {shlex.quote(script)}", stdin=rule.encode())
    if done.code:
        raise NodeError("CannotWriteSudoRule", f"cannot write {path} on {connection.name}: {done.err.strip()[-500:]}")


def _install_unit(connection: ssh.Connection, root: str) -> bool:
    """Whether systemd runs there and restores the rules at boot from now on."""
    if connection.run("test -d /run/systemd/system").code:
        return False
    path = "/etc/systemd/system/timonel-agent.service"
    script = f"umask 022 && cat > {path} && systemctl daemon-reload && systemctl enable -q timonel-agent.service"
    done = connection.run(f"{root}sh -c {shlex.quote(script)}", stdin=UNIT.format(agent=AGENT).encode())
    if done.code:
        raise NodeError("CannotInstallUnit", f"cannot install {path} on {connection.name}: {done.err.strip()[-500:]}")
    return True


def _cluster_uid() -> str:
    return str(ControlPlane.objects.values_list("uid", flat=True).get(id=1))


def _node_ips(host: Host) -> list[str]:
    """The node's own addresses, its main one first. Raises NodeError."""
    texts = [part.strip() for part in (host.node_ip or host.address).split(",")]
    try:
        addresses = [ip_address(text) for text in texts]
    except ValueError as err:
        if not host.node_ip:
            raise NodeError(
                "AddressUnknown", f"{host.address} is a name: say the node's own address with --node-ip"
            ) from err
        raise NodeError("AddressUnknown", f"cannot read --node-ip {host.node_ip!r}: {err}") from err
    if len({address.version for address in addresses}) != len(addresses):
        raise NodeError(
            "AddressUnknown", f"--node-ip {host.node_ip!r} has two addresses of one family; give one of each"
        )
    return [str(address) for address in addresses]


def _write_records(host: Host, node_ips: list[str], host_key: str, by: str) -> None:
    labels, actor = _labels(host), store.Actor(by)
    addresses = [{"type": "InternalIP", "address": address} for address in node_ips]
    addresses.append({"type": "Hostname", "address": host.name})
    try:
        store.get(kinds.NODE, "", host.name)
    except NotFound:
        document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": host.name, "labels": labels}}
        store.create(kinds.NODE, document, namespace="", actor=actor)

    def relabel(document: dict) -> dict:
        document["metadata"].setdefault("labels", {}).update(labels)
        spec = document.get("spec") or {}
        taints = [t for t in spec.get("taints") or () if t.get("key") != "node.kubernetes.io/not-ready"]
        document["spec"] = {**spec, "taints": taints} if taints else {k: v for k, v in spec.items() if k != "taints"}
        return document

    def readdress(document: dict) -> dict:
        document.setdefault("status", {})["addresses"] = addresses
        return document

    store.update(kinds.NODE, "", host.name, relabel, actor=actor)
    store.update(kinds.NODE, "", host.name, readdress, subresource="status", actor=actor)
    with transaction.atomic():
        access, _ = NodeAccess.objects.update_or_create(
            node=host.name,
            defaults={
                "address": host.address,
                "port": host.port,
                "user": host.user,
                "host_key": host_key,
                "ssh_key": own_key(),
                "enrolled_at": timezone.now(),
                "enrolled_by": by,
            },
        )
        NodeSync.objects.update_or_create(
            node=access,
            defaults={
                "full_wanted": True,
                "failures": 0,
                "next_attempt_at": timezone.now(),
                "state": NodeSync.State.PENDING,
            },
        )


def remove(name: str, *, by: str) -> Iterator[Step]:
    """Clean the node up over SSH, then forget it; yields a Step for each thing done. Raises NodeError, NotFound.

    A node that cannot be reached stays; `forget` drops its records all the same.
    """
    access = NodeAccess.objects.select_related("ssh_key").filter(node=name).first()
    if access is None:
        raise NotFound(kinds.NODE, name)
    with ssh.connect(
        name,
        access.address,
        access.port,
        access.user,
        expected=from_line(access.host_key),
        key=private_key(access.ssh_key),
    ) as connection:
        yield Step(f"logged in as {access.user}", "clean the host up")
        # The cleanup ends the agent; the pushers must not start another one behind it.
        _hold_pushes(name, CLEANUP_HOLD)
        try:
            for line in connection.lines(agent_command(access.user, "cleanup"), "AgentFailed", "the cleanup failed"):
                yield Step(line, "clean the host up")
        except BaseException:
            _hold_pushes(name, timedelta())
            raise
        yield Step("the host is clean", "drop the records")
    forget(name, by=by)
    yield Step(f"node {name} forgotten")


def _hold_pushes(name: str, pause: timedelta) -> None:
    NodeSync.objects.filter(node_id=name).update(next_attempt_at=timezone.now() + pause)


def forget(name: str, *, by: str) -> None:
    """Drop a node's records: it is no longer pushed to, and its Node object goes."""
    NodeAccess.objects.filter(node=name).delete()
    try:
        store.delete(kinds.NODE, "", name, actor=store.Actor(by))
    except NotFound:
        pass


def shown_key(name: str) -> paramiko.PKey:
    """The host key an enrolled node shows now, for a person to compare. Raises NodeError, NotFound."""
    access = _access(name)
    return ssh.host_key(name, access.address, access.port)


def confirm_key(name: str, wanted: str) -> str:
    """Accept the host key a node shows now, when its fingerprint is the wanted one; returns it. Raises NodeError."""
    shown = shown_key(name)
    if fingerprint(shown) != wanted:
        raise NodeError("HostKeyNotConfirmed", f"{name} shows {fingerprint(shown)}, not {wanted}; nothing was changed")
    NodeAccess.objects.filter(node=name).update(host_key=to_line(shown))
    NodeSync.objects.filter(node_id=name).update(
        state=NodeSync.State.PENDING, failures=0, next_attempt_at=timezone.now(), full_wanted=True
    )
    wake.request_wake()
    return to_line(shown)


def push_again(name: str) -> None:
    """Send a node everything with the next push, and try it at once. Raises NotFound."""
    _access(name)
    NodeSync.objects.filter(node_id=name).update(full_wanted=True, failures=0, next_attempt_at=timezone.now())
    wake.request_wake()


def _access(name: str) -> NodeAccess:
    access = NodeAccess.objects.filter(node=name).first()
    if access is None:
        raise NotFound(kinds.NODE, name)
    return access
