"""The ways to patch a document: JSON patch, merge patch, strategic merge patch; server-side apply is `managed_fields`.

Functions give a new document and leave their arguments alone. What comes out is not typed yet: `typed` does that, and
`objects.prepare_update` the rest.
Source: RFC 6902 and RFC 7386; k8s v1.36 apimachinery/pkg/util/strategicpatch and
apiserver/pkg/endpoints/handlers/patch.go. Where the JSON patch library
of Kubernetes is laxer than the RFC (replacing what is absent), so is this.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from services_app.spec import managed_fields, schema
from services_app.spec.errors import (
    ApiError,
    BadRequest,
    FieldError,
    InternalError,
    Invalid,
    RequestTooLarge,
    UnsupportedMediaType,
)
from services_app.spec.kinds import Kind
from services_app.spec.wire import JSON, YAML, Document, parse, shaped

MAX_OPERATIONS = 10000

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
MEDIA_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY)

DIRECTIVE, RETAIN_KEYS = "$patch", "$retainKeys"
SET_ORDER, DELETE_FROM_LIST = "$setElementOrder/", "$deleteFromPrimitiveList/"


def reader(content_type: str, kind: Kind, body: bytes) -> Callable[[Document], Any]:
    """What a patch in a body does, other than an apply: a function from a document to the patched value.

    The patch is read at once, so that it can be applied again to a newer document. Raises UnsupportedMediaType and
    BadRequest; the function raises what json_patch, merge_patch and strategic_merge_patch raise.
    """
    media = content_type.split(";")[0].strip().lower()
    if media not in MEDIA_TYPES or media == APPLY:
        raise UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: "
            + ", ".join(MEDIA_TYPES),
            details={},
        )
    patch = parse(body, JSON)
    if media == JSON_PATCH:
        if not isinstance(patch, list):
            raise _no_patch("jsonpatch.Patch")
        return lambda document: json_patch(document, patch)
    if not isinstance(patch, dict):
        raise _no_patch("map[string]interface {}")
    if media == MERGE_PATCH:
        return lambda document: merge_patch(document, patch)
    return lambda document: strategic_merge_patch(kind, document, patch)


def configuration(kind: Kind, body: bytes, *, strict: bool = False) -> tuple[Document, list[str]]:
    """What an apply in a body wants, JSON or YAML, and sentences about fields given twice.

    strict: sentences are refused, as fieldValidation=Strict asks. Raises BadRequest.
    """
    try:
        value = parse(body, JSON)  # what clients send, and read much faster
    except BadRequest:
        value = parse(body, YAML)
    document, twice = managed_fields.configuration(kind, value)
    if strict and twice:
        raise BadRequest("error strict decoding YAML: " + ", ".join(twice))
    return document, twice


def typed(kind: Kind, patched: Any, *, strict: bool = False) -> tuple[Document, list[str]]:
    """A patched value as a document, and sentences about unknown fields. Raises Invalid, as for an unreadable patch.

    strict: sentences are refused, as fieldValidation=Strict asks.
    """
    try:
        document, warnings = shaped(kind, patched)
    except BadRequest as err:
        raise _unreadable(err.message) from err
    if strict and warnings:
        raise _unreadable("strict decoding error: " + ", ".join(warnings))
    return document, warnings


def _no_patch(go_type: str) -> BadRequest:
    return BadRequest(f"error decoding patch: json: cannot unmarshal into Go value of type {go_type}")


def _unreadable(message: str) -> Invalid:
    error = FieldError("Invalid", "patch", "", message)
    return Invalid(None, "", [error], message=f' "" is invalid: {error}')


# --- JSON patch


def json_patch(document: Document, operations: Any) -> Any:
    """The document after all operations. Raises BadRequest for no patch at all, Invalid when one does not apply."""
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise _no_patch("jsonpatch.Patch")
    if len(operations) > MAX_OPERATIONS:
        raise RequestTooLarge(
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        )
    result: Any = deepcopy(document)
    for operation in operations:
        result = _operate(result, operation)
    return result


def _operate(document: Any, operation: Document) -> Any:
    name = operation.get("op")
    path = _pointer(operation, "path")
    if name in ("add", "replace", "test") and "value" not in operation:
        raise _does_not_apply(f"{name} operation has no value")
    if name == "add":
        return _add(document, path, deepcopy(operation["value"]))
    if name == "replace":
        return _replace(document, path, deepcopy(operation["value"]))
    if name == "remove":
        return _remove(document, path)[0]
    if name == "test":
        if not _same(_find(document, path, missing=None), operation["value"]):
            raise _does_not_apply(f"testing value {operation['path']} failed")
        return document
    if name == "copy":
        return _add(document, path, deepcopy(_find(document, _pointer(operation, "from"))))
    if name == "move":
        source = _pointer(operation, "from")
        if path[: len(source)] == source and len(path) > len(source):
            raise _does_not_apply("a value cannot be moved into itself")
        document, value = _remove(document, source)
        return _add(document, path, value)
    raise _does_not_apply(f"unexpected kind: {name}")


def _does_not_apply(detail: str) -> ApiError:
    message = f"the server rejected our request due to an error in our request: {detail}"
    return Invalid(None, "", [], message=message)


def _pointer(operation: Document, key: str) -> list[str]:
    """The steps of a JSON pointer."""
    text = operation.get(key)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise _does_not_apply(f"operation has no usable {key}")
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


_RAISE = object()


def _find(document: Any, path: list[str], missing: Any = _RAISE) -> Any:
    """The value at a path; `missing` where the last step leads nowhere."""
    here = document
    for at, step in enumerate(path):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list):
            here = here[_index(step, len(here) - 1)]
        elif isinstance(here, dict) and at == len(path) - 1 and missing is not _RAISE:
            return missing
        else:
            raise _does_not_apply(f"doc is missing path /{'/'.join(path)}")
    return here


def _index(step: str, last: int) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", step, re.ASCII) or int(step) > last:
        raise _does_not_apply(f"unable to access invalid index: {step}")
    return int(step)


def _same(left: Any, right: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, step = _find(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[step] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if step == "-" else _index(step, len(parent)), value)
    else:
        raise _does_not_apply(f"doc is missing path /{'/'.join(path)}")
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, step = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent[_index(step, len(parent) - 1)] = value
        return document
    return _add(document, path, value)


def _remove(document: Any, path: list[str]) -> tuple[Any, Any]:
    """The document without the value at a path, and the value."""
    if not path:
        return None, document
    parent, step = _find(document, path[:-1]), path[-1]
    if isinstance(parent, dict) and step in parent:
        return document, parent.pop(step)
    if isinstance(parent, list):
        return document, parent.pop(_index(step, len(parent) - 1))
    raise _does_not_apply(f"unable to remove nonexistent key: {step}")


# --- merge patch


def merge_patch(document: Document, patch: Any) -> Document:
    """Maps are merged, null removes, all else replaces. Raises BadRequest when the patch is no object."""
    if not isinstance(patch, dict):
        raise _no_patch("map[string]interface {}")
    merged: Document = _merged(document, patch)
    return merged


def _merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), change)
    return result


# --- strategic merge patch


def strategic_merge_patch(kind: Kind, document: Document, patch: Any) -> Document:
    """As merge_patch, but lists with merge keys are merged, and directives say more ($patch, $setElementOrder/…).

    Raises BadRequest when the patch is no object, InternalError for an element without its merge key (as Kubernetes).
    """
    if not isinstance(patch, dict):
        raise _no_patch("map[string]interface {}")
    return _merge_struct(deepcopy(document), deepcopy(patch), schema.root(kind))


def _field(type_name: str, key: str) -> schema.Field | None:
    """The field of a struct, None in a map or for what is unknown."""
    if not type_name or type_name in schema.SCALARS or type_name[:2] in ("[]", "{}"):
        return None
    return schema.fields(type_name).get(key)


def _merge_struct(original: Document, patch: Document, type_name: str) -> Document:
    directive = patch.pop(DIRECTIVE, "merge")
    if directive == "replace":
        return _without_directives(patch)
    if directive == "delete":
        return {}
    if directive != "merge":
        raise BadRequest(f"unknown patch type found: {directive}")
    if RETAIN_KEYS in patch:
        kept = patch.pop(RETAIN_KEYS)
        if not isinstance(kept, list):
            raise BadRequest(f"invalid patch format of {RETAIN_KEYS} list")
        original = {key: value for key, value in original.items() if key in kept}
    orders = _take(patch, SET_ORDER)
    for key, gone in _take(patch, DELETE_FROM_LIST).items():
        if isinstance(original.get(key), list):
            original[key] = [item for item in original[key] if item not in gone]
    for key, change in patch.items():
        if change is None:
            original.pop(key, None)
            orders.pop(key, None)
            continue
        field = _field(type_name, key)
        inner = field.type if field else type_name[2:] if type_name.startswith("{}") else ""
        present = original.get(key)
        order = orders.pop(key, None)
        if isinstance(present, dict) and isinstance(change, dict):
            original[key] = _merge_struct(present, change, inner)
        elif isinstance(present, list) and isinstance(change, list):
            original[key] = _merge_list(present, change, field, order)
        else:
            original[key] = _without_directives(change)
    for key, order in orders.items():
        if isinstance(original.get(key), list):
            original[key] = _merge_list(original[key], [], _field(type_name, key), order)
    return original


def _take(patch: Document, prefix: str) -> dict[str, list[Any]]:
    """Remove the directives of a kind from a patch: field -> list."""
    taken = {}
    for key in [key for key in patch if key.startswith(prefix)]:
        value = patch.pop(key)
        if not isinstance(value, list):
            raise BadRequest(f"invalid patch format of {prefix.rstrip('/')} list")
        taken[key.removeprefix(prefix)] = value
    return taken


def _without_directives(value: Any) -> Any:
    """What a patch means where there was nothing: no nulls, no directives, nothing of what it deletes."""
    if isinstance(value, dict):
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if item is not None
            and key not in (DIRECTIVE, RETAIN_KEYS)
            and not key.startswith((SET_ORDER, DELETE_FROM_LIST))
        }
    if isinstance(value, list):
        items = [item for item in value if not (isinstance(item, dict) and item.get(DIRECTIVE) == "delete")]
        return [_without_directives(item) for item in items if item != {DIRECTIVE: "replace"}]
    return value


def _merge_list(
    present: list[Any], change: list[Any], field: schema.Field | None, order: list[Any] | None
) -> list[Any]:
    if field is None or not (field.merge_keys or field.merges):
        return present if order is not None and not change else _without_directives(change)
    if field.merges:
        if any(isinstance(item, dict | list) for item in [*present, *change]):
            raise InternalError(f"expected a list of plain values in {field.name}", reason="")
        patched = list(dict.fromkeys(change))
        return _in_order(patched, [item for item in present if item not in patched], present, order, field)
    if not all(isinstance(item, dict) for item in [*present, *change, *(order or [])]):
        raise InternalError(f"expected a list of objects in {field.name}", reason="")
    if any(item.get(DIRECTIVE) == "replace" for item in change):
        return _without_directives([item for item in change if item != {DIRECTIVE: "replace"}])
    lead = field.merge_keys[0]
    for item in [*change, *(order or [])]:
        if lead not in item:
            raise InternalError(f"map: {item} does not contain declared merge key: {lead}", reason="")
    server_order = list(present)
    for item in (item for item in change if item.get(DIRECTIVE) == "delete"):
        present = [other for other in present if not _is_meant(item, other, field, loosely=True)]
    touched: list[Document] = []
    rest = list(present)
    for item in (item for item in change if item.get(DIRECTIVE) != "delete"):
        at = _find_meant(item, rest, field, order)
        if at is None:
            touched.append(_without_directives(item))
            continue
        before = rest.pop(at)
        after = _merge_struct(dict(before), item, field.element)
        server_order[next(i for i, other in enumerate(server_order) if other is before)] = after
        touched.append(after)
    return _in_order(touched, rest, server_order, order, field)


def _key_of(item: Document, key: str) -> Any:
    return item.get(key, schema.MERGE_KEY_DEFAULTS.get(key))


def _is_meant(patch: Document, item: Document, field: schema.Field, *, loosely: bool = False) -> bool:
    """Whether an element of a patch names this element. loosely: keys the patch leaves out do not count."""
    return all(
        _key_of(patch, key) == _key_of(item, key) for key in field.merge_keys if not (loosely and key not in patch)
    )


def _find_meant(patch: Document, items: list[Document], field: schema.Field, order: list[Any] | None) -> int | None:
    """The element a patch element changes, None when it adds one.

    The first key decides alone where it can only mean one element: the client's list names it once, and there is one.
    So a changed protocol stays a change, while two protocols of one port number stay two ports.
    """
    lead = field.merge_keys[0]
    same = [index for index, item in enumerate(items) if item.get(lead) == patch.get(lead)]
    exact = [index for index in same if _is_meant(patch, items[index], field)]
    if exact:
        return exact[0]
    is_plain = all(key not in patch for key in field.merge_keys[1:])
    named_once = order is not None and sum(entry.get(lead) == patch.get(lead) for entry in order) == 1
    if same and (is_plain or (named_once and len(same) == 1)):
        return same[0]
    return None


def _in_order(
    touched: list[Any], rest: list[Any], server_order: list[Any], order: list[Any] | None, field: schema.Field
) -> list[Any]:
    """Patched elements in the order of the patch (or as $setElementOrder says), the others where they were."""
    if order is not None:
        named = []
        pool = [*touched, *rest]
        if field.merge_keys:
            at_server = {id(item): index for index, item in enumerate(server_order)}
            pool.sort(key=lambda item: at_server.get(id(item), len(server_order)))
        for entry in order:
            at = next((i for i, item in enumerate(pool) if _is_listed(entry, item, field)), None)
            if at is not None:
                named.append(pool.pop(at))
        touched, rest = named, pool
    place = {id(item) if field.merge_keys else item: index for index, item in enumerate(server_order)}

    def placed(item: Any) -> int | None:
        return place.get(id(item) if field.merge_keys else item)

    merged: list[Any] = []
    left, right = list(rest), list(touched)
    while left and right:
        ours, theirs = placed(left[0]), placed(right[0])
        first = left if ours is not None and theirs is not None and ours < theirs else right
        merged.append(first.pop(0))
    return merged + left + right


def _is_listed(entry: Any, item: Any, field: schema.Field) -> bool:
    return _is_meant(entry, item, field, loosely=True) if field.merge_keys else bool(entry == item)
