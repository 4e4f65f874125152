"""`timonel prepare` for a control plane whose processes are started by somebody else."""

import base64
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from django.core.management import CommandError, call_command

from services_app.models import ApiToken


@pytest.fixture
def directory(tmp_path: Path, settings) -> Path:  # type: ignore[no-untyped-def]  # pytest-django's
    settings.DATA_DIR = tmp_path
    return tmp_path


def names_of(path: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


@pytest.mark.django_db(transaction=True)
def test_own_certificates_are_for_the_address_and_every_further_name(directory: Path) -> None:
    call_command("prepare", server="https://192.0.2.1:9443", name=["localhost", "web"])
    assert names_of(directory / "certificates/server.crt") == {"192.0.2.1", "localhost", "web"}
    cluster = yaml.safe_load((directory / "kubeconfig").read_text())["clusters"][0]["cluster"]
    assert cluster["server"] == "https://192.0.2.1:9443"
    authority = base64.b64decode(cluster["certificate-authority-data"])
    assert authority == (directory / "certificates/ca.crt").read_bytes()


@pytest.mark.django_db(transaction=True)
def test_again_it_changes_nothing(directory: Path) -> None:
    call_command("prepare", server="https://192.0.2.1:9443", name=["web"])
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    tokens = ApiToken.objects.count()
    call_command("prepare", server="https://192.0.2.1:9443", name=["web"])
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert ApiToken.objects.count() == tokens


@pytest.mark.django_db(transaction=True)
def test_an_address_without_a_host_is_refused_before_anything_is_made(directory: Path) -> None:
    with pytest.raises(CommandError, match=r"--server 'web:8443' names no host: write https://HOST:PORT"):
        call_command("prepare", server="web:8443")
    assert not list(directory.iterdir())
