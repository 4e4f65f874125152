"""Create and change a Service by form: try, show what would change, apply. The store is the only writer.

A post carries what was typed and one `action`, the button: show (the type changed: other fields), add, remove, preview,
apply, back. Whatever happens, what was typed comes back.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from services_app import store
from services_app.api import auth
from services_app.models import Namespace
from services_app.spec import objects
from services_app.spec.errors import AlreadyExists, ApiError, FieldError, Invalid, NotFound, invalid
from services_app.spec.kinds import SERVICE
from services_app.spec.service import PROTOCOLS, TRAFFIC_DISTRIBUTIONS
from services_app.web import writing
from services_app.web.service_form import (
    FormView,
    Pair,
    PortInput,
    Problem,
    ServiceForm,
    apply_form,
    from_document,
    from_request,
    is_long,
    is_too_large,
    merge,
    without_echoes,
)
from services_app.web.service_list import NAMESPACES_OFFERED
from services_app.web.service_view import find_service
from services_app.web.views import forbidden, form_page, may, missing
from services_app.web.writing import (
    ChangedMeanwhile,
    LastWrite,
    built_on,
    last_write,
    mark_of,
    read_shown,
    shown_text,
)
from services_app.web.yaml_text import DiffLine, differences, writable

Document = dict[str, Any]

TYPES = {
    "ClusterIP": "an address inside",
    "NodePort": "also a port on every node",
    "LoadBalancer": "also an address from outside",
    "ExternalName": "a name that stands for another",
}
_ROWS = {"ports": PortInput, "selector": Pair, "labels": Pair, "annotations": Pair}


@dataclass(frozen=True)
class Tried:
    """What came of an attempt to write. stored: None when it was refused."""

    stored: store.Stored | None
    errors: Sequence[FieldError] = ()
    problems: Sequence[Problem] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Collision:
    """Two people changed a Service at once: what the other did, and what this one wants, from the same start."""

    theirs: Sequence[DiffLine]
    mine: Sequence[DiffLine]
    both: Sequence[str]  # fields that both changed
    write: LastWrite | None


@form_page
def new(request: HttpRequest) -> HttpResponse:
    """A new Service."""
    asked = ServiceForm(namespace=request.GET.get("namespace") or _first_choice(request))
    if request.method == "POST":
        namespace = request.POST.get("namespace", "").strip()
        if not may(request, "create", SERVICE, namespace):
            return forbidden(request, f"create Services in namespace {namespace}")
        return _posted(request, {})
    if not may(request, "create", SERVICE, asked.namespace):
        return forbidden(request, "create Services")
    return _page(request, FormView(asked), base={})


def _first_choice(request: HttpRequest) -> str:
    """The namespace a new Service is meant for unless another is named: default, where the one who asks may."""
    allowed = auth.places(request.user, "create", SERVICE)
    return "default" if allowed is None or "default" in allowed else min(allowed, default="default")


@form_page
def edit(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """An existing Service; as the fragment `changed`, whether it is still what the open form shows."""
    if not may(request, "update", SERVICE, namespace):
        return forbidden(request, f"change Services in namespace {namespace}")
    if request.method == "POST":
        base = read_shown(request.POST.get("base", ""))
        if base is None or (base["metadata"].get("namespace"), base["metadata"].get("name")) != (namespace, name):
            return redirect("web:service-edit", namespace, name)
        return _posted(request, base)
    found = find_service(namespace, name)
    document = json.loads(found.document) if found else None
    if HtmxDetails(request).target == "changed":
        return changed(request, document)
    if document is None:
        return missing(request, namespace, name)
    form = from_document(document)
    if is_too_large(form):
        messages.info(request, "This Service has more rows than a form can hold; here it is as YAML.")
        return redirect("web:service-yaml", namespace, name)
    return _page(request, FormView(form), base=writable(document))


def changed(request: HttpRequest, document: Document | None) -> HttpResponse:
    """The fragment that tells an open page whether a Service is still what it shows. document: as it is now."""
    seen = request.GET.get("seen", "")
    context: dict[str, Any] = {"seen": seen, "gone": document is None}
    if document is not None and mark_of(document) != seen:
        metadata = document["metadata"]
        context |= {"is_changed": True, "write": last_write(metadata["namespace"], metadata["name"])}
    return render(request, "web/_changed.html", context)


def _posted(request: HttpRequest, base: Document) -> HttpResponse:
    """What a button of the form does."""
    action, _, argument = request.POST.get("action", "").partition(":")
    form = from_request(request.POST, keep_blank=action not in ("preview", "apply"))
    if base:
        form = replace(form, name=base["metadata"]["name"], namespace=base["metadata"]["namespace"])
    if action in ("add", "remove"):
        form, focus = _with_rows(form, action, argument)
        return _page(request, FormView(form, focus=focus), base=base)
    if action not in ("preview", "apply"):
        return _page(request, FormView(form), base=base)
    try:
        tried = _try(request, base, form, dry_run=action == "preview")
    except ChangedMeanwhile as err:
        return _collided(request, base, form, err.current)
    view = FormView(form, tried.errors)
    view.problems += tried.problems
    if tried.stored is None:
        return _page(request, view, base=base)
    document = json.loads(tried.stored.document)
    if action == "apply":
        return _done(request, document, tried, is_new=not base)
    lines = differences(base or None, writable(document))
    return _page(request, view, base=base, preview=True, lines=lines, warnings=tried.warnings)


def _with_rows(form: ServiceForm, action: str, argument: str) -> tuple[ServiceForm, str]:
    """The form with a row more or less, and the field to go on with."""
    name, _, index = argument.partition(":")
    if name not in _ROWS:
        return form, ""
    rows: tuple[Any, ...] = getattr(form, name)
    if action == "add":
        first = "name" if name == "ports" else "key"
        more: dict[str, Any] = {name: (*rows, _ROWS[name]())}
        return replace(form, **more), f"{name}-{len(rows)}-{first}"
    at = int(index) if index.isascii() and index.isdigit() else len(rows)
    less: dict[str, Any] = {name: rows[:at] + rows[at + 1 :]}
    return replace(form, **less), ""


def _try(request: HttpRequest, base: Document, form: ServiceForm, *, dry_run: bool) -> Tried:
    """Write the form, or only try to. Raises ChangedMeanwhile."""
    shown = from_document(base) if base else ServiceForm()
    _, errors = apply_form(base, shown, form)
    dry_run = dry_run or bool(errors)  # with an unreadable field the others are judged and nothing is written
    problems: list[Problem] = []
    stored = None
    try:
        if base:
            change = built_on(base, lambda current: apply_form(current, shown, form)[0])
            stored = writing.update(request, SERVICE, form.namespace, form.name, change, dry_run=dry_run)
        else:
            document, _ = apply_form({}, shown, form)
            stored = writing.create(request, SERVICE, document, namespace=form.namespace, dry_run=dry_run)
    except Invalid as err:
        errors += without_echoes(err.errors, errors, form)
        if not errors:
            problems.append(Problem.told(err.message))
    except AlreadyExists:
        errors.append(invalid("metadata.name", form.name, f"the namespace {form.namespace} has a Service of this name"))
    except NotFound as err:
        if base:
            problems.append(Problem("The Service was deleted meanwhile. What you typed is still here."))
        elif (err.details or {}).get("kind") == "namespaces":
            errors.append(FieldError("NotFound", "metadata.namespace", form.namespace, "create the Namespace first"))
        else:
            problems.append(Problem.told(err.message))
    except ApiError as err:
        problems.append(Problem.told(err.message))
    if errors or problems or stored is None:
        return Tried(None, errors, problems)
    return Tried(stored, warnings=objects.warnings(SERVICE, json.loads(stored.document), base or None))


def _collided(request: HttpRequest, base: Document, form: ServiceForm, current: Document) -> HttpResponse:
    """The form with what was typed on top of the newest version, and what both sides changed."""
    shown, newest = from_document(base), writable(current)
    merged, both = merge(shown, form, from_document(current))
    mine, _ = apply_form(base, shown, form)
    collision = Collision(
        theirs=differences(base, newest),
        mine=differences(base, mine),
        both=both,
        write=last_write(form.namespace, form.name),
    )
    return _page(request, FormView(merged), base=newest, collision=collision)


def _done(request: HttpRequest, document: Document, tried: Tried, *, is_new: bool) -> HttpResponse:
    metadata = document["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    messages.success(request, f"Service {namespace}/{name} was {'created' if is_new else 'changed'}.")
    for sentence in tried.warnings:
        messages.warning(request, sentence)
    return redirect_to(request, reverse("web:service", args=[namespace, name]))


def redirect_to(request: HttpRequest, path: str) -> HttpResponse:
    """Leads on to another page, from a fragment as well."""
    return HttpResponseClientRedirect(path) if HtmxDetails(request) else HttpResponseRedirect(path)


def _page(request: HttpRequest, view: FormView, *, base: Document, **more: Any) -> HttpResponse:
    """The form, alone for htmx, in its page otherwise."""
    context: dict[str, Any] = {
        "view": view,
        "form": view.form,
        "base": shown_text(base) if base else "",
        "seen": mark_of(base) if base else "",
        "is_new": not base,
        "keeps_address": bool(base) and (base.get("spec") or {}).get("type") != "ExternalName",
        "long_annotations": _long_annotations(base),
        "types": TYPES.items(),
        "protocols": sorted(PROTOCOLS, reverse=True),
        "distributions": TRAFFIC_DISTRIBUTIONS,
        **more,
    }
    if HtmxDetails(request).target == "editor":
        return render(request, "web/_service_form.html", context)
    allowed = auth.places(request.user, "create", SERVICE)
    known = Namespace.objects.order_by("name").values_list("name", flat=True)
    context["namespaces"] = (known if allowed is None else known.filter(name__in=allowed))[:NAMESPACES_OFFERED]
    return render(request, "web/service_form.html", context)


def _long_annotations(base: Document) -> list[str]:
    """The annotations that stay as they are, beside the form."""
    annotations = (base.get("metadata") or {}).get("annotations") or {}
    return sorted(key for key, value in annotations.items() if is_long(value))
