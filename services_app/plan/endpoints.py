"""EndpointSlices and Endpoints that follow from a Service and its Pods.

Pure: the caller hands in what exists and gets back what must change. Rules: k8s v1.36
staging/src/k8s.io/endpointslice (reconciler.go, utils.go) and pkg/controller/endpoint (endpoints_controller.go).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services_app.spec import balancing

Document = dict[str, Any]

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_CONTROLLER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
ENDPOINTS_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
ZONE = "topology.kubernetes.io/zone"

MAX_ENDPOINTS_PER_SLICE = 100
MAX_ENDPOINTS_ADDRESSES = 1000


@dataclass(frozen=True)
class SliceChanges:
    """What must be written so that a Service's slices are right; all empty when they are."""

    create: list[Document] = field(default_factory=list)
    update: list[Document] = field(default_factory=list)
    delete: list[Document] = field(default_factory=list)


def has_endpoints(service: Document) -> bool:
    """Whether endpoints are derived for the Service: it selects Pods and has addresses of its own."""
    spec = service["spec"]
    return bool(spec.get("selector")) and spec.get("type") != "ExternalName"


def is_headless(service: Document) -> bool:
    return service["spec"].get("clusterIP") == "None"


def selector_pair(selector: Mapping[str, str] | None) -> str | None:
    """The one pair of a selector kept in an index; see `label_pairs`."""
    if not selector:
        return None
    key = min(selector)
    return f"{key}={selector[key]}"


def label_pairs(labels: Mapping[str, str]) -> list[str]:
    """Every pair by which a Service that selects these labels can be found."""
    return [f"{key}={value}" for key, value in labels.items()]


def traits(pod: Document) -> Document | None:
    """What endpoints depend on of a Pod; None when it can be no endpoint (ended, or without address).

    Keys: uid, namespace, name, node, ips, ready, terminating, hostname, subdomain, ports (list of [name, protocol, number]);
    weight, when it is not the default.
    """
    status = pod.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return None
    ips = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]
    if not ips and status.get("podIP"):
        ips = [status["podIP"]]
    if not ips:
        return None
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    ports = [
        [port["name"], port.get("protocol") or "TCP", port["containerPort"]]
        for container in [*(spec.get("containers") or ()), *sidecars]
        for port in container.get("ports") or ()
        if port.get("name")
    ]
    weight = balancing.weight_of(pod)
    return {
        "uid": metadata["uid"],
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "node": spec.get("nodeName") or "",
        "ips": ips,
        "ready": is_ready(pod),
        "terminating": bool(metadata.get("deletionTimestamp")),
        "hostname": spec.get("hostname") or "",
        "subdomain": spec.get("subdomain") or "",
        "ports": ports,
        **({"weight": weight} if weight != balancing.DEFAULT_WEIGHT else {}),
    }


def is_ready(pod: Document) -> bool:
    """Whether the Pod's Ready condition is True."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def zone_of(node: Document | None) -> str:
    """The zone a Node is in, "" for none."""
    return ((node or {}).get("metadata", {}).get("labels") or {}).get(ZONE) or ""


def plan_slices(
    service: Document,
    pods: Iterable[Document],
    existing: Iterable[Document],
    *,
    zones: Mapping[str, str],
    now: str,
    new_name: Callable[[str], str],
    capacity: int = MAX_ENDPOINTS_PER_SLICE,
) -> SliceChanges:
    """The smallest change that makes a Service's derived slices right.

    pods: traits of the Pods that match the selector.
    existing: the slices this function made before (managed by the slice controller), whole documents.
    zones: name -> zone ("" for none) of every Node the Pods name; a Pod whose Node is not there is left out,
        unless not-ready addresses are published.
    now: RFC 3339 time for the trigger annotation. new_name: prefix -> a name not in use.
    """
    existing = list(existing)
    if not has_endpoints(service):
        # As in Kubernetes, slices made before a selector was removed stay; those of a Service turned ExternalName go.
        return SliceChanges(delete=existing if service["spec"].get("type") == "ExternalName" else [])
    changes = SliceChanges()
    pods = sorted(pods, key=lambda pod: pod["name"])
    weights = {pod["uid"]: pod["weight"] for pod in pods if "weight" in pod}
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    for stray in existing:
        if stray["addressType"] not in families:
            changes.delete.append(stray)
    for family in families:
        desired = _by_ports(service, pods, family, zones)
        of_family = [s for s in existing if s["addressType"] == family]
        _place(service, family, desired, of_family, weights, changes, now, new_name, capacity)
    return changes


def _by_ports(
    service: Document, pods: Iterable[Document], family: str, zones: Mapping[str, str]
) -> dict[tuple, list[Document]]:
    """Port set -> endpoints whose Pods resolve the Service's ports to it."""
    groups: dict[tuple, list[Document]] = {}
    publish_all = bool(service["spec"].get("publishNotReadyAddresses"))
    for pod in pods:
        addresses = [ip for ip in pod["ips"] if _family(ip) == family]
        if not addresses or (pod["node"] not in zones and not publish_all):
            continue
        ports = tuple(
            (port.get("name") or "", port["protocol"], number, port.get("appProtocol"))
            for port in service["spec"].get("ports") or ()
            if (number := target_port(port, pod)) is not None
        )
        groups.setdefault(ports, []).append(_endpoint(service, pod, addresses[:1], publish_all, zones))
    return groups


