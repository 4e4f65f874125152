"""API objects in the admin: their document as YAML, judged and written by the store like any client's."""

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, ClassVar

import yaml
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html

from services_app import audit, models, store
from services_app.admin.tables import RoughPaginator, is_list, link, list_of, node_link
from services_app.api import auth
from services_app.spec import kinds
from services_app.spec.errors import ApiError, BadRequest, Invalid
from services_app.spec.kinds import Kind
from services_app.spec.objects import decode_with_warnings, strict_error
from services_app.store.columns import MODELS

Document = dict[str, Any]

AT_ONCE = 1000  # objects one action deletes: some seconds
YAML = "application/yaml"


class NamespaceFilter(admin.SimpleListFilter):
    """By namespace; the choices come from the Namespaces and not from every row."""

    title = "namespace"
    parameter_name = "namespace"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in models.Namespace.objects.order_by("name").values_list("name", flat=True)[:200]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(namespace=self.value()) if self.value() is not None else queryset


class ApiObjectAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """One kind of API objects. Nothing here saves a row: `store` does, with everything that follows from it."""

    kind: ClassVar[Kind]
    columns: ClassVar[tuple[str, ...]] = ()
    paginator = RoughPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 200
    search_fields: ClassVar[tuple[str, ...]] = ("=namespace", "name")
    search_help_text = "A part of the name, or a whole namespace."
    actions = ("delete_selected",)

    # Rights: those of the API

    def _may(self, request: HttpRequest, verb: str, obj: Any = None) -> bool:
        """About an object, or without one whether there is a place where the user may."""
        if obj is None:
            return auth.places(request.user, verb, self.kind) != frozenset()
        return auth.may(request.user, verb, self.kind, obj.namespace, name=obj.name)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "list")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "get", obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "create")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "update", obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete", obj)

    # The table

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        where = ("namespace",) if self.kind.namespaced else ()
        return ("name", *where, *self.columns, "created_at")

    def get_list_filter(self, request: HttpRequest) -> Any:
        return [*([NamespaceFilter] if self.kind.namespaced else []), *self.list_filter]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        seen = auth.places(request.user, "list", self.kind)
        if seen is not None:
            rows = rows.filter(namespace__in=seen)
        return rows.defer("document") if is_list(request) else rows

    @admin.action(permissions=["delete"], description="Delete selected %(verbose_name_plural)s")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask, then delete one after the other through the store; what cannot be deleted is told and the rest goes."""
        count = queryset.count()
        if count > AT_ONCE:
            self.message_user(request, f"Select at most {AT_ONCE:,} at once; these are {count:,}.", messages.ERROR)
            return None
        rows = list(queryset.defer("document"))
        if not request.POST.get("post"):
            context = {
                **self.admin_site.each_context(request),
                "title": "Delete multiple objects",
                "subtitle": None,
                "objects_name": str(self.opts.verbose_name_plural),
                "deletable_objects": [[str(row) for row in rows]],
                "model_count": {self.opts.verbose_name_plural: count}.items(),
                "queryset": rows,
                "perms_lacking": [],
                "protected": [],
                "opts": self.opts,
                "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
                "media": self.media,
            }
            return TemplateResponse(request, "admin/delete_selected_confirmation.html", context)
        refused = []
        for row in rows:
            if not self.has_delete_permission(request, row):
                refused.append(f"{row}: you may not delete it")
            elif error := self._delete(request, row):
                refused.append(f"{row}: {error}")
        if len(rows) > len(refused):
            self.message_user(request, f"Deleted: {len(rows) - len(refused):,} of {len(rows):,}.", messages.SUCCESS)
        for text in refused[:20]:
            self.message_user(request, text, messages.ERROR)
        return None

    # One object

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The document to look at and edit; what is wrong with it is told field by field, and nothing is lost."""
        obj = self.get_object(request, unquote(object_id)) if object_id is not None else None
        if object_id is not None and obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        may_save = self.has_change_permission(request, obj) if obj is not None else self.has_add_permission(request)
        if not may_save and (obj is None or not self.has_view_permission(request, obj)):
            raise PermissionDenied
        errors: list[str] = []
        text = _as_yaml(store.shown_text(self.kind, obj.document)) if obj is not None else self._template()
        if request.method == "POST":
            if not may_save:
                raise PermissionDenied
            text = request.POST.get("document", "").replace("\r\n", "\n")
            try:
                saved = self._save(request, obj, text)
            except ApiError as err:
                errors = _sentences(err)
            else:
                self.message_user(request, f"{saved} is saved at revision {saved.revision}.", messages.SUCCESS)
                name = "change" if "_continue" in request.POST else "changelist"
                return HttpResponseRedirect(self._url(name, saved if name == "change" else None))
        context = {
            **self.admin_site.each_context(request),
            "title": str(obj) if obj is not None else f"Add {self.opts.verbose_name}",
            "opts": self.opts,
            "original": obj,
            "text": text,
            "errors": errors,
            "may_save": may_save,
            "delete_url": self._url("delete", obj)
            if obj is not None and self.has_delete_permission(request, obj)
            else "",
            "history_url": self._url("history", obj) if obj is not None else "",
            "links": self.links(obj) if obj is not None else [],
            "facts": self._facts(obj) if obj is not None else [],
            "api_version": self.kind.api_version,
        }
        return TemplateResponse(request, "admin/services_app/api_object.html", context)

    def _save(self, request: HttpRequest, obj: Any, text: str) -> Any:
        """The row as the store wrote it. Raises ApiError."""
        document, unknown = decode_with_warnings(self.kind, text.encode(errors="replace"), YAML)
        if unknown:
            raise strict_error(unknown)
        metadata = document.get("metadata") or {}
        actor = self._actor(request)
        if obj is None:
            namespace = (metadata.get("namespace") or "default") if self.kind.namespaced else ""
            auth.require_right(
                request.user, actor.request_id, "create", self.kind, namespace, before=None, wanted=document
            )
            stored = store.create(self.kind, document, namespace=namespace, actor=actor)
        else:
            given = (metadata.get("namespace") or obj.namespace, metadata.get("name") or obj.name)
            if given != (obj.namespace, obj.name):
                raise BadRequest(
                    f"metadata: {'/'.join(filter(None, given))} is another object than {obj}; add it instead"
                )

            def allowed(current: Any) -> Any:
                auth.require_right(
                    request.user, actor.request_id, "update", self.kind, obj.namespace, before=current, wanted=document
                )
                return deepcopy(document)

            stored = store.update(self.kind, obj.namespace, obj.name, allowed, actor=actor)
        # An update that takes the last finalizer off a deleted object ends it.
        row = self.model._default_manager.filter(pk=json.loads(stored.document)["metadata"]["uid"]).first() or obj
        if obj is None:
            self.log_addition(request, row, "Created.")
        else:
            self.log_change(request, row, f"Revision {row.revision}.")
        return row

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask, then delete through the store."""
        if request.method != "POST":
            return super().delete_view(request, object_id, extra_context)
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        if not self.has_delete_permission(request, obj):
            raise PermissionDenied
        if error := self._delete(request, obj):
            self.message_user(request, f"{obj}: {error}", messages.ERROR)
            return HttpResponseRedirect(self._url("change", obj))
        self.message_user(request, f"The deletion of {obj} is accepted.", messages.SUCCESS)
        return HttpResponseRedirect(self._url("changelist"))

    def _delete(self, request: HttpRequest, obj: Any) -> str:
        """Why it could not be deleted; "" when it could."""
        try:
            store.delete(self.kind, obj.namespace, obj.name, actor=self._actor(request))
        except ApiError as err:
            return err.message
        self.log_deletions(request, [obj])  # type: ignore[arg-type]  # it only walks over them
        return ""

    def _actor(self, request: HttpRequest) -> store.Actor:
        return store.Actor(request.user.get_username(), audit.request_id(request.headers), manager="timonel-admin")

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What the question names. What is derived from an object goes with it, and is not collected here."""
        names = [str(obj) for obj in objs]
        return names, {str(self.opts.verbose_name_plural): len(names)}, set(), []

    # Nothing saves or deletes behind the store's back, whatever Django's machinery calls.

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        raise PermissionDenied

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        raise PermissionDenied

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        raise PermissionDenied

    # Parts of the page

    def links(self, obj: Any) -> list[str]:
        """To what belongs to the object."""
        changes = list_of(models.AuditEntry, kind=self.kind.plural, namespace=obj.namespace, name=obj.name)
        events = list_of(models.Event, involved_kind=self.kind.kind, involved_name=obj.name)
        return [link(changes, "Changes"), link(events, "Events")]

    def _facts(self, obj: Any) -> list[tuple[str, Any]]:
        """The typed columns beside the document."""
        fields = [f for f in self.opts.fields if f.name not in ("document", "labels", "name", "namespace")]
        return [(str(f.verbose_name), getattr(obj, f.name)) for f in fields]

    def _template(self) -> str:
        metadata = {"name": "", **({"namespace": "default"} if self.kind.namespaced else {})}
        head: Document = {"apiVersion": self.kind.api_version, "kind": self.kind.kind, "metadata": metadata}
        return yaml.safe_dump({**head, **_BODIES.get(self.kind.plural, {})}, sort_keys=False)

    def _url(self, name: str, obj: Any = None) -> str:
        arguments = [quote(obj.pk)] if obj is not None else []
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_{name}", args=arguments)


