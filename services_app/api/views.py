"""The one view of all kinds: create, get, list, update, patch, delete, and /status.

DRF authenticates, asks for permission and dispatches; documents are handed out as they are stored.
"""

import json
import logging
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import yaml
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from services_app import audit, changes, store
from services_app.api import auth, connecting, media, paths, reviews, warning_headers
from services_app.api.paths import Target
from services_app.spec import endpoints, kinds, managed_fields, objects, options, patches, pod, tables, wire
from services_app.spec.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    FieldError,
    Forbidden,
    InternalError,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    RequestTooLarge,
    ServiceUnavailable,
    Unauthorized,
    forbidden,
    required,
)
from services_app.spec.kinds import Kind

logger = logging.getLogger(__name__)

Document = dict[str, Any]

MAX_BODY_BYTES = 3 * 1024 * 1024
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # what Go's strconv.ParseBool takes for it


class _AsStored(BaseContentNegotiation):
    """Answers are made here, not by a renderer; which form is decided per answer (`media`)."""

    def select_parser(self, request: Request, parsers: Any) -> None:
        return None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> tuple[Any, str]:
        return JSONRenderer(), media.JSON


class ApiView(APIView):
    """What every path of the API shares: who asks, errors as Status, the request's id."""

    authentication_classes = [auth.BearerToken, auth.Session]
    permission_classes = []
    content_negotiation_class = _AsStored
    http_method_names = ["get", "post", "put", "patch", "delete"]  # no HEAD: Kubernetes has none either

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if not request.user or not request.user.is_authenticated:
            raise Unauthorized
        request.user = auth.acting(request.user, request.headers)

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        if isinstance(exc, ApiError):
            return error_response(exc)
        from rest_framework.exceptions import APIException
        from rest_framework.exceptions import MethodNotAllowed as DrfMethodNotAllowed

        if isinstance(exc, DrfMethodNotAllowed):
            return error_response(MethodNotAllowed())
        if isinstance(exc, APIException):
            if exc.status_code in (401, 403):
                return error_response(Unauthorized())
            return error_response(BadRequest(str(exc.detail)))
        if isinstance(exc, OperationalError):
            logger.warning("cannot answer: the database is away: %s reason=database_away", exc)
            return error_response(ServiceUnavailable("the database is away; try again"))
        logger.error("cannot answer", exc_info=exc)
        return error_response(InternalError(f"Internal error occurred: {type(exc).__name__}"))


def error_response(error: ApiError) -> HttpResponse:
    """A Status object as the answer."""
    response = HttpResponse(json.dumps(error.status()), status=error.code, content_type=media.JSON)
    if error.code == 401:
        response["WWW-Authenticate"] = "Bearer"
    if error.code == 503:
        response["Retry-After"] = "1"
    return response


