"""What the pages show, read from the tables with a constant number of queries. Never writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Q

from services_app.models import Change, ControlPlane, EndpointSlice, Node, NodeAccess, Service
from services_app.web.liveness import (
    LIVE,
    NOT_ENROLLED,
    PENDING,
    SEVERITY,
    Lag,
    Liveness,
    NodeReport,
    liveness_of,
    sort_nodes,
)

NODES_PER_PAGE = 10
NUL = "\x00"  # PostgreSQL refuses a text that holds it, so nothing stored does
LAG_DEPTH = 1000  # "behind by 1,000+" beyond this


@dataclass(frozen=True)
class PortRow:
    """One port of a Service, in Kubernetes' words."""

    name: str
    port: int
    protocol: str
    target: str  # a number or a name; empty when it is the port itself
    node_port: int | None


@dataclass(frozen=True)
class EndpointRow:
    """One endpoint: an address with the ports of its slice."""

    address: str
    ports: str  # "8080" or "8080, 9090"; empty when the slice has none
    ready: bool
    serving: bool
    terminating: bool
    node: str
    target: str  # "Pod web-1"; empty when written by hand
    zone: str = ""
    slice: str = ""  # the name of its EndpointSlice

    @property
    def state(self) -> str:
        if self.ready:
            return "Ready"
        if self.terminating:
            return "Terminating, serving" if self.serving else "Terminating"
        return "Not ready"

    @property
    def socket(self) -> str:
        host = f"[{self.address}]" if ":" in self.address and self.ports else self.address
        return f"{host}:{self.ports}" if self.ports else host


@dataclass(frozen=True)
class ServiceRow:
    """One Service as a row of the table."""

    namespace: str
    name: str
    type: str
    cluster_ip: str  # an address, "None" for headless, the external name for ExternalName
    external: Sequence[str]  # external IPs and load balancer addresses
    ports: Sequence[PortRow]
    endpoints: Sequence[EndpointRow]
    has_selector: bool
    programmed: bool | None
    changed_revision: int
    created_at: datetime
    liveness: Liveness

    @property
    def ready(self) -> int:
        return sum(1 for endpoint in self.endpoints if endpoint.ready)


@dataclass(frozen=True)
class NodesView:
    """Every node, and how they are counted."""

    reports: Sequence[NodeReport]  # sorted, the troubled first
    counts: Sequence[tuple[str, int]]
    lag: Lag
    revision: int  # the newest of all

    @property
    def enrolled(self) -> Sequence[NodeReport]:
        return [report for report in self.reports if report.enrolled]

    @property
    def live(self) -> int:
        return sum(1 for report in self.reports if report.state == LIVE)


def read_lag() -> Lag:
    """The newest revisions that concern nodes. One query."""
    newest = list(
        Change.objects.filter(owner__isnull=False)
        .order_by("-revision")
        .values_list("revision", flat=True)[: LAG_DEPTH + 1]
    )
    return Lag(revisions=newest[:LAG_DEPTH][::-1], truncated=len(newest) > LAG_DEPTH)


def report_of(access: NodeAccess, address: str | None, lag: Lag) -> NodeReport:
    """What is known of an enrolled node. address: of its Node object. No query when `sync` was selected with it."""
    sync = getattr(access, "sync", None)
    address = address or access.address
    if sync is None:
        return NodeReport(name=access.node, address=address, state=PENDING)
    return NodeReport(
        name=access.node,
        address=address,
        state=sync.state,
        reason=sync.reason,
        message=sync.message,
        applied_revision=sync.applied_revision,
        rejected=sync.rejected,
        problems=sync.problems,
        agent_version=sync.agent_version,
        last_report_at=sync.last_report_at,
        last_apply_ms=sync.last_apply_ms,
        behind=lag.between(sync.applied_revision, lag.newest),
    )


def read_nodes() -> NodesView:
    """All nodes with what they last reported. Four queries, whatever their number."""
    revision = ControlPlane.objects.values_list("revision", flat=True).first() or 0
    accesses = list(
        NodeAccess.objects.select_related("sync").only(
            "node", "address", "port", "user",
            "sync__state", "sync__reason", "sync__message", "sync__applied_revision", "sync__rejected",
            "sync__problems", "sync__agent_version", "sync__last_report_at", "sync__last_apply_ms",
        )
    )  # fmt: skip
    addresses = dict(Node.objects.values_list("name", "address"))
    lag = read_lag()
    reports = [report_of(access, addresses.pop(access.node, None), lag) for access in accesses]
    reports += [NodeReport(name=name, address=address or "", state=NOT_ENROLLED) for name, address in addresses.items()]
    counts: dict[str, int] = {}
    for report in reports:
        counts[report.status] = counts.get(report.status, 0) + 1
    return NodesView(
        reports=sort_nodes(reports),
        counts=tuple((status, counts[status]) for status in SEVERITY if status in counts),
        lag=lag,
        revision=revision,
    )


