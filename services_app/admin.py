"""Django's admin: every table to look at, API tokens to issue and revoke, users from Django itself.

API objects, the log, claims and what nodes report are read-only here: the store, the log and the pushers write them.
"""

import json
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.html import format_html

from services_app import models
from services_app.spec import kinds

admin.site.site_header = "Timonel"
admin.site.site_title = "Timonel"
admin.site.index_title = "Tables"
admin.site.site_url = "/ui/"


class RoughPaginator(Paginator):
    """Pages that take PostgreSQL's estimate for the count of a large table: an exact one reads all of it."""

    EXACT_BELOW = 10_000

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet) and not rows.query.where:
            with connection.cursor() as cursor:
                cursor.execute("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", [rows.model._meta.db_table])
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


def _indented(text: str | None) -> str:
    """JSON text, indented and escaped for a page; a dash for none."""
    if not text:
        return "–"
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        pass  # a broken document is shown as it is: here is where one would look for it
    return format_html("<pre>{}</pre>", text)


class ApiObjectAdmin(ReadOnly):
    """Objects of the API, as the store wrote them."""

    columns: ClassVar[tuple[str, ...]] = ()
    search_fields: ClassVar[tuple[str, ...]] = ("=namespace", "name")
    search_help_text = "A part of the name, or a whole namespace."
    date_hierarchy = None

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name", "namespace", *self.columns, "revision", "created_at")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        names = [field.name for field in self.model._meta.fields]
        return ["indented" if name == "document" else name for name in names]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return ("indented",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        match = request.resolver_match
        return rows.defer("document") if match and (match.url_name or "").endswith("_changelist") else rows

    @admin.display(description="Document")
    def indented(self, obj: models.ApiObject) -> str:
        return _indented(obj.document)


@admin.register(models.Namespace)
class NamespaceAdmin(ApiObjectAdmin):
    """Namespaces."""

    search_fields = ("name",)
    search_help_text = "A part of the name."

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name", "revision", "created_at")


@admin.register(models.Service)
class ServiceAdmin(ApiObjectAdmin):
    """Services."""

    columns = ("type", "cluster_ip", "programmed", "changed_revision")
    list_filter = ("type", "programmed")
    search_fields = ("=namespace", "name", "cluster_ip__startswith")
    search_help_text = "A part of the name, a whole namespace, or how the cluster IP begins."


@admin.register(models.Endpoints)
class EndpointsAdmin(ApiObjectAdmin):
    """Endpoints."""


@admin.register(models.EndpointSlice)
class EndpointSliceAdmin(ApiObjectAdmin):
    """EndpointSlices."""

    columns = ("service_name", "managed_by")
    search_fields = ("=namespace", "name", "=service_name")


@admin.register(models.Pod)
class PodAdmin(ApiObjectAdmin):
    """Pods."""

    columns = ("node_name", "pod_ip", "ready")
    list_filter = ("ready",)
    search_fields = ("=namespace", "name", "=node_name", "pod_ip__startswith")
    search_help_text = "A part of the name, a whole namespace or node name, or how the address begins."


@admin.register(models.Node)
class NodeAdmin(ApiObjectAdmin):
    """Nodes."""

    search_fields = ("name", "address__startswith")
    search_help_text = "A part of the name, or how the address begins."

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name", "address", "revision", "created_at")


@admin.register(models.Event)
class EventAdmin(ApiObjectAdmin):
    """Events."""

    columns = ("type", "reason", "involved_kind", "involved_name")
    list_filter = ("type",)
    search_fields = ("=namespace", "name", "involved_name", "=reason")
    ordering = ("-created_at",)


class KindFilter(admin.SimpleListFilter):
    """The kinds the API knows: a filter over the column itself would read the whole log for its choices."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind.plural, kind.kind) for kind in kinds.KINDS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(models.Change)
class ChangeAdmin(ReadOnly):
    """The log: who wrote what, when."""

    list_display = ("revision", "at", "verb", "kind", "namespace", "name", "owner", "user")
    list_filter = ("verb", KindFilter)
    search_fields = ("=namespace", "name", "=user", "=request_id")
    search_help_text = "A part of the name, or a whole namespace, user or request id."
    ordering = ("-revision",)
    fields = (
        "revision", "at", "verb", "kind", "namespace", "name", "owner", "user", "request_id", "after", "before",
    )  # fmt: skip
    readonly_fields = ("after", "before")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        match = request.resolver_match
        return rows.defer("document", "previous") if match and (match.url_name or "").endswith("_changelist") else rows

    @admin.display(description="Document")
    def after(self, obj: models.Change) -> str:
        return _indented(obj.document)

    @admin.display(description="Before")
    def before(self, obj: models.Change) -> str:
        return _indented(obj.previous)


@admin.register(models.ControlPlane)
class ControlPlaneAdmin(ReadOnly):
    """The revision counter."""

    list_display = ("uid", "revision", "compacted_revision")


@admin.register(models.ClusterIPClaim)
class ClusterIPClaimAdmin(ReadOnly):
    """Cluster IPs in use."""

    list_display = ("address", "service")
    list_select_related = ("service",)
    search_fields = ("address__startswith", "service__name")
    ordering = ("address",)


@admin.register(models.NodePortClaim)
class NodePortClaimAdmin(ReadOnly):
    """Node ports in use."""

    list_display = ("port", "service")
    list_select_related = ("service",)
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


@admin.register(models.EndpointGroup)
class EndpointGroupAdmin(ReadOnly):
    """The numbers by which nodes know Service ports."""

    list_display = ("id", "service", "port", "policy")
    list_select_related = ("service",)
    list_filter = ("policy",)
    search_fields = ("=id", "service__name")


@admin.register(models.SshKey)
class SshKeyAdmin(ReadOnly):
    """The control plane's keys; the private half is never shown."""

    list_display = ("name", "created_at")
    fields = ("name", "public", "created_at")


@admin.register(models.NodeAccess)
class NodeAccessAdmin(ReadOnly):
    """How enrolled nodes are reached. Enrolling is `timonel node enroll`: it shows the host key to confirm."""

    list_display = ("node", "address", "port", "user", "enrolled_at", "enrolled_by")
    search_fields = ("node", "address__startswith")
    ordering = ("node",)


@admin.register(models.NodeSync)
class NodeSyncAdmin(ReadOnly):
    """What nodes last reported."""

    list_display = ("node_id", "state", "reason", "applied_revision", "last_report_at", "agent_version", "failures")
    list_filter = ("state",)
    search_fields = ("node__node", "=reason")
    ordering = ("node",)


@admin.register(models.NodeOperation)
class NodeOperationAdmin(ReadOnly):
    """What people did to nodes, from the page or the command."""

    list_display = ("node", "verb", "state", "reason", "by", "started_at", "ended_at")
    list_filter = ("verb", "state")
    search_fields = ("node", "=by", "=reason")
    search_help_text = "A part of the node's name, or a whole user or reason."


@admin.register(models.ApiToken)
class ApiTokenAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """API tokens: add one to issue it, delete it to revoke it; what was issued does not change."""

    list_display = ("name", "user", "created_at", "expires_at")
    list_select_related = ("user",)
    search_fields = ("name", "=user__username")
    fields = ("name", "user", "expires_at")
    show_full_result_count = False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        # A token acts as its user: only a superuser may issue one for somebody else.
        if db_field.name == "user":
            users = db_field.related_model.objects.order_by("username")
            options["queryset"] = (
                users if getattr(request.user, "is_superuser", False) else users.filter(pk=request.user.pk)
            )
            options["initial"] = request.user.pk
        return super().formfield_for_foreignkey(db_field, request, **options)

    def save_model(self, request: HttpRequest, obj: models.ApiToken, form: Any, change: bool) -> None:
        plain = models.ApiToken.issue(obj.user, obj.name, obj.expires_at)
        obj.pk = models.ApiToken.objects.values_list("pk", flat=True).get(digest=models.ApiToken.digest_of(plain))
        messages.warning(
            request, format_html("The token, shown this once: <code>{}</code> Keep it where secrets are kept.", plain)
        )