def _endpoint(
    service: Document, pod: Document, addresses: list[str], publish_all: bool, zones: Mapping[str, str]
) -> Document:
    ready, terminating = pod["ready"], pod["terminating"]
    endpoint: Document = {
        "addresses": addresses,
        "conditions": {
            "ready": publish_all or (ready and not terminating),
            "serving": ready,
            "terminating": terminating,
        },
    }
    if pod["hostname"] and pod["subdomain"] == service["metadata"]["name"]:
        endpoint["hostname"] = pod["hostname"]
    endpoint["targetRef"] = {"kind": "Pod", "namespace": pod["namespace"], "name": pod["name"], "uid": pod["uid"]}
    if pod["node"]:
        endpoint["nodeName"] = pod["node"]
    zone = zones.get(pod["node"])
    if zone:
        endpoint["zone"] = zone
    hints = _hints(service["spec"].get("trafficDistribution"), pod["node"], zone)
    if hints and endpoint["conditions"]["ready"]:
        endpoint["hints"] = hints
    return endpoint


def _hints(distribution: str | None, node: str, zone: str | None) -> Document:
    hints: Document = {}
    if distribution in ("PreferClose", "PreferSameZone", "PreferSameNode") and zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode" and node:
        hints["forNodes"] = [{"name": node}]
    return hints


