"""What the API says about itself: version, health, discovery, OpenAPI."""

import json
import platform
from typing import Any

from django.db import Error, connection
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from services_app import changes
from services_app.api import media
from services_app.api.views import ApiView
from services_app.spec import discovery, openapi
from services_app.spec.errors import NotAcceptable, NotFound

# The Kubernetes version whose behaviour is served: clients compare theirs with it.
MAJOR, MINOR = "1", "36"
PROTOBUF_V2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
# What is sent back: no Content-Type may hold an @, and clients read it strictly.
PROTOBUF_V2_SENT = PROTOBUF_V2.replace("@", ".")


def version(request: HttpRequest) -> HttpResponse:
    """The version of Kubernetes' API that is spoken; open to everybody, as health is."""
    return _json(
        {
            "major": MAJOR,
            "minor": MINOR,
            "gitVersion": f"v{MAJOR}.{MINOR}.0+timonel",
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "",
            "goVersion": "",
            "compiler": platform.python_implementation(),
            "platform": f"{platform.system().lower()}/{platform.machine()}",
        }
    )


def health(request: HttpRequest) -> HttpResponse:
    """Whether this process answers."""
    return HttpResponse("ok", content_type="text/plain; charset=utf-8")


def ready(request: HttpRequest) -> HttpResponse:
    """Whether this process can serve: the database answers, and its tables are there."""
    try:
        with connection.cursor():
            changes.head()
    except (Error, IndexError, TypeError) as err:
        text = f"[-]database failed: {str(err).splitlines()[0] if str(err) else type(err).__name__}\n"
        return HttpResponse(text, status=500, content_type="text/plain; charset=utf-8")
    return HttpResponse("ok", content_type="text/plain; charset=utf-8")


class Discovery(ApiView):
    """/api and /apis: groups and versions, or everything below them for clients that accept so."""

    def get(self, request: Request) -> HttpResponse:
        core = request.path.rstrip("/") == "/api"
        version = _aggregated_version(request.headers.get("Accept", ""))
        if version:
            kind = f"{media.JSON};g={discovery.AGGREGATED_GROUP};v={version};as=APIGroupDiscoveryList"
            response = _json(discovery.aggregated(core=core, version=version), kind)
        else:
            response = _json(discovery.core_versions(request.get_host()) if core else discovery.group_list())
        response["Vary"] = "Accept"
        return response


def _aggregated_version(header: str) -> str:
    """The version of aggregated discovery that is asked for first; "" for none."""
    for part in header.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        options = dict(p.partition("=")[::2] for p in parameters)
        if name == media.JSON and options.get("as") == "APIGroupDiscoveryList":
            if options.get("g") == discovery.AGGREGATED_GROUP and options.get("v") in ("v2", "v2beta1"):
                return options["v"]
        elif name in (media.JSON, "*/*") and not options.get("as"):
            return ""
    return ""


class Group(ApiView):
    """/apis/<group>."""

    def get(self, request: Request, group: str) -> HttpResponse:
        found = discovery.group(group)
        if found is None:
            raise NotFound()
        return _json(found)


class Resources(ApiView):
    """/api/v1 and /apis/<group>/<version>."""

    def get(self, request: Request, group: str = "", version: str = "v1") -> HttpResponse:
        found = discovery.resource_list(group, version)
        if found is None:
            raise NotFound()
        return _json(found)


class OpenApiV2(ApiView):
    """The whole API in one OpenAPI 2 document, as JSON or as gnostic's protobuf."""

    def get(self, request: Request) -> HttpResponse:
        for part in request.headers.get("Accept", "*/*").split(","):
            name = part.split(";")[0].strip()
            if name in (PROTOBUF_V2, PROTOBUF_V2_SENT):
                return HttpResponse(openapi.v2_protobuf(), content_type=PROTOBUF_V2_SENT)
            if name in (media.JSON, "*/*", "application/*"):
                return HttpResponse(openapi.v2_document(), content_type=media.JSON)
        raise NotAcceptable(f"only the following media types are accepted: {media.JSON}, {PROTOBUF_V2}", details={})


class OpenApiV3(ApiView):
    """The index of OpenAPI 3 documents, and each of them."""

    def get(self, request: Request, root: str = "") -> HttpResponse:
        text = openapi.v3_document(root.strip("/")) if root else openapi.v3_index()
        if not text:
            raise NotFound()
        response = HttpResponse(text, content_type=media.JSON)
        if request.query_params.get("hash"):
            # The address names the content: it may be kept for ever.
            response["Cache-Control"] = "public, immutable"
        return response


def _json(body: dict[str, Any], content_type: str = media.JSON) -> HttpResponse:
    return HttpResponse(json.dumps(body, separators=(",", ":")), content_type=content_type)
