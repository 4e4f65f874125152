"""The control plane's own SSH key: made at first use, its private half encrypted at rest."""

import base64
import hashlib
import io

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from django.conf import settings

from services_app.models import SshKey

NAME = "control plane"
_KEY_CLASSES = (
    (Ed25519PrivateKey, paramiko.Ed25519Key),
    (EllipticCurvePrivateKey, paramiko.ECDSAKey),
    (RSAPrivateKey, paramiko.RSAKey),
)


def _cipher() -> MultiFernet:
    """Seals with the present secret, opens with those before as well."""
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    digests = [hashlib.sha256(b"timonel ssh keys\0" + key.encode()).digest() for key in keys]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])


def reseal_keys() -> int:
    """Encrypt every private half with the present secret; how many there are. Raises InvalidToken as private_key."""
    rows = list(SshKey.objects.all())
    for row in rows:
        SshKey.objects.filter(pk=row.pk).update(private_encrypted=_cipher().rotate(bytes(row.private_encrypted)))
    return len(rows)


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


def read_private_key(text: str, passphrase: str = "") -> paramiko.PKey:
    """The key in a text in OpenSSH or PEM form. Raises ValueError that says what is wrong and shows nothing of it."""
    lines = [line.strip() for line in text.strip().splitlines()]
    clean = "\n".join(lines) + "\n"
    if not clean.startswith("-----BEGIN "):
        raise ValueError("this is no private key: it begins with -----BEGIN … PRIVATE KEY-----")
    load = (
        serialization.load_ssh_private_key
        if clean.startswith("-----BEGIN OPENSSH")
        else serialization.load_pem_private_key
    )
    try:
        loaded = load(clean.encode(), passphrase.encode() or None)
    except TypeError:
        raise ValueError(
            "the key has no passphrase" if passphrase else "the key has a passphrase: give it as well"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "the key cannot be read" + (": is the passphrase right?" if passphrase else ": was all of it pasted?")
        ) from None
    for kind, key_class in _KEY_CLASSES:
        if isinstance(loaded, kind):
            # Written again in the one form that paramiko reads for every kind.
            plain = loaded.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            return key_class.from_private_key(io.StringIO(plain.decode()))
    raise ValueError("only Ed25519, ECDSA and RSA keys are accepted")


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