def target_port(port: Document, pod: Document) -> int | None:
    """The number a Service port means on a Pod; None when the Pod has no port of that name and protocol."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for name, protocol, number in pod["ports"]:
        if name == target and protocol == port["protocol"]:
            return number
    return None


def _place(
    service: Document,
    family: str,
    desired: dict[tuple, list[Document]],
    existing: list[Document],
    weights: Mapping[str, int],
    changes: SliceChanges,
    now: str,
    new_name: Callable[[str], str],
    capacity: int,
) -> None:
    """Spread the desired endpoints of one family over slices, keeping each where it is as far as possible.

    weights: uid of a Pod -> its weight, when it has one.
    """
    labels = _slice_labels(service)
    by_ports: dict[tuple, list[Document]] = {}
    for item in existing:
        by_ports.setdefault(_ports_of(item), []).append(item)
    if not desired:
        # One empty slice stays as a sign that the Service was looked at.
        desired = {(): []}
        by_ports = {(): by_ports.get((), [])[:1], **{k: v for k, v in by_ports.items() if k != ()}}
        changes.delete.extend(s for s in existing if _ports_of(s) == () and s not in by_ports[()])
    for ports in by_ports.keys() - desired.keys():
        changes.delete.extend(by_ports[ports])
    for ports, endpoints in desired.items():
        waiting = {e["targetRef"]["uid"]: e for e in endpoints}
        kept: list[tuple[Document, list[Document]]] = []
        for item in by_ports.get(ports, ()):
            stay = [
                waiting.pop(uid)
                for e in item.get("endpoints") or ()
                if (uid := (e.get("targetRef") or {}).get("uid")) in waiting
            ]
            if stay or not endpoints:
                kept.append((item, stay))
            else:
                changes.delete.append(item)
        # New endpoints go to slices that change anyway, then to those with most room taken; only then into new ones.
        kept.sort(key=lambda pair: (pair[1] == (pair[0].get("endpoints") or []), -len(pair[1])))
        new = list(waiting.values())
        for item, stay in kept:
            room = capacity - len(stay)
            wanted = [*stay, *new[:room]] if room > 0 else stay
            new = new[room:] if room > 0 else new
            marks = _weights_mark(wanted, weights)
            same_marks = (item["metadata"].get("annotations") or {}).get(balancing.WEIGHTS) == marks.get(
                balancing.WEIGHTS
            )
            if wanted != (item.get("endpoints") or []) or item["metadata"].get("labels") != labels or not same_marks:
                changes.update.append(_rewritten(item, wanted, labels, marks, now))
        while new or (not endpoints and not kept):
            marks = {TRIGGER_TIME: now, **_weights_mark(new[:capacity], weights)}
            changes.create.append(_new_slice(service, family, ports, new[:capacity], labels, marks, new_name))
            new = new[capacity:]
            if not endpoints:
                break


def _slice_labels(service: Document) -> dict[str, str]:
    reserved = (MANAGED_BY, SERVICE_NAME, HEADLESS)
    labels = {k: v for k, v in (service["metadata"].get("labels") or {}).items() if k not in reserved}
    labels[MANAGED_BY] = SLICE_CONTROLLER
    labels[SERVICE_NAME] = service["metadata"]["name"]
    if is_headless(service):
        labels[HEADLESS] = ""
    return labels


def _ports_of(item: Document) -> tuple:
    return tuple(
        (port.get("name") or "", port["protocol"], port["port"], port.get("appProtocol"))
        for port in item.get("ports") or ()
    )


def _weights_mark(endpoints: Iterable[Document], weights: Mapping[str, int]) -> dict[str, str]:
    """The annotation with the weights of a slice's endpoints, if one of them has a weight."""
    by_address = {e["addresses"][0]: weights[uid] for e in endpoints if (uid := e["targetRef"]["uid"]) in weights}
    text = balancing.weights_text(by_address)
    return {balancing.WEIGHTS: text} if text else {}


def _rewritten(
    item: Document, endpoints: list[Document], labels: dict[str, str], marks: dict[str, str], now: str
) -> Document:
    metadata = {**item["metadata"], "labels": labels}
    others = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != balancing.WEIGHTS}
    metadata["annotations"] = {**others, TRIGGER_TIME: now, **marks}
    metadata["generation"] = metadata.get("generation", 1) + 1
    return {**item, "metadata": metadata, "endpoints": endpoints or None}


def _new_slice(
    service: Document,
    family: str,
    ports: tuple,
    endpoints: list[Document],
    labels: dict[str, str],
    annotations: dict[str, str],
    new_name: Callable[[str], str],
) -> Document:
    name = service["metadata"]["name"]
    port_list = []
    for port_name, protocol, number, app_protocol in ports:
        entry: Document = {"name": port_name, "protocol": protocol, "port": number}
        if app_protocol:
            entry["appProtocol"] = app_protocol
        port_list.append(entry)
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": new_name(f"{name}-"),
            "generateName": f"{name}-",
            "namespace": service["metadata"]["namespace"],
            "generation": 1,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(service)],
        },
        "addressType": family,
        "endpoints": endpoints or None,
        "ports": port_list or None,
    }


