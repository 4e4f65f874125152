"""How objects lie in the database and the log where that is not how they are handed out.

Secrets are sealed: metadata that queries need stays readable, the whole document is encrypted with a key made from the
installation's secret. Events have two faces, of which one is stored.
"""

import base64
import hashlib
import json
from functools import cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

from services_app.changes import encode
from services_app.spec import event, kinds
from services_app.spec.errors import InternalError
from services_app.spec.kinds import Kind

Document = dict[str, Any]

SEALED = "sealed"
# Annotations are left out: `kubectl apply` keeps a copy of the whole manifest in one.
_READABLE = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels")


def differ(kind: Kind) -> bool:
    """Whether objects of a kind are stored otherwise than they are handed out."""
    return kind in (kinds.SECRET, kinds.EVENTS_EVENT)


def stored_text(kind: Kind, document: Document, text: str) -> str:
    """The text to store of a document. text: the document as it is handed out."""
    if kind is kinds.EVENTS_EVENT:
        return encode(event.to_core(document))
    if kind is not kinds.SECRET:
        return text
    metadata = {key: document["metadata"][key] for key in _READABLE if key in document["metadata"]}
    token = _cipher(_keys()).encrypt(text.encode("utf-8", "surrogatepass")).decode()
    return encode({"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata, SEALED: token})


def shown_text(kind: Kind, stored: str) -> str:
    """The text to hand out of what is stored. Raises InternalError for a Secret that was sealed with another key."""
    if kind is kinds.EVENTS_EVENT:
        return encode(event.from_core(json.loads(stored)))
    if kind is not kinds.SECRET:
        return stored
    envelope = json.loads(stored)
    try:
        opened: bytes = _cipher(_keys()).decrypt(envelope[SEALED].encode())
    except InvalidToken as err:
        metadata = envelope["metadata"]
        raise InternalError(
            f'cannot open secret "{metadata["namespace"]}/{metadata["name"]}": it was sealed with another key. '
            "Start with the key it was written under in TIMONEL_OLD_SECRET_KEYS, or delete its row and create it anew."
        ) from err
    return opened.decode("utf-8", "surrogatepass")


def resealed_text(kind: Kind, stored: str) -> str:
    """What is stored, sealed with the present key. Raises InternalError for what no known key opens."""
    if kind is not kinds.SECRET:
        return stored
    envelope = json.loads(stored)
    if is_sealed_anew(envelope):
        return stored
    opened = shown_text(kind, stored).encode("utf-8", "surrogatepass")
    return encode({**envelope, SEALED: _cipher(_keys()).encrypt(opened).decode()})


def is_sealed_anew(envelope: Document) -> bool:
    """Whether the present key opens an envelope."""
    try:
        _cipher((settings.SECRET_KEY,)).decrypt(envelope[SEALED].encode())
    except InvalidToken:
        return False
    return True


def _keys() -> tuple[str, ...]:
    """The secret that seals, and those that open as well."""
    return (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)


@cache
def _cipher(secret_keys: tuple[str, ...]) -> MultiFernet:
    digests = [hashlib.sha256(b"timonel secrets\0" + key.encode()).digest() for key in secret_keys]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])
