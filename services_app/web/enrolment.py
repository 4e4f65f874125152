"""Enrolling a host from the page: say where it is, compare its host key, give what opens the login, watch.

What opens the login is in one request and in the thread which that request starts (push.operations), nowhere else: not
in the session, the tables, the task broker, an address or a page. It is asked for only once the host key is known.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import paramiko
from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods
from django_htmx.middleware import HtmxDetails

from services_app.models import Node, NodeAccess, NodeOperation
from services_app.plan.endpoints import ZONE
from services_app.push import enroll, operations, ssh
from services_app.push.enroll import Host
from services_app.push.errors import NodeError, remedy_of
from services_app.push.keys import fingerprint, read_private_key
from services_app.spec.errors import Invalid
from services_app.spec.kinds import NODE
from services_app.web.nodes import fingerprint_of, for_operators, key_file, may_operate
from services_app.web.overview import read_lag, report_of
from services_app.web.views import forbidden, may, page

LOGIN = r"[A-Za-z_][A-Za-z0-9._-]*"
OWN_LABELS = ("kubernetes.io/hostname", "kubernetes.io/os", ZONE)  # written by enrolment itself


class HostForm(forms.Form):
    """Where the host is and what it will be called; nothing in it is secret."""

    name = forms.CharField(max_length=253)
    address = forms.RegexField(r"^[A-Za-z0-9._:%-]+$", max_length=253)
    port = forms.IntegerField(min_value=1, max_value=65535, initial=22)
    user = forms.RegexField(f"^{LOGIN}$", max_length=64, initial="root")
    node_ip = forms.CharField(max_length=100, required=False)
    zone = forms.CharField(max_length=63, required=False)
    labels = forms.CharField(max_length=20_000, required=False)

    address.error_messages["invalid"] = "A host name or an address, nothing around it."
    user.error_messages["invalid"] = "A login name: letters, digits, dots, dashes and underscores."

    def clean_labels(self) -> dict[str, str]:
        found = {}
        for line in self.cleaned_data["labels"].splitlines():
            if not (line := line.strip()):
                continue
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                raise forms.ValidationError(f"{line!r} is no key=value")
            found[key.strip()] = value.strip()
        return found

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        try:
            enroll.judge(self.host())
        except NodeError as err:
            self.add_error(*_AS_FIELD_ERROR[err.reason, bool(cleaned["node_ip"])])
        except Invalid as err:
            for error in err.errors:
                self.add_error(self._field_of(error.field, error.value), str(error))
        return cleaned

    def _field_of(self, path: str, value: Any) -> str | None:
        if path.startswith("metadata.labels"):
            return "zone" if value == self.cleaned_data["zone"] != "" else "labels"
        return "name" if path == "metadata.name" else None

    def host(self, key: paramiko.PKey | None = None, password: str | None = None) -> Host:
        """Only after is_valid()."""
        given = self.cleaned_data
        return Host(
            name=given["name"],
            address=given["address"],
            port=given["port"],
            user=given["user"],
            key=key,
            password=password,
            node_ip=given["node_ip"],
            labels={**given["labels"], **({ZONE: given["zone"]} if given["zone"] else {})},
        )


_NAME_ONLY = "The host is given by name: say the node's own address, which its packets come from."
_NO_ADDRESS = "An address, or one of each family with a comma between."
_TAKEN = "Another node is enrolled at this address and port. A host is one node: remove that one first."
# (reason, whether a node address was given) -> field, sentence
_AS_FIELD_ERROR = {
    ("AddressUnknown", False): ("node_ip", _NAME_ONLY),
    ("AddressUnknown", True): ("node_ip", _NO_ADDRESS),
    ("HostIsNode", False): ("address", _TAKEN),
    ("HostIsNode", True): ("address", _TAKEN),
}


class LoginForm(forms.Form):
    """The confirmed host key, and what opens the login once: a private key or a password."""

    fingerprint = forms.RegexField(r"^SHA256:[A-Za-z0-9+/]{43}$")
    private_key = forms.CharField(max_length=50_000, required=False)
    passphrase = forms.CharField(max_length=1000, required=False, strip=False)
    password = forms.CharField(max_length=1000, required=False, strip=False)

    @sensitive_variables("cleaned", "text", "self")
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        text = cleaned.get("private_key", "")
        if bool(text) == bool(cleaned.get("password")):
            self.add_error(None, "Give a private key or a password, one of the two.")
        elif text:
            try:
                cleaned["key"] = read_private_key(text, cleaned.get("passphrase", ""))
            except ValueError as err:
                self.add_error("private_key", f"{str(err)[:1].upper()}{str(err)[1:]}.")
        return cleaned


@require_http_methods(["GET", "HEAD", "POST"])
@for_operators
def enrol(request: HttpRequest) -> HttpResponse:
    """First: where the host is. POST fetches its host key and shows it beside the form for the login."""
    if request.method != "POST":
        return render(request, "web/node_enrol.html", {"form": HostForm(initial=_initial(request))})
    form = HostForm(request.POST)
    if not form.is_valid():
        return render(request, "web/node_enrol.html", {"form": form})
    host = form.host()
    try:
        shown = ssh.host_key(host.name, host.address, host.port)
    except NodeError as err:
        context = {"form": form, "reason": err.reason, "message": err.message, "remedy": remedy_of(err.reason)}
        return render(request, "web/node_enrol.html", context)
    return _ask_for_login(request, form, fingerprint(shown), shown.get_name())


def _initial(request: HttpRequest) -> dict[str, Any]:
    """What the form begins with: what an earlier try said, or what is known of a node."""
    again = _operation(request.GET.get("again", ""))
    if again is not None:
        return _fields(again.node, again.address, again.port, again.user, again.node_ip, again.labels)
    name = request.GET.get("node", "")
    if not name or "\x00" in name:
        return {}
    known = Node.objects.filter(name=name).values_list("address", "labels").first()
    own_address, labels = known if known else (None, {})
    labels = {key: value for key, value in labels.items() if not key.endswith("kubernetes.io/role")}
    access = NodeAccess.objects.filter(node=name).first()
    if access is None:
        return _fields(name, own_address or "", 22, "root", "", labels)
    node_ip = own_address or "" if own_address != access.address else ""
    return _fields(name, access.address, access.port, access.user, node_ip, labels)


def _fields(
    name: str, address: str, port: int, user: str, node_ip: str, labels: dict[str, str]
) -> dict[str, str | int]:
    lines = [f"{key}={value}" for key, value in sorted(labels.items()) if key not in OWN_LABELS]
    return {
        "name": name,
        "address": address,
        "port": port,
        "user": user,
        "node_ip": node_ip,
        "zone": labels.get(ZONE, ""),
        "labels": "\n".join(lines),
    }


def _operation(text: str) -> NodeOperation | None:
    try:
        return NodeOperation.objects.filter(pk=UUID(text), verb=NodeOperation.Verb.ENROL).first()
    except ValueError:
        return None


def _ask_for_login(
    request: HttpRequest, form: HostForm, shown: str, kind: str, login: LoginForm | None = None
) -> HttpResponse:
    """The second page. Of `login` only the errors are shown."""
    access = NodeAccess.objects.filter(node=form.cleaned_data["name"]).first()
    twin = None
    for other in NodeAccess.objects.exclude(node=form.cleaned_data["name"]).filter(host_key__startswith=f"{kind} "):
        if fingerprint_of(other.host_key) == shown:
            twin = other
            break
    context = {
        "form": form,
        "host": form.cleaned_data,
        "shown": shown,
        "kind": kind,
        "key_file": key_file(kind),
        "login_errors": login.errors if login is not None else {},
        "access": access,
        "confirmed": fingerprint_of(access.host_key) if access else "",
        "twin": twin,
    }
    return render(request, "web/node_login.html", context)


@sensitive_post_parameters("private_key", "passphrase", "password")
@require_http_methods(["GET", "HEAD", "POST"])
@for_operators
@sensitive_variables("login", "given")
def run(request: HttpRequest) -> HttpResponse:
    """Second: the host key is confirmed and the login given. Starts the enrolment and leads to the page that shows it."""
    if request.method != "POST":
        return redirect("web:enrol")  # whoever had to log in meanwhile comes by this address
    form, login = HostForm(request.POST), LoginForm(request.POST)
    if not form.is_valid() or "fingerprint" in login.errors:
        return render(request, "web/node_enrol.html", {"form": form})
    if not login.is_valid():
        kind = request.POST.get("kind", "")[:100]
        return _ask_for_login(request, form, login.cleaned_data["fingerprint"], kind, login)
    given = login.cleaned_data
    host = form.host(given.get("key"), given["password"] or None)
    try:
        operation = operations.start_enrolment(host, given["fingerprint"], by=request.user.get_username())
    except NodeError as err:
        context = {"form": form, "reason": err.reason, "message": err.message, "remedy": remedy_of(err.reason)}
        return render(request, "web/node_enrol.html", context)
    return redirect("web:operation", operation.pk)


@dataclass(frozen=True)
class OperationView:
    """An operation as it stands, and what it did to the node so far."""

    operation: NodeOperation
    state: str  # Running, Done, Failed
    reason: str
    message: str
    remedy: str
    steps: list[dict[str, str]]
    node_status: str  # liveness.SEVERITY; empty when the node is not enrolled

    @property
    def is_running(self) -> bool:
        return self.state == NodeOperation.State.RUNNING


def read_operation(pk: UUID) -> OperationView | None:
    """Four queries at most; None when there is no such operation."""
    operation = NodeOperation.objects.filter(pk=pk).first()
    if operation is None:
        return None
    if operations.is_interrupted(operation):
        operations.end_interrupted(operation.node)
        operation.refresh_from_db()
    access = NodeAccess.objects.select_related("sync").filter(node=operation.node).first()
    report = report_of(access, None, read_lag()) if access else None
    return OperationView(
        operation=operation,
        state=operation.state,
        reason=operation.reason,
        message=operation.message,
        remedy=remedy_of(operation.reason),
        steps=operation.steps,
        node_status=report.status if report else "",
    )


@page
def operation(request: HttpRequest, pk: UUID) -> HttpResponse:
    """What an enrolment or removal has done so far, and how it ended."""
    if not may(request, "get", NODE, ""):
        return forbidden(request, "see nodes")
    found = read_operation(pk)
    if found is None:
        return render(request, "404.html", {"missing": "There is no such operation."}, status=404)
    context = {"view": found, "operation": found.operation, "may_operate": may_operate(request.user)}
    fragment = HtmxDetails(request).target == "operation"
    return render(request, "web/_node_operation.html" if fragment else "web/node_operation.html", context)
