"""IPAddresses: one object for each cluster IP in use, named by the address, that says what it belongs to.

Source: k8s v1.36 pkg/apis/networking/validation, ValidateIPAddress and ValidateIPAddressUpdate; labels and reference as
pkg/registry/core/service/ipallocator/ipallocator.go writes them.
"""

from typing import Any

from services_app.spec import meta, names
from services_app.spec.addresses import validate_address
from services_app.spec.errors import FieldError, invalid, required
from services_app.spec.kinds import IP_ADDRESS

Document = dict[str, Any]

FAMILY_LABEL = "ipaddress.kubernetes.io/ip-family"
MANAGED_BY_LABEL = "ipaddress.kubernetes.io/managed-by"
ALLOCATOR = "ipallocator.k8s.io"


def of_service(address: str, namespace: str, name: str, *, uid: str, now: str) -> Document:
    """The IPAddress of a Service's cluster IP. address: in canonical spelling; now: as `meta.timestamp` gives it."""
    return {
        "kind": IP_ADDRESS.kind,
        "apiVersion": IP_ADDRESS.api_version,
        "metadata": {
            "name": address,
            "uid": uid,
            "resourceVersion": "",
            "creationTimestamp": now,
            "labels": {FAMILY_LABEL: "IPv6" if ":" in address else "IPv4", MANAGED_BY_LABEL: ALLOCATOR},
        },
        "spec": {"parentRef": {"name": name, "namespace": namespace, "resource": "services"}},
    }


def parent_of(document: Document) -> tuple[str, str] | None:
    """(namespace, name) of the Service an IPAddress refers to; None when it refers to something else."""
    reference = document["spec"].get("parentRef") or {}
    if reference.get("group") or reference.get("resource") != "services":
        return None
    return reference.get("namespace", ""), reference.get("name", "")


def is_allocators(document: Document) -> bool:
    """Whether its label says that it was written for a Service; others are somebody's own and left alone."""
    return (document["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == ALLOCATOR


def prepare(document: Document) -> None:
    document["spec"] = document.get("spec") or {}


def validate_create(document: Document) -> list[FieldError]:
    errors = meta.validate(IP_ADDRESS, document["metadata"], _name_problems)
    return errors + _validate_reference(document["spec"].get("parentRef"))


def validate_update(old: Document, new: Document) -> list[FieldError]:
    errors = validate_create(new) + meta.validate_update(old["metadata"], new["metadata"])
    had, has = old["spec"].get("parentRef"), new["spec"].get("parentRef")
    return errors + ([invalid("spec.parentRef", has, "field is immutable")] if had != has else [])


def _name_problems(name: str) -> list[str]:
    if problems := validate_address(name, ""):
        return [problem.detail for problem in problems]
    canonical = str(names.parse_address(name))
    return [] if canonical == name else [f'must be in canonical form ("{canonical}")']


def _validate_reference(reference: Document | None) -> list[FieldError]:
    path = "spec.parentRef"
    if reference is None:
        return [required(path)]
    errors = []
    if group := reference.get("group"):
        errors += [invalid(f"{path}.group", group, problem) for problem in names.subdomain_problems(group)]
    for key in ("resource", "name", "namespace"):
        if value := reference.get(key):
            errors += [invalid(f"{path}.{key}", value, problem) for problem in names.path_segment_problems(value)]
        elif key != "namespace":
            errors.append(required(f"{path}.{key}"))
    return errors
