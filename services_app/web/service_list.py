"""The Services a person asks to see: filter, order and page, all decided by the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from django.core.paginator import Page, Paginator
from django.db.models import BooleanField, Exists, F, OuterRef, Q, QuerySet, TextField, Value
from django.db.models.expressions import OrderBy, RawSQL
from django.db.models.functions import Concat

from services_app.models import ClusterIPClaim, EndpointSlice, Namespace, NodePortClaim, Service
from services_app.spec.errors import BadRequest
from services_app.spec.selectors import Requirement, Selector, parse_label_selector
from services_app.spec.service import TYPES
from services_app.web.overview import NUL, NodesView, ServiceRow, service_row, slices_of

SERVICES_PER_PAGE = 50
NAMESPACES_OFFERED = 1000
HEADLESS = "Headless"

STATES = {
    "programmed": "Programmed",
    "not-programmed": "Not programmed",
    "no-endpoints": "No ready endpoint",
    "rejected": "Rejected by a node",
}
# What can be sorted by -> columns; namespace and name decide among equals.
_ORDERS = {
    "namespace": ("namespace", "name"),
    "name": ("name", "namespace"),
    "type": ("type", "namespace", "name"),
    "cluster-ip": ("cluster_ip", "namespace", "name"),
    "age": ("created_at", "namespace", "name"),
}
_DEFAULT_ORDER = "namespace"

# An endpoint without a word about readiness is ready. The plain search answers nearly always and reads no JSON: a stored
# text has no unescaped quote inside a value.
_HAS_READY_ENDPOINT = """
    document LIKE '%%"ready":true%%'
    OR document::jsonb @? '$.endpoints[*] ? (exists(@.addresses[0]) && (!exists(@.conditions.ready) || @.conditions.ready == null))'
"""


@dataclass(frozen=True)
class ServiceFilter:
    """What the user asked to see and in which order; every field may be empty."""

    namespace: str = ""
    text: str = ""
    state: str = ""  # a key of STATES
    type: str = ""  # one of TYPES or HEADLESS
    labels: str = ""  # a label selector as kubectl's -l takes it
    sort: str = ""  # a key of _ORDERS, with "-" in front for the other way round

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "ServiceFilter":
        """As the parameters of a page say."""
        return cls(
            namespace=query.get("namespace", ""),
            text=query.get("q", ""),
            state=query.get("state", ""),
            type=query.get("type", ""),
            labels=query.get("labels", ""),
            sort=query.get("sort", ""),
        )

    def __bool__(self) -> bool:
        return bool(self.namespace or self.text or self.state or self.type or self.labels.strip())

    @property
    def order(self) -> tuple[str, bool]:
        """(key of _ORDERS, whether it is turned round)."""
        key = self.sort.removeprefix("-")
        return (key, self.sort.startswith("-")) if key in _ORDERS else (_DEFAULT_ORDER, False)

    @property
    def headings(self) -> Mapping[str, tuple[str, str]]:
        """Order key with "_" for "-" -> (aria-sort, the `sort` that a click on its heading asks for)."""
        current, is_turned = self.order
        return {
            key.replace("-", "_"): ("descending" if is_turned else "ascending", key if is_turned else f"-{key}")
            if key == current
            else ("none", key)
            for key in _ORDERS
        }

    @property
    def label_error(self) -> str:
        """What is wrong with the label selector; empty when nothing is."""
        try:
            parse_label_selector(self.labels)
        except BadRequest as err:
            return err.message
        return ""

    def queryset(self, nodes: NodesView) -> QuerySet[Service]:
        """The Services that fit, sorted; none for what cannot be."""
        services = self._ordered(Service.objects.all())
        if NUL in "".join((self.namespace, self.text, self.labels)) or self.label_error:
            return services.none()
        if self.namespace:
            services = services.filter(namespace=self.namespace)
        for word in self.text.split():
            services = services.filter(_holds(word))
        if self.type == HEADLESS:
            services = services.filter(cluster_ip__isnull=True).exclude(type="ExternalName")
        elif self.type in TYPES:
            services = services.filter(type=self.type)
        elif self.type:
            services = services.none()
        return _labelled(self._in_state(services, nodes), parse_label_selector(self.labels))

    def _ordered(self, services: QuerySet[Service]) -> QuerySet[Service]:
        key, is_turned = self.order
        # Nothing comes last either way: headless Services after those with an address.
        return services.order_by(
            *(OrderBy(F(column), descending=is_turned, nulls_last=True) for column in _ORDERS[key])
        )

    def _in_state(self, services: QuerySet[Service], nodes: NodesView) -> QuerySet[Service]:
        if self.state == "programmed":
            return services.filter(programmed=True)
        if self.state == "not-programmed":
            return services.filter(~Q(programmed=True) | Q(programmed__isnull=True))
        if self.state == "no-endpoints":
            slices = EndpointSlice.objects.filter(namespace=OuterRef("namespace"), service_name=OuterRef("name"))
            return services.exclude(type="ExternalName").filter(~Exists(slices.extra(where=[_HAS_READY_ENDPOINT])))
        if self.state == "rejected":
            keys = {key for report in nodes.reports for key in report.rejected if NUL not in key}
            return services.alias(key=Concat("namespace", Value("/"), "name", output_field=TextField())).filter(
                key__in=keys
            )
        return services


def _holds(word: str) -> Q:
    """Whether a word is part of a Service's name or namespace, begins an address of it, or is its type or node port."""
    found = Q(name__icontains=word) | Q(namespace__icontains=word) | Q(type__iexact=word)
    if any(character.isdigit() for character in word) or ":" in word:
        found |= Q(pk__in=ClusterIPClaim.objects.filter(address__startswith=word.lower()).values("service_id"))
    if word.isascii() and word.isdigit() and len(word) <= 5:
        found |= Q(pk__in=NodePortClaim.objects.filter(port=int(word)).values("service_id"))
    return found


