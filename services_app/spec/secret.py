"""Secrets: what their type asks for, sizes, immutability. No error of this module shows a value.

Source: k8s v1.36 pkg/apis/core/validation, ValidateSecret and ValidateSecretUpdate; stringData: pkg/apis/core/v1/conversion.go.
"""

import json
from base64 import b64decode, b64encode
from typing import Any

from services_app.spec import meta, names
from services_app.spec.configmap import SIZE_LIMIT, validate_immutable, validate_key
from services_app.spec.errors import FieldError, invalid, required, too_long
from services_app.spec.kinds import SECRET

Document = dict[str, Any]

OPAQUE, TLS = "Opaque", "kubernetes.io/tls"
BASIC_AUTH, SSH_AUTH = "kubernetes.io/basic-auth", "kubernetes.io/ssh-auth"
SERVICE_ACCOUNT_TOKEN = "kubernetes.io/service-account-token"
SERVICE_ACCOUNT_NAME = "kubernetes.io/service-account.name"
_REQUIRED = {TLS: ("tls.crt", "tls.key"), SSH_AUTH: ("ssh-privatekey",)}
_JSON = {"kubernetes.io/dockercfg": ".dockercfg", "kubernetes.io/dockerconfigjson": ".dockerconfigjson"}


def prepare(secret: Document) -> None:
    """Default type, and what was given as plain text among the data."""
    plain = secret.pop("stringData", None) or {}
    if plain:
        coded = {key: b64encode(text.encode("utf-8", "replace")).decode() for key, text in plain.items()}
        secret["data"] = dict(sorted({**(secret.get("data") or {}), **coded}.items()))
    secret["type"] = secret.get("type") or OPAQUE


def validate_create(secret: Document) -> list[FieldError]:
    return meta.validate(SECRET, secret["metadata"], names.subdomain_problems) + _validate(secret)


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes
    if old.get("type") != new.get("type"):
        errors.append(invalid("type", new.get("type"), "field is immutable"))
    return errors + validate_immutable(old, new, ("data",)) + _validate(new)


def _validate(secret: Document) -> list[FieldError]:
    data, kind = secret.get("data") or {}, secret.get("type")
    errors = [error for key in data for error in validate_key(key, f"data[{key}]")]
    if sum(len(b64decode(text)) for text in data.values()) > SIZE_LIMIT:
        errors.append(too_long("data", SIZE_LIMIT))
    errors += [required(f"data[{key}]") for key in _REQUIRED.get(kind or "", ()) if key not in data]
    if kind == BASIC_AUTH and not {"username", "password"} & data.keys():
        errors += [required("data[username]"), required("data[password]")]
    if kind == SERVICE_ACCOUNT_TOKEN and not (secret["metadata"].get("annotations") or {}).get(SERVICE_ACCOUNT_NAME):
        errors.append(required(f"metadata.annotations[{SERVICE_ACCOUNT_NAME}]"))
    if kind in _JSON:
        errors += _validate_json(data, _JSON[kind])
    return errors


def _validate_json(data: dict[str, str], key: str) -> list[FieldError]:
    if key not in data:
        return [required(f"data[{key}]")]
    try:
        json.loads(b64decode(data[key]))
    except (ValueError, RecursionError):
        return [invalid(f"data[{key}]", "<secret contents redacted>", "must be valid JSON")]
    return []
