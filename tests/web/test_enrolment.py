"""Enrolling a host from the page: what is asked, shown, done and recorded, and where the secrets are not."""

import json
import re
import threading
import time
from datetime import timedelta
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.utils import timezone

from services_app import store
from services_app.models import Event, Grant, Node, NodeAccess, NodeOperation, NodeSync
from services_app.plan.endpoints import ZONE
from services_app.push import operations
from services_app.push.errors import REMEDIES
from services_app.push.keys import fingerprint, read_private_key
from tests.web import sample
from tests.web.conftest import PASSWORD
from tests.web.ssh_server import SshHost, new_key, ssh_host
from tests.web.test_nodes import text_of

SECRET = "correct-horse-battery-staple"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def operator(transactional_db) -> Client:
    store.bootstrap()
    client = Client()
    user = get_user_model().objects.create_user("olga", password=PASSWORD)
    Grant.objects.create(role="admin", user=user)
    client.force_login(user)
    return client


@pytest.fixture
def host():
    with ssh_host(password=SECRET) as made:
        yield made
    wait_for_threads()


def fields(host: SshHost, **given: str) -> dict[str, str]:
    return {"name": "web-1", "address": "127.0.0.1", "port": str(host.port), "user": "root", **given}


def run(operator: Client, host: SshHost, **given: str):
    """The answer to the second form, filled in rightly but for what is given."""
    login = {"fingerprint": fingerprint(host.host_key), "kind": host.host_key.get_name(), "password": SECRET}
    return operator.post("/ui/enrolment/run/", {**fields(host), **login, **given})


def finished(answer) -> NodeOperation:
    """The operation that an answer leads to, once it has ended."""
    assert answer.status_code == 302, text_of(answer)
    pk = answer["Location"].rstrip("/").rpartition("/")[2]
    deadline = time.monotonic() + 20
    while (operation := NodeOperation.objects.get(pk=pk)).state == "Running":
        assert time.monotonic() < deadline, operation.steps
        time.sleep(0.05)
    wait_for_threads()
    return operation


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(("Enrol ", "Remove ", "operation alive")):
            thread.join(10)


def test_the_host_key_is_shown_before_anything_secret_is_asked_for(operator, host):
    first = text_of(operator.get("/ui/enrolment/"))
    assert 'type="password"' not in first
    body = text_of(operator.post("/ui/enrolment/", fields(host, zone="lyon", labels="example.org/rack=7")))
    assert fingerprint(host.host_key) in body
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ecdsa_key.pub" in body
    assert 'name="labels" value="example.org/rack=7"' in body
    assert 'type="password" id="id_password"' in body
    assert host.commands == [], "nobody has logged in"
    assert not NodeOperation.objects.exists()


def test_a_confirmed_host_is_enrolled_step_by_step_and_recorded(operator, host):
    operation = finished(run(operator, host, zone="lyon", labels="example.org/rack=7"))
    assert (operation.state, operation.by, operation.host_key) == ("Done", "olga", fingerprint(host.host_key))
    assert [step["text"].split()[0] for step in operation.steps] == [
        "127.0.0.1", "logged", "placed", "the", "the", "the", "node", "first",
    ]  # fmt: skip
    access = NodeAccess.objects.get()
    assert (access.node, access.user, access.enrolled_by) == ("web-1", "root", "olga")
    assert NodeSync.objects.get().state == "Pending"
    labels = Node.objects.get().labels
    assert (labels[ZONE], labels["example.org/rack"]) == ("lyon", "7")
    event = json.loads(Event.objects.get(involved_name="web-1").document)
    assert event["message"] == f"olga enrolled the node as root@127.0.0.1 port {host.port}"
    shown = text_of(operator.get(f"/ui/operations/{operation.pk}/"))
    assert "web-1 is enrolled; the first push is on its way" in shown
    assert "Go to web-1" in shown


@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_a_pasted_key_opens_the_login(operator, host, passphrase):
    text = new_key(passphrase)
    host.keys.append(read_private_key(text, passphrase))
    given = {"password": "", "private_key": text.replace("\n", "\r\n"), "passphrase": passphrase}
    assert finished(run(operator, host, **given)).state == "Done"


