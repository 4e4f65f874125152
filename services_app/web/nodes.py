"""The pages of nodes: all of them, one of them, and what a person may do to one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods
from django_htmx.middleware import HtmxDetails

from services_app import audit
from services_app.api import auth
from services_app.models import AuditEntry, Event, Node, NodeAccess, NodeOperation, Pod, Service
from services_app.plan.endpoints import ZONE
from services_app.push import enroll, operations
from services_app.push.errors import NodeError, remedy_of
from services_app.push.keys import fingerprint, from_line
from services_app.render.node import DNS_LISTEN
from services_app.spec import kinds
from services_app.spec.errors import ApiError
from services_app.web.liveness import LIVE, NOT_ENROLLED, SEVERITY, NodeReport
from services_app.web.overview import NodesView, read_lag, read_nodes, report_of
from services_app.web.service_list import NUL
from services_app.web.views import View, forbidden, guarded, logged_in, may, page

PER_PAGE = 50
SHOWN = 50  # Pods, Services, events and changes on a node's page


def may_operate(user: Any) -> bool:
    """Whether a user may do something to nodes: the one place where the pages ask."""
    return auth.may(user, "update", kinds.NODE, None)


def for_operators(view: View) -> View:
    """A page for users who may do something to nodes; others are told so."""

    @wraps(view)
    def for_them(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not may_operate(request.user):
            return render(request, "web/node_forbidden.html", status=403)
        return view(request, *args, **kwargs)

    return guarded(logged_in(for_them))


# The list


@dataclass(frozen=True)
class NodeFilter:
    """What the user asked to see; every field may be empty."""

    text: str = ""
    state: str = ""  # a status of liveness.SEVERITY
    zone: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.state or self.zone)

    def matches(self, row: "NodeRow") -> bool:
        report = row.report
        return (
            (not self.state or report.status == self.state)
            and (not self.zone or row.zone == self.zone)
            and all(word in row.haystack for word in self.text.lower().split())
        )


@dataclass(frozen=True)
class NodeRow:
    """One node as a row of the table."""

    report: NodeReport
    login: str  # user@address:port; empty when it is not enrolled
    zone: str

    @property
    def haystack(self) -> str:
        report = self.report
        return " ".join((report.name, report.address, self.login, self.zone, report.reason)).lower()


@dataclass(frozen=True)
class NodesPage:
    """One page of the nodes that match."""

    page: "Page[NodeRow]"
    view: NodesView
    zones: Sequence[str]


def read_page(wanted: NodeFilter, page_number: str | None) -> NodesPage:
    """Six queries, whatever the number of nodes."""
    view = read_nodes()
    zones = {name: labels.get(ZONE, "") for name, labels in Node.objects.values_list("name", "labels")}
    accesses = NodeAccess.objects.values_list("node", "user", "address", "port")
    logins = {node: login_of(user, address, port) for node, user, address, port in accesses}
    rows = [NodeRow(report, logins.get(report.name, ""), zones.get(report.name, "")) for report in view.reports]
    matching = [row for row in rows if wanted.matches(row)]
    return NodesPage(
        page=Paginator(matching, PER_PAGE).get_page(page_number),
        view=view,
        zones=sorted({zone for zone in zones.values() if zone} | ({wanted.zone} if wanted.zone else set())),
    )


def login_of(user: str, address: str, port: int) -> str:
    """As one would type it: root@192.0.2.11, root@[2001:db8::1]:2222."""
    host = f"[{address}]" if ":" in address else address
    return f"{user}@{host}" if port == 22 else f"{user}@{host}:{port}"


@page
def nodes(request: HttpRequest) -> HttpResponse:
    """All nodes, the troubled first."""
    if not may(request, "list", kinds.NODE, ""):
        return forbidden(request, "see nodes")
    wanted = NodeFilter(
        text=request.GET.get("q", ""), state=request.GET.get("state", ""), zone=request.GET.get("zone", "")
    )
    context = {
        "wanted": wanted,
        "nodes": read_page(wanted, request.GET.get("page")),
        "states": SEVERITY,
        "may_operate": may_operate(request.user),
    }
    fragment = HtmxDetails(request).target == "nodes"
    return render(request, "web/_nodes_table.html" if fragment else "web/nodes.html", context)


# One node


@dataclass(frozen=True)
class NodeView:
    """One node with everything that is known of it."""

    report: NodeReport
    access: NodeAccess | None
    document: dict[str, Any]  # of the Node object; empty when it has none
    remedy: str
    rejected: Sequence[dict[str, str]]  # service, namespace, name, reason, message, remedy
    behind: Sequence[Service]  # Services whose last change the node lacks, the newest first; at most SHOWN
    behind_count: int
    pods: Sequence[Pod]  # at most SHOWN
    pod_count: int
    events: Sequence[dict[str, Any]]  # reason, message, type, at, count; the newest first
    changes: Sequence[AuditEntry]
    operations: Sequence[NodeOperation]

    @property
    def zone(self) -> str:
        return str(self.labels.get(ZONE, ""))

    @property
    def labels(self) -> dict[str, str]:
        return self.document.get("metadata", {}).get("labels") or {}

    @property
    def conditions(self) -> Sequence[dict[str, Any]]:
        return self.document.get("status", {}).get("conditions") or []

    @property
    def taints(self) -> Sequence[dict[str, Any]]:
        return self.document.get("spec", {}).get("taints") or []

    @property
    def indented(self) -> str:
        return json.dumps(self.document, indent=2, ensure_ascii=False)

    @property
    def login(self) -> str:
        access = self.access
        return login_of(access.user, access.address, access.port) if access else ""

    @property
    def facts(self) -> dict[str, str]:
        sync = getattr(self.access, "sync", None)
        return dict(sync.facts) if sync is not None else {}

    @property
    def problems(self) -> Sequence[dict[str, str]]:
        return [{**problem, "remedy": remedy_of(problem.get("reason", ""))} for problem in self.report.problems]

    @property
    def host_key(self) -> str:
        """The fingerprint of the confirmed key."""
        return fingerprint_of(self.access.host_key) if self.access else ""


def fingerprint_of(line: str) -> str:
    """Of a stored host key; "unreadable" for a line that is none."""
    try:
        return fingerprint(from_line(line))
    except Exception:  # paramiko raises of many kinds for a line that is no key
        return "unreadable"


def read_node(name: str) -> NodeView | None:
    """One node in full, None when neither the API nor the enrolled nodes know the name. Ten queries."""
    if NUL in name:
        return None
    access = NodeAccess.objects.select_related("sync").filter(node=name).first()
    node = Node.objects.filter(name=name).first()
    if access is None and node is None:
        return None
    address = node.address if node is not None else None
    if access is not None:
        report = report_of(access, address, read_lag())
    else:
        report = NodeReport(name=name, address=address or "", state=NOT_ENROLLED)
    behind: QuerySet[Service] = Service.objects.none()
    if report.enrolled:
        behind = Service.objects.filter(changed_revision__gt=report.applied_revision).defer("document")
    pods = Pod.objects.filter(node_name=name).defer("document").order_by("namespace", "name")
    return NodeView(
        report=report,
        access=access,
        document=json.loads(node.document) if node is not None else {},
        remedy=remedy_of(report.reason) if report.status != LIVE else "",
        rejected=[_refusal(refusal) for refusal in report.refusals],
        behind=list(behind.order_by("-changed_revision")[:SHOWN]),
        behind_count=behind.aggregate(count=Count("pk"))["count"],
        pods=list(pods[:SHOWN]),
        pod_count=pods.aggregate(count=Count("pk"))["count"],
        events=_events_of(name),
        changes=list(audit.writes_of(kinds.NODE.plural, "", name).defer("document", "previous")[:10]),
        operations=list(NodeOperation.objects.filter(node=name)[:10]),
    )


def _refusal(refusal: Any) -> dict[str, str]:
    namespace, _, name = refusal["service"].partition("/")
    return {**refusal, "namespace": namespace, "name": name, "remedy": remedy_of(refusal["reason"])}


def _events_of(node: str) -> list[dict[str, Any]]:
    """The newest Events about a node, in whatever namespace. One query by index."""
    rows = Event.objects.filter(involved_kind="Node", involved_name=node).order_by("-created_at")
    found = []
    for text, created_at in rows.values_list("document", "created_at")[:10]:
        event = json.loads(text)
        found.append(
            {
                "reason": event.get("reason") or "",
                "message": event.get("message") or "",
                "type": event.get("type") or "Normal",
                "count": event.get("count") or 1,
                "at": created_at,
            }
        )
    return found


@page
def node(request: HttpRequest, name: str) -> HttpResponse:
    """One node: its state and what to do about it, its facts, what it holds and lacks, and its history."""
    if not may(request, "get", kinds.NODE, ""):
        return forbidden(request, "see nodes")
    found = read_node(name)
    context = {"node": found, "name": name, "may_operate": may_operate(request.user)}
    if HtmxDetails(request).target == "node":
        return render(request, "web/_node.html", context)  # says so when the node is gone
    if found is None:
        return _missing(request, name)
    return render(request, "web/node.html", context)


def _missing(request: HttpRequest, name: str) -> HttpResponse:
    return render(request, "404.html", {"missing": f"There is no node {name}."}, status=404)


# What a person may do to one


@require_http_methods(["GET", "HEAD", "POST"])
@for_operators
def push_again(request: HttpRequest, name: str) -> HttpResponse:
    """POST sends the node everything with the next push; GET, after a login that was needed, leads to its page."""
    if request.method != "POST":
        return redirect("web:node", name)
    try:
        operations.push_again(name, by=request.user.get_username())
    except (NodeError, ApiError) as err:
        messages.error(request, err.message)
    else:
        messages.success(request, f"{name} gets everything with the next push.")
    return redirect("web:node", name)


@require_http_methods(["GET", "HEAD", "POST"])
@for_operators
def host_key(request: HttpRequest, name: str) -> HttpResponse:
    """Shows the host key that the node shows now beside the confirmed one; POST confirms it."""
    access = NodeAccess.objects.select_related("sync").filter(node=name).first()
    if access is None:
        return _missing(request, name)
    context: dict[str, Any] = {"name": name, "access": access, "confirmed": fingerprint_of(access.host_key)}
    try:
        if request.method == "POST":
            operations.confirm_key(name, request.POST.get("fingerprint", ""), by=request.user.get_username())
            messages.success(request, f"The host key of {name} is confirmed; it gets everything with the next push.")
            return redirect("web:node", name)
        shown = enroll.shown_key(name)
    except (NodeError, ApiError) as err:
        context |= {"reason": err.reason, "message": err.message, "remedy": remedy_of(err.reason)}
        return render(request, "web/node_host_key.html", context)
    context |= {"shown": fingerprint(shown), "key_file": key_file(shown.get_name())}
    return render(request, "web/node_host_key.html", context)


def key_file(kind: str) -> str:
    """Where OpenSSH keeps the public half of a host key of this kind ("ssh-ed25519", …)."""
    word = "ecdsa" if kind.startswith("ecdsa") else kind.removeprefix("ssh-")
    return f"/etc/ssh/ssh_host_{word}_key.pub"


@require_http_methods(["GET", "HEAD", "POST"])
@for_operators
def remove(request: HttpRequest, name: str) -> HttpResponse:
    """States what removing the node would undo; POST does it, or with `forget` drops the records alone."""
    found = read_node(name)
    if found is None:
        return _missing(request, name)
    context: dict[str, Any] = {"node": found, "name": name, "undone": _undone(found.access) if found.access else []}
    if request.method == "POST":
        by = request.user.get_username()
        try:
            if request.POST.get("forget"):
                operations.forget(name, by=by)
                messages.success(request, f"{name} is forgotten." + (_STAYS if found.access else ""))
                return redirect("web:nodes")
            if found.access is None:
                return redirect("web:node", name)
            return redirect("web:operation", operations.start_removal(name, by=by).pk)
        except (NodeError, ApiError) as err:
            context |= {"reason": err.reason, "message": err.message, "remedy": remedy_of(err.reason)}
            return render(request, "web/node_remove.html", context)
    return render(request, "web/node_remove.html", context)


_STAYS = (
    " Its host was not cleaned up: what it holds stays there until it is reinstalled or enrolled and removed again."
)


def _undone(access: NodeAccess) -> Sequence[tuple[str, str]]:
    """What removal takes off the host: what, and where or why."""
    parts = [
        ("Rules", "the nftables table of Services, with every address and node port in it"),
        ("Addresses and routes", f"{DNS_LISTEN} on lo, and the routes of the service ranges"),
        ("Kernel settings", "forwarding, set back to what it was before the enrolment"),
        ("Name servers", "the Knot and unbound that Timonel started; the host's own stay as they are"),
        ("Files", "/usr/local/lib/timonel, /var/lib/timonel, /run/timonel"),
        ("Start at boot", "the systemd unit timonel-agent, where systemd runs"),
    ]
    if access.user != "root":
        parts.append(("Sudo rule", f"/etc/sudoers.d/timonel of {access.user}"))
    parts.append(("Way in", f"the control plane's key in ~{access.user}/.ssh/authorized_keys"))
    return parts
