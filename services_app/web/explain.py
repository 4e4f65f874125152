"""The page that says where a connection to a Service goes: on every node, for a client that may be anywhere."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django_htmx.middleware import HtmxDetails

from services_app.models import NodeAccess
from services_app.push import snapshot
from services_app.push.explain import Answer, Question, explain
from services_app.render.tracer import DELIVERED, DROPPED, REFUSED
from services_app.spec.kinds import SERVICE
from services_app.web.service_view import addresses_of, find_service, socket_at
from services_app.web.views import forbidden, may, missing, page

Document = dict[str, Any]

NODE_PORT = "node"  # in the place of an address
NODES_NAMED = 12  # of those that do the same


@dataclass(frozen=True)
class Way:
    """One way to a Service's port. value: as the form has it, "10.96.0.7 80 tcp" or "node 30080 tcp"."""

    value: str
    text: str

    def question(self, source: str) -> Question:
        """What is asked of the nodes when a client comes this way; source: its address, "" for the node itself."""
        host, port, protocol = self.value.split(" ")
        if host != NODE_PORT:
            return Question(host, int(port), protocol, source)
        return Question("", int(port), protocol, source, ip_address(source).version if source else 4)


@dataclass(frozen=True)
class Alike:
    """Nodes that do the same with the connection; `first` is what one of them does, step by step."""

    first: Answer
    nodes: Sequence[str]

    @property
    def named(self) -> str:
        """The nodes, as many as fit a line."""
        more = len(self.nodes) - NODES_NAMED
        return ", ".join(self.nodes[:NODES_NAMED]) + (f" and {more} more" if more > 0 else "")

    @property
    def colour(self) -> str:
        """Of its mark on the page."""
        return {DELIVERED: "green", REFUSED: "yellow", DROPPED: "red"}.get(self.first.action, "secondary")


@page
def service_explain(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """Asks the tracer what each node does with a new connection to a Service."""
    if not may(request, "get", SERVICE, namespace):
        return forbidden(request, f"see Services in namespace {namespace}")
    service = find_service(namespace, name)
    if service is None:
        return missing(request, namespace, name)
    ways = ways_to(json.loads(service.document))
    way = next((way for way in ways if way.value == request.GET.get("to")), ways[0] if ways else None)
    source = request.GET.get("from", "").strip()
    context: Document = {"namespace": namespace, "name": name, "ways": ways, "way": way, "source": source, "error": ""}
    if way is not None:
        context["error"] = error = _error(source, way)
        context["answers"] = [] if error else alike(f"{namespace}/{name}", way.question(source))
    is_renewed = HtmxDetails(request).target == "explained"
    return render(request, "web/_explained.html" if is_renewed else "web/service_explain.html", context)


def ways_to(service: Document) -> list[Way]:
    """Where proxies on nodes take connections for a Service."""
    found = []
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol", "TCP")
        label = ", ".join(filter(None, (protocol, port.get("name"))))
        for kind, _, addresses in addresses_of(service):
            for address in filter(_is_address, addresses):
                text = f"{socket_at(address, port['port'], port).text} ({kind}, {label})"
                found.append(Way(f"{address} {port['port']} {protocol.lower()}", text))
        if number := port.get("nodePort"):
            found.append(Way(f"{NODE_PORT} {number} {protocol.lower()}", f"Node port {number} ({label})"))
    return found


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _error(source: str, way: Way) -> str:
    """Why a client cannot be at this address, "" when it can."""
    if not source:
        return ""
    if not _is_address(source):
        return f"{source!r} is not an IP address, as in 203.0.113.9 or 2001:db8::9."
    host = way.value.split(" ")[0]
    if host != NODE_PORT and ip_address(host).version != ip_address(source).version:
        return f"{source} is of another address family than {host}: such a client cannot reach it."
    return ""


def alike(owner: str, question: Question) -> list[Alike]:
    """What the enrolled nodes do, the most frequent first. A constant number of queries."""
    nodes = dict(NodeAccess.objects.order_by("node").values_list("node", "address"))
    answers = (
        explain(node, held.addresses, held.owners, question)
        for node, held in snapshot.owner_on_nodes(owner, nodes).items()
    )
    return _grouped(answers)


def _grouped(answers: Iterable[Answer]) -> list[Alike]:
    found: dict[Any, list[Answer]] = {}
    for answer in answers:
        found.setdefault((answer.packet is None, answer.action, answer.shares, answer.affinity_s), []).append(answer)
    groups = [Alike(same[0], [answer.node for answer in same]) for same in found.values()]
    return sorted(groups, key=lambda group: (-len(group.nodes), group.nodes[0]))