FORMS = {
    "Ed25519, OpenSSH": (ed25519.Ed25519PrivateKey.generate, PrivateFormat.OpenSSH),
    "Ed25519, PKCS 8": (ed25519.Ed25519PrivateKey.generate, PrivateFormat.PKCS8),
    "ECDSA, SEC 1": (lambda: ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL),
    "RSA, PKCS 1": (lambda: rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL),
    "RSA, PKCS 8": (lambda: rsa.generate_private_key(65537, 2048), PrivateFormat.PKCS8),
    "RSA, OpenSSH": (lambda: rsa.generate_private_key(65537, 2048), PrivateFormat.OpenSSH),
}


@pytest.mark.parametrize("passphrase", ["", SECRET], ids=["plain", "encrypted"])
@pytest.mark.parametrize("form", FORMS)
def test_private_keys_are_read_in_the_forms_that_people_have(form, passphrase):
    generate, text_form = FORMS[form]
    private = generate()
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    text = private.private_bytes(Encoding.PEM, text_form, how).decode()
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert read_private_key(f"\n  {text}", passphrase).get_base64() == public.split()[1]


def test_a_key_of_another_kind_is_refused():
    text = ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(ValueError, match="only Ed25519, ECDSA and RSA"):
        read_private_key(text)


def test_who_had_to_log_in_meanwhile_comes_back_to_the_form(operator, client):
    assert client.post("/ui/enrolment/run/", {})["Location"] == "/ui/login/?next=/ui/enrolment/run/"
    assert operator.get("/ui/enrolment/run/")["Location"] == "/ui/enrolment/"


def test_no_secret_is_kept_anywhere(operator, host, caplog):
    text = new_key()
    body = "".join(text.splitlines()[1:-1])
    finished(run(operator, host, password=SECRET + "x"))
    finished(run(operator, host, password="", private_key=text))
    assert finished(run(operator, host)).state == "Done"
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT string_agg(t::text, ' ') FROM \"{table}\" t")
            rows = cursor.fetchone()[0] or ""
            assert SECRET not in rows, table
            assert body[:60] not in rows, table
    assert SECRET not in str([session.get_decoded() for session in Session.objects.all()])
    assert SECRET not in caplog.text
    from services_app.push import wake

    for key in wake.client().scan_iter():
        kind = wake.client().type(key)
        value = (
            wake.client().get(key) if kind == b"string" else wake.client().lrange(key, 0, -1) if kind == b"list" else ""
        )
        assert SECRET not in str(value)


def test_a_refused_login_form_is_asked_again_without_the_secrets(operator, host):
    text = new_key(SECRET)
    for given, words in [
        ({"password": ""}, "Give a private key or a password"),
        ({"private_key": text}, "Give a private key or a password"),
        ({"password": "", "private_key": text}, "The key has a passphrase: give it as well."),
        (
            {"password": "", "private_key": text, "passphrase": "wrong"},
            "The key cannot be read: is the passphrase right?",
        ),
        ({"password": "", "private_key": text[:120]}, "The key cannot be read: was all of it pasted?"),
        ({"password": "", "private_key": "ssh-ed25519 AAAA"}, "This is no private key"),
    ]:
        answer = run(operator, host, **given)
        body = answer.content.decode()
        assert words in body, given
        assert fingerprint(host.host_key) in body
        assert SECRET not in body
        assert text.splitlines()[1] not in body
    assert not NodeOperation.objects.exists()


