"""Events: validation, and the two forms they are served in.

Stored is the core form; events.k8s.io/v1 is another face of the same object, judged more strictly when written so.
Source: k8s v1.36 pkg/apis/core/validation/events.go, pkg/apis/events/v1/conversion.go.
"""

from typing import Any

from services_app.spec import meta, names, wire
from services_app.spec.errors import FieldError, invalid, required
from services_app.spec.kinds import EVENT, EVENTS_EVENT, Kind

Document = dict[str, Any]

TYPES = ("Normal", "Warning")
# name in events.k8s.io/v1 -> name in v1, where they differ
_FACE = {
    "deprecatedCount": "count",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedSource": "source",
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
}
_CORE = {core: face for face, core in _FACE.items()}
# What an update in the newer form may not change
_FIXED = (
    "eventTime", "involvedObject", "reason", "message", "type", "action", "related", "reportingController",
    "reportingInstance",
)  # fmt: skip


def to_core(event: Document) -> Document:
    """An event of events.k8s.io/v1 as a v1 Event."""
    return _renamed(event, EVENT, _FACE)


def from_core(event: Document) -> Document:
    """A v1 Event as one of events.k8s.io/v1."""
    return _renamed(event, EVENTS_EVENT, _CORE)


def _renamed(event: Document, kind: Kind, names_there: dict[str, str]) -> Document:
    metadata = event["metadata"]
    given = {names_there.get(key, key): value for key, value in event.items()}
    document, _ = wire.shaped(kind, given | {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}})
    # The metadata is as the server made it: in its order, not in that of the schema.
    return {key: metadata if key == "metadata" else value for key, value in document.items()}


def validate_create(event: Document) -> list[FieldError]:
    return meta.validate(EVENT, event["metadata"], _name_problems) + _validate(event)


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    return changes + changes + _validate(new)


def validate_create_strictly(event: Document) -> list[FieldError]:
    """All that is wrong with a new event in the form of events.k8s.io/v1."""
    core = to_core(event)
    errors = meta.validate(EVENTS_EVENT, event["metadata"], names.subdomain_problems)
    errors += _validate(core) + _validate_series(core)
    if not core.get("eventTime"):
        errors.append(required("eventTime"))
    if core.get("type") not in TYPES:
        errors.append(invalid("type", "", f"has invalid value: {core.get('type', '')}"))
    errors += [
        invalid(key, "", "needs to be unset") for key in ("firstTimestamp", "lastTimestamp", "count") if core.get(key)
    ]
    if any((core.get("source") or {}).values()):
        errors.append(invalid("source", "", "needs to be unset"))
    return errors


def validate_update_strictly(old: Document, new: Document) -> list[FieldError]:
    """All that is wrong with an update in the form of events.k8s.io/v1: little but the series may change."""
    changes = meta.validate_update(old["metadata"], new["metadata"])
    before, core = to_core(old), to_core(new)
    errors = changes + changes + _validate(core) + _validate_series(core)
    for field in _FIXED:
        key = _FACE.get(field, field)
        if (before.get(key) or None) != (core.get(key) or None):
            errors.append(invalid(field, core.get(key), "field is immutable"))
    return errors


def _validate_series(event: Document) -> list[FieldError]:
    series = event.get("series")
    if series is None:
        return []
    errors = []
    if (series.get("count") or 0) < 2:
        errors.append(invalid("series.count", "", "should be at least 2"))
    if not series.get("lastObservedTime"):
        errors.append(required("series.lastObservedTime"))
    return errors


def _name_problems(name: str) -> list[str]:
    """Anything that can stand in a path."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{character}'" for character in "/%\0" if character in name]


def _validate(event: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    about = event.get("involvedObject") or {}
    namespace, its_namespace = event["metadata"].get("namespace", ""), about.get("namespace", "")
    if its_namespace != namespace and not (not its_namespace and namespace in ("", "default")):
        errors.append(invalid("involvedObject.namespace", its_namespace, "does not match event.namespace"))
    if event.get("eventTime"):
        for field, key in (("reportingController", "reportingComponent"), ("reportingInstance", "reportingInstance")):
            if not event.get(key):
                errors.append(required(field))
        controller = event.get("reportingComponent", "")
        if controller:
            errors += [
                invalid("reportingController", controller, problem)
                for problem in names.qualified_name_problems(controller)
            ]
        errors += [required(key) for key in ("action", "reason") if not event.get(key)]
    return errors
