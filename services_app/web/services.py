"""The pages of Services: the list, one Service, its deletion."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django_htmx.middleware import HtmxDetails

from services_app import store
from services_app.spec.errors import ApiError, Conflict, NotFound
from services_app.spec.kinds import SERVICE
from services_app.spec.service import TYPES
from services_app.web import writing
from services_app.web.overview import read_nodes
from services_app.web.service_list import HEADLESS, STATES
from services_app.web.service_view import ServiceView, read_service
from services_app.web.views import forbidden, form_page, may, missing, page, services_context


@page
def service_list(request: HttpRequest) -> HttpResponse:
    """All Services: filtered, sorted, paged."""
    context = services_context(request, read_nodes()) | {"with_age": True}
    if HtmxDetails(request).target == "services":
        return render(request, "web/_services.html", context)
    types = [*sorted(TYPES), HEADLESS]
    return render(request, "web/service_list.html", context | {"types": types, "states": STATES.items()})


@page
def service(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """One Service: where it is reached, its names, endpoints, nodes, events and changes."""
    if not may(request, "get", SERVICE, namespace):
        return forbidden(request, f"see Services in namespace {namespace}")
    nodes = read_nodes()
    found = read_service(
        namespace,
        name,
        nodes,
        endpoints_page=request.GET.get("endpoints_page"),
        nodes_page=request.GET.get("nodes_page"),
    )
    context = {
        "service": found,
        "nodes": nodes,
        "namespace": namespace,
        "name": name,
        "may_update": may(request, "update", SERVICE, namespace),
        "may_delete": may(request, "delete", SERVICE, namespace),
    }
    if HtmxDetails(request).target == "service":
        return render(request, "web/_service.html", context)  # says so when the Service is gone
    return render(request, "web/service.html", context) if found else missing(request, namespace, name)


@form_page
def service_delete(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """Says what goes with a Service; a post deletes it."""
    if not may(request, "delete", SERVICE, namespace):
        return forbidden(request, f"delete Services in namespace {namespace}")
    found = read_service(namespace, name, read_nodes())
    if found is None:
        return missing(request, namespace, name)
    error = ""
    if request.method == "POST":
        # The uid of what was shown: a Service made anew under the same name is another one.
        try:
            stored = writing.delete(request, SERVICE, namespace, name, uid=request.POST.get("uid") or "unknown")
        except Conflict:
            error = "Another Service of this name was created meanwhile. Look at it before you delete it."
        except NotFound:
            messages.info(request, f"Service {namespace}/{name} was gone already.")
            return redirect("web:services")
        except ApiError as err:
            error = err.message
        else:
            return redirect(_after_deletion(request, found, stored))
    return render(
        request,
        "web/service_delete.html",
        {"service": found, "namespace": namespace, "name": name, "error": error},
    )


def _after_deletion(request: HttpRequest, service: ServiceView, stored: store.Stored) -> str:
    """Where to go; notes what happened."""
    namespace, name = service.row.namespace, service.row.name
    if service.finalizers and '"deletionTimestamp"' in stored.document:
        held = ", ".join(service.finalizers)
        messages.warning(request, f"Service {namespace}/{name} is marked for deletion; finalizers hold it: {held}.")
        return reverse("web:service", args=[namespace, name])
    messages.success(request, f"Service {namespace}/{name} was deleted.")
    return reverse("web:services")