def owner_reference(service: Document) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "name": service["metadata"]["name"],
        "uid": service["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def plan_endpoints(
    service: Document, pods: Iterable[Document], existing: Document | None, *, now: str
) -> Document | None:
    """The Endpoints object to write for a Service; None when the one that exists is right or none is derived.

    existing: what is stored now, or None. Arguments otherwise as for `plan_slices`.
    """
    if not has_endpoints(service):
        return None
    subsets, truncated = _subsets(service, pods)
    labels = {**(service["metadata"].get("labels") or {}), ENDPOINTS_MANAGED_BY: "endpoint-controller"}
    labels.pop(HEADLESS, None)
    if is_headless(service):
        labels[HEADLESS] = ""
    before = existing or {}
    annotations = dict(before.get("metadata", {}).get("annotations") or {})
    had_mark = annotations.pop(OVER_CAPACITY, None) is not None
    if existing is not None and had_mark == truncated:
        same_labels = (before["metadata"].get("labels") or {}) == labels
        if same_labels and (before.get("subsets") or []) == subsets:
            return None
    annotations[TRIGGER_TIME] = now
    if truncated:
        annotations[OVER_CAPACITY] = "truncated"
    metadata = dict(before.get("metadata") or {})
    metadata.update(name=service["metadata"]["name"], namespace=service["metadata"]["namespace"])
    metadata["labels"], metadata["annotations"] = labels, annotations
    document: Document = {"kind": "Endpoints", "apiVersion": "v1", "metadata": metadata}
    if subsets:
        document["subsets"] = subsets
    return document


def _subsets(service: Document, pods: Iterable[Document]) -> tuple[list[Document], bool]:
    """The subsets (ports that share their addresses together), and whether addresses were left out."""
    spec = service["spec"]
    publish_all = bool(spec.get("publishNotReadyAddresses"))
    family = (spec.get("ipFamilies") or ["IPv4"])[0]
    by_port: dict[tuple, dict[str, tuple[bool, Document]]] = {}
    for pod in sorted(pods, key=lambda p: p["name"]):
        address = next((ip for ip in pod["ips"] if _family(ip) == family), None)
        if address is None or (pod["terminating"] and not publish_all):
            continue
        entry: Document = {"ip": address}
        if pod["hostname"] and pod["subdomain"] == service["metadata"]["name"]:
            entry["hostname"] = pod["hostname"]
        if pod["node"]:
            entry["nodeName"] = pod["node"]
        entry["targetRef"] = {"kind": "Pod", "namespace": pod["namespace"], "name": pod["name"], "uid": pod["uid"]}
        ready = publish_all or pod["ready"]
        for port in spec.get("ports") or ():
            number = target_port(port, pod)
            if number is not None:
                key = (port.get("name") or "", number, port["protocol"], port.get("appProtocol"))
                by_port.setdefault(key, {})[pod["uid"]] = (ready, entry)
        if not spec.get("ports"):
            by_port.setdefault((), {})[pod["uid"]] = (ready, entry)
    shared: dict[tuple, list[tuple]] = {}
    for key, members in by_port.items():
        shared.setdefault(tuple(sorted(members)), []).append(key)
    groups = [(keys, list(by_port[keys[0]].values())) for keys in shared.values()]
    return _within_capacity(groups)


def _within_capacity(groups: list[tuple[list[tuple], list[tuple[bool, Document]]]]) -> tuple[list[Document], bool]:
    """Subsets of at most a thousand addresses in all, ready ones first, each subset cut in proportion."""
    total = sum(len(members) for _, members in groups)
    ready_total = sum(ready for _, members in groups for ready, _ in members)
    truncated = total > MAX_ENDPOINTS_ADDRESSES
    room_ready = min(ready_total, MAX_ENDPOINTS_ADDRESSES)
    room_unready = MAX_ENDPOINTS_ADDRESSES - room_ready
    subsets = []
    for keys, members in groups:
        ready = sorted((e for ok, e in members if ok), key=lambda e: e["ip"])
        unready = sorted((e for ok, e in members if not ok), key=lambda e: e["ip"])
        if truncated:
            ready = ready[: -(-len(ready) * room_ready // ready_total)] if ready_total else []
            unready_total = total - ready_total
            unready = unready[: len(unready) * room_unready // unready_total] if unready_total else []
        subset: Document = {}
        if ready:
            subset["addresses"] = ready
        if unready:
            subset["notReadyAddresses"] = unready
        ports = []
        for key in sorted((k for k in keys if k), key=lambda k: (k[0], k[1], k[2])):
            name, number, protocol, app_protocol = key
            port: Document = {"name": name} if name else {}
            port.update(port=number, protocol=protocol)
            if app_protocol:
                port["appProtocol"] = app_protocol
            ports.append(port)
        if ports:
            subset["ports"] = ports
        if ready or unready:
            subsets.append(subset)
    return subsets, truncated


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
