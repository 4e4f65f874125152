"""Replacing the agent by a newer one: only with the signature of the key that enrolment left here, and never back.

The login that the control plane uses may run `serve` as root and nothing else. Without the signature, whoever holds that
login could send a program of his own and would be root by another name.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from agents import process
from agents.errors import AgentError

IDENTITY, NAMESPACE = "timonel", "timonel-agent"
SIGNERS = "signers"  # in the agent's directory: who may sign programs, in OpenSSH's allowed_signers format
_VERSION = re.compile(r"(?P<release>[0-9]+(?:\.[0-9]+)*)(?:\+[0-9a-f]+)?")
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]{40,120}")


def write_signer(directory: Path, public: str) -> None:
    """Leave the key that may sign agents from now on; public: "ssh-ed25519 AAAA…". Raises ValueError."""
    if not _KEY.fullmatch(public):
        raise ValueError(f"cannot read the signer {public[:40]!r}: it must be an ssh-ed25519 key without a comment")
    path = directory / SIGNERS
    new = path.with_suffix(".new")
    new.write_text(f'{IDENTITY} namespaces="{NAMESPACE}" {public}\n')
    new.replace(path)


def replace_program(path: Path, content: bytes, signature: str, directory: Path, current: str) -> str:
    """Put a signed program in the place of the one at `path`, whole or not at all; its version.

    directory: the agent's own. current: the version that runs now. Raises AgentError SignatureRefused, Downgrade,
    ProgramBroken, SshKeygenMissing, DiskFull; the old program is in its place then.
    """
    new, signed_by = directory / "agent.new", directory / "agent.new.sig"
    beside = path.with_suffix(".new")  # in the same file system as the target, so that the last step is one rename
    try:
        try:
            signed_by.write_text(signature)
            _verify(content, signed_by, directory / SIGNERS)
            new.write_bytes(content)
            version = _version_of(new)
            if _release(version) < _release(current):
                raise AgentError("Downgrade", f"cannot replace agent {current} by the older {version}")
            beside.write_bytes(content)
            beside.chmod(0o755)
            beside.replace(path)
        except OSError as err:
            raise AgentError("DiskFull", f"cannot write {err.filename or path}: {err.strerror}") from err
    finally:
        for left in (new, signed_by, beside):
            left.unlink(missing_ok=True)
    return version


def digest_text(content: bytes) -> str:
    """What is signed for a program."""
    return f"sha256 {hashlib.sha256(content).hexdigest()}\n"


def _verify(content: bytes, signature: Path, signers: Path) -> None:
    if not signers.exists():
        raise AgentError("SignatureRefused", f"cannot take a new agent: {signers} is missing; enrol the node again")
    if process.find("ssh-keygen") is None:
        raise AgentError("SshKeygenMissing", "cannot check a signature: install the package openssh-client")
    command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", IDENTITY, "-n", NAMESPACE, "-s", str(signature)]
    done = process.run(command, text=digest_text(content), reason="SignatureTimeout")
    if done.returncode:
        why = process.first_line(done.stderr or done.stdout)
        raise AgentError(
            "SignatureRefused", f"cannot take a new agent: its signature is not the control plane's: {why}"
        )


def _version_of(program: Path) -> str:
    """What the program says its version is; it is signed, so it may be run."""
    done = process.run([sys.executable or "python3", str(program), "--version"], reason="ProgramBroken", timeout_s=20)
    version = done.stdout.strip()
    if done.returncode or not _VERSION.fullmatch(version):
        why = process.first_line(done.stderr or done.stdout)
        raise AgentError("ProgramBroken", f"cannot take a new agent: it does not run on this host: {why}")
    return version


def _release(version: str) -> tuple[int, ...]:
    """(0, 1, 0) of "0.1.0+1a2b3c4d": builds of one release may replace each other."""
    match = _VERSION.fullmatch(version)
    return tuple(int(part) for part in match["release"].split(".")) if match else ()
