"""An SSH server on loopback that behaves as a host during enrolment: real protocol, real keys, scripted commands."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFLIGHT = '{"agent": "0", "problems": [], "facts": {}}'


def new_key(passphrase: str = "") -> str:
    """A private key in OpenSSH's text form."""
    how = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    private = Ed25519PrivateKey.generate()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how).decode()


@dataclass
class SshHost:
    """user, password and keys let in; `answers`: word in a command -> (exit code, output, errors); `commands` seen."""

    user: str = "root"
    password: str = ""
    keys: list[paramiko.PKey] = field(default_factory=list)
    answers: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)  # commands wait for it
    port: int = 0
    host_key: paramiko.PKey = field(default_factory=lambda: paramiko.ECDSAKey.generate())

    def answer_to(self, command: str) -> tuple[int, str, str]:
        self.commands.append(command)
        self.gate.wait(30)
        for word, answer in self.answers.items():
            if word in command:
                return answer
        if command.startswith("test -"):
            return 1, "", ""  # neither an agent nor systemd
        if command.endswith(" preflight"):
            return 0, PREFLIGHT, ""
        return 0, "", ""


class _Session(paramiko.ServerInterface):
    def __init__(self, host: SshHost) -> None:
        self.host = host

    def get_allowed_auths(self, username: str) -> str:
        return "password,publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        right = username == self.host.user and self.host.password and password == self.host.password
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        right = username == self.host.user and any(key.asbytes() == known.asbytes() for known in self.host.keys)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        while channel.recv(65536):
            pass  # standard input to its end
        code, out, err = self.host.answer_to(command)
        channel.sendall(out.encode())
        channel.sendall_stderr(err.encode())
        channel.send_exit_status(code)
        channel.close()


@contextmanager
def ssh_host(**options) -> Iterator[SshHost]:
    """The host, listening on a port of 127.0.0.1 until the block ends."""
    host = SshHost(**options)
    host.gate.set()
    listener = socket.create_server(("127.0.0.1", 0))
    host.port = listener.getsockname()[1]
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(host.host_key)
            transports.append(transport)
            try:
                transport.start_server(server=_Session(host), event=threading.Event())
            except paramiko.SSHException:
                continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield host
    finally:
        host.gate.set()
        listener.close()
        for transport in transports:
            transport.close()
