"""A newer agent takes an agent's place: with the control plane's signature only, and never an older release."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paramiko import Ed25519Key

import agents
from agents import upgrade
from agents.build import Program, build_zipapp
from agents.errors import AgentError
from services_app.push.program import sign

RUNNING = "0.1.0+00000000"


def new_key(path: Path) -> Ed25519Key:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption()))
    path.chmod(0o600)  # ssh-keygen insists
    return Ed25519Key.from_private_key_file(str(path))


def public_of(key: Ed25519Key) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def built(directory: Path, version: str = "0.2.0", more: str = "") -> Program:
    """An agent of today's sources under another version; more: text at the end of its main module."""
    package = directory / f"agents-{version}-{len(more)}"
    shutil.copytree(Path(agents.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "version.py").write_text(f'VERSION = "{version}"\n')
    (package / "__main__.py").write_text((package / "__main__.py").read_text() + more)
    return build_zipapp(package)


class Host:
    """The files an agent's host has after enrolment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "lib"
        self.directory.mkdir()
        self.program = directory / "agent.pyz"
        self.program.write_bytes(b"the old program")
        self.key = new_key(directory / "key")
        upgrade.write_signer(self.directory, public_of(self.key))

    def replace(self, program: Program, signature: str, current: str = RUNNING) -> str:
        return upgrade.replace_program(self.program, program.content, signature, self.directory, current)

    def is_untouched(self) -> bool:
        names = sorted(path.name for path in self.directory.iterdir())
        return self.program.read_bytes() == b"the old program" and names == [upgrade.SIGNERS]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def refused(host: Host, reason: str, program: Program, signature: str, current: str = RUNNING) -> str:
    with pytest.raises(AgentError) as caught:
        host.replace(program, signature, current)
    assert caught.value.reason == reason
    assert host.is_untouched()
    return caught.value.message


def test_a_signed_agent_takes_the_place_and_runs(host: Host, tmp_path: Path) -> None:
    program = built(tmp_path)
    assert host.replace(program, sign(program, host.key)) == program.version
    done = subprocess.run([host.program, "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == program.version
    assert os.stat(host.program).st_mode & 0o777 == 0o755
    assert [path.name for path in host.directory.iterdir()] == [upgrade.SIGNERS]


def test_only_the_key_of_the_enrolment_may_sign(host: Host, tmp_path: Path) -> None:
    program, other = built(tmp_path), new_key(tmp_path / "other")
    assert "signature" in refused(host, "SignatureRefused", program, sign(program, other))
    refused(host, "SignatureRefused", program, "")
    refused(host, "SignatureRefused", program, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n")


def test_a_signature_is_for_one_program_alone(host: Host, tmp_path: Path) -> None:
    program, changed = built(tmp_path), built(tmp_path, more="\nprint('not what was signed')\n")
    refused(host, "SignatureRefused", changed, sign(program, host.key))
    refused(host, "SignatureRefused", Program(program.version, program.content + b"\0"), sign(program, host.key))


def test_a_signature_for_another_purpose_does_not_count(host: Host, tmp_path: Path) -> None:
    program = built(tmp_path)
    text = tmp_path / "text"
    text.write_text(upgrade.digest_text(program.content))
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(tmp_path / "key"), "-n", "file", str(text)]
    subprocess.run(command, check=True, timeout=10, capture_output=True)
    refused(host, "SignatureRefused", program, text.with_suffix(".sig").read_text())


def test_ssh_keygen_signs_the_same_way(host: Host, tmp_path: Path) -> None:
    program = built(tmp_path)
    text = tmp_path / "text"
    text.write_text(upgrade.digest_text(program.content))
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(tmp_path / "key"), "-n", upgrade.NAMESPACE, str(text)]
    subprocess.run(command, check=True, timeout=10, capture_output=True)
    assert host.replace(program, text.with_suffix(".sig").read_text()) == program.version


def test_an_older_release_is_refused_and_another_build_of_the_same_is_not(host: Host, tmp_path: Path) -> None:
    older, same = built(tmp_path, "0.1.9"), built(tmp_path, "0.2.0", more="\n# another build\n")
    refused(host, "Downgrade", older, sign(older, host.key), current="0.2.0+00000000")
    assert host.replace(same, sign(same, host.key), current="0.2.0+00000000") == same.version


def test_a_signed_program_that_does_not_run_here_is_refused(host: Host, tmp_path: Path) -> None:
    built(tmp_path)
    package = tmp_path / "agents-0.2.0-0"
    (package / "serve.py").write_text("import nothing_of_that_name\n")
    program = build_zipapp(package)
    refused(host, "ProgramBroken", program, sign(program, host.key))


def test_without_a_key_of_the_enrolment_nothing_is_accepted(host: Host, tmp_path: Path) -> None:
    program = built(tmp_path)
    (host.directory / upgrade.SIGNERS).unlink()
    with pytest.raises(AgentError, match="enrol the node again"):
        host.replace(program, sign(program, host.key))
    assert host.program.read_bytes() == b"the old program"


@pytest.mark.parametrize(
    "public", ["", "ssh-rsa AAAA", 'ssh-ed25519 AAAA" command="x', "ssh-ed25519 " + "A" * 68 + "\n* x"]
)
def test_a_signer_that_is_no_plain_key_is_refused(tmp_path: Path, public: str) -> None:
    with pytest.raises(ValueError, match="cannot read the signer"):
        upgrade.write_signer(tmp_path, public)


def test_equal_sources_make_equal_programs(tmp_path: Path) -> None:
    assert build_zipapp() == build_zipapp()
    assert built(tmp_path, "0.1.0", more="\n# changed\n").version != build_zipapp().version


@pytest.mark.parametrize("left", [".pyc", ".py"])
def test_a_program_runs_from_what_is_compiled_or_where_python_is_another_from_its_sources(
    tmp_path: Path, left: str
) -> None:
    """What is not used is spoilt: the sources' text, or the compiled form's mark of its Python."""
    program = build_zipapp()
    with zipfile.ZipFile(io.BytesIO(program.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "agent.pyz", "w") as archive:
        for name, content in files.items():
            spoilt = name.startswith("agents/") and not name.endswith(left)
            archive.writestr(name, b"????" + content[4:] if spoilt else content)
    done = subprocess.run(
        [sys.executable, tmp_path / "agent.pyz", "--version"], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.strip() == program.version
