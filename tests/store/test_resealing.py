"""A new secret key: what the old one sealed is opened, sealed anew, and then the old one is needed no more."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from services_app import changes, models, store
from services_app.push import keys
from services_app.spec import kinds
from services_app.spec.errors import InternalError
from tests.store.conftest import ACTOR

OLD, NEW = "the key of before, more than 32 characters", "the key from now on, more than 32 characters"


@pytest.fixture
def sealed(committed_world, settings):
    """Secrets in the table, the log and the records, and an SSH key, all sealed with the old key."""
    settings.SECRET_KEY = OLD
    keys.own_key()
    for name in ("a", "b", "gone"):
        secret = {"metadata": {"name": name}, "stringData": {"password": f"{name} horse"}}
        store.create(kinds.SECRET, secret, namespace="shop", actor=ACTOR)
    store.delete(kinds.SECRET, "shop", "gone", actor=ACTOR)
    changes.compact(keep=timedelta(0))

    def change(document):
        document["metadata"]["labels"] = {"tier": "gold"}
        return document

    store.update(kinds.SECRET, "shop", "a", change, actor=ACTOR)
    return settings


def reseal():
    out = StringIO()
    call_command("reseal", stdout=out)
    return out.getvalue().strip()


def password(name):
    return json.loads(store.get(kinds.SECRET, "shop", name).document)["data"]["password"]


def test_an_old_key_opens_until_all_is_sealed_anew(sealed):
    before, revision = [password("a"), password("b")], changes.head()
    sealed.SECRET_KEY, sealed.SECRET_KEY_FALLBACKS = NEW, [OLD]
    assert [password("a"), password("b")] == before
    # 2 Secrets; 2 texts of the change in the log; of those moved: 3 created, 1 deleted with the text before
    assert reseal() == "sealed anew: 9 texts of Secrets, 1 SSH keys"
    assert reseal() == "sealed anew: 0 texts of Secrets, 1 SSH keys"
    sealed.SECRET_KEY_FALLBACKS = []
    assert [password("a"), password("b")] == before
    assert changes.head() == revision, "nothing that is handed out has changed"
    texts = [
        text
        for model in (models.Change, models.AuditRecord)
        for pair in model.objects.filter(kind="secrets").values_list("document", "previous")
        for text in pair
        if text
    ]
    assert len(texts) == 7
    for text in texts:
        assert json.loads(store.shown_text(kinds.SECRET, text))["data"]["password"]
    assert keys.private_key(keys.own_key()).get_name() == "ssh-ed25519"


def test_what_no_key_opens_is_named_and_the_rest_is_done(sealed):
    sealed.SECRET_KEY = NEW
    store.create(kinds.SECRET, {"metadata": {"name": "new"}}, namespace="shop", actor=ACTOR)
    with pytest.raises(CommandError, match='cannot open secret "shop/b".*TIMONEL_OLD_SECRET_KEYS'):
        reseal()
    with pytest.raises(InternalError):
        password("b")
    assert store.get(kinds.SECRET, "shop", "new")


def test_a_secret_that_is_written_meanwhile_is_left_as_written(sealed):
    from services_app.store import resealing

    sealed.SECRET_KEY, sealed.SECRET_KEY_FALLBACKS = NEW, [OLD]
    row = models.Secret.objects.get(name="b")

    def change(document):
        document["data"] = {"password": "bmV3"}
        return document

    store.update(kinds.SECRET, "shop", "b", change, actor=ACTOR)
    assert resealing._reseal(row, "document") == 0
    assert password("b") == "bmV3"