_BODIES: dict[str, Document] = {
    "services": {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}},
    "pods": {"spec": {"nodeName": "", "containers": [{"name": "app", "image": "example.org/app"}]}},
    "endpoints": {"subsets": [{"addresses": [{"ip": "192.0.2.10"}], "ports": [{"port": 8080}]}]},
    "servicecidrs": {"spec": {"cidrs": ["10.97.0.0/16"]}},
    "ipaddresses": {"spec": {"parentRef": {"resource": "hosts", "name": "printer"}}},
    "endpointslices": {
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.10"]}],
        "ports": [{"name": "", "port": 8080}],
    },
}


def _as_yaml(document: str) -> str:
    return yaml.safe_dump(json.loads(document), sort_keys=False, allow_unicode=True, width=110)


def _sentences(error: ApiError) -> list[str]:
    """Everything that is wrong, one a line."""
    if isinstance(error, Invalid):
        return list(dict.fromkeys(str(one) for one in error.errors)) or [error.message]
    return [error.message]


@admin.register(models.Namespace)
class NamespaceAdmin(ApiObjectAdmin):
    """Namespaces."""

    kind = kinds.NAMESPACE
    search_fields = ("name",)
    search_help_text = "A part of the name."

    def links(self, obj: Any) -> list[str]:
        inside: Iterable[type[Model]] = (models.Service, models.Pod, models.EndpointSlice, models.Event)
        names = [link(list_of(m, namespace=obj.name), str(m._meta.verbose_name_plural).capitalize()) for m in inside]
        return [*names, *super().links(obj)]


