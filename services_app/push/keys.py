"""The control plane's own SSH key: made at first use, its private half encrypted at rest."""

import base64
import hashlib
import io

import paramiko
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from services_app.models import SshKey

NAME = "control plane"


def _cipher() -> Fernet:
    key = hashlib.sha256(b"timonel ssh keys\0" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))


def own_key() -> SshKey:
    """The control plane's key pair."""
    found = SshKey.objects.filter(name=NAME).first()
    if found is not None:
        return found
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    made, _ = SshKey.objects.get_or_create(
        name=NAME,
        defaults={"public": f"{public.decode()} timonel", "private_encrypted": _cipher().encrypt(pem)},
    )
    return made


def private_key(key: SshKey) -> paramiko.PKey:
    """The private half, in memory only. Raises cryptography's InvalidToken when the secret key is another."""
    pem = _cipher().decrypt(bytes(key.private_encrypted)).decode()
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem))


def fingerprint(key: paramiko.PKey) -> str:
    """As ssh-keygen -l prints it: SHA256:… without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def to_line(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def from_line(line: str) -> paramiko.PKey:
    """The public key of a line in OpenSSH format."""
    return paramiko.PKey.from_type_string(*_split(line))


def _split(line: str) -> tuple[str, bytes]:
    kind, encoded = line.split()[:2]
    return kind, base64.b64decode(encoded)
