"""The agent that this control plane ships: its bytes and version, and the signature by which nodes accept a newer one."""

import base64
import hashlib
import struct
import textwrap
from functools import cache

import paramiko

from agents import upgrade
from agents.build import Program, build_zipapp

_MAGIC = b"SSHSIG"


@cache
def current() -> Program:
    """The agent of this installation; built once a process."""
    return build_zipapp()


def sign(program: Program, key: paramiko.PKey) -> str:
    """The signature as `ssh-keygen -Y verify` reads it (OpenSSH PROTOCOL.sshsig)."""
    message = hashlib.sha512(upgrade.digest_text(program.content).encode()).digest()
    kind = (upgrade.NAMESPACE.encode(), b"", b"sha512")
    signature = key.sign_ssh_data(_MAGIC + _strings(*kind, message)).asbytes()
    envelope = _MAGIC + struct.pack(">I", 1) + _strings(key.asbytes(), *kind, signature)
    lines = "\n".join(textwrap.wrap(base64.b64encode(envelope).decode(), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n"


def _strings(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)
