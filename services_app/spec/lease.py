"""Leases: who leads, and for how long.

Source: k8s v1.36 pkg/apis/coordination/validation, pkg/registry/coordination/lease/strategy.go.
"""

from typing import Any

from services_app.spec import meta, names
from services_app.spec.errors import FieldError, forbidden, invalid
from services_app.spec.kinds import LEASE

Document = dict[str, Any]


def prepare(lease: Document) -> None:
    lease["spec"] = lease.get("spec") or {}


def validate_create(lease: Document) -> list[FieldError]:
    return meta.validate(LEASE, lease["metadata"], names.subdomain_problems) + _validate(lease["spec"])


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    return changes + changes + _validate(new["spec"])


def _validate(spec: Document) -> list[FieldError]:
    errors = []
    duration_s, transitions, strategy = (
        spec.get(key) for key in ("leaseDurationSeconds", "leaseTransitions", "strategy")
    )
    if duration_s is not None and duration_s <= 0:
        errors.append(invalid("spec.leaseDurationSeconds", duration_s, "must be greater than 0"))
    if transitions is not None and transitions < 0:
        errors.append(invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    if strategy is not None:
        errors += [invalid("spec.strategy", strategy, problem) for problem in names.qualified_name_problems(strategy)]
    if spec.get("preferredHolder") and not strategy:
        errors.append(forbidden("spec.preferredHolder", "may only be specified if `strategy` is defined"))
    return errors
