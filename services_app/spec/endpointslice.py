"""EndpointSlices: defaults, generation, validation.

Source: k8s v1.36 pkg/apis/discovery/validation, pkg/registry/discovery/endpointslice/strategy.go.
"""

from typing import Any

from services_app.spec import balancing, meta, names
from services_app.spec.addresses import validate_address, validate_destination
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, duplicate, invalid, not_supported, required, too_long, too_many
from services_app.spec.kinds import ENDPOINT_SLICE
from services_app.spec.service import validate_protocol, validate_qualified_name

Document = dict[str, Any]

ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
MAX_ENDPOINTS, MAX_ADDRESSES, MAX_PORTS, MAX_HINTS = 1000, 100, 20000, 8
FQDN_LENGTH = 255


def set_defaults(endpoint_slice: Document) -> None:
    for port in endpoint_slice.get("ports") or []:
        if port.get("name") is None:
            port["name"] = ""
        if port.get("protocol") is None:
            port["protocol"] = "TCP"
    for endpoint in endpoint_slice.get("endpoints") or []:
        endpoint.setdefault("conditions", {})
        endpoint.pop("deprecatedTopology", None)
    for key in ("endpoints", "ports"):
        endpoint_slice[key] = endpoint_slice.get(key) or None


def prepare_create(endpoint_slice: Document) -> None:
    set_defaults(endpoint_slice)
    meta.raise_generation(endpoint_slice)


def prepare_update(old: Document, new: Document) -> None:
    set_defaults(new)
    if {**old, "metadata": _comparable(old)} != {**new, "metadata": _comparable(new)}:
        meta.raise_generation(new)


def _comparable(document: Document) -> Document:
    uncounted = ("generation", "managedFields", "resourceVersion")
    return {key: value for key, value in document["metadata"].items() if key not in uncounted}


def validate_create(endpoint_slice: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = meta.validate(ENDPOINT_SLICE, endpoint_slice["metadata"], names.subdomain_problems)
    return errors + balancing.validate_weights(None, endpoint_slice) + _validate(endpoint_slice, set(), cluster)


def validate_update(old: Document, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes
    if old.get("addressType") != new.get("addressType"):
        errors.append(invalid("addressType", new.get("addressType"), "field is immutable"))
    known = {text for endpoint in old.get("endpoints") or [] for text in endpoint.get("addresses") or []}
    errors += meta.validate(ENDPOINT_SLICE, new["metadata"], names.subdomain_problems)
    errors += balancing.validate_weights(old, new)
    return errors + _validate(new, known, cluster)


def _validate(endpoint_slice: Document, known: set[str], cluster: ClusterSettings) -> list[FieldError]:
    family = endpoint_slice.get("addressType", "")
    errors: list[FieldError] = []
    if not family:
        errors.append(required("addressType"))
    elif family not in ADDRESS_TYPES:
        errors.append(not_supported("addressType", family, ADDRESS_TYPES))
    endpoints = endpoint_slice.get("endpoints") or []
    if len(endpoints) > MAX_ENDPOINTS:
        errors.append(too_many("endpoints", len(endpoints), MAX_ENDPOINTS))
    else:
        for index, endpoint in enumerate(endpoints):
            errors += _validate_endpoint(endpoint, f"endpoints[{index}]", family, known, cluster)
    return errors + _validate_ports(endpoint_slice.get("ports") or [])


def _validate_endpoint(
    endpoint: Document, path: str, family: str, known: set[str], cluster: ClusterSettings
) -> list[FieldError]:
    errors: list[FieldError] = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        errors.append(required(f"{path}.addresses", "must contain at least 1 address"))
    elif len(addresses) > MAX_ADDRESSES:
        errors.append(too_many(f"{path}.addresses", len(addresses), MAX_ADDRESSES))
    for index, address in enumerate(addresses):
        errors += _validate_address(address, f"{path}.addresses", index, family, known, cluster)
    if endpoint.get("nodeName") is not None:
        node = endpoint["nodeName"]
        errors += [invalid(f"{path}.nodeName", node, problem) for problem in names.subdomain_problems(node)]
    if endpoint.get("hostname") is not None:
        host = endpoint["hostname"]
        errors += [invalid(f"{path}.hostname", host, problem) for problem in names.label_problems(host)]
    hints = endpoint.get("hints") or {}
    errors += _validate_hints(hints.get("forZones") or [], f"{path}.hints.forZones", names.label_value_problems)
    return errors + _validate_hints(hints.get("forNodes") or [], f"{path}.hints.forNodes", names.subdomain_problems)


def _validate_address(
    address: str, path: str, index: int, family: str, known: set[str], cluster: ClusterSettings
) -> list[FieldError]:
    at = f"{path}[{index}]"
    if family == "FQDN":
        return _validate_domain(address, at)
    if family not in ADDRESS_TYPES:
        return []
    errors = validate_address(address, at, known)
    if not errors and names.family_of(address) != family:
        errors.append(invalid(path, address, f"must be an {family} address"))
    return errors or validate_destination(address, at, cluster)


def _validate_domain(text: str, path: str) -> list[FieldError]:
    name = text.removesuffix(".")
    if not name:
        return [required(path)]
    if problems := names.subdomain_problems(name):
        return [invalid(path, text, problem) for problem in problems]
    if "." not in name:
        return [invalid(path, text, "should be a domain with at least two segments separated by dots")]
    if len(text) > FQDN_LENGTH:
        return [too_long(path, FQDN_LENGTH)]
    return [invalid(path, text, problem) for label in name.split(".") for problem in names.label_problems(label)]


def _validate_hints(hints: list[Document], path: str, problems_of: meta.Problems) -> list[FieldError]:
    if len(hints) > MAX_HINTS:
        return [too_many(path, len(hints), MAX_HINTS)]
    errors = []
    seen = set()
    for index, hint in enumerate(hints):
        name = hint.get("name", "")
        if name in seen:
            errors.append(duplicate(f"{path}[{index}].name", name))
        seen.add(name)
        errors += [invalid(f"{path}[{index}].name", name, problem) for problem in problems_of(name)]
    return errors


def _validate_ports(ports: list[Document]) -> list[FieldError]:
    if len(ports) > MAX_PORTS:
        return [too_many("ports", len(ports), MAX_PORTS)]
    errors: list[FieldError] = []
    seen = set()
    for index, port in enumerate(ports):
        path = f"ports[{index}]"
        name, number = port.get("name") or "", port.get("port")
        if name:
            errors += [invalid(f"{path}.name", name, problem) for problem in names.label_problems(name)]
        if name in seen:
            errors.append(duplicate(f"{path}.name", name))
        seen.add(name)
        errors += validate_protocol(port.get("protocol") or "", f"{path}.protocol")
        if number is not None:
            errors += [invalid(f"{path}.port", number, problem) for problem in names.port_number_problems(number)]
        if port.get("appProtocol") is not None:
            errors += validate_qualified_name(port["appProtocol"], f"{path}.appProtocol")
    return errors


def warnings(endpoint_slice: Document) -> list[str]:
    """Sentences for the Warning header of a write."""
    if endpoint_slice.get("addressType") == "FQDN":
        return ["addressType: FQDN endpoints are deprecated"]
    said = []
    for at, endpoint in enumerate(endpoint_slice.get("endpoints") or []):
        for index, text in enumerate(endpoint.get("addresses") or []):
            address = names.parse_address(text)
            if address is not None and str(address) != text:
                path = f"endpoints[{at}].addresses[{index}]"
                said.append(f'{path}: IPv6 address "{text}" should be in RFC 5952 canonical format ("{address}")')
    return said
