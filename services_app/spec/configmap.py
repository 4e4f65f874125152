"""ConfigMaps: keys, sizes, immutability; the rules that Secrets share.

Source: k8s v1.36 pkg/apis/core/validation, ValidateConfigMap and ValidateConfigMapUpdate.
"""

import re
from base64 import b64decode
from typing import Any

from services_app.spec import kube_proxy, meta, names
from services_app.spec.errors import FieldError, forbidden, invalid, too_long
from services_app.spec.kinds import CONFIG_MAP

Document = dict[str, Any]

SIZE_LIMIT = 1024 * 1024
_KEY = re.compile(r"[-._a-zA-Z0-9]+", re.ASCII)
_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)


def validate_create(config_map: Document) -> list[FieldError]:
    return meta.validate(CONFIG_MAP, config_map["metadata"], names.subdomain_problems) + _validate(config_map)


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    return changes + changes + validate_immutable(old, new, ("data", "binaryData")) + _validate(new)


def validate_immutable(old: Document, new: Document, fields: tuple[str, ...]) -> list[FieldError]:
    """What an object marked immutable does not allow: other contents, or to take the mark off."""
    if not old.get("immutable"):
        return []
    changed = [field for field in fields if (old.get(field) or {}) != (new.get(field) or {})]
    rule = "field is immutable when `immutable` is set"
    return [forbidden(field, rule) for field in (["immutable"] if not new.get("immutable") else []) + changed]


def _validate(config_map: Document) -> list[FieldError]:
    errors = []
    data, binary = config_map.get("data") or {}, config_map.get("binaryData") or {}
    for key in data:
        errors += validate_key(key, f"data[{key}]")
        if key in binary:
            errors.append(invalid(f"data[{key}]", key, "duplicate of key present in binaryData"))
    for key in binary:
        errors += validate_key(key, f"binaryData[{key}]")
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in data.values())
    if size + sum(len(b64decode(text)) for text in binary.values()) > SIZE_LIMIT:
        errors.append(too_long("", SIZE_LIMIT))
    return errors + kube_proxy.validate_config_map(config_map)


def validate_key(key: str, path: str) -> list[FieldError]:
    """What is wrong with a key of a ConfigMap or Secret."""
    errors = []
    if len(key.encode("utf-8", "surrogatepass")) > names.SUBDOMAIN_LENGTH:
        errors.append(invalid(path, key, f"must be no more than {names.SUBDOMAIN_LENGTH} bytes"))
    if not _KEY.fullmatch(key):
        errors.append(invalid(path, key, _KEY_RULE))
    if key in (".", ".."):
        errors.append(invalid(path, key, f"must not be '{key}'"))
    elif key.startswith(".."):
        errors.append(invalid(path, key, "must not start with '..'"))
    return errors
