"""Namespaces: the label that tells the name, finalizers, phase.

Source: k8s v1.36 pkg/registry/core/namespace/strategy.go, pkg/apis/core/validation, ValidateNamespace
and ValidateNamespaceStatusUpdate.
"""

from collections.abc import Mapping
from typing import Any

from services_app.spec import meta, names
from services_app.spec.errors import FieldError, invalid
from services_app.spec.kinds import NAMESPACE

Document = dict[str, Any]

NAME_LABEL = "kubernetes.io/metadata.name"
FINALIZER = "kubernetes"


def _label(namespace: Document) -> None:
    metadata = namespace["metadata"]
    metadata["labels"] = dict(sorted({**(metadata.get("labels") or {}), NAME_LABEL: metadata.get("name", "")}.items()))


def prepare_create(namespace: Document) -> None:
    _label(namespace)
    finalizers = (namespace.get("spec") or {}).get("finalizers") or []
    if FINALIZER not in finalizers:
        finalizers = [*finalizers, FINALIZER]
    namespace["spec"] = {"finalizers": finalizers}
    namespace["status"] = {"phase": "Active"}


def prepare_update(old: Document, new: Document, subresource: str) -> None:
    """status and finalize each change one part only; an update of the whole changes neither."""
    _label(new)
    new["spec"] = (new if subresource == "finalize" else old).get("spec") or {}
    if subresource != "status":
        new["status"] = old["status"]
    else:
        new["status"] = {"phase": "Active"} | (new.get("status") or {})


def remains(status: Document, resources: Mapping[str, int], marks: Mapping[str, int], now: str) -> bool:
    """Say in a Terminating Namespace's status what it still holds; whether that is news.

    resources: "services." -> how many wait; marks: finalizer -> how many have it. Source: k8s v1.36
    pkg/controller/namespace/deletion/status_condition_utils.go.
    """
    held = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(resources.items()))
    waits = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(marks.items()))
    wanted = (
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", f"Some resources are remaining: {held}"),
        (
            "NamespaceFinalizersRemaining",
            "True",
            "SomeFinalizersRemain",
            f"Some content in the namespace has finalizers remaining: {waits}",
        ),
    )
    before = {one["type"]: one for one in status.get("conditions") or ()}
    conditions = []
    for kind, value, reason, message in wanted:
        old = before.pop(kind, {})
        moved = old["lastTransitionTime"] if old.get("status") == value else now
        conditions.append(
            {"type": kind, "status": value, "lastTransitionTime": moved, "reason": reason, "message": message}
        )
    conditions = [*before.values(), *conditions]
    is_news = conditions != status.get("conditions")
    status["conditions"] = conditions
    return is_news


def validate_create(namespace: Document) -> list[FieldError]:
    errors = meta.validate(NAMESPACE, namespace["metadata"], names.label_problems)
    return errors + _validate_finalizers(namespace)


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    return changes + changes + _validate_finalizers(new) + _validate_phase(new)


def _validate_phase(namespace: Document) -> list[FieldError]:
    phase = namespace["status"].get("phase", "")
    goes = bool(namespace["metadata"].get("deletionTimestamp"))
    if phase == ("Terminating" if goes else "Active"):
        return []
    wanted, state = ("Terminating", "not empty") if goes else ("Active", "empty")
    return [invalid("status.phase", phase, f"may only be '{wanted}' if `deletionTimestamp` is {state}")]


def _validate_finalizers(namespace: Document) -> list[FieldError]:
    errors = []
    for index, finalizer in enumerate((namespace.get("spec") or {}).get("finalizers") or []):
        path = f"spec.finalizers[{index}]"
        errors += [invalid(path, finalizer, problem) for problem in names.qualified_name_problems(finalizer)]
        if "/" not in finalizer and finalizer != FINALIZER:
            detail = "name is neither a standard finalizer name nor is it fully qualified"
            errors.append(invalid(path, finalizer, detail))
    return errors
