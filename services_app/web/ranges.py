"""The page of ranges: what cluster IPs and node ports come from, and how much of each is in use."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django_htmx.middleware import HtmxDetails

from services_app import store
from services_app.models import IPAddress, NodePortClaim, ServiceCIDR
from services_app.spec import kinds, servicecidr
from services_app.web.views import forbidden, may, page

SHOWN = 50


@dataclass(frozen=True)
class RangeRow:
    """One range of one object. message: why it is not ready, else ""."""

    name: str
    cidr: str
    state: str  # Ready, Terminating or NotReady
    message: str
    used: int
    size: int


def read_ranges() -> list[RangeRow]:
    """Every range, the default's first. A query for each range."""
    found = ServiceCIDR.objects.order_by("created_at", "name").values_list("name", "document")
    rows = [row for name, text in found for row in _rows(name, json.loads(text))]
    return sorted(rows, key=lambda row: row.name != servicecidr.DEFAULT)


def _rows(name: str, document: servicecidr.Document) -> Iterator[RangeRow]:
    ready = servicecidr.is_ready(document)
    going = "deletionTimestamp" in document["metadata"]
    state = "Ready" if ready else servicecidr.TERMINATING if going else "NotReady"
    said = [c.get("message", "") for c in (document.get("status") or {}).get("conditions") or () if not ready]
    for use in store.uses(document["spec"]["cidrs"]):
        yield RangeRow(name, use.cidr, state, " ".join(said), use.used, use.size)


@page
def ranges(request: HttpRequest) -> HttpResponse:
    """The ranges and their use; the first addresses that begin as was asked."""
    if not may(request, "list", kinds.SERVICE_CIDR, ""):
        return forbidden(request, "see ranges")
    wanted = request.GET.get("q", "").strip().lower()
    ports = settings.TIMONEL_NODE_PORT_RANGE
    context = {
        "ranges": read_ranges(),
        "ports": {
            "range": f"{ports.start}-{ports.stop - 1}",
            "size": len(ports),
            "used": NodePortClaim.objects.count(),
        },
        "wanted": wanted,
        "addresses": IPAddress.objects.filter(name__startswith=wanted.replace("\0", "")).defer("document")[:SHOWN],
        "shown": SHOWN,
    }
    fragment = HtmxDetails(request).target == "ranges"
    return render(request, "web/_ranges.html" if fragment else "web/ranges.html", context)