FAILURES = {
    "wrong password": ({"password": "wrong"}, {}, "AuthenticationFailed"),
    "no sudo": ({"user": "ana"}, {"sudo -n true": (1, "", "a password is required")}, "SudoRefused"),
    "no python": ({}, {"version_info": (127, "", "python3: not found")}, "PythonMissing"),
    "full disk": ({}, {"agent.pyz.new": (1, "", "No space left on device")}, "CannotPlaceAgent"),
    "no nft": (
        {},
        {"preflight": (0, '{"problems": [{"reason": "NftMissing", "message": "nft is not installed"}]}', "")},
        "NftMissing",
    ),
    "agent that does not run": ({}, {"preflight": (1, "", "SyntaxError")}, "AgentFailed"),
    "home that is read-only": ({}, {"authorized_keys": (1, "", "Read-only file system")}, "CannotAuthorize"),
    "no visudo": ({"user": "ana"}, {"visudo": (1, "", "visudo: not found")}, "CannotWriteSudoRule"),
    "no adoption": ({}, {" adopt ": (1, "", "locked")}, "AgentFailed"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_failed_is_told_with_its_remedy_and_tried_again_without_typing_all_again(operator, host, what):
    given, answers, reason = FAILURES[what]
    host.user = given.get("user", "root")
    host.answers.update(answers)
    operation = finished(run(operator, host, zone="lyon", **given))
    assert (operation.state, operation.reason) == ("Failed", reason)
    assert not NodeAccess.objects.exists()
    assert not Node.objects.exists()
    body = text_of(operator.get(f"/ui/operations/{operation.pk}/"))
    assert reason in body
    assert REMEDIES[reason].replace("'", "&#x27;") in body
    again = re.search(r'href="(/ui/enrolment/\?again=[^"]+)"', body).group(1)
    form = text_of(operator.get(again))
    for value in ("web-1", "127.0.0.1", str(host.port), host.user, "lyon"):
        assert f'value="{value}"' in form
    cleaned = any("cleanup" in command for command in host.commands)
    assert cleaned == (reason != "AuthenticationFailed"), "what was placed is taken away again"


def test_a_host_that_is_a_node_already_keeps_its_agent_when_enrolling_again_fails(operator, host):
    finished(run(operator, host))
    host.answers.update({"test -e": (0, "", ""), "authorized_keys": (1, "", "Read-only file system")})
    assert finished(run(operator, host)).state == "Failed"
    assert not any("cleanup" in command for command in host.commands)
    assert NodeAccess.objects.exists()


def test_another_host_key_than_the_confirmed_one_ends_the_enrolment_before_the_login(operator, host):
    confirmed = fingerprint(host.host_key)
    host.host_key = paramiko.ECDSAKey.generate()
    operation = finished(run(operator, host, fingerprint=confirmed))
    assert operation.reason == "HostKeyNotConfirmed"
    assert host.commands == []


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "Bad_Name"}, "name"),
        ({"name": ""}, "name"),
        ({"address": "192.0.2.1; reboot"}, "address"),
        ({"address": "web-1.example.org"}, "node_ip"),
        ({"node_ip": "192.0.2.300"}, "node_ip"),
        ({"port": "0"}, "port"),
        ({"port": "ssh"}, "port"),
        ({"user": "root ALL"}, "user"),
        ({"zone": "not a zone"}, "zone"),
        ({"labels": "no-value"}, "labels"),
        ({"labels": "-bad-=x"}, "labels"),
        ({"name": "web\x00"}, "name"),
    ],
    ids=str,
)
def test_a_form_that_could_not_be_recorded_names_the_field_and_reaches_nobody(operator, host, given, field):
    for path in ("/ui/enrolment/", "/ui/enrolment/run/"):
        answer = operator.post(path, fields(host, **given))
        assert set(answer.context["form"].errors) == {field}
    assert not NodeOperation.objects.exists()


def test_a_host_that_is_another_node_is_refused(operator, host):
    sample.add_node("web-9", "127.0.0.1")
    NodeAccess.objects.update(port=host.port)
    answer = operator.post("/ui/enrolment/", fields(host))
    assert "Another node is enrolled at this address and port" in text_of(answer)


def test_a_known_key_and_a_changed_one_are_told_apart(operator, host):
    sample.add_node("web-1", "127.0.0.1")
    line = f"{host.host_key.get_name()} {host.host_key.get_base64()}"
    NodeAccess.objects.update(port=host.port, host_key=line)
    assert "this is the key confirmed then" in text_of(operator.post("/ui/enrolment/", fields(host)))
    host.host_key = paramiko.ECDSAKey.generate()
    assert "Not the key that was confirmed for web-1" in text_of(operator.post("/ui/enrolment/", fields(host)))


