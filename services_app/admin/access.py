"""Who may do what, in the admin: grants, tokens, users and groups. Every change of them is recorded for auditors."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth import admin as auth_admin
from django.contrib.auth.models import Group, User
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from services_app import audit, models
from services_app.api import auth
from services_app.spec import names

Document = dict[str, Any]


class Recorded(admin.ModelAdmin):  # type: ignore[type-arg]
    """A table whose rows give rights: each write of one is recorded, with what it said before and says now."""

    recorded_as = ""  # the audit records' kind

    def describe(self, obj: Any) -> Document:
        """What a row says, as the record keeps it: never a secret."""
        raise NotImplementedError

    def namespace_of(self, obj: Any) -> str:
        return ""

    def _record(
        self, request: HttpRequest, verb: str, obj: Any, before: Document | None, after: Document | None
    ) -> None:
        audit.record(
            verb,
            self.recorded_as,
            str(obj),
            namespace=self.namespace_of(obj),
            user=request.user.get_username(),
            request_id=audit.request_id(request.headers),
            before=before,
            after=after,
        )

    def _stored(self, obj: Any) -> Document | None:
        row = self.model._default_manager.filter(pk=obj.pk).first() if obj.pk else None
        return self.describe(row) if row is not None else None

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        obj.said_before = self._stored(obj) if change else None
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        # Groups and permissions of a user are saved here: only now it is what it says.
        before, after = form.instance.said_before, self._stored(form.instance)
        if before != after:
            self._record(request, audit.MODIFIED if change else audit.ADDED, form.instance, before, after)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self._record(request, audit.DELETED, obj, None, self._stored(obj))
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for obj in queryset:
            self._record(request, audit.DELETED, obj, None, self._stored(obj))
        super().delete_queryset(request, queryset)


class GrantForm(forms.ModelForm):  # type: ignore[type-arg]
    """A grant to give or change. places: the namespaces it may be for; None: any, and everywhere."""

    places: frozenset[str] | None = frozenset()
    namespace = forms.CharField(
        required=False, help_text="Empty: everywhere, with the cluster-wide kinds (Namespaces, Nodes, …)."
    )

    class Meta:
        model = models.Grant
        fields = ("role", "user", "group", "everyone", "namespace")

    def clean_namespace(self) -> str:
        namespace: str = self.cleaned_data["namespace"]
        if self.places is not None and namespace not in self.places:
            raise forms.ValidationError(f"You may give grants in {', '.join(sorted(self.places))} only.")
        if namespace and (problems := names.label_problems(namespace)):
            raise forms.ValidationError(f"{namespace!r} is no name of a namespace: {problems[0]}")
        return namespace


@admin.register(models.Grant)
class GrantAdmin(Recorded):
    """Grants: for whoever is admin everywhere, and for the admins of a namespace those of that namespace."""

    form = GrantForm
    recorded_as = "grants"
    list_display = ("subject", "role", "where", "given_by", "given_at")
    list_filter = ("role", "everyone")
    list_select_related = ("user", "group")
    search_fields = ("=user__username", "=group__name", "=namespace")
    search_help_text = "A whole user, group or namespace."
    show_full_result_count = False

    @admin.display(description="namespace", ordering="namespace")
    def where(self, obj: models.Grant) -> str:
        return obj.namespace or "everywhere"

    def describe(self, obj: models.Grant) -> Document:
        return {"role": obj.role, "subject": obj.subject, "namespace": obj.namespace}

    def namespace_of(self, obj: models.Grant) -> str:
        return obj.namespace

    def _may(self, request: HttpRequest, obj: Any = None) -> bool:
        places = auth.places_to_grant(request.user)
        return places is None or (bool(places) if obj is None else obj.namespace in places)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self._may(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        places = auth.places_to_grant(request.user)
        rows = super().get_queryset(request)
        return rows if places is None else rows.filter(namespace__in=places)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        form: Any = super().get_form(request, obj, change=change, **options)
        form.places = auth.places_to_grant(request.user)
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        obj.given_by, obj.given_at = request.user.get_username(), timezone.now()
        super().save_model(request, obj, form, change)


def _permissions(held: Any) -> list[str]:
    return sorted(f"{app}.{name}" for app, name in held.values_list("content_type__app_label", "codename"))


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(Recorded, auth_admin.UserAdmin):  # type: ignore[type-arg]
    """Users, as Django has them."""

    recorded_as = "users"

    def describe(self, obj: User) -> Document:
        return {
            "username": obj.username,
            "active": obj.is_active,
            "staff": obj.is_staff,
            "superuser": obj.is_superuser,
            "groups": sorted(obj.groups.values_list("name", flat=True)),
            "permissions": _permissions(obj.user_permissions),
        }


@admin.register(Group)
class GroupAdmin(Recorded, auth_admin.GroupAdmin):
    """Groups, as Django has them."""

    recorded_as = "groups"

    def describe(self, obj: Group) -> Document:
        return {"name": obj.name, "permissions": _permissions(obj.permissions)}


class TokenForm(forms.ModelForm):  # type: ignore[type-arg]
    """A token to issue."""

    class Meta:
        model = models.ApiToken
        fields = ("name", "user", "expires_at")

    def clean_expires_at(self) -> Any:
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("This moment is past: the token would never be valid.")
        return expires_at


@admin.register(models.ApiToken)
class ApiTokenAdmin(Recorded):
    """API tokens: add one to issue it, delete it to revoke it; what was issued does not change."""

    form = TokenForm
    recorded_as = "apitokens"
    list_display = ("name", "user", "created_at", "expires_at", "is_valid")
    list_select_related = ("user",)
    search_fields = ("name", "=user__username")
    search_help_text = "A part of the name, or a whole user."
    fields = ("name", "user", "expires_at")
    ordering = ("-created_at",)
    show_full_result_count = False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    @admin.display(description="valid", boolean=True)
    def is_valid(self, obj: models.ApiToken) -> bool:
        return obj.user.is_active and (obj.expires_at is None or obj.expires_at > timezone.now())

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        # A token acts as its user: only a superuser may issue one for somebody else.
        if db_field.name == "user":
            users = db_field.related_model.objects.order_by("username")
            options["queryset"] = (
                users if getattr(request.user, "is_superuser", False) else users.filter(pk=request.user.pk)
            )
            options["initial"] = request.user.pk
        return super().formfield_for_foreignkey(db_field, request, **options)

    def describe(self, obj: models.ApiToken) -> Document:
        return {"name": obj.name, "user": obj.user.get_username(), "expires_at": obj.expires_at}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        obj.said_before = None
        obj.plain = models.ApiToken.issue(obj.user, obj.name, obj.expires_at)
        obj.pk = models.ApiToken.objects.values_list("pk", flat=True).get(digest=models.ApiToken.digest_of(obj.plain))

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        # In the answer itself: a message after a redirect would be kept in a cookie meanwhile.
        context = {
            **self.admin_site.each_context(request),
            "title": "API token issued",
            "opts": self.opts,
            "token": obj,
        }
        return TemplateResponse(
            request, "admin/services_app/token_issued.html", context, headers={"Cache-Control": "no-store"}
        )
