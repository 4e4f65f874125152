"""Create and change objects of any kind by YAML: every document is tried, shown as a difference, then applied.

A document is the whole object, as for `kubectl replace`: what it leaves out goes, but for what the server keeps (cluster
IPs, node ports, status). Documents are read, judged and written by the same code as requests of the API.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django_htmx.middleware import HtmxDetails

from services_app import store
from services_app.spec import kinds, objects
from services_app.spec.errors import ApiError, BadRequest, Conflict, Invalid, NotFound
from services_app.spec.kinds import CONFIG_MAP, NAMESPACE, SERVICE, Kind
from services_app.spec.wire import parse_documents
from services_app.web import writing
from services_app.web.service_edit import Collision, changed, redirect_to
from services_app.web.service_view import find_service
from services_app.web.views import forbidden, form_page, may, may_somewhere, missing
from services_app.web.writing import ChangedMeanwhile, built_on, last_write, mark_of, read_shown, shown_text
from services_app.web.yaml_text import DiffLine, differences, to_yaml, writable

Document = dict[str, Any]

DOCUMENTS_LIMIT = 200  # each is tried and written while the browser waits
CREATED, CHANGED, UNCHANGED, REFUSED, LEFT = "created", "changed", "unchanged", "refused", "left out"


@dataclass(frozen=True)
class Manifest:
    """One document of the text, read. errors: why it could not be."""

    title: str  # "Service shop/web"
    kind: Kind | None = None
    document: Document | None = None
    errors: Sequence[str] = ()

    @property
    def namespace(self) -> str:
        return (self.document or {}).get("metadata", {}).get("namespace", "")

    @property
    def name(self) -> str:
        return (self.document or {}).get("metadata", {}).get("name", "")


@dataclass(frozen=True)
class Outcome:
    """What became, or would become, of one document."""

    title: str
    result: str  # CREATED, CHANGED, UNCHANGED, REFUSED or LEFT
    lines: Sequence[DiffLine] = ()
    errors: Sequence[str] = ()
    warnings: Sequence[str] = ()
    link: str = ""

    @property
    def is_refused(self) -> bool:
        return self.result == REFUSED


@form_page
def apply(request: HttpRequest) -> HttpResponse:
    """Any number of documents."""
    if not may_somewhere(request, "create", CONFIG_MAP):
        return forbidden(request, "create objects")
    text = request.POST.get("text", "")
    action = request.POST.get("action", "")
    if request.method != "POST" or action not in ("preview", "apply"):
        return _page(request, text)
    try:
        manifests = read_manifests(text)
    except BadRequest as err:
        return _page(request, text, error=err.message)
    outcomes = write_manifests(request, manifests, dry_run=True)
    is_refused = any(outcome.is_refused for outcome in outcomes)
    if action == "preview" or is_refused:
        return _page(request, text, outcomes=outcomes, preview=not is_refused)
    return _page(request, text, outcomes=write_manifests(request, manifests, dry_run=False), applied=True)


@form_page
def edit(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """One Service."""
    if not may(request, "update", SERVICE, namespace):
        return forbidden(request, f"change Services in namespace {namespace}")
    edited = {"namespace": namespace, "name": name}
    if request.method != "POST":
        found = find_service(namespace, name)
        document = json.loads(found.document) if found else None
        if HtmxDetails(request).target == "changed":
            return changed(request, document)
        if document is None:
            return missing(request, namespace, name)
        return _page(request, to_yaml(writable(document)), base=writable(document), edited=edited)
    base, text = read_shown(request.POST.get("base", "")), request.POST.get("text", "")
    if base is None:
        return redirect("web:service-yaml", namespace, name)
    action = request.POST.get("action", "")
    if action not in ("preview", "apply"):
        return _page(request, text, base=base, edited=edited)
    try:
        (manifest,) = _only(read_manifests(text), namespace, name)
        if not manifest.errors:
            _refuse_collision(manifest, base, namespace, name)
    except BadRequest as err:
        return _page(request, text, error=err.message, base=base, edited=edited)
    except ChangedMeanwhile as err:
        newest = writable(err.current)
        return _page(request, text, base=newest, edited=edited, collision=_collision(base, newest, manifest))
    return _edited(request, text, manifest, base, edited, dry_run=action == "preview")


def _edited(
    request: HttpRequest, text: str, manifest: Manifest, base: Document, edited: dict[str, str], *, dry_run: bool
) -> HttpResponse:
    try:
        (outcome,) = write_manifests(request, [manifest], dry_run=dry_run, base=base)
    except ChangedMeanwhile as err:
        newest = writable(err.current)
        return _page(request, text, base=newest, edited=edited, collision=_collision(base, newest, manifest))
    if outcome.is_refused or dry_run:
        return _page(request, text, base=base, edited=edited, outcomes=[outcome], preview=not outcome.is_refused)
    messages.success(request, f"{outcome.title} was {'left as it was' if outcome.result == UNCHANGED else 'changed'}.")
    for sentence in outcome.warnings:
        messages.warning(request, sentence)
    return redirect_to(request, reverse("web:service", kwargs=edited))


def _only(manifests: Sequence[Manifest], namespace: str, name: str) -> Sequence[Manifest]:
    """The one document, which must be of the Service that is being changed. Raises BadRequest."""
    if len(manifests) != 1:
        raise BadRequest(f"the text holds {len(manifests)} documents, not the one of Service {namespace}/{name}")
    manifest = manifests[0]
    if not manifest.errors and (manifest.kind, manifest.namespace, manifest.name) != (SERVICE, namespace, name):
        raise BadRequest(f"the text is about {manifest.title}; this page changes Service {namespace}/{name}")
    return manifests


def _refuse_collision(manifest: Manifest, base: Document, namespace: str, name: str) -> None:
    """Raise ChangedMeanwhile before anything is judged: errors of an outdated text would mislead."""
    found = find_service(namespace, name)
    if found is not None and writable(json.loads(found.document)) != base:
        raise ChangedMeanwhile(json.loads(found.document))


def _collision(base: Document, newest: Document, manifest: Manifest) -> Collision:
    return Collision(
        theirs=differences(base, newest),
        mine=differences(base, writable(manifest.document or {})),
        both=(),
        write=last_write(manifest.namespace, manifest.name),
    )


# Reading


def read_manifests(text: str) -> list[Manifest]:
    """The documents of a text, those of a List one by one. Raises BadRequest when it is no YAML or holds too many."""
    values: list[Any] = []
    for value in parse_documents(text.replace("\x00", "\ufffd")):
        is_list = isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list)
        values += value["items"] if is_list else [value]
    if not values:
        raise BadRequest("the text holds no document")
    if len(values) > DOCUMENTS_LIMIT:
        raise BadRequest(
            f"the text holds {len(values)} documents; this page takes {DOCUMENTS_LIMIT} at once, kubectl takes any number"
        )
    return [_read(value, number) for number, value in enumerate(values, start=1)]


def _read(value: Any, number: int) -> Manifest:
    if not isinstance(value, dict):
        return Manifest(f"Document {number}", errors=["it is no object: write apiVersion, kind and metadata"])
    api_version, name = value.get("apiVersion"), value.get("kind")
    if not isinstance(api_version, str) or not isinstance(name, str):
        return Manifest(f"Document {number}", errors=["it does not say what it is: write apiVersion and kind"])
    kind = kinds.by_kind(api_version, name)
    if kind is None:
        served = ", ".join(f"{kind.kind} ({kind.api_version})" for kind in kinds.KINDS)
        error = f'no matches for kind "{name}" in version "{api_version}"; there are {served}'
        return Manifest(f"Document {number}", errors=[error])
    try:
        document, unknown = objects.shaped(kind, value)
    except BadRequest as err:
        return Manifest(f"{kind.kind} (document {number})", kind, errors=[err.message])
    metadata = document.setdefault("metadata", {})
    if kind.namespaced and not metadata.get("namespace"):
        metadata["namespace"] = "default"
    named = metadata.get("name") or f"{metadata.get('generateName', '')}…"
    title = f"{kind.kind} {metadata['namespace']}/{named}" if kind.namespaced else f"{kind.kind} {named}"
    return Manifest(title, kind, document, [objects.strict_error(unknown).message] if unknown else [])


# Writing


def write_manifests(
    request: HttpRequest, manifests: Sequence[Manifest], *, dry_run: bool, base: Document | None = None
) -> list[Outcome]:
    """What becomes of each document, in their order; one that is refused does not keep the next from being tried.

    base: what the only document was made from; raises ChangedMeanwhile when the object is no longer that.
    """
    outcomes = []
    made: set[str] = set()  # Namespaces that a document before makes, so that those in it can be tried
    for manifest in manifests:
        if manifest.kind is None or manifest.document is None or manifest.errors:
            outcomes.append(Outcome(manifest.title, REFUSED, errors=manifest.errors))
            continue
        try:
            outcome = _write(request, manifest, manifest.kind, manifest.document, dry_run, base, made)
        except Invalid as err:
            errors = list(dict.fromkeys(map(str, err.errors))) or [err.message]
            outcome = Outcome(manifest.title, REFUSED, errors=errors)
        except Conflict as err:
            remedy = "Leave metadata.resourceVersion and uid out, or take the newest version."
            outcome = Outcome(manifest.title, REFUSED, errors=[f"{err.message}. {remedy}"])
        except ApiError as err:
            outcome = Outcome(manifest.title, REFUSED, errors=[err.message])
        if manifest.kind is NAMESPACE and outcome.result == CREATED:
            made.add(manifest.name)
        outcomes.append(outcome)
    return outcomes


def _write(
    request: HttpRequest,
    manifest: Manifest,
    kind: Kind,
    document: Document,
    dry_run: bool,
    base: Document | None,
    made: set[str],
) -> Outcome:
    namespace, name = manifest.namespace, manifest.name
    before = _current(kind, namespace, name)
    if before is None and base is not None:
        return Outcome(manifest.title, REFUSED, errors=["it was deleted meanwhile"])
    if before is None and dry_run and namespace in made:
        writing.require_right(request, "create", kind, namespace, before=None, wanted=document)
        after = _judged(kind, document, namespace)
    elif before is None:
        after = json.loads(writing.create(request, kind, document, namespace=namespace, dry_run=dry_run).document)
    else:
        change: Callable[[Document], Document] = lambda _: deepcopy(document)  # noqa: E731
        change = built_on(base, change) if base is not None else change
        after = json.loads(writing.update(request, kind, namespace, name, change, dry_run=dry_run).document)
    lines = differences(writable(before) if before else None, writable(after))
    outcome = Outcome(
        manifest.title,
        CREATED if before is None else CHANGED if lines else UNCHANGED,
        lines=lines,
        warnings=objects.warnings(kind, after, before),
    )
    if kind is SERVICE and not dry_run:
        return replace(outcome, link=reverse("web:service", args=[namespace, after["metadata"]["name"]]))
    return outcome


def _current(kind: Kind, namespace: str, name: str) -> Document | None:
    if not name:
        return None  # it will be generated
    try:
        document: Document = json.loads(store.get(kind, namespace, name).document)
    except NotFound:
        return None
    return document


def _judged(kind: Kind, document: Document, namespace: str) -> Document:
    """A new object as it would be stored in a Namespace that is yet to be made. Raises Invalid."""
    cluster = store.cluster_settings()
    prepared = objects.prepare_create(
        kind, document, namespace=namespace, now=timezone.now(), uid=str(uuid4()), cluster=cluster
    )
    if errors := objects.validate_create(kind, prepared, cluster):
        raise Invalid(kind, prepared["metadata"].get("name", ""), errors)
    return prepared


def _page(
    request: HttpRequest,
    text: str,
    *,
    error: str = "",
    outcomes: Sequence[Outcome] = (),
    preview: bool = False,
    applied: bool = False,
    base: Document | None = None,
    edited: dict[str, str] | None = None,
    collision: Collision | None = None,
) -> HttpResponse:
    """The text with what came of it, alone for htmx, in its page otherwise."""
    context = {
        "text": text,
        "error": error,
        "outcomes": outcomes,
        "refused": sum(1 for outcome in outcomes if outcome.is_refused),
        "preview": preview,
        "applied": applied,
        "base": shown_text(base) if base else "",
        "seen": mark_of(base) if base else "",
        "edited": edited,
        "collision": collision,
        "kinds": [kind.kind for kind in kinds.KINDS],
    }
    name = "web/_manifests.html" if HtmxDetails(request).target == "editor" else "web/manifests.html"
    return render(request, name, context)
