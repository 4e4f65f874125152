"""The pages. Each view reads once and renders either the whole page or, for htmx, the fragment that is asked for."""

from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from asgiref.sync import sync_to_async
from django.contrib.auth.views import LoginView, LogoutView, redirect_to_login
from django.core.paginator import Paginator
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse, reverse_lazy
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_http_methods, require_safe
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from services_app.api import auth
from services_app.spec import kinds
from services_app.spec.kinds import Kind
from services_app.web.live import event_stream
from services_app.web.overview import NODES_PER_PAGE, NodesView, count_services, read_nodes
from services_app.web.service_list import ServiceFilter, read_services

# Nothing is loaded from elsewhere and nothing is written inline; data: images are the kit's small icons.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

View = Callable[..., HttpResponse]


def guarded(view: View) -> View:
    """The view with the headers every page of the dashboard has."""

    @wraps(view)
    def with_headers(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        # A page and its fragments share URLs, and a page kept by the browser would show old state after "back".
        response.headers["Cache-Control"] = "no-store"
        response.headers["Vary"] = "Cookie, HX-Request, HX-Target"
        return response

    return with_headers


def logged_in(view: View) -> View:
    """The view for logged-in users; a fragment asked for without a login sends the whole page to the login form."""

    @wraps(view)
    def for_users(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.user.is_authenticated:
            return view(request, *args, **kwargs)
        htmx = HtmxDetails(request)
        if htmx:
            back = htmx.current_url_abs_path or reverse("web:overview")
            return HttpResponseClientRedirect(f"{reverse('web:login')}?{urlencode({'next': back})}")
        return redirect_to_login(request.get_full_path(), login_url=reverse("web:login"))

    return for_users


def page(view: View) -> View:
    """A page for logged-in users that only shows."""
    return require_safe(guarded(logged_in(view)))


def form_page(view: View) -> View:
    """A page for logged-in users that is also posted to; Django's middleware refuses forged posts."""
    return require_http_methods(["GET", "HEAD", "POST"])(guarded(logged_in(view)))


def may(request: HttpRequest, verb: str, kind: Kind, namespace: str) -> bool:
    """Whether the one who asks may do this, as the API answers it: for what a page offers (`writing` decides)."""
    return auth.may(request.user, verb, kind, namespace)


def may_somewhere(request: HttpRequest, verb: str, kind: Kind) -> bool:
    """Whether there is a namespace where the one who asks may do this."""
    return auth.places(request.user, verb, kind) != frozenset()


def forbidden(request: HttpRequest, what: str) -> HttpResponse:
    """The page for somebody who is logged in and may not do this. what: as in "change Services in shop"."""
    return render(request, "403.html", {"what": what}, status=403)


def missing(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """The page for a Service that is not there."""
    return render(request, "404.html", {"missing": f"There is no Service {name} in namespace {namespace}."}, status=404)


@page
def overview(request: HttpRequest) -> HttpResponse:
    """Services and nodes: the page a user sees first."""
    target = HtmxDetails(request).target
    nodes = read_nodes()
    context: dict[str, Any] = {"nodes": nodes, "may_see_nodes": may(request, "list", kinds.NODE, "")}
    if target != "services":
        context |= _nodes_context(request, nodes)
        seen = auth.places(request.user, "list", kinds.SERVICE)
        context["services_total"], context["services_programmed"] = count_services(seen)
    if target == "nodes":
        return render(request, "web/_nodes.html", context)
    context |= services_context(request, nodes)
    return render(request, "web/_services.html" if target == "services" else "web/overview.html", context)


def services_context(request: HttpRequest, nodes: NodesView) -> dict[str, Any]:
    """What the table of Services needs, wherever it stands."""
    wanted = ServiceFilter.from_query(request.GET)
    seen = auth.places(request.user, "list", kinds.SERVICE)
    here = wanted.namespace
    return {
        "wanted": wanted,
        "services": read_services(wanted, request.GET.get("page"), nodes, seen),
        "may_see": seen != frozenset(),
        "may_create": may(request, "create", kinds.SERVICE, here)
        if here
        else may_somewhere(request, "create", kinds.SERVICE),
    }


def _nodes_context(request: HttpRequest, nodes: NodesView) -> dict[str, Any]:
    return {"nodes_page": Paginator(nodes.reports, NODES_PER_PAGE).get_page(request.GET.get("nodes_page"))}


@guarded
def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The page for a path that nothing answers; Django calls it."""
    return render(request, "404.html", status=404)


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """The stream of server-sent events that keeps pages live; sends `signed-out` and ends without a login."""
    user = await request.auser()
    # The stream lasts for minutes: without this it would keep the connection that looked up the session from the pool.
    await sync_to_async(_release_connections)()
    stream = event_stream() if user.is_authenticated else _signed_out()
    return StreamingHttpResponse(
        stream,
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _signed_out() -> AsyncIterator[bytes]:
    yield b"event: signed-out\ndata:\n\n"


def _release_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


@method_decorator(guarded, name="dispatch")  # type: ignore[arg-type]  # views here give whole responses
class Login(LoginView):
    """The login form."""

    template_name = "web/login.html"
    next_page = reverse_lazy("web:overview")  # type: ignore[assignment]
    redirect_authenticated_user = True


@method_decorator(guarded, name="dispatch")  # type: ignore[arg-type]
class Logout(LogoutView):
    """Ends the session (POST) and shows the login form."""

    next_page = reverse_lazy("web:login")  # type: ignore[assignment]
