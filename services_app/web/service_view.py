"""One Service in full, as its page shows it. Reads with a constant number of queries; never writes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.paginator import Page, Paginator
from django.utils.safestring import SafeString

from services_app import audit
from services_app.models import Event, Service
from services_app.plan.routing import Record, plan_records
from services_app.spec import kinds
from services_app.spec.service import AFFINITY_TIMEOUT_S
from services_app.web.liveness import SEVERITY, Holding, NodeReport, holding_of
from services_app.web.overview import NUL, EndpointRow, NodesView, ServiceRow, endpoint_rows, service_row, slices_of
from services_app.web.yaml_text import DiffLine, changed_paths, differences, highlighted, to_yaml, writable

Document = dict[str, Any]

ENDPOINTS_PER_PAGE = 50
HOLDINGS_PER_PAGE = 20
EVENTS_SHOWN = 20
CHANGES_SHOWN = 10
NAMES_SHOWN = 40  # a headless Service has some for every endpoint
NODE_SOCKETS_SHOWN = 6  # per port; every other node answers at the same port
_RECORD_ORDER = ("CNAME", "A", "AAAA", "SRV", "PTR")


@dataclass(frozen=True)
class Socket:
    """One way to reach a port: address and number, as a client writes it."""

    text: str  # "10.96.0.7:80", "[fd00::7]:80"
    port: str  # the port's name; empty when it has none
    protocol: str


@dataclass(frozen=True)
class Reach:
    """Where a Service is reached, by kind of address. more: sockets left out."""

    kind: str
    hint: str
    sockets: Sequence[Socket]
    more: int = 0


@dataclass(frozen=True)
class Setting:
    """One setting of a Service in words. value: as in the spec."""

    title: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class EventRow:
    """What was told about the Service."""

    type: str
    reason: str
    message: str
    count: int
    source: str
    at: datetime | None


@dataclass(frozen=True)
class ChangeRow:
    """One write of the Service, from the log."""

    revision: int
    at: datetime
    user: str
    verb: str
    fields: Sequence[str]
    lines: Sequence[DiffLine]


@dataclass(frozen=True)
class ServiceView:
    """One Service with everything its page shows."""

    row: ServiceRow
    document: Document
    reach: Sequence[Reach]
    settings: Sequence[Setting]
    names: Sequence[Record]
    names_more: int
    endpoints: "Page[EndpointRow]"
    endpoints_ready: int
    holdings: "Page[Holding]"
    events: Sequence[EventRow]
    changes: Sequence[ChangeRow]
    log_kept: str
    yaml: str

    @property
    def metadata(self) -> Document:
        metadata: Document = self.document["metadata"]
        return metadata

    @property
    def selector(self) -> dict[str, str]:
        return self.document["spec"].get("selector") or {}

    @property
    def ports(self) -> Sequence[Document]:
        return self.document["spec"].get("ports") or []

    @property
    def conditions(self) -> Sequence[Document]:
        return self.document.get("status", {}).get("conditions") or []

    @property
    def finalizers(self) -> Sequence[str]:
        return self.metadata.get("finalizers") or []

    @property
    def highlighted_yaml(self) -> SafeString:
        return highlighted(self.yaml)


def find_service(namespace: str, name: str) -> Service | None:
    """The row of a Service, None when there is none. One query."""
    if NUL in namespace + name:
        return None
    found: Service | None = Service.objects.filter(namespace=namespace, name=name).first()
    return found


def read_service(
    namespace: str, name: str, nodes: NodesView, *, endpoints_page: str | None = None, nodes_page: str | None = None
) -> ServiceView | None:
    """One Service in full, None when there is no such Service. Four queries."""
    service = find_service(namespace, name)
    if service is None:
        return None
    slices = slices_of([service]).get((namespace, name), [])
    document = json.loads(service.document)
    endpoints = sorted(endpoint_rows(slices), key=lambda row: (row.ready, row.target, row.address))
    holdings = [holding_of(f"{namespace}/{name}", service.changed_revision, n, nodes.lag) for n in nodes.enrolled]
    holdings.sort(key=lambda holding: (SEVERITY.index(holding.status), holding.node.name))
    names = sorted(
        plan_records(document, slices, settings.TIMONEL_CLUSTER_DOMAIN),
        key=lambda record: (_RECORD_ORDER.index(record.type), record),
    )
    return ServiceView(
        row=service_row(service, slices, nodes.enrolled, nodes.lag),
        document=document,
        reach=_reach(document, nodes.enrolled),
        settings=_settings(document["spec"]),
        names=names[:NAMES_SHOWN],
        names_more=max(len(names) - NAMES_SHOWN, 0),
        endpoints=Paginator(endpoints, ENDPOINTS_PER_PAGE).get_page(endpoints_page),
        endpoints_ready=sum(1 for row in endpoints if row.ready),
        holdings=Paginator(holdings, HOLDINGS_PER_PAGE).get_page(nodes_page),
        events=_events(service),
        changes=_changes(namespace, name),
        log_kept=_duration(int(settings.TIMONEL_AUDIT_KEPT.total_seconds())),
        yaml=to_yaml(document),
    )


# Where it is reached


def addresses_of(document: Document) -> list[tuple[str, str, list[str]]]:
    """Kind, hint and the addresses that are the Service's own; a load balancer's may be a name."""
    spec = document["spec"]
    if spec.get("type") == "ExternalName":
        return []
    ingress = (document.get("status") or {}).get("loadBalancer", {}).get("ingress") or []
    external = "traffic that is routed to a node with this destination"
    return [
        ("Cluster IP", "from nodes and what runs on them", [ip for ip in spec.get("clusterIPs") or [] if ip != "None"]),
        ("External IP", external, spec.get("externalIPs") or []),
        ("Load balancer", "from outside", [e.get("ip") or e.get("hostname") or "" for e in ingress]),
    ]


def socket_at(address: str, number: int, port: Document) -> Socket:
    """port: of the Service; number: under which it is reached there."""
    host = f"[{address}]" if ":" in address else address
    return Socket(f"{host}:{number}", port.get("name", ""), port.get("protocol", "TCP"))


def _reach(document: Document, nodes: Iterable[NodeReport]) -> list[Reach]:
    ports = document["spec"].get("ports") or []
    own = [
        Reach(kind, hint, sockets)
        for kind, hint, addresses in addresses_of(document)
        if (sockets := [socket_at(address, port["port"], port) for address in addresses for port in ports])
    ]
    return own + _node_ports(ports, [node.address for node in nodes if node.address])


def _node_ports(ports: Sequence[Document], addresses: Sequence[str]) -> list[Reach]:
    exposed = [port for port in ports if port.get("nodePort")]
    if not exposed:
        return []
    pairs = [(address, port) for address in sorted(addresses) for port in exposed]
    shown = NODE_SOCKETS_SHOWN * len(exposed)
    sockets = [socket_at(address, port["nodePort"], port) for address, port in islice(pairs, shown)]
    numbers = ", ".join(f"{port['nodePort']}/{port.get('protocol', 'TCP')}" for port in exposed)
    return [Reach("Node port", f"{numbers} on every node", sockets, max(len(pairs) - shown, 0) // len(exposed))]


# Settings in words

_MEANINGS = {
    ("internalTrafficPolicy", "Cluster"): "Clients inside reach every endpoint.",
    ("internalTrafficPolicy", "Local"): "Clients inside reach endpoints on their own node only; without one, nothing.",
    ("externalTrafficPolicy", "Cluster"): "Clients outside reach every endpoint, by any node; their address may be "
    "replaced by the node's.",
    (
        "externalTrafficPolicy",
        "Local",
    ): "Clients outside reach endpoints on the node they asked; their address is kept.",
    ("sessionAffinity", "None"): "Each connection is balanced by itself.",
    ("ipFamilyPolicy", "SingleStack"): "One address.",
    ("ipFamilyPolicy", "PreferDualStack"): "An address of both families where the cluster has both.",
    ("ipFamilyPolicy", "RequireDualStack"): "An address of both families.",
    ("trafficDistribution", "PreferClose"): "Endpoints in the client's zone are preferred.",
    ("trafficDistribution", "PreferSameZone"): "Endpoints in the client's zone are preferred.",
    ("trafficDistribution", "PreferSameNode"): "Endpoints on the client's node are preferred.",
}


def _settings(spec: Document) -> list[Setting]:
    found = []

    def add(key: str, title: str, *, value: str = "", meaning: str = "") -> None:
        if spec.get(key) not in (None, "", [], False):
            shown = value or str(spec[key])
            found.append(Setting(title, shown, meaning or _MEANINGS.get((key, str(spec[key])), "")))

    affinity = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
    stays = f"A client stays with one endpoint until it was silent for {_duration(affinity or AFFINITY_TIMEOUT_S)}."
    add("sessionAffinity", "Session affinity", meaning=stays if spec.get("sessionAffinity") == "ClientIP" else "")
    if spec.get("type") != "ExternalName":
        add("internalTrafficPolicy", "Internal traffic policy")
        add("externalTrafficPolicy", "External traffic policy")
        add("trafficDistribution", "Traffic distribution")
        families = ", ".join(spec.get("ipFamilies") or [])
        add("ipFamilyPolicy", "IP families", value=f"{families} · {spec.get('ipFamilyPolicy')}")
    add("publishNotReadyAddresses", "Not ready endpoints", value="published", meaning="Names and proxies use them too.")
    add("loadBalancerClass", "Load balancer class")
    add("loadBalancerSourceRanges", "Allowed clients", value=", ".join(spec.get("loadBalancerSourceRanges") or []))
    add("healthCheckNodePort", "Health check node port", meaning="Answers whether a node has endpoints of its own.")
    return found


def _duration(seconds: int) -> str:
    """A whole number of the largest unit that fits: "3 h", "90 s"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# What happened