class ObjectView(ApiView):
    """Objects and collections of every kind."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:  # type: ignore[override]
        self.asked = paths.read(request.path)
        self.target: Target | None = paths.target_of(self.asked) if self.asked is not None else None
        self.actor = store.Actor("", audit.request_id(request.headers))
        self.warnings: list[str] = []
        response: HttpResponse = super().dispatch(request, *args, **kwargs)  # type: ignore[assignment]
        if request.GET.get("pretty") in _TRUE and response["Content-Type"] == media.JSON:
            response.content = json.dumps(json.loads(response.content), indent=2, ensure_ascii=False).encode() + b"\n"
        response["Audit-Id"] = self.actor.request_id
        response["Cache-Control"] = "no-cache, private"
        if lines := warning_headers.spell(self.warnings):
            # Django keeps one header a name: they are joined as HTTP allows, and sent one by one where that can be done.
            response["Warning"] = ", ".join(lines)
            response.warning_lines = lines  # type: ignore[attr-defined]
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if self.asked is None:
            raise NotFound()
        self.actor = store.Actor(auth.recorded_name(request.user), self.actor.request_id)
        verb = self.asked.verb(request.method or "")
        self._authorize(request, verb, self.asked)
        if self.target is None:
            raise NotFound()
        kind = self.target.kind
        if verb not in (kinds.SUBRESOURCES[self.target.subresource].verbs if self.target.subresource else kind.verbs):
            raise MethodNotAllowed
        if self.target.subresource in connecting.ANSWERED:
            raise connecting.refusal(self.target, request.query_params.dict())
        if kind is kinds.ENDPOINTS:
            self.warnings.append(endpoints.DEPRECATED)

    def _authorize(self, request: Request, verb: str, asked: paths.Asked) -> None:
        """Raise Forbidden unless the user may do this with what the path names, be it served or not."""
        kind = kinds.by_group_resource(asked.group, asked.resource)
        where = asked.namespace
        if not auth.may(request.user, verb, kind, where, name=asked.name, subresource=asked.subresource):
            raise auth.refusal(request.user, verb, asked)

    def _authorize_create(self) -> None:
        """An update or apply that makes its object needs the right to create as well."""
        assert self.asked is not None
        self._authorize(self.request, "create", self.asked)

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        if isinstance(exc, Forbidden) and self.asked is not None and self.request.method not in ("GET", "HEAD"):
            about = {"user": self.actor.user, "request_id": self.actor.request_id}
            audit.refused(self.asked.resource, self.asked.name, exc.message, namespace=self.asked.namespace, **about)
        return super().handle_exception(exc)

    # Verbs

    def get(self, request: Request) -> HttpResponse:
        target = self._target()
        accepted = media.accept(request.headers.get("Accept", ""))
        if target.name:
            version = request.query_params.get("resourceVersion", "")
            wanted = options.revision(version) if version else 0
            if wanted and wanted > (head := changes.head()):
                raise store.too_large(wanted, head)
            stored = store.get(target.kind, target.namespace or "", target.name)
            return self._object(stored, accepted)
        return self._list(request, target, accepted)

    def post(self, request: Request) -> HttpResponse:
        target = self._target()
        if target.subresource == "binding":
            return self._bind(request, target)
        if target.subresource == "eviction":
            return self._evict(request, target)
        if target.name:
            raise MethodNotAllowed
        accepted = media.accept(request.headers.get("Accept", ""))
        if target.kind.namespaced and target.namespace is None:
            raise MethodNotAllowed
        dry_run = self._dry_run(request, "CreateOptions")
        self._note_manager(request, "CreateOptions")
        document = self._decode(request, target.kind, "CreateOptions")
        self._check_namespace(document, target)
        if target.kind in kinds.REVIEWS:
            return _encoded(
                reviews.answer(target.kind, document, request.user, target.namespace or ""), accepted, status=201
            )
        return self._created(target, document, accepted, dry_run)

    def put(self, request: Request) -> HttpResponse:
        target = self._target()
        if not target.name:
            raise MethodNotAllowed
        self._refuse_change_below(target)
        accepted = media.accept(request.headers.get("Accept", ""))
        dry_run = self._dry_run(request, "UpdateOptions")
        self._note_manager(request, "UpdateOptions")
        document = self._decode(request, target.kind, "UpdateOptions")
        self._check_namespace(document, target)
        self._check_name(document, target)
        uid = (document.get("metadata") or {}).get("uid")

        def replace(current: Document) -> Document:
            self._check_uid(target, uid, current["metadata"]["uid"])
            return deepcopy(document)

        try:
            return self._updated(target, replace, accepted, dry_run)
        except NotFound:
            self._check_uid(target, uid, "")
            if not target.kind.is_made_by_put or target.subresource:
                raise
        self._authorize_create()
        with suppress(AlreadyExists):  # somebody was quicker
            return self._created(target, document, accepted, dry_run)
        return self._updated(target, replace, accepted, dry_run)

    def patch(self, request: Request) -> HttpResponse:
        target = self._target()
        if not target.name:
            raise MethodNotAllowed
        self._refuse_change_below(target)
        accepted = media.accept(request.headers.get("Accept", ""))
        dry_run = self._dry_run(request, "PatchOptions")
        content_type = (request.headers.get("Content-Type") or "").split(";")[0].strip().lower()
        self._note_manager(request, "PatchOptions", applies=content_type == patches.APPLY)
        body = self._body(request)
        if content_type == patches.APPLY:
            return self._apply(request, target, accepted, body, dry_run)
        apply = patches.reader(content_type, target.kind, body)

        def change(current: Document) -> Document:
            changed, unknown = patches.typed(
                target.kind, apply(current), strict=self._is_strict(request, "PatchOptions")
            )
            self._note_unknown(request, unknown, "PatchOptions")
            self._check_namespace(changed, target)
            self._check_name(changed, target)
            return changed

        return self._updated(target, change, accepted, dry_run)

    def _apply(
        self, request: Request, target: Target, accepted: media.Accepted, body: bytes, dry_run: bool
    ) -> HttpResponse:
        """Server-side apply, which makes the object when it is not there."""
        strict = self._is_strict(request, "PatchOptions")
        config, twice = patches.configuration(target.kind, body, strict=strict)
        self._note_unknown(request, twice, "PatchOptions")

        def check(live: Document | None, wanted: Document) -> None:
            self._check_namespace(wanted, target)
            self._check_name(wanted, target)
            auth.require_field_rights(request.user, target.kind, live, wanted, target.subresource)

        stored = store.apply(
            target.kind,
            target.namespace or "",
            target.name,
            config,
            creating=self._authorize_create,
            check=check,
            subresource=target.subresource,
            force=options.flag({"force": request.query_params.getlist("force")}, "force"),
            actor=self.actor,
            dry_run=dry_run,
        )
        if not target.subresource:
            self._warn(objects.warnings(target.kind, json.loads(stored.document)))
        return self._object(stored, accepted, status=201 if stored.created else 200)

    def delete(self, request: Request) -> HttpResponse:
        target = self._target()
        accepted = media.accept(request.headers.get("Accept", ""))
        if target.subresource:
            raise MethodNotAllowed
        how = self._delete_options(request)
        if not target.name:
            if "deletecollection" not in target.kind.verbs:
                raise MethodNotAllowed
            return self._delete_collection(request, target, how, accepted)
        if "dryRun" in request.query_params or how.get("dryRun"):
            how["dryRun"] = self._dry_run(request, "DeleteOptions", how.get("dryRun"))
        stored = self._delete_one(target, target.name, how)
        if target.kind is kinds.NAMESPACE or _is_kept(stored) or accepted.as_kind:
            return self._object(stored, accepted)
        if target.kind in (kinds.POD, kinds.SERVICE) or how.get("dryRun"):
            return self._object(stored, accepted)
        details = {"name": target.name, **({"group": target.kind.group} if target.kind.group else {})}
        details.update(kind=target.kind.plural, uid=json.loads(stored.document)["metadata"]["uid"])
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return HttpResponse(json.dumps(status), content_type=media.JSON)

    # Parts

    def _created(self, target: Target, document: Document, accepted: media.Accepted, dry_run: bool) -> HttpResponse:
        auth.require_field_rights(self.request.user, target.kind, None, document)
        stored = store.create(
            target.kind, document, namespace=target.namespace or "", actor=self.actor, dry_run=dry_run
        )
        self._warn(objects.warnings(target.kind, json.loads(stored.document)))
        return self._object(stored, accepted, status=201)

    def _bind(self, request: Request, target: Target) -> HttpResponse:
        """Put a Pod on a Node."""
        dry_run = self._dry_run(request, "CreateOptions")
        binding = self._decode(request, kinds.BINDING, "CreateOptions")
        self._check_namespace(binding, target)
        self._check_name(binding, target)
        if errors := pod.validate_binding(binding):
            raise Invalid(kinds.BINDING, target.name, errors)
        wanted, node_name = binding["metadata"], binding["target"]["name"]

        def bind(current: Document) -> Document:
            metadata = current["metadata"]
            refusal = ""
            if wanted.get("uid") and wanted["uid"] != metadata["uid"]:
                refusal = f"the UID in the precondition ({wanted['uid']}) is not that of the pod ({metadata['uid']})"
            elif metadata.get("deletionTimestamp"):
                refusal = f"pod {target.name} is being deleted, cannot be assigned to a host"
            elif current["spec"].get("nodeName"):
                refusal = f'pod {target.name} is already assigned to node "{current["spec"]["nodeName"]}"'
            elif current["spec"].get("schedulingGates"):
                refusal = f"pod {target.name} has non-empty .spec.schedulingGates"
            if refusal:
                raise Conflict(target.kind, target.name, refusal, named="pods/binding")
            if annotations := wanted.get("annotations"):
                metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
            return pod.bound(current, node_name, datetime.now(UTC))

        store.update(
            target.kind, target.namespace or "", target.name, bind,
            subresource=target.subresource, actor=self.actor, dry_run=dry_run,
        )  # fmt: skip
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return HttpResponse(json.dumps(status), status=201, content_type=media.JSON)

    def _evict(self, request: Request, target: Target) -> HttpResponse:
        """Delete a Pod as whoever empties a node does; there are no disruption budgets that could refuse."""
        given = wire.parse(self._body(request), request.headers.get("Content-Type") or media.JSON)
        if not isinstance(given, dict) or given.get("kind") not in (None, "", "Eviction"):
            raise BadRequest("the body is no Eviction")
        if given.get("apiVersion") not in (None, "", "policy/v1", "policy/v1beta1"):
            raise BadRequest(f"no kind Eviction is registered for version {given['apiVersion']!r}; write policy/v1")
        name = (given.get("metadata") or {}).get("name") if isinstance(given.get("metadata"), dict) else ""
        if name != target.name:
            raise BadRequest("name in URL does not match name in Eviction object")
        how = options.read_delete(
            json.dumps(given.get("deleteOptions") or {}).encode(), media.JSON, dict(request.query_params.lists())
        )
        how["dryRun"] = self._dry_run(request, "DeleteOptions", how.get("dryRun"))
        self._delete_one(target, target.name, how)
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return HttpResponse(json.dumps(status), status=201, content_type=media.JSON)

    def _refuse_change_below(self, target: Target) -> None:
        """Raise MethodNotAllowed for changes to what runs in a Pod: nothing here could carry them out."""
        if target.subresource in ("ephemeralcontainers", "resize"):
            store.get(target.kind, target.namespace or "", target.name)
            raise MethodNotAllowed(
                f'a Pod is a record of a workload that others run: nothing here could change what runs in "{target.name}". '
                "Change the workload on its host, then the record."
            )

    def _check_uid(self, target: Target, wanted: str | None, found: str) -> None:
        """A PUT that names a uid means that one object."""
        if wanted and wanted != found:
            message = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
            raise Conflict(target.kind, target.name, message)

    def _target(self) -> Target:
        assert self.target is not None
        return self.target

    def _list(self, request: Request, target: Target, accepted: media.Accepted) -> HttpResponse:
        if accepted.as_kind == "PartialObjectMetadata":
            raise NotAcceptable("you requested PartialObjectMetadata, but the requested object is a list")
        query = request.query_params
        asked, page = _selected(request, target)
        if asked.version and asked.version > page.revision:
            raise store.too_large(asked.version, page.revision)
        metadata: Document = {"resourceVersion": str(page.revision)}
        if page.continue_token:
            metadata["continue"] = page.continue_token
            if page.remaining is not None:
                metadata["remainingItemCount"] = page.remaining
        kind = target.kind
        if accepted.as_kind == "Table":
            documents = [json.loads(text) for text in page.documents]
            table = tables.table(
                kind,
                documents,
                now=datetime.now(UTC),
                version=accepted.version,
                metadata=metadata,
                include=query.get("includeObject", "Metadata"),
            )
            return _encoded(table, accepted)
        if accepted.as_kind:
            items = [tables.partial(json.loads(text), version=accepted.version) for text in page.documents]
            body = {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"{media.META}/{accepted.version}",
                "metadata": metadata,
                "items": items,
            }
            return _encoded(body, accepted)
        head = (
            f'{{"kind":"{kind.list_kind}","apiVersion":"{kind.api_version}","metadata":{json.dumps(metadata)},"items":['
        )
        return _text("".join((head, ",".join(_without_type(kind, text) for text in page.documents), "]}")), accepted)

    def _updated(self, target: Target, change: Any, accepted: media.Accepted, dry_run: bool) -> HttpResponse:
        before: Document = {}

        def noting(current: Document) -> Document:
            nonlocal before
            before = deepcopy(current)
            wanted: Document = change(current)
            auth.require_field_rights(self.request.user, target.kind, before, wanted, target.subresource)
            return wanted

        stored = store.update(
            target.kind,
            target.namespace or "",
            target.name,
            noting,
            subresource=target.subresource,
            actor=self.actor,
            dry_run=dry_run,
        )
        if not target.subresource:
            self._warn(objects.warnings(target.kind, json.loads(stored.document), before))
        return self._object(stored, accepted)

    def _delete_options(self, request: Request) -> Document:
        content_type = request.headers.get("Content-Type") or media.JSON
        return options.read_delete(self._body(request), content_type, dict(request.query_params.lists()))

    def _delete_one(self, target: Target, name: str, how: Document) -> store.Stored:
        wanted = how.get("preconditions") or {}
        return store.delete(
            target.kind,
            target.namespace or "",
            name,
            actor=self.actor,
            dry_run=bool(how.get("dryRun")),
            preconditions={key: wanted[key] for key in ("uid", "resourceVersion") if wanted.get(key)},
            grace_period_s=how.get("gracePeriodSeconds"),
            propagation=how.get("propagationPolicy"),
        )

    def _delete_collection(
        self, request: Request, target: Target, how: Document, accepted: media.Accepted
    ) -> HttpResponse:
        how["dryRun"] = self._dry_run(request, "DeleteOptions", how.get("dryRun"))
        _, page = _selected(request, target)
        deleted = []
        for text in page.documents:
            metadata = json.loads(text)["metadata"]
            one = Target(target.kind, metadata.get("namespace"), metadata["name"])
            try:
                deleted.append(self._delete_one(one, metadata["name"], dict(how)).document)
            except NotFound:
                continue
        kind = target.kind
        metadata = {"resourceVersion": str(changes.head())}
        if page.continue_token:
            metadata["continue"] = page.continue_token
        about = json.dumps(metadata, separators=(",", ":"))
        head = f'{{"kind":"{kind.list_kind}","apiVersion":"{kind.api_version}","metadata":{about},"items":['
        return _text(head + ",".join(_without_type(kind, text) for text in deleted) + "]}", accepted)

    def _body(self, request: Request) -> bytes:
        if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BODY_BYTES:
            raise RequestTooLarge(f"Request entity too large: limit is {MAX_BODY_BYTES}")
        body = request._request.body
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLarge(f"Request entity too large: limit is {MAX_BODY_BYTES}")
        return body

    def _decode(self, request: Request, kind: Kind, named: str) -> Document:
        body = self._body(request)
        content_type = request.headers.get("Content-Type") or media.JSON
        document, warnings = objects.decode_with_warnings(kind, body, content_type)
        self._note_unknown(request, warnings, named)
        return document

    def _note_unknown(self, request: Request, warnings: list[str], named: str) -> None:
        """Do what fieldValidation asks for with fields that are unknown or given twice."""
        if self._is_strict(request, named):
            if warnings:
                raise objects.strict_error(warnings)
        elif request.query_params.get("fieldValidation") != "Ignore":
            self._warn(warnings)

    def _warn(self, sentences: list[str]) -> None:
        """Send sentences along with the answer, each once: a change may be tried several times."""
        self.warnings += [text for text in sentences if text not in self.warnings]

    def _is_strict(self, request: Request, named: str) -> bool:
        mode = request.query_params.get("fieldValidation", "") or "Warn"
        if mode not in ("Ignore", "Warn", "Strict"):
            raise _bad_option("fieldValidation", mode, "NotSupported", named)
        return mode == "Strict"

    def _check_name(self, document: Document, target: Target) -> None:
        name = (document.get("metadata") or {}).get("name") or ""
        if name != target.name:
            raise BadRequest(f"the name of the object ({name}) does not match the name on the URL ({target.name})")

    def _check_namespace(self, document: Document, target: Target) -> None:
        given = (document.get("metadata") or {}).get("namespace")
        if given and target.namespace is not None and given != target.namespace:
            raise BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request: "
                f"{given}, {target.namespace}"
            )

    def _note_manager(self, request: Request, about: str, *, applies: bool = False) -> None:
        """Let the actor write under the field manager the request names, else under its User-Agent."""
        named = request.query_params.get("fieldManager", "")
        errors = managed_fields.validate_manager(named)
        if applies and not named:
            errors.append(required("fieldManager", "is required for apply patch"))
        if about == "PatchOptions" and not applies and "force" in request.query_params:
            errors.append(forbidden("force", "may not be specified for non-apply patch"))
        if errors:
            raise options.about(about, errors)
        self.actor = replace(
            self.actor, manager=managed_fields.manager_of(named, request.headers.get("User-Agent", ""))
        )

    def _dry_run(self, request: Request, named: str, given: list[str] | None = None) -> bool:
        values = request.query_params.getlist("dryRun") if "dryRun" in request.query_params else (given or [])
        if any(value != "All" for value in values):
            raise _bad_option("dryRun", values, "NotSupported", named)
        return bool(values)

    def _object(self, stored: store.Stored, accepted: media.Accepted, *, status: int = 200) -> HttpResponse:
        if accepted.as_kind:
            document = json.loads(stored.document)
            if accepted.as_kind == "Table":
                metadata = {"resourceVersion": document["metadata"].get("resourceVersion", "")}
                include = self.request.query_params.get("includeObject", "Metadata")
                table = tables.table(
                    self._target().kind,
                    [document],
                    now=datetime.now(UTC),
                    version=accepted.version,
                    metadata=metadata,
                    include=include,
                )
                return _encoded(table, accepted, status=status)
            if accepted.as_kind == "PartialObjectMetadataList":
                raise NotAcceptable("you requested PartialObjectMetadataList, but the requested object is not a list")
            return _encoded(tables.partial(document, version=accepted.version), accepted, status=status)
        return _text(stored.document, accepted, status=status)


def _selected(request: Request, target: Target) -> tuple[options.ListOptions, store.Page]:
    """What a request's selectors and limit choose among the objects of its kind."""
    asked = options.read(target.kind, dict(request.query_params.lists()))
    page = store.list(
        target.kind,
        target.namespace,
        labels=asked.labels,
        fields=asked.fields,
        limit=asked.limit,
        continue_token=asked.continue_token,
        at=asked.at,
    )
    return asked, page