def _labelled(services: QuerySet[Service], selector: Selector) -> QuerySet[Service]:
    terms = [_fits(requirement) for requirement in selector.requirements]
    return services.filter(reduce(and_, terms)) if terms else services


def _fits(requirement: Requirement) -> Q:
    """A term of a label selector as a condition; equality and existence are answered by the index on labels."""
    key, op, values = requirement.key, requirement.op, requirement.values
    if op in ("exists", "!"):
        return Q(labels__has_key=key) if op == "exists" else ~Q(labels__has_key=key)
    if op in ("gt", "lt"):
        sign = ">" if op == "gt" else "<"
        number = f"CASE WHEN labels->>%s ~ '^[+-]?[0-9]{{1,19}}$' THEN (labels->>%s)::numeric {sign} %s ELSE false END"
        return Q(RawSQL(number, (key, key, int(values[0])), output_field=BooleanField()))
    any_of = reduce(or_, [Q(labels__contains={key: value}) for value in values])
    return any_of if op in ("=", "==", "in") else ~any_of


@dataclass(frozen=True)
class ServicesView:
    """One page of Services."""

    page: "Page[Service]"
    rows: Sequence[ServiceRow]
    namespaces: Sequence[str]


def read_services(
    wanted: ServiceFilter, page_number: str | None, nodes: NodesView, seen: frozenset[str] | None = None
) -> ServicesView:
    """One page of the Services that match. Four queries; only this page's documents are read and decoded.

    seen: the namespaces whose Services may be shown; None: all.
    """
    matching, known = wanted.queryset(nodes), Namespace.objects.order_by("name")
    if seen is not None:
        matching, known = matching.filter(namespace__in=seen), known.filter(name__in=seen)
    paginator = Paginator(matching, SERVICES_PER_PAGE)
    page = paginator.get_page(page_number)
    services = list(page.object_list)
    slices = slices_of(services)
    enrolled = nodes.enrolled
    rows = [
        service_row(service, slices.get((service.namespace, service.name), []), enrolled, nodes.lag)
        for service in services
    ]
    namespaces = list(known.values_list("name", flat=True)[:NAMESPACES_OFFERED])
    if wanted.namespace and wanted.namespace not in namespaces:
        namespaces.append(wanted.namespace)
    return ServicesView(page=page, rows=rows, namespaces=namespaces)