def _events(service: Service) -> list[EventRow]:
    """The newest Events about this Service, not about an earlier one of its name."""
    texts = (
        Event.objects.filter(namespace=service.namespace, involved_kind=kinds.SERVICE.kind, involved_name=service.name)
        .order_by("-revision")
        .values_list("document", flat=True)[:EVENTS_SHOWN]
    )
    rows = []
    for event in map(json.loads, texts):
        about = event.get("involvedObject") or {}
        if about.get("uid") and about["uid"] != str(service.uid):
            continue
        series = event.get("series") or {}
        at = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
        rows.append(
            EventRow(
                type=event.get("type") or "Normal",
                reason=event.get("reason") or "",
                message=event.get("message") or "",
                count=series.get("count") or event.get("count") or 1,
                source=event.get("reportingComponent") or (event.get("source") or {}).get("component") or "",
                at=_moment(at or event["metadata"]["creationTimestamp"]),
            )
        )
    return rows


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


_VERBS = {"ADDED": "created", "MODIFIED": "changed", "DELETED": "deleted"}


def _changes(namespace: str, name: str) -> list[ChangeRow]:
    """The newest writes of a Service of this name that are still recorded."""
    rows = audit.writes_of(kinds.SERVICE.plural, namespace, name)
    found = []
    for change in rows[:CHANGES_SHOWN]:
        before = json.loads(change.previous) if change.previous else None
        after = None if change.verb == audit.DELETED else json.loads(change.document or "null")
        lines = differences(_shown(before), _shown(after)) if before and after else []
        fields = [path for path in changed_paths(before, after) if path != "metadata.resourceVersion"]
        found.append(
            ChangeRow(
                revision=change.revision,
                at=change.at,
                user=change.user,
                verb=_VERBS[change.verb],
                fields=fields if before and after else [],
                lines=lines,
            )
        )
    return found


def _shown(document: Document | None) -> Document | None:
    """What a difference is about: all but what the server counts."""
    if document is None:
        return None
    return writable(document) | ({"status": document["status"]} if document.get("status") else {})