@admin.register(models.Service)
class ServiceAdmin(ApiObjectAdmin):
    """Services."""

    kind = kinds.SERVICE
    columns = ("type", "cluster_ip", "programmed", "slices")
    list_filter = ("type", "programmed")
    search_fields = ("=namespace", "name", "cluster_ip__startswith")
    search_help_text = "A part of the name, a whole namespace, or how the cluster IP begins."

    @admin.display(description="endpoints")
    def slices(self, obj: models.Service) -> str:
        return link(list_of(models.EndpointSlice, namespace=obj.namespace, service_name=obj.name), "slices")

    def links(self, obj: Any) -> list[str]:
        return [
            link(reverse("web:service", args=[obj.namespace, obj.name]), "Where it is live"),
            link(list_of(models.EndpointSlice, namespace=obj.namespace, service_name=obj.name), "EndpointSlices"),
            link(list_of(models.Endpoints, namespace=obj.namespace, name=obj.name), "Endpoints"),
            link(list_of(models.ClusterIPClaim, service=obj.pk), "Cluster IPs"),
            link(list_of(models.NodePortClaim, service=obj.pk), "Node ports"),
            *super().links(obj),
        ]


@admin.register(models.Endpoints)
class EndpointsAdmin(ApiObjectAdmin):
    """Endpoints."""

    kind = kinds.ENDPOINTS

    def links(self, obj: Any) -> list[str]:
        return [link(list_of(models.Service, namespace=obj.namespace, name=obj.name), "Service"), *super().links(obj)]


@admin.register(models.EndpointSlice)
class EndpointSliceAdmin(ApiObjectAdmin):
    """EndpointSlices."""

    kind = kinds.ENDPOINT_SLICE
    columns = ("service", "managed_by")
    search_fields = ("=namespace", "name", "=service_name")
    search_help_text = "A part of the name, or a whole namespace or Service."

    @admin.display(description="service", ordering="service_name")
    def service(self, obj: models.EndpointSlice) -> str:
        if not obj.service_name:
            return "–"
        return link(list_of(models.Service, namespace=obj.namespace, name=obj.service_name), obj.service_name)

    def links(self, obj: Any) -> list[str]:
        service = list_of(models.Service, namespace=obj.namespace, name=obj.service_name)
        return [*([link(service, "Service")] if obj.service_name else []), *super().links(obj)]


@admin.register(models.Pod)
class PodAdmin(ApiObjectAdmin):
    """Pods."""

    kind = kinds.POD
    columns = ("node", "pod_ip", "ready")
    list_filter = ("ready",)
    search_fields = ("=namespace", "name", "=node_name", "pod_ip__startswith")
    search_help_text = "A part of the name, a whole namespace or node name, or how the address begins."

    @admin.display(description="node", ordering="node_name")
    def node(self, obj: models.Pod) -> str:
        return node_link(obj.node_name)

    def links(self, obj: Any) -> list[str]:
        node = [format_html("Node {}", node_link(obj.node_name))] if obj.node_name else []
        return [*node, *super().links(obj)]


