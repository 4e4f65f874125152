"""ObjectMeta: what the server sets, and what is allowed in it.

Source: k8s v1.36 apimachinery/pkg/api/validation/objectmeta.go, apiserver/pkg/registry/rest/{create,update,meta}.go.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from services_app.spec import names
from services_app.spec.errors import FieldError, forbidden, invalid, required, too_long
from services_app.spec.kinds import Kind

Document = dict[str, Any]
Problems = Callable[[str], list[str]]

ANNOTATIONS_LIMIT = 256 * 1024
GENERATED_BASE_LIMIT = 58  # leaves five of a label's 63 characters for the suffix
_STANDARD_FINALIZERS = {"kubernetes", "orphan", "foregroundDeletion"}
_IMMUTABLE = "field is immutable"


def timestamp(now: datetime) -> str:
    """A time as objects carry it, to the second."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def prepare_create(
    kind: Kind, document: Document, *, namespace: str, now: datetime, uid: str, name_suffix: str = ""
) -> None:
    """Set what the server decides. name_suffix: ends a generated name; "" generates none."""
    given = document.get("metadata") or {}
    metadata = {key: value for key, value in given.items() if key not in _SERVER_SETS}
    if name_suffix and not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = metadata["generateName"][:GENERATED_BASE_LIMIT] + name_suffix
    if kind.namespaced:
        metadata["namespace"] = namespace
    metadata["uid"] = uid
    metadata["creationTimestamp"] = timestamp(now)
    document["metadata"] = ordered(metadata)


_SERVER_SETS = {
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
}
_ORDER = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
]


def ordered(metadata: Document) -> Document:
    """The same in the order Kubernetes writes it."""
    known = {key: metadata[key] for key in _ORDER if key in metadata}
    return known | {key: value for key, value in metadata.items() if key not in known}


def prepare_update(kind: Kind, old: Document, new: Document) -> None:
    """Keep what a client cannot change or may leave out; what it may not change stays, to be refused."""
    had = old["metadata"]
    metadata = dict(new.get("metadata") or {})
    for key in ("managedFields", "selfLink"):
        metadata.pop(key, None)
    keep_or_drop(had, metadata, "generation")
    keep_or_drop(had, metadata, "creationTimestamp")
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        if had.get(key) is not None:
            metadata[key] = had[key]
    for key in ("uid", "name", "namespace", "resourceVersion"):
        if not metadata.get(key) and had.get(key):
            metadata[key] = had[key]
    if not kind.namespaced:
        metadata.pop("namespace", None)
    new["metadata"] = ordered(metadata)


def keep_or_drop(old: Document, new: Document, key: str) -> None:
    """Make new[key] what it was, or nothing if it was nothing."""
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


def raise_generation(document: Document) -> None:
    metadata = document["metadata"]
    document["metadata"] = ordered(metadata | {"generation": metadata.get("generation", 0) + 1})


def validate(kind: Kind, metadata: Document, name_problems: Problems) -> list[FieldError]:
    """All that is wrong with an object's metadata."""
    errors: list[FieldError] = []
    prefix = metadata.get("generateName", "")
    if prefix:
        # what comes behind the prefix is alphanumeric, so it may end in a dash
        masked = prefix[:-1] + "a" if prefix.endswith("-") and len(prefix) > 1 else prefix
        errors += [invalid("metadata.generateName", prefix, p) for p in name_problems(masked)]
    name = metadata.get("name", "")
    if not name:
        errors.append(required("metadata.name", "name or generateName is required"))
    else:
        errors += [invalid("metadata.name", name, problem) for problem in name_problems(name)]
    namespace = metadata.get("namespace", "")
    if kind.namespaced:
        if not namespace:
            errors.append(required("metadata.namespace"))
        errors += [invalid("metadata.namespace", namespace, p) for p in names.label_problems(namespace) if namespace]
    elif namespace:
        errors.append(forbidden("metadata.namespace", "not allowed on this type"))
    return errors + _contents(metadata)


def _contents(metadata: Document) -> list[FieldError]:
    errors = validate_labels(metadata.get("labels"), "metadata.labels")
    errors += validate_annotations(metadata.get("annotations"), "metadata.annotations")
    errors += _validate_owners(metadata.get("ownerReferences") or [], "metadata.ownerReferences")
    return errors + _validate_finalizers(metadata.get("finalizers") or [], "metadata.finalizers")


def validate_labels(labels: dict[str, str] | None, path: str) -> list[FieldError]:
    errors = []
    for key, value in sorted((labels or {}).items()):
        errors += [invalid(path, key, problem) for problem in names.qualified_name_problems(key)]
        errors += [invalid(path, value, problem) for problem in names.label_value_problems(value)]
    return errors


def validate_annotations(annotations: dict[str, str] | None, path: str) -> list[FieldError]:
    errors = []
    size = 0
    for key, value in sorted((annotations or {}).items()):
        errors += [invalid(path, key, problem) for problem in names.qualified_name_problems(key.lower())]
        size += len(key.encode()) + len(value.encode())
    if size > ANNOTATIONS_LIMIT:
        errors.append(too_long(path, ANNOTATIONS_LIMIT))
    return errors


def _validate_owners(owners: list[Document], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    controllers = []
    for owner in owners:
        api_version = owner.get("apiVersion", "")
        if not api_version or api_version.endswith("/"):
            errors.append(invalid(f"{path}.apiVersion", api_version, "version must not be empty"))
        for key in ("kind", "name", "uid"):
            if not owner.get(key):
                errors.append(invalid(f"{path}.{key}", "", f"{key} must not be empty"))
        if (api_version, owner.get("kind")) == ("v1", "Event"):
            errors.append(invalid(path, owner, "/v1, Kind=Event is disallowed from being an owner"))
        if owner.get("controller"):
            controllers.append(owner)
    if len(controllers) > 1:
        first, second = (f"{owner.get('kind')}/{owner.get('name')}" for owner in controllers[:2])
        detail = (
            f'Only one reference can have Controller set to true. Found "true" in references for {first} and {second}'
        )
        errors.append(invalid(path, owners, detail))
    return errors


def _validate_finalizers(finalizers: list[str], path: str) -> list[FieldError]:
    errors = []
    for finalizer in finalizers:
        errors += [invalid(path, finalizer, problem) for problem in names.qualified_name_problems(finalizer)]
    if {"orphan", "foregroundDeletion"} <= set(finalizers):
        detail = "finalizer orphan and foregroundDeletion cannot be both set"
        errors.append(invalid(path, finalizers, detail))
    for index, finalizer in enumerate(finalizers):
        if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            detail = "name is neither a standard finalizer name nor is it fully qualified"
            errors.append(invalid(f"{path}[{index}]", finalizer, detail))
    return errors


def validate_update(old: Document, new: Document) -> list[FieldError]:
    """What changed in the metadata and may not, and what is wrong in it apart from name and namespace."""
    errors = []
    for key in (
        "name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    ):  # fmt: skip
        if new.get(key) != old.get(key):
            errors.append(invalid(f"metadata.{key}", new.get(key), _IMMUTABLE))
    if old.get("deletionTimestamp"):
        added = sorted(set(new.get("finalizers") or []) - set(old.get("finalizers") or []))
        if added:
            detail = f"no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            errors.append(forbidden("metadata.finalizers", detail))
    if not new.get("resourceVersion"):
        errors.append(invalid("metadata.resourceVersion", "", "must be specified for an update"))
    return errors + _contents(new)