def _is_kept(stored: store.Stored) -> bool:
    return '"deletionTimestamp"' in stored.document


def _bad_option(field: str, value: Any, kind: str, named: str) -> ApiError:
    return options.about(named, [FieldError(kind, field, value)])


def _without_type(kind: Kind, document: str) -> str:
    """A stored document as an item of a list, which does not repeat kind and apiVersion."""
    prefix = f'{{"kind":"{kind.kind}","apiVersion":"{kind.api_version}",'
    return "{" + document[len(prefix) :] if document.startswith(prefix) else document


def _text(body: str, accepted: media.Accepted, *, status: int = 200) -> HttpResponse:
    if accepted.media_type == media.YAML:
        return HttpResponse(yaml.safe_dump(json.loads(body), sort_keys=False), status=status, content_type=media.YAML)
    return HttpResponse(body, status=status, content_type=media.JSON)


def _encoded(body: Document, accepted: media.Accepted, *, status: int = 200) -> HttpResponse:
    if accepted.media_type == media.YAML:
        return HttpResponse(yaml.safe_dump(body, sort_keys=False), status=status, content_type=media.YAML)
    return HttpResponse(json.dumps(body, separators=(",", ":")), status=status, content_type=media.JSON)


__all__ = ["ApiView", "InternalError", "ObjectView", "error_response"]