def count_services(seen: frozenset[str] | None = None) -> tuple[int, int]:
    """(all Services, those with Programmed = True). seen: the namespaces that count; None: all."""
    services = Service.objects.all() if seen is None else Service.objects.filter(namespace__in=seen)
    counts = services.aggregate(total=Count("pk"), programmed=Count("pk", filter=Q(programmed=True)))
    return counts["total"], counts["programmed"]


def slices_of(services: Sequence[Service]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(namespace, name) -> the Service's EndpointSlices, decoded. One query, by the index on both names."""
    if not services:
        return {}
    names_by_namespace: dict[str, list[str]] = {}
    for service in services:
        names_by_namespace.setdefault(service.namespace, []).append(service.name)
    wanted = Q()
    for namespace, names in names_by_namespace.items():
        wanted |= Q(namespace=namespace, service_name__in=names)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = EndpointSlice.objects.filter(wanted).order_by("namespace", "name")
    for namespace, name, document in rows.values_list("namespace", "service_name", "document"):
        found.setdefault((namespace, name), []).append(json.loads(document))
    return found


def service_row(service: Service, slices: list[dict[str, Any]], enrolled: Sequence[NodeReport], lag: Lag) -> ServiceRow:
    """One Service as a row. slices: its EndpointSlices, decoded. enrolled: the nodes that should hold it."""
    document = json.loads(service.document)
    spec = document.get("spec", {})
    balancer = document.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    if service.type == "ExternalName":
        address = spec.get("externalName", "")
    else:
        address = service.cluster_ip or spec.get("clusterIP", "")
    return ServiceRow(
        namespace=service.namespace,
        name=service.name,
        type=service.type,
        cluster_ip=address,
        external=[
            *(spec.get("externalIPs") or []),
            *(entry.get("ip") or entry.get("hostname") or "" for entry in balancer),
        ],
        ports=[_port(port) for port in spec.get("ports") or []],
        endpoints=_endpoints(slices, "IPv6" if ":" in (service.cluster_ip or "") else "IPv4"),
        has_selector=bool(service.selector),
        programmed=service.programmed,
        changed_revision=service.changed_revision,
        created_at=service.created_at,
        liveness=liveness_of(f"{service.namespace}/{service.name}", service.changed_revision, enrolled, lag),
    )


def _port(port: dict[str, Any]) -> PortRow:
    target = port.get("targetPort")
    return PortRow(
        name=port.get("name", ""),
        port=port["port"],
        protocol=port.get("protocol", "TCP"),
        target="" if target in (None, port["port"]) else str(target),
        node_port=port.get("nodePort"),
    )


def _endpoints(slices: list[dict[str, Any]], family: str) -> list[EndpointRow]:
    """The endpoints of the Service's first address family, so that dual stack does not count a pod twice."""
    return endpoint_rows([item for item in slices if item.get("addressType") == family] or slices)


def endpoint_rows(slices: Sequence[dict[str, Any]]) -> list[EndpointRow]:
    """Every endpoint of some EndpointSlices, in their order."""
    rows = []
    for item in slices:
        ports = ", ".join(str(port["port"]) for port in item.get("ports") or [] if port.get("port") is not None)
        for endpoint in item.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            target = endpoint.get("targetRef") or {}
            ready = conditions.get("ready") is not False
            serving = conditions.get("serving")
            rows.append(
                EndpointRow(
                    address=next(iter(endpoint.get("addresses") or []), ""),
                    ports=ports,
                    ready=ready,
                    serving=ready if serving is None else serving,
                    terminating=bool(conditions.get("terminating")),
                    node=endpoint.get("nodeName") or "",
                    target=f"{target.get('kind', '')} {target.get('name', '')}".strip(),
                    zone=endpoint.get("zone") or "",
                    slice=item["metadata"]["name"],
                )
            )
    return rows
