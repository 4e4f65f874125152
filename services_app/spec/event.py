"""Events: validation.

Source: k8s v1.36 pkg/apis/core/validation/events.go.
"""

from typing import Any

from services_app.spec import meta, names
from services_app.spec.errors import FieldError, invalid, required
from services_app.spec.kinds import EVENT

Document = dict[str, Any]


def validate_create(event: Document) -> list[FieldError]:
    return meta.validate(EVENT, event["metadata"], _name_problems) + _validate(event)


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    return changes + changes + _validate(new)


def _name_problems(name: str) -> list[str]:
    """Anything that can stand in a path."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{character}'" for character in "/%" if character in name]


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
