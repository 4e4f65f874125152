"""EndpointSlices that follow from Endpoints somebody wrote by hand, for Services without selector.

Pure: the caller hands in what exists and gets back what must change. Rules: k8s v1.36
pkg/controller/endpointslicemirroring (controller.go, reconciler.go, utils.go) and pkg/api/v1/endpoints, RepackSubsets.
"""

from collections.abc import Callable, Iterable
from typing import Any

from services_app.plan.endpoints import MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, SliceChanges
from services_app.spec.names import parse_address_leniently

Document = dict[str, Any]

MIRROR_CONTROLLER = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

MAX_ENDPOINTS_PER_SUBSET = 1000

# (name, protocol, number, appProtocol or None); the ports of a slice are a tuple of them
Port = tuple[str, str, int, str | None]


def is_mirrored(service: Document | None, endpoints: Document | None) -> bool:
    """Whether Endpoints are copied into slices: their Service is there without a selector, and nothing declines it.

    service: the one of the same name, None when there is none.
    """
    if service is None or service["spec"].get("selector") or endpoints is None:
        return False
    metadata = endpoints["metadata"]
    if (metadata.get("labels") or {}).get(SKIP_MIRROR) == "true":
        return False
    return LEADER not in (metadata.get("annotations") or {})


def plan_mirror(
    service: Document | None,
    endpoints: Document | None,
    existing: Iterable[Document],
    *,
    new_name: Callable[[str], str],
) -> SliceChanges:
    """The smallest change that makes the mirrored slices of a Service right.

    existing: the slices made here before (managed by the mirroring controller), whole documents.
    new_name: prefix -> a name not in use.
    """
    left = list(existing)
    changes = SliceChanges()
    if endpoints is None or not is_mirrored(service, endpoints):
        changes.delete.extend(left)
        return changes
    waiting = []
    for (family, ports), members in _desired(endpoints).items():
        wanted = _slice(endpoints, family, ports, members)
        found = next((s for s in left if s["addressType"] == family and _ports_of(s) == ports), None)
        if found is None:
            waiting.append(wanted)
            continue
        left.remove(found)
        _rewrite(found, wanted, changes)
    for wanted in waiting:
        # A slice that would go is used again: watchers see one change instead of two.
        found = next((s for s in left if s["addressType"] == wanted["addressType"]), None)
        if found is not None:
            left.remove(found)
            _rewrite(found, wanted, changes)
            continue
        prefix = f"{endpoints['metadata']['name']}-"
        wanted["metadata"] = {"name": new_name(prefix), "generateName": prefix, "generation": 1, **wanted["metadata"]}
        changes.create.append(wanted)
    changes.delete.extend(left)
    return changes


def addresses_left_out(endpoints: Document) -> int:
    """How many addresses are not mirrored because their subset has more than a slice takes."""
    sizes = (len(members) for _, members in _repacked(endpoints))
    return sum(max(size - MAX_ENDPOINTS_PER_SUBSET, 0) for size in sizes)


def _desired(endpoints: Document) -> dict[tuple[str, tuple[Port, ...]], list[Document]]:
    """(family, ports) -> endpoints, of every slice there has to be."""
    desired: dict[tuple[str, tuple[Port, ...]], list[Document]] = {}
    for ports, members in _repacked(endpoints):
        members = sorted(members, key=lambda member: not member[1])[:MAX_ENDPOINTS_PER_SUBSET]
        for address, ready in members:
            parsed = parse_address_leniently(address["ip"])
            if parsed is None:
                continue
            family = f"IPv{parsed.version}"
            desired.setdefault((family, ports), []).append(_endpoint(address, str(parsed), ready))
    return desired


def _repacked(endpoints: Document) -> list[tuple[tuple[Port, ...], list[tuple[Document, bool]]]]:
    """(ports, [(address, ready)]): ports with the same addresses together, an address once, unready when it is anywhere."""
    by_port: dict[Port | None, dict[tuple[str, str], bool]] = {}
    addresses: dict[tuple[str, str], Document] = {}
    for subset in endpoints.get("subsets") or ():
        ports: list[Port | None] = [*map(_port, subset.get("ports") or ())] or [None]
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.get(key) or ():
                identity = address["ip"], (address.get("targetRef") or {}).get("uid") or ""
                addresses.setdefault(identity, address)
                for port in ports:
                    of_port = by_port.setdefault(port, {})
                    of_port[identity] = of_port.get(identity, True) and ready
    together: dict[tuple[tuple[tuple[str, str], bool], ...], list[Port]] = {}
    for port, members in by_port.items():
        together.setdefault(tuple(sorted(members.items())), []).extend([port] if port else [])
    return [
        (tuple(sorted(ports, key=_sort_key)), [(addresses[identity], ready) for identity, ready in members])
        for members, ports in together.items()
    ]


def _port(port: Document) -> Port:
    return port.get("name") or "", port.get("protocol") or "TCP", port["port"], port.get("appProtocol")


def _sort_key(port: Port) -> tuple[str, str, int, str]:
    return port[0], port[1], port[2], port[3] or ""


def _ports_of(item: Document) -> tuple[Port, ...]:
    return tuple(sorted(map(_port, item.get("ports") or ()), key=_sort_key))


def _endpoint(address: Document, text: str, ready: bool) -> Document:
    endpoint: Document = {"addresses": [text], "conditions": {"ready": ready}}
    if address.get("hostname"):
        endpoint["hostname"] = address["hostname"]
    if address.get("targetRef"):
        endpoint["targetRef"] = address["targetRef"]
    if address.get("nodeName"):
        endpoint["nodeName"] = address["nodeName"]
    return endpoint


def _slice(endpoints: Document, family: str, ports: tuple[Port, ...], members: list[Document]) -> Document:
    """The whole slice but for its own name and identity."""
    metadata = endpoints["metadata"]
    labels = {**(metadata.get("labels") or {}), SERVICE_NAME: metadata["name"], MANAGED_BY: MIRROR_CONTROLLER}
    annotations = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if key not in (TRIGGER_TIME, LAST_APPLIED)
    }
    owner = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    document: Document = {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "namespace": metadata["namespace"],
            "labels": dict(sorted(labels.items())),
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [owner],
        },
        "addressType": family,
        "endpoints": members,
        "ports": [_port_entry(port) for port in ports] or None,
    }
    return document


def _port_entry(port: Port) -> Document:
    name, protocol, number, app_protocol = port
    entry: Document = {"name": name, "protocol": protocol, "port": number}
    if app_protocol:
        entry["appProtocol"] = app_protocol
    return entry


def _rewrite(found: Document, wanted: Document, changes: SliceChanges) -> None:
    """Note the update that makes `found` what is wanted, if one is needed."""
    before = found["metadata"]
    content = ("endpoints", "ports")
    same_content = all((found.get(key) or None) == (wanted.get(key) or None) for key in content)
    marks = ("labels", "annotations", "ownerReferences")
    same_marks = all((before.get(key) or None) == (wanted["metadata"].get(key) or None) for key in marks)
    if same_content and same_marks:
        return
    metadata = {key: value for key, value in before.items() if key not in marks} | wanted["metadata"]
    if not same_content:
        metadata["generation"] = before.get("generation", 1) + 1
    changes.update.append({**wanted, "metadata": metadata})