@admin.register(models.Node)
class NodeAdmin(ApiObjectAdmin):
    """Nodes."""

    kind = kinds.NODE
    columns = ("address", "page")
    search_fields = ("name", "address__startswith")
    search_help_text = "A part of the name, or how the address begins."

    @admin.display(description="page")
    def page(self, obj: models.Node) -> str:
        return node_link(obj.name)

    def links(self, obj: Any) -> list[str]:
        return [
            format_html("Page of {}", node_link(obj.name)),
            link(list_of(models.Pod, node_name=obj.name), "Pods"),
            link(list_of(models.NodeAccess, node=obj.name), "Access"),
            link(list_of(models.NodeOperation, node=obj.name), "Operations"),
            *super().links(obj),
        ]


@admin.register(models.Event)
class EventAdmin(ApiObjectAdmin):
    """Events."""

    kind = kinds.EVENT
    columns = ("type", "reason", "involved")
    list_filter = ("type", "involved_kind")
    search_fields = ("=namespace", "name", "involved_name", "=reason")
    search_help_text = "A part of its name or of what it is about, or a whole namespace or reason."
    ordering = ("-created_at",)

    @admin.display(description="about", ordering="involved_name")
    def involved(self, obj: models.Event) -> str:
        about = f"{obj.involved_kind} {obj.involved_name}"
        kind = next((kind for kind in kinds.KINDS if kind.kind == obj.involved_kind), None)
        if kind is None:
            return about
        where = {"namespace": obj.namespace} if kind.namespaced else {}
        return link(list_of(MODELS[kind.plural], name=obj.involved_name, **where), about)


@admin.register(models.ConfigMap)
class ConfigMapAdmin(ApiObjectAdmin):
    """ConfigMaps."""

    kind = kinds.CONFIG_MAP


@admin.register(models.Secret)
class SecretAdmin(ApiObjectAdmin):
    """Secrets; opened for those who may change them."""

    kind = kinds.SECRET
    columns = ("type",)
    list_filter = ("type",)


@admin.register(models.Lease)
class LeaseAdmin(ApiObjectAdmin):
    """Leases."""

    kind = kinds.LEASE
    columns = ("holder",)
    search_fields = ("=namespace", "name", "holder")


@admin.register(models.Ingress)
class IngressAdmin(ApiObjectAdmin):
    """Ingresses."""

    kind = kinds.INGRESS
    columns = ("class_name",)


@admin.register(models.IngressClass)
class IngressClassAdmin(ApiObjectAdmin):
    """IngressClasses."""

    kind = kinds.INGRESS_CLASS
    columns = ("controller",)
    search_fields = ("name", "controller")
    search_help_text = "A part of the name or of the controller."


@admin.register(models.IPAddress)
class IPAddressAdmin(ApiObjectAdmin):
    """IPAddresses."""

    kind = kinds.IP_ADDRESS
    columns = ("belongs_to",)
    search_fields = ("name__startswith", "parent")
    search_help_text = "How the address begins, or a part of what it belongs to."

    @admin.display(description="belongs to", ordering="parent")
    def belongs_to(self, obj: models.IPAddress) -> str:
        resource, _, place = obj.parent.partition("/")
        namespace, _, name = place.partition("/")
        if resource != "services" or not name:
            return obj.parent or "–"
        return link(list_of(models.Service, namespace=namespace, name=name), obj.parent)

    def links(self, obj: Any) -> list[str]:
        return [link(list_of(models.ClusterIPClaim, address=obj.name), "Claim"), *super().links(obj)]


@admin.register(models.ServiceCIDR)
class ServiceCIDRAdmin(ApiObjectAdmin):
    """ServiceCIDRs: the ranges, and how much of each is in use."""

    kind = kinds.SERVICE_CIDR
    columns = ("ranges", "is_ready", "in_use")
    list_filter = ("is_ready",)
    search_fields = ("name",)
    search_help_text = "A part of the name."

    @admin.display(description="ranges")
    def ranges(self, obj: models.ServiceCIDR) -> str:
        return ", ".join(obj.cidrs)

    @admin.display(description="addresses in use")
    def in_use(self, obj: models.ServiceCIDR) -> str:
        return ", ".join(f"{use.used:,} of {use.size:,}" for use in store.uses(obj.cidrs))
