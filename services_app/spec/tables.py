"""Objects as the tables that `kubectl get` prints, and as their metadata alone. Pure: the caller says what time it is.

Columns and cells follow k8s v1.36 pkg/printers/internalversion/printers.go.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from services_app.spec import event
from services_app.spec.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    ENDPOINTS,
    EVENT,
    EVENTS_EVENT,
    INGRESS,
    INGRESS_CLASS,
    IP_ADDRESS,
    LEASE,
    NAMESPACE,
    NODE,
    POD,
    SECRET,
    SERVICE,
    SERVICE_CIDR,
    Kind,
)

Document = dict[str, Any]
Cells = list[Any]

GROUP = "meta.k8s.io"
NONE, UNKNOWN, UNSET = "<none>", "<unknown>", "<unset>"
_SHOWN = 3  # elements of a list before "+ N more..."

# kind -> (name, type, format, priority, description); priority 1: with -o wide only
_AGE = ("Age", "string", "", 0, "Time since the object was created.")
_NAME = ("Name", "string", "name", 0, "The object's name, unique within its namespace and kind.")
_COLUMNS: dict[Kind, tuple[tuple[str, str, str, int, str], ...]] = {
    SERVICE: (
        _NAME,
        ("Type", "string", "", 0, "How the Service is exposed."),
        ("Cluster-IP", "string", "", 0, "The Service's virtual IP."),
        ("External-IP", "string", "", 0, "Addresses outside of the cluster that lead to the Service."),
        ("Port(s)", "string", "", 0, "Port, node port and protocol of each port."),
        _AGE,
        ("Selector", "string", "", 1, "Labels of the Pods behind the Service."),
    ),
    ENDPOINTS: (_NAME, ("Endpoints", "string", "", 0, "Ready addresses with their ports."), _AGE),
    ENDPOINT_SLICE: (
        _NAME,
        ("AddressType", "string", "", 0, "IPv4, IPv6 or FQDN."),
        ("Ports", "string", "", 0, "The ports of all endpoints of the slice."),
        ("Endpoints", "string", "", 0, "The addresses of the slice."),
        _AGE,
    ),
    NAMESPACE: (_NAME, ("Status", "string", "", 0, "The phase of the Namespace."), _AGE),
    POD: (
        _NAME,
        ("Ready", "string", "", 0, "Ready containers of all."),
        ("Status", "string", "", 0, "Phase, or what keeps the Pod from it."),
        ("Restarts", "string", "", 0, "How often containers were restarted."),
        _AGE,
        ("IP", "string", "", 1, "The Pod's first address."),
        ("Node", "string", "", 1, "The Node the Pod is on."),
        ("Nominated Node", "string", "", 1, "The Node the Pod may be moved to."),
        ("Readiness Gates", "string", "", 1, "Readiness gates that are passed, of all."),
    ),
    NODE: (
        _NAME,
        ("Status", "string", "", 0, "Whether the Node is ready."),
        ("Roles", "string", "", 0, "Roles by label."),
        _AGE,
        ("Version", "string", "", 0, "The version of the Node's agent."),
        ("Internal-IP", "string", "", 1, "The Node's address."),
        ("External-IP", "string", "", 1, "The Node's address from outside."),
        ("OS-Image", "string", "", 1, "The operating system."),
        ("Kernel-Version", "string", "", 1, "The kernel."),
        ("Container-Runtime", "string", "", 1, "The container runtime."),
    ),
    EVENT: (
        ("Last Seen", "string", "", 0, "When it was last observed."),
        ("Type", "string", "", 0, "Normal or Warning."),
        ("Reason", "string", "", 0, "Why, in one word."),
        ("Object", "string", "", 0, "What it is about."),
        ("Subobject", "string", "", 1, "The part of the object."),
        ("Source", "string", "", 1, "Who reports."),
        ("Message", "string", "", 0, "What happened."),
        ("First Seen", "string", "", 1, "When it was first observed."),
        ("Count", "integer", "", 1, "How often it was observed."),
        ("Name", "string", "name", 1, "The event's name."),
    ),
    CONFIG_MAP: (_NAME, ("Data", "string", "", 0, "The number of keys."), _AGE),
    SECRET: (
        _NAME,
        ("Type", "string", "", 0, "What the Secret is for."),
        ("Data", "string", "", 0, "The number of keys."),
        _AGE,
    ),
    LEASE: (_NAME, ("Holder", "string", "", 0, "Who holds the lease."), _AGE),
    INGRESS: (
        _NAME,
        ("Class", "string", "", 0, "The IngressClass that is to serve it."),
        ("Hosts", "string", "", 0, "The hosts of its rules."),
        ("Address", "string", "", 0, "Where it is served."),
        ("Ports", "string", "", 0, "The ports it is served on."),
        _AGE,
    ),
    INGRESS_CLASS: (
        _NAME,
        ("Controller", "string", "", 0, "Who serves Ingresses of this class."),
        ("Parameters", "string", "", 0, "Where the controller finds more."),
        _AGE,
    ),
    # Rows have a third cell, the age, as Kubernetes' have; it names no column for it either.
    IP_ADDRESS: (_NAME, ("ParentRef", "string", "", 0, "What the address belongs to.")),
    SERVICE_CIDR: (_NAME, ("CIDRs", "string", "", 0, "The ranges of cluster IPs."), _AGE),
}
_COLUMNS[EVENTS_EVENT] = _COLUMNS[EVENT]


def table(
    kind: Kind,
    documents: Iterable[Document],
    *,
    now: datetime,
    version: str = "v1",
    metadata: Document | None = None,
    include: str = "Metadata",
    with_columns: bool = True,
) -> Document:
    """A Table of documents. metadata: the list's. include: None, Metadata or Object, what each row carries along."""
    made: Document = {"kind": "Table", "apiVersion": f"{GROUP}/{version}", "metadata": metadata or {}}
    made["columnDefinitions"] = _column_definitions(kind) if with_columns else None
    made["rows"] = [_row(kind, document, now, version, include) for document in documents]
    return made


