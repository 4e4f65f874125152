"""The tables that are no API objects: the log, claims and what nodes report to look at."""

import json
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html

from services_app import models
from services_app.spec import kinds
from services_app.store.columns import MODELS as OBJECTS


class RoughPaginator(Paginator):
    """Pages that take PostgreSQL's estimate for the count of a large table: an exact one reads all of it."""

    EXACT_BELOW = 10_000
    # A view has no estimate of its own
    PARTS = {"services_app_auditentry": ["services_app_change", "services_app_auditrecord"]}

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet) and not rows.query.where:
            with connection.cursor() as cursor:
                table = rows.model._meta.db_table
                cursor.execute(
                    "SELECT sum(reltuples) FROM pg_class WHERE oid = ANY(%s::regclass[])",
                    [self.PARTS.get(table, [table])],
                )
                estimate = int(cursor.fetchone()[0])
            if estimate >= self.EXACT_BELOW:
                return estimate
        return rows.count() if isinstance(rows, QuerySet) else len(rows)


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]
    """A table to look at, for users with the permission to view it."""

    paginator = RoughPaginator
    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def is_list(request: HttpRequest) -> bool:
    """Whether a request is for the table and not for one row."""
    match = request.resolver_match
    return bool(match and (match.url_name or "").endswith("_changelist"))


def link(url: str, text: object) -> str:
    """A link for a cell."""
    return format_html('<a href="{}">{}</a>', url, text)


def list_of(model: type[Model], **columns: object) -> str:
    """The path of a table, narrowed to the rows with these values."""
    path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return f"{path}?{urlencode(columns)}" if columns else path


def node_link(name: str) -> str:
    """To a node's page in the dashboard."""
    return link(reverse("web:node", args=[name]), name) if name else "–"


def _indented(text: str | None) -> str:
    """JSON text, indented and escaped for a page; a dash for none."""
    if not text:
        return "–"
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        pass  # a broken document is shown as it is: here is where one would look for it
    return format_html("<pre>{}</pre>", text)


class KindFilter(admin.SimpleListFilter):
    """The kinds the API knows: a filter over the column itself would read the whole log for its choices."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        access = [(name, name) for name in ("grants", "apitokens", "users", "groups")]
        return [*{kind.plural: kind.kind for kind in kinds.STORED}.items(), *access]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


class Writes(ReadOnly):
    """Who wrote what, when."""

    list_display: tuple[str, ...] = (
        "revision",
        "at",
        "verb",
        "kind",
        "namespace",
        "object_name",
        "user",
        "request_id",
    )
    list_filter = ("at", "verb", KindFilter)
    search_fields = ("=namespace", "name", "=user", "=request_id")
    search_help_text = "A part of the name, or a whole namespace, user or request id."
    ordering: ClassVar[tuple[str, ...]] = ("-revision",)
    readonly_fields = ("after", "before")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.defer("document", "previous") if is_list(request) else rows

    @admin.display(description="name", ordering="name")
    def object_name(self, obj: Any) -> str:
        model = OBJECTS.get(obj.kind)
        return link(list_of(model, namespace=obj.namespace, name=obj.name), obj.name) if model else obj.name

    @admin.display(description="Document")
    def after(self, obj: Any) -> str:
        return _indented(obj.document)

    @admin.display(description="Before")
    def before(self, obj: Any) -> str:
        return _indented(obj.previous)


@admin.register(models.Change)
class ChangeAdmin(Writes):
    """The log of the last hour, with what nodes have to hear of."""

    list_display = ("revision", "at", "verb", "kind", "namespace", "object_name", "owner", "user")
    fields = (
        "revision", "at", "verb", "kind", "namespace", "name", "owner", "user", "request_id", "after", "before",
    )  # fmt: skip


@admin.register(models.AuditEntry)
class AuditEntryAdmin(Writes):
    """Every write, refusal, grant and token, as long as they are kept: the log and the audit records in one."""

    ordering: ClassVar[tuple[str, ...]] = ("-revision", "id")
    fields = (
        "revision", "at", "verb", "kind", "namespace", "name", "user", "request_id", "message", "after", "before",
    )  # fmt: skip


@admin.register(models.AuditRecord)
class AuditRecordAdmin(AuditEntryAdmin):
    """The part of it that has left the log."""


@admin.register(models.ControlPlane)
class ControlPlaneAdmin(ReadOnly):
    """The revision counter."""

    list_display = ("uid", "revision", "compacted_revision", "compacted_for_nodes")


class OfService(ReadOnly):
    """Rows that belong to a Service, whose document is not read for a name."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("service").defer("service__document")

    @admin.display(description="service", ordering="service__name")
    def service_name(self, obj: Any) -> str:
        if obj.service_id is None:
            return "–"
        return link(reverse("admin:services_app_service_change", args=[obj.service_id]), obj.service)