def test_a_host_that_shows_the_key_of_another_node_is_warned_of(operator, host):
    sample.add_node("web-9", "192.0.2.9")
    NodeAccess.objects.update(host_key=f"{host.host_key.get_name()} {host.host_key.get_base64()}")
    assert "shows the same key" in text_of(operator.post("/ui/enrolment/", fields(host)))


def test_a_host_that_does_not_answer_is_told_of_beside_the_form(operator, host):
    body = text_of(operator.post("/ui/enrolment/", {**fields(host), "port": "1"}))
    assert "ConnectionRefused" in body
    assert "Start sshd on the host, or correct the port." in body
    assert 'value="web-1"' in body


def test_two_people_do_not_enrol_the_same_node_at_once(operator, host):
    host.gate.clear()
    answer = run(operator, host)
    second = run(operator, host)
    assert "OperationRunning" in text_of(second)
    assert "olga began the enrolment of web-1 already" in text_of(second)
    running = text_of(operator.get(answer["Location"]))
    assert "logged in as root" not in running or "place the agent" in running
    assert 'data-state="Running"' in running
    host.gate.set()
    assert finished(answer).state == "Done"


def test_an_enrolment_goes_on_when_the_browser_leaves_and_any_process_shows_it(operator, host):
    host.gate.clear()
    answer = run(operator, host)
    host.gate.set()
    assert finished(answer).state == "Done"
    someone = Client()
    someone.force_login(get_user_model().objects.get(username="olga"))
    assert "web-1 is enrolled" in text_of(someone.get(answer["Location"]))


def test_an_operation_whose_process_died_is_interrupted_and_may_be_repeated(operator, host):
    dead = NodeOperation.objects.create(
        node="web-1", verb="Enrol", by="eva", seen_at=timezone.now() - operations.DEAD_AFTER - timedelta(seconds=1)
    )
    body = text_of(operator.get(f"/ui/operations/{dead.pk}/"))
    assert "Interrupted" in body
    assert "Try again" in body
    assert finished(run(operator, host)).state == "Done"


def test_a_node_is_removed_with_what_its_host_says_as_it_happens(operator, host):
    finished(run(operator, host))
    host.keys.append(_own_public_key())
    host.answers[" cleanup"] = (0, "rules are taken back\nthe agent and its files are gone\n", "")
    operation = finished(operator.post("/ui/nodes/web-1/remove/"))
    texts = [step["text"] for step in operation.steps]
    assert texts == [
        "logged in as root", "rules are taken back", "the agent and its files are gone", "the host is clean",
        "node web-1 forgotten",
    ]  # fmt: skip
    assert not NodeAccess.objects.exists()
    reasons = [json.loads(event.document)["reason"] for event in Event.objects.order_by("created_at")]
    assert reasons == ["Enrolled", "Removed"]


def test_a_removal_that_fails_keeps_the_node_and_offers_to_forget_it(operator, host):
    finished(run(operator, host))
    operation = finished(operator.post("/ui/nodes/web-1/remove/"))
    assert operation.reason == "AuthenticationFailed", "the fake did not note the control plane's key"
    body = text_of(operator.get(f"/ui/operations/{operation.pk}/"))
    assert "Try again, or forget it" in body
    assert NodeAccess.objects.exists()
    host.keys.append(_own_public_key())
    host.answers[" cleanup"] = (1, "", "cannot take back table ip timonel")
    operation = finished(operator.post("/ui/nodes/web-1/remove/"))
    assert "cannot take back table ip timonel" in operation.message
    assert NodeSync.objects.get().next_attempt_at <= timezone.now(), "pushes are not held any longer"


def _own_public_key() -> paramiko.PKey:
    from services_app.push.keys import from_line, own_key

    return from_line(own_key().public)


def test_every_reason_of_the_code_has_a_remedy():
    found = set()
    for path in [*(ROOT / "services_app" / "push").glob("*.py"), *(ROOT / "agents").glob("*.py")]:
        text = path.read_text()
        found |= set(re.findall(r'(?:NodeError|AgentError)\(\s*"(\w+)"', text))
        found |= set(re.findall(r'_require\([^"]*"[^"]*", "([A-Z]\w+)"', text))
    assert {"ConnectionRefused", "DiskFull", "SudoRefused"} <= found
    assert found - set(REMEDIES) == set()