def bookmark(kind: Kind, document: Document, *, version: str = "v1", with_columns: bool = True) -> Document:
    """A watch bookmark in the form of a Table: no cells, the document in its place."""
    made = table(kind, [], now=datetime.min, version=version, metadata=document["metadata"], with_columns=with_columns)
    blank = [0 if column["type"] == "integer" else "" for column in _column_definitions(kind)]
    made["rows"] = [{"cells": blank, "object": partial(document, version=version)}]
    return made


def partial(document: Document, *, version: str = "v1") -> Document:
    """An object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"{GROUP}/{version}", "metadata": document["metadata"]}


def _column_definitions(kind: Kind) -> list[Document]:
    names = ("name", "type", "format", "priority", "description")
    return [dict(zip(names, column, strict=True)) for column in _COLUMNS[kind]]


def _row(kind: Kind, document: Document, now: datetime, version: str, include: str) -> Document:
    row: Document = {"cells": _CELLS[kind](document, now)}
    if kind is POD and (phase := (document.get("status") or {}).get("phase")) in ("Succeeded", "Failed"):
        row["conditions"] = [{"type": "Completed", "status": "True", "reason": phase}]
    if include == "Object":
        row["object"] = document
    else:
        row["object"] = None if include == "None" else partial(document, version=version)
    return row


# Cells


def _service(document: Document, now: datetime) -> Cells:
    spec = document["spec"]
    ips = spec.get("clusterIPs") or ()
    ports = ",".join(_service_port(port) for port in spec.get("ports") or ())
    return [
        document["metadata"]["name"],
        spec.get("type", ""),
        ips[0] if ips else NONE,
        _external(document),
        ports or NONE,
        _age(document, now),
        _labels(spec.get("selector")),
    ]


def _service_port(port: Document) -> str:
    node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}"


def _external(document: Document) -> str:
    spec = document["spec"]
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", ""))
    given = list(spec.get("externalIPs") or ())
    if spec.get("type") != "LoadBalancer":
        return ",".join(given) or NONE
    balancer = (document.get("status") or {}).get("loadBalancer") or {}
    ingress = {entry.get("ip") or entry.get("hostname") or "" for entry in balancer.get("ingress") or ()} - {""}
    text = ",".join(sorted(ingress))
    return ",".join([text, *given] if text else given) or "<pending>"


def _endpoints(document: Document, now: datetime) -> Cells:
    subsets = document.get("subsets") or []
    listed = [
        address["ip"] if port is None else _host_port(address["ip"], port["port"])
        for subset in subsets
        for port in subset.get("ports") or (None,)
        for address in subset.get("addresses") or ()
    ]
    return [document["metadata"]["name"], _some(listed) if subsets else NONE, _age(document, now)]


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _slice(document: Document, now: datetime) -> Cells:
    ports = [str(port.get("port") or port.get("name") or "*") for port in document.get("ports") or ()]
    addresses = [a for endpoint in document.get("endpoints") or () for a in endpoint.get("addresses") or ()]
    return [
        document["metadata"]["name"],
        document["addressType"],
        _some(ports) or UNSET,
        _some(addresses) or UNSET,
        _age(document, now),
    ]


def _namespace(document: Document, now: datetime) -> Cells:
    return [document["metadata"]["name"], (document.get("status") or {}).get("phase", ""), _age(document, now)]


def _pod(document: Document, now: datetime) -> Cells:
    spec, status = document.get("spec") or {}, document.get("status") or {}
    containers = status.get("containerStatuses") or ()
    restarts = sum(container.get("restartCount", 0) for container in containers)
    addresses = [entry["ip"] for entry in status.get("podIPs") or ()] or [status.get("podIP", "")]
    conditions = {c["type"]: c.get("status") for c in status.get("conditions") or ()}
    gates = [gate["conditionType"] for gate in spec.get("readinessGates") or ()]
    passed = sum(conditions.get(gate) == "True" for gate in gates)
    ready = sum(bool(c.get("ready") and (c.get("state") or {}).get("running")) for c in containers)
    return [
        document["metadata"]["name"],
        f"{ready}/{len(spec.get('containers') or ())}",
        _pod_status(document, status, containers, conditions),
        f"{restarts}{_last_restart(containers, now)}" if restarts else "0",
        _age(document, now),
        addresses[0] or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        f"{passed}/{len(gates)}" if gates else NONE,
    ]


def _pod_status(document: Document, status: Document, containers: Sequence[Document], conditions: Document) -> str:
    reason = str(status.get("reason") or status.get("phase") or "")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    is_running = False
    for container in reversed(containers):
        state = container.get("state") or {}
        waiting, terminated = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated is not None:
            signal, code = terminated.get("signal"), terminated.get("exitCode", 0)
            reason = terminated.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}")
        elif container.get("ready") and state.get("running") is not None:
            is_running = True
    if reason == "Completed" and is_running:
        reason = "Running" if conditions.get("Ready") == "True" else "NotReady"
    if document["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in ("Succeeded", "Failed"):
            return "Terminating"
    return reason


def _last_restart(containers: Iterable[Document], now: datetime) -> str:
    ended = [((c.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for c in containers]
    newest = max((at for at in ended if at), default="")
    return f" ({_since(newest, now)} ago)" if newest else ""


def _node(document: Document, now: datetime) -> Cells:
    spec, status = document.get("spec") or {}, document.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"), "")
    words = [{"True": "Ready", "": "Unknown"}.get(ready, "NotReady")]
    if spec.get("unschedulable"):
        words.append("SchedulingDisabled")
    roles = set()
    for key, value in (document["metadata"].get("labels") or {}).items():
        if key.startswith("node-role.kubernetes.io/"):
            roles.add(key.partition("/")[2])
        elif key == "kubernetes.io/role" and value:
            roles.add(value)
    info = status.get("nodeInfo") or {}
    addresses: dict[str, str] = {}
    for entry in status.get("addresses") or ():
        addresses.setdefault(entry["type"], entry["address"])
    return [
        document["metadata"]["name"],
        ",".join(words),
        ",".join(sorted(roles - {""})) or NONE,
        _age(document, now),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", NONE),
        addresses.get("ExternalIP", NONE),
        info.get("osImage") or UNKNOWN,
        info.get("kernelVersion") or UNKNOWN,
        info.get("containerRuntimeVersion") or UNKNOWN,
    ]


def _event(document: Document, now: datetime) -> Cells:
    about = document.get("involvedObject") or {}
    series = document.get("series") or {}
    source = document.get("source") or {}
    first = document.get("firstTimestamp") or document.get("eventTime") or ""
    last = series.get("lastObservedTime") or document.get("lastTimestamp") or first
    component = source.get("component") or document.get("reportingComponent") or ""
    host = source.get("host") or document.get("reportingInstance") or ""
    return [
        _since(last, now),
        document.get("type", ""),
        document.get("reason", ""),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        about.get("fieldPath", ""),
        f"{component}, {host}" if component and host else component,
        document.get("message", "").strip(),
        _since(first, now),
        series.get("count") or document.get("count") or 1,
        document["metadata"]["name"],
    ]


def _config_map(document: Document, now: datetime) -> Cells:
    count = len(document.get("data") or ()) + len(document.get("binaryData") or ())
    return [document["metadata"]["name"], count, _age(document, now)]


def _secret(document: Document, now: datetime) -> Cells:
    return [
        document["metadata"]["name"],
        document.get("type", ""),
        len(document.get("data") or ()),
        _age(document, now),
    ]


def _lease(document: Document, now: datetime) -> Cells:
    return [document["metadata"]["name"], document["spec"].get("holderIdentity") or "", _age(document, now)]


def _ingress(document: Document, now: datetime) -> Cells:
    spec = document["spec"]
    hosts = [rule["host"] for rule in spec.get("rules") or () if rule.get("host")]
    entries = document["status"]["loadBalancer"].get("ingress") or ()
    return [
        document["metadata"]["name"],
        spec.get("ingressClassName") or NONE,
        _some(hosts) or "*",
        ",".join(sorted({entry.get("ip") or entry.get("hostname") or "" for entry in entries} - {""})),
        "80, 443" if spec.get("tls") else "80",
        _age(document, now),
    ]


def _ingress_class(document: Document, now: datetime) -> Cells:
    parameters = document["spec"].get("parameters")
    shown = NONE
    if parameters is not None:
        group = f".{parameters['apiGroup']}" if parameters.get("apiGroup") else ""
        shown = f"{parameters['kind']}{group}/{parameters['name']}"
    return [document["metadata"]["name"], document["spec"].get("controller", ""), shown, _age(document, now)]


def _ip_address(document: Document, now: datetime) -> Cells:
    reference = document["spec"].get("parentRef")
    shown = NONE
    if reference is not None:
        group = f".{reference['group']}" if reference.get("group") else ""
        place = [f"{reference.get('resource', '')}{group}", reference.get("namespace"), reference.get("name")]
        shown = "/".join(part for part in place if part)
    return [document["metadata"]["name"], shown, _age(document, now)]


def _service_cidr(document: Document, now: datetime) -> Cells:
    return [document["metadata"]["name"], ",".join(document["spec"].get("cidrs") or ()), _age(document, now)]


_CELLS: dict[Kind, Callable[[Document, datetime], Cells]] = {
    SERVICE: _service,
    ENDPOINTS: _endpoints,
    ENDPOINT_SLICE: _slice,
    NAMESPACE: _namespace,
    POD: _pod,
    NODE: _node,
    EVENT: _event,
    EVENTS_EVENT: lambda document, now: _event(event.to_core(document), now),
    CONFIG_MAP: _config_map,
    SECRET: _secret,
    LEASE: _lease,
    INGRESS: _ingress,
    INGRESS_CLASS: _ingress_class,
    IP_ADDRESS: _ip_address,
    SERVICE_CIDR: _service_cidr,
}


def _some(texts: Sequence[str]) -> str:
    text = ",".join(texts[:_SHOWN])
    return f"{text} + {len(texts) - _SHOWN} more..." if len(texts) > _SHOWN else text


def _labels(labels: dict[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def _age(document: Document, now: datetime) -> str:
    return _since(document["metadata"].get("creationTimestamp") or "", now)


def _since(timestamp: str, now: datetime) -> str:
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return UNKNOWN
    return human_duration(int((now - then).total_seconds()))


def human_duration(seconds: int) -> str:
    """A span of time in at most two units, as kubectl shows ages: "35s", "3m12s", "5h", "2d4h", "1y30d"."""
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 2920:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"