@admin.register(models.ClusterIPClaim)
class ClusterIPClaimAdmin(OfService):
    """Cluster IPs in use."""

    list_display = ("address", "service_name")
    search_fields = ("address__startswith", "service__name")
    ordering = ("address",)


@admin.register(models.NodePortClaim)
class NodePortClaimAdmin(OfService):
    """Node ports in use."""

    list_display = ("port", "service_name")
    search_fields = ("=port", "service__name")
    ordering = ("port",)


@admin.register(models.Pool)
class PoolAdmin(ReadOnly):
    """Ranges that are given out from."""

    list_display = ("name", "next_offset")


@admin.register(models.FreeValue)
class FreeValueAdmin(ReadOnly):
    """Values that were free when last seen."""

    list_display = ("value", "pool", "band")
    list_filter = ("band",)
    search_fields = ("value__startswith",)
    ordering = ("pool", "band", "id")


@admin.register(models.RepairFinding)
class RepairFindingAdmin(ReadOnly):
    """What the last look at allocations and endpoints found."""

    list_display = ("reason", "value", "service", "pool", "sightings", "first_seen_at", "last_seen_at")
    list_filter = ("reason",)
    search_fields = ("=value", "service")
    ordering = ("service", "reason", "value")


@admin.register(models.OwnerReference)
class OwnerReferenceAdmin(ReadOnly):
    """What goes with which owner."""

    list_display = ("kind", "namespace", "name", "owner_kind", "owner_name", "blocks")
    list_filter = ("kind", "owner_kind", "blocks")
    search_fields = ("=name", "=owner_name")
    ordering = ("namespace", "kind", "name", "id")


@admin.register(models.WaitingOwner)
class WaitingOwnerAdmin(ReadOnly):
    """What goes once its dependents are seen to."""

    list_display = ("kind", "namespace", "name", "policy")
    list_filter = ("kind", "policy")
    search_fields = ("=name",)
    ordering = ("namespace", "kind", "name")


@admin.register(models.EndpointGroup)
class EndpointGroupAdmin(OfService):
    """The numbers by which nodes know Service ports."""

    list_display = ("id", "service_name", "port", "policy")
    list_filter = ("policy",)
    search_fields = ("=id", "service__name")


@admin.register(models.SshKey)
class SshKeyAdmin(ReadOnly):
    """The control plane's keys; the private half is never shown."""

    list_display = ("name", "created_at")
    fields = ("name", "public", "created_at")


@admin.register(models.NodeAccess)
class NodeAccessAdmin(ReadOnly):
    """How enrolled nodes are reached. Enrolling is for the dashboard and `timonel node enroll`: they show the host key."""

    list_display = ("node", "page", "address", "port", "user", "enrolled_at", "enrolled_by")
    search_fields = ("node", "address__startswith")
    list_filter = ("user",)
    ordering = ("node",)

    @admin.display(description="page")
    def page(self, obj: models.NodeAccess) -> str:
        return node_link(obj.node)


@admin.register(models.NodeSync)
class NodeSyncAdmin(ReadOnly):
    """What nodes last reported."""

    list_display = (
        "node_id",
        "page",
        "state",
        "reason",
        "applied_revision",
        "last_report_at",
        "agent_version",
        "failures",
    )
    list_filter = ("state",)
    search_fields = ("node__node", "=reason")
    ordering = ("node",)

    @admin.display(description="page")
    def page(self, obj: models.NodeSync) -> str:
        return node_link(obj.node_id)


@admin.register(models.NodeOperation)
class NodeOperationAdmin(ReadOnly):
    """What people did to nodes, from the page or the command."""

    list_display = ("node", "verb", "state", "reason", "by", "started_at", "ended_at")
    list_filter = ("verb", "state")
    search_fields = ("node", "=by", "=reason")
    search_help_text = "A part of the node's name, or a whole user or reason."
