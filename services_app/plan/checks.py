"""What must hold at every revision. Pure: hand in everything, get back sentences about what does not hold."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services_app.plan import allocation, endpoints, mirroring
from services_app.spec.selectors import match_labels

Document = dict[str, Any]


def check_claims(
    services: Iterable[Document], addresses: Mapping[str, str], node_ports: Mapping[int, str]
) -> Iterator[str]:
    """Every value a Service holds is claimed by it alone, and no claim is without its Service.

    addresses: cluster IP -> uid of the Service that claims it. node_ports: port -> uid.
    """
    services = list(services)
    held: dict[object, str] = {}
    for service in services:
        uid, name = service["metadata"]["uid"], _key(service)
        claimed: dict[object, str | None] = {ip: addresses.get(ip) for ip in allocation.cluster_ips_of(service)}
        claimed |= {port: node_ports.get(port) for port in allocation.node_ports_of(service)}
        for value, claimant in claimed.items():
            if value in held:
                yield f"{value} is held by {name} and by {held[value]}"
            held[value] = name
            if claimant != uid:
                yield f"{value} of {name} is not claimed by it"
        if allocation.missing_families(service) or allocation.missing_node_ports(service):
            yield f"{name} lacks an address or a node port"
    for claim in [*addresses, *node_ports]:
        if claim not in held:
            yield f"{claim} is claimed, but no Service holds it"


def check_endpoints(
    services: Iterable[Document],
    pods: Iterable[Document],
    slices: Iterable[Document],
    endpoints_objects: Iterable[Document],
    nodes: Iterable[Document],
) -> Iterator[str]:
    """Derived slices and Endpoints are what their Services and Pods say."""
    zones = {n["metadata"]["name"]: (n["metadata"].get("labels") or {}).get(endpoints.ZONE, "") for n in nodes}
    by_namespace: dict[str, list[tuple[dict[str, str], Document]]] = {}
    for pod in pods:
        traits = endpoints.traits(pod)
        if traits is not None:
            by_namespace.setdefault(traits["namespace"], []).append((pod["metadata"].get("labels") or {}, traits))
    by_controller: dict[str, dict[str, list[Document]]] = {}
    for item in slices:
        labels = item["metadata"].get("labels") or {}
        key = f"{item['metadata']['namespace']}/{labels.get(endpoints.SERVICE_NAME)}"
        by_controller.setdefault(labels.get(endpoints.MANAGED_BY, ""), {}).setdefault(key, []).append(item)
    derived = by_controller.get(endpoints.SLICE_CONTROLLER, {})
    mirrors = by_controller.get(mirroring.MIRROR_CONTROLLER, {})
    objects = {_key(item): item for item in endpoints_objects}
    seen = {}
    for service in services:
        name = _key(service)
        seen[name] = service
        if not endpoints.has_endpoints(service):
            continue
        selected = [
            traits
            for labels, traits in by_namespace.get(service["metadata"]["namespace"], ())
            if match_labels(service["spec"]["selector"], labels)
        ]
        plan = endpoints.plan_slices(service, selected, derived.get(name, []), zones=zones, now="", new_name=_unchanged)
        if plan != endpoints.SliceChanges():
            yield f"the slices of {name} are not what its Pods say"
        if endpoints.plan_endpoints(service, selected, objects.get(name), now="") is not None:
            yield f"the Endpoints of {name} are not what its Pods say"
    for name in derived.keys() - seen.keys():
        yield f"slices of {name} are left without their Service"
    for name in sorted(mirrors.keys() | objects.keys()):
        mirror = mirroring.plan_mirror(seen.get(name), objects.get(name), mirrors.get(name, []), new_name=_unchanged)
        if mirror != endpoints.SliceChanges():
            yield f"the mirrored slices of {name} are not what its Endpoints say"


def _unchanged(prefix: str) -> str:
    return prefix


def _key(document: Document) -> str:
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"
