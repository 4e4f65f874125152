"""ServiceCIDRs: the ranges that cluster IPs come from, added and retired while everything runs.

Source: k8s v1.36 pkg/apis/networking/validation, ValidateServiceCIDR and ValidateServiceCIDRUpdate; finalizer and
conditions as pkg/controller/servicecidrs writes them.
"""

from typing import Any

from services_app.spec import meta, names
from services_app.spec.addresses import validate_network
from services_app.spec.errors import FieldError, invalid, required
from services_app.spec.kinds import SERVICE_CIDR
from services_app.spec.names import Network

Document = dict[str, Any]

DEFAULT = "kubernetes"  # the name of the one made from the settings
FINALIZER = "networking.k8s.io/service-cidr-finalizer"
READY = "Ready"
TERMINATING = "Terminating"
AT_MOST = 2
_IMMUTABLE = "field is immutable"


def networks(document: Document) -> list[Network]:
    """The ranges of a stored object, in its order."""
    return [network for text in document["spec"].get("cidrs") or () if (network := names.parse_network(text))]


def is_ready(document: Document) -> bool:
    """Whether addresses may be given out from it."""
    if document["metadata"].get("deletionTimestamp"):
        return False
    conditions = (document.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == READY and condition["status"] == "True" for condition in conditions)


def condition(*, is_ready: bool, message: str, now: str) -> Document:
    """The Ready condition. now: as `meta.timestamp` gives it."""
    return {
        "type": READY,
        "status": "True" if is_ready else "False",
        "lastTransitionTime": now,
        "reason": "" if is_ready else TERMINATING,
        "message": message,
    }


def prepare_create(document: Document) -> None:
    document["spec"] = document.get("spec") or {}
    document["status"] = {}


def prepare_update(old: Document, new: Document, subresource: str) -> None:
    """/status changes the status alone, everything else the rest; as long as it does not go, it stays protected."""
    kept = new["metadata"].get("finalizers") or []
    is_protected = FINALIZER in (old["metadata"].get("finalizers") or [])
    if is_protected and FINALIZER not in kept and not old["metadata"].get("deletionTimestamp"):
        new["metadata"] = meta.ordered({**new["metadata"], "finalizers": [*kept, FINALIZER]})
    if subresource == "status":
        new["spec"], new["status"] = old["spec"], new.get("status") or {}
    else:
        new["spec"], new["status"] = new.get("spec") or {}, old.get("status") or {}


def validate_create(document: Document) -> list[FieldError]:
    errors = meta.validate(SERVICE_CIDR, document["metadata"], names.subdomain_problems)
    return errors + _validate(document["spec"].get("cidrs") or [])


def validate_update(old: Document, new: Document, subresource: str) -> list[FieldError]:
    """A second range, of the other family, may be added later; nothing else changes."""
    errors = meta.validate_update(old["metadata"], new["metadata"])
    if subresource == "status":
        return errors
    had, has = old["spec"].get("cidrs") or [], new["spec"].get("cidrs") or []
    if len(had) != len(has) and (len(had), len(has)) != (1, 2):
        return [*errors, invalid("spec.cidrs", has, _IMMUTABLE)]
    for index, (before, after) in enumerate(zip(had, has, strict=False)):
        if before != after:
            errors.append(invalid(f"spec.cidrs[{index}]", after, _IMMUTABLE))
    return errors + (_validate(has) if len(has) > len(had) else [])


def _validate(cidrs: list[str]) -> list[FieldError]:
    path = "spec.cidrs"
    if not cidrs:
        return [required(path, "at least one CIDR required")]
    if len(cidrs) > AT_MOST:
        return [invalid(path, cidrs, f"may only hold up to {AT_MOST} values")]
    errors = []
    for index, text in enumerate(cidrs):
        errors += validate_network(text, f"{path}[{index}]")
        network = names.parse_network(text)
        if network is not None and str(network) != text:
            errors.append(invalid(f"{path}[{index}]", text, f'must be in canonical form ("{network}")'))
    families = [network.version for text in cidrs if (network := names.parse_network_leniently(text))]
    if len(families) == AT_MOST and len(set(families)) == 1:
        detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
        errors.append(invalid(path, cidrs, detail))
    return errors
