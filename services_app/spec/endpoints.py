"""Endpoints: defaults and validation.

Source: k8s v1.36 pkg/apis/core/validation, ValidateEndpoints.
"""

from typing import Any

from services_app.spec import balancing, meta, names
from services_app.spec.addresses import validate_address, validate_destination
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, invalid, required
from services_app.spec.kinds import ENDPOINTS
from services_app.spec.service import validate_protocol, validate_qualified_name

Document = dict[str, Any]

DEPRECATED = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"


def set_defaults(endpoints: Document) -> None:
    for subset in endpoints.get("subsets") or []:
        for port in subset.get("ports") or []:
            port.setdefault("protocol", "TCP")


def validate_create(endpoints: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = meta.validate(ENDPOINTS, endpoints["metadata"], names.subdomain_problems)
    return errors + balancing.validate_weights(None, endpoints) + _validate_subsets(endpoints, set(), cluster)


def validate_update(old: Document, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    known = {address.get("ip", "") for subset in old.get("subsets") or [] for address in _addresses(subset)}
    errors = changes + changes + balancing.validate_weights(old, new)
    return errors + _validate_subsets(new, known, cluster)


def _addresses(subset: Document) -> list[Document]:
    return [*(subset.get("addresses") or []), *(subset.get("notReadyAddresses") or [])]


def _validate_subsets(endpoints: Document, known: set[str], cluster: ClusterSettings) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, subset in enumerate(endpoints.get("subsets") or []):
        path = f"subsets[{index}]"
        if not _addresses(subset):
            errors.append(required(path, "must specify `addresses` or `notReadyAddresses`"))
        for key in ("addresses", "notReadyAddresses"):
            for at, address in enumerate(subset.get(key) or []):
                errors += _validate_address(address, f"{path}.{key}[{at}]", known, cluster)
        ports = subset.get("ports") or []
        for at, port in enumerate(ports):
            errors += _validate_port(port, f"{path}.ports[{at}]", needs_name=len(ports) > 1)
    return errors


def _validate_address(address: Document, path: str, known: set[str], cluster: ClusterSettings) -> list[FieldError]:
    ip, host, node = address.get("ip", ""), address.get("hostname", ""), address.get("nodeName")
    errors = validate_address(ip, f"{path}.ip", known)
    if names.parse_address_leniently(ip) is None:
        errors.append(invalid(f"{path}.ip", ip, "must be a valid IP address"))
    errors += validate_destination(ip, f"{path}.ip", cluster)
    if host:
        errors += [invalid(f"{path}.hostname", host, problem) for problem in names.label_problems(host)]
    if node is not None:
        errors += [invalid(f"{path}.nodeName", node, problem) for problem in names.subdomain_problems(node)]
    return errors


def _validate_port(port: Document, path: str, *, needs_name: bool) -> list[FieldError]:
    name, number = port.get("name", ""), port.get("port", 0)
    errors: list[FieldError] = []
    if name:
        errors += [invalid(f"{path}.name", name, problem) for problem in names.label_problems(name)]
    elif needs_name:
        errors.append(required(f"{path}.name"))
    errors += [invalid(f"{path}.port", number, problem) for problem in names.port_number_problems(number)]
    errors += validate_protocol(port.get("protocol", ""), f"{path}.protocol")
    if port.get("appProtocol") is not None:
        errors += validate_qualified_name(port["appProtocol"], f"{path}.appProtocol")
    return errors
