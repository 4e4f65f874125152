"""The API described in OpenAPI 3 and 2: what clients check fields and compute patches with.

Made from the tables of `schema`, so that nothing is described that is not served. Version 2 exists as JSON and as the
protobuf message that kubectl asks for (gnostic's openapi.v2.Document, OpenAPIv2.proto of google/gnostic).
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from services_app.spec import patches, schema
from services_app.spec.kinds import BINDING, KINDS, POD, SERVICE, Kind

Document = dict[str, Any]

_META = frozenset(
    {
        "Condition",
        "DeleteOptions",
        "FieldSelectorRequirement",
        "LabelSelector",
        "LabelSelectorRequirement",
        "ListMeta",
        "ManagedFieldsEntry",
    }
    | {"ObjectMeta", "OwnerReference", "Preconditions", "ShardInfo", "Status", "StatusCause", "StatusDetails"}
)
# type -> the package it is in, where that is not core; Ingress… is all of networking
_PACKAGES = {
    "DiscoveryEndpointPort": "discovery",
    "EndpointConditions": "discovery",
    "EndpointHints": "discovery",
    "EndpointSlice": "discovery",
    "EventsEvent": "events",
    "EventsEventSeries": "events",
    "FieldSelectorAttributes": "authorization",
    "LabelSelectorAttributes": "authorization",
    "LocalSubjectAccessReview": "authorization",
    "NonResourceAttributes": "authorization",
    "NonResourceRule": "authorization",
    "ResourceAttributes": "authorization",
    "ResourceRule": "authorization",
    "SelfSubjectAccessReview": "authorization",
    "SelfSubjectAccessReviewSpec": "authorization",
    "SelfSubjectReview": "authentication",
    "SelfSubjectReviewStatus": "authentication",
    "SelfSubjectRulesReview": "authorization",
    "SelfSubjectRulesReviewSpec": "authorization",
    "SubjectAccessReview": "authorization",
    "SubjectAccessReviewSpec": "authorization",
    "SubjectAccessReviewStatus": "authorization",
    "SubjectRulesReviewStatus": "authorization",
    "Endpoint": "discovery",
    "ForNode": "discovery",
    "ForZone": "discovery",
    "HTTPIngressPath": "networking",
    "HTTPIngressRuleValue": "networking",
    "IPAddress": "networking",
    "IPAddressSpec": "networking",
    "Lease": "coordination",
    "LeaseSpec": "coordination",
    "ParentReference": "networking",
    "ServiceBackendPort": "networking",
    "ServiceCIDR": "networking",
    "ServiceCIDRSpec": "networking",
    "ServiceCIDRStatus": "networking",
    "TokenReview": "authentication",
    "TokenReviewSpec": "authentication",
    "TokenReviewStatus": "authentication",
    "UserInfo": "authentication",
}
_SCALARS: dict[str, Document] = {
    "string": {"type": "string"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "bool": {"type": "boolean"},
    "float": {"type": "number", "format": "double"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "quantity": {"type": "string"},
    "bytes": {"type": "string", "format": "byte"},
    "any": {"type": "object"},
}
_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_DELETE_PARAMETERS = ("dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy")
_CHOICE_PARAMETERS = (
    "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch",
    "sendInitialEvents", "timeoutSeconds",
)  # fmt: skip
# verb -> what its query may say; "pretty" may be said everywhere
_PARAMETERS = {
    "list": ("allowWatchBookmarks", *_CHOICE_PARAMETERS, "watch"),
    "post": _WRITE_PARAMETERS,
    "put": _WRITE_PARAMETERS,
    "patch": (*_WRITE_PARAMETERS, "force"),
    "delete": _DELETE_PARAMETERS,
    "deletecollection": (*_CHOICE_PARAMETERS, *_DELETE_PARAMETERS),
}
_PARAMETER_TYPES = {
    "allowWatchBookmarks": "boolean",
    "force": "boolean",
    "gracePeriodSeconds": "integer",
    "limit": "integer",
    "orphanDependents": "boolean",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
    "watch": "boolean",
}


def definition_name(type_name: str) -> str:
    """The name of a type in both documents, as Kubernetes has it."""
    if type_name in _META:
        return f"io.k8s.apimachinery.pkg.apis.meta.v1.{type_name}"
    package = "networking" if type_name.startswith("Ingress") else _PACKAGES.get(type_name, "core")
    return f"io.k8s.api.{package}.v1.{type_name.removeprefix('Discovery').removeprefix('Events')}"


# --- schemas


def _schemas(kinds: tuple[Kind, ...], version: int) -> Document:
    """Every type that the kinds use, and their lists."""
    made: Document = {}
    waiting = [schema.root(kind) for kind in kinds] + ["ListMeta"]
    if any("delete" in kind.verbs for kind in kinds):
        waiting += ["DeleteOptions", "Status"]
    while waiting:
        type_name = waiting.pop()
        name = definition_name(type_name)
        if name in made:
            continue
        made[name] = _schema(type_name, version)
        used = {field.innermost for field in schema.fields(type_name).values()}
        waiting += sorted(used - schema.SCALARS)
    for kind in kinds:
        marks = {"group": kind.group, "kind": kind.kind, "version": kind.version}
        definition = made[definition_name(schema.root(kind))]
        definition["x-kubernetes-group-version-kind"] = [marks]
        definition["properties"] = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            **definition["properties"],
        }
        if "list" not in kind.verbs:
            continue
        made[definition_name(schema.root(kind)) + "List"] = {
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": _reference("ListMeta", version),
                "items": {"type": "array", "items": _reference(schema.root(kind), version)},
            },
            "x-kubernetes-group-version-kind": [{**marks, "kind": kind.list_kind}],
        }
    return dict(sorted(made.items()))


def _schema(type_name: str, version: int) -> Document:
    made: Document = {"type": "object", "properties": {}}
    if schema.is_atomic(type_name):
        made["x-kubernetes-map-type"] = "atomic"
    for field in schema.fields(type_name).values():
        made["properties"][field.name] = _property(field, version)
    if required := [field.name for field in schema.fields(type_name).values() if field.required]:
        made["required"] = required
    return made


def _property(field: schema.Field, version: int) -> Document:
    if field.is_list:
        made: Document = {"type": "array", "items": _type(field.element, version)}
        made["x-kubernetes-list-type"] = {"keyed": "map", "set": "set"}.get(field.shape, "atomic")
        if field.list_keys:
            made["x-kubernetes-list-map-keys"] = list(field.list_keys)
        if field.merge_keys:
            made["x-kubernetes-patch-merge-key"] = field.merge_keys[0]
            made["x-kubernetes-patch-strategy"] = "merge,retainKeys" if field.retains_keys else "merge"
        elif field.merges:
            made["x-kubernetes-patch-strategy"] = "merge"
        return made
    if field.is_map:
        made = {"type": "object", "additionalProperties": _type(field.element, version)}
        return made | ({"x-kubernetes-map-type": "atomic"} if field.shape == "leaf" else {})
    return _type(field.type, version)


def _type(type_name: str, version: int) -> Document:
    if type_name.startswith("[]"):
        return {"type": "array", "items": _type(type_name[2:], version)}
    if type_name == "intstr":
        if version == 3:
            return {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}
        return {"type": "string", "format": "int-or-string"}
    if type_name in _SCALARS:
        return dict(_SCALARS[type_name])
    return _reference(type_name, version)


def _reference(type_name: str, version: int) -> Document:
    if version == 2:
        return {"$ref": f"#/definitions/{definition_name(type_name)}"}
    # Beside $ref nothing else counts: Kubernetes wraps it, and clients expect so.
    return {"allOf": [{"$ref": f"#/components/schemas/{definition_name(type_name)}"}], "default": {}}


# --- paths


def _paths(kinds: tuple[Kind, ...]) -> Iterator[tuple[str, Kind, dict[str, str]]]:
    """Path, kind, and HTTP method -> what is done there."""
    for kind in kinds:
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        own = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
        if "list" not in kind.verbs:
            yield own, kind, {"post": "post"}
            continue
        if kind.namespaced:
            yield f"{root}/{kind.plural}", kind, {"get": "list"}
        collection = {"get": "list", "post": "post"}
        if "deletecollection" in kind.verbs:
            collection["delete"] = "deletecollection"
        yield own, kind, collection
        yield f"{own}/{{name}}", kind, {"get": "get", "put": "put", "patch": "patch", "delete": "delete"}
        if "status" in kind.subresources:
            yield f"{own}/{{name}}/status", kind, {"get": "get", "put": "put", "patch": "patch"}
        if "finalize" in kind.subresources:
            yield f"{own}/{{name}}/finalize", kind, {"put": "put"}
        if "binding" in kind.subresources:
            yield f"{own}/{{name}}/binding", BINDING, {"post": "post"}


def _operation_id(verb: str, path: str, kind: Kind) -> str:
    words = "".join(word.capitalize() for word in kind.group.split(".")[:1]) or "Core"
    scope = "Namespaced" if "{namespace}" in path else ("ForAllNamespaces" if kind.namespaced else "")
    below = path.partition("/{name}/")[2]
    if below == "binding":
        return f"{verb}{words}{kind.version.capitalize()}{scope}PodBinding"
    tail = below.capitalize()
    return f"{verb}{words}{kind.version.capitalize()}{scope}{kind.kind}{tail}"


@cache
def v3_document(root: str) -> str:
    """The OpenAPI 3 document of "api/v1" or "apis/<group>/<version>" as JSON; "" when nothing is served there."""
    kinds = tuple(kind for kind in KINDS if _root(kind) == root)
    if not kinds:
        return ""
    paths: Document = {}
    for path, kind, methods in _paths(kinds):
        item = paths.setdefault(path, {})
        item["parameters"] = [_path_parameter(name) for name in ("name", "namespace") if f"{{{name}}}" in path]
        item["parameters"].append(_query_parameter("pretty"))
        for method, verb in methods.items():
            item[method] = _v3_operation(method, verb, path, kind)
    document = {
        "openapi": "3.0.0",
        "info": {"title": "Timonel", "version": "v1"},
        "paths": paths,
        "components": {
            "schemas": _schemas((*kinds, BINDING) if root == _root(BINDING) else kinds, 3),
            "securitySchemes": {
                "BearerToken": {
                    "type": "apiKey",
                    "name": "authorization",
                    "in": "header",
                    "description": "Bearer token",
                }
            },
        },
    }
    return json.dumps(document, separators=(",", ":"))


def _v3_operation(method: str, verb: str, path: str, kind: Kind) -> Document:
    schemas = "#/components/schemas/"
    answer = {"content": {"application/json": {"schema": {"$ref": schemas + _answer(verb, kind)}}}}
    operation: Document = {
        "operationId": _operation_id(verb, path, kind),
        "parameters": [_query_parameter(name) for name in _PARAMETERS.get(verb, ())],
        "responses": {code: {"description": text, **answer} for code, text in _codes(verb).items()},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
    }
    if body := _body(verb, kind):
        content = {"application/json": {"schema": {"$ref": schemas + body}}}
        operation["requestBody"] = {"content": content, "required": True}
    if method == "patch":
        content = {media: {"schema": {"type": "object"}} for media in patches.MEDIA_TYPES}
        operation["requestBody"] = {"content": content, "required": True}
    if method == "delete":
        del operation["requestBody"]["required"]
    return operation


def _answer(verb: str, kind: Kind) -> str:
    """What is described as the answer; a delete of some kinds hands out the object as it was."""
    is_status = verb == "deletecollection" or (verb == "delete" and kind not in (POD, SERVICE))
    return definition_name("Status" if is_status else schema.root(kind)) + ("List" if verb == "list" else "")


def _codes(verb: str) -> dict[str, str]:
    more = {"post": {"201": "Created"}, "delete": {"202": "Accepted"}}
    return {"200": "OK", **more.get(verb, {})}


def _body(verb: str, kind: Kind) -> str:
    """The type of what is sent, "" for nothing, or a patch."""
    if verb in ("delete", "deletecollection"):
        return definition_name("DeleteOptions")
    return definition_name(schema.root(kind)) if verb in ("post", "put") else ""


def _query_parameter(name: str) -> Document:
    type_name = _PARAMETER_TYPES.get(name, "string")
    return {"name": name, "in": "query", "schema": {"type": type_name, "uniqueItems": True}}


def _path_parameter(name: str) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}


def _root(kind: Kind) -> str:
    return f"apis/{kind.group}/{kind.version}" if kind.group else f"api/{kind.version}"


@cache
def v3_index() -> str:
    """The index of OpenAPI 3 documents; the hash in an address changes with the document."""
    paths = {}
    for root in dict.fromkeys(_root(kind) for kind in KINDS):
        digest = hashlib.sha256(v3_document(root).encode()).hexdigest()[:32].upper()
        paths[root] = {"serverRelativeURL": f"/openapi/v3/{root}?hash={digest}"}
    return json.dumps({"paths": paths}, separators=(",", ":"))


@cache
def v2_document() -> str:
    """The OpenAPI 2 document as JSON."""
    return json.dumps(_v2(), separators=(",", ":"))


def _v2() -> Document:
    paths: Document = {}
    for path, kind, methods in _paths(KINDS):
        item = paths.setdefault(path, {})
        for method, verb in methods.items():
            item[method] = _v2_operation(method, verb, path, kind)
        item["parameters"] = [
            {"name": name, "in": "path", "required": True, "type": "string"}
            for name in ("name", "namespace")
            if f"{{{name}}}" in path
        ]
        item["parameters"].append({"name": "pretty", "in": "query", "type": "string"})
    return {
        "swagger": "2.0",
        "info": {"title": "Timonel", "version": "v1"},
        "paths": paths,
        "definitions": _schemas((*KINDS, BINDING), 2),
    }


def _v2_operation(method: str, verb: str, path: str, kind: Kind) -> Document:
    schemas = "#/definitions/"
    parameters: list[Document] = []
    if method != "get":
        body = {"$ref": schemas + _body(verb, kind)} if method != "patch" else {"type": "object"}
        required = {} if method == "delete" else {"required": True}
        parameters.append({"name": "body", "in": "body", **required, "schema": body})
    for name in _PARAMETERS.get(verb, ()):
        parameters.append({"name": name, "in": "query", "type": _PARAMETER_TYPES.get(name, "string")})
    answer = {"schema": {"$ref": schemas + _answer(verb, kind)}}
    return {
        "operationId": _operation_id(verb, path, kind),
        "consumes": list(patches.MEDIA_TYPES) if method == "patch" else ["application/json", "application/yaml"],
        "produces": ["application/json", "application/yaml"],
        "parameters": parameters,
        "responses": {code: {"description": text, **answer} for code, text in _codes(verb).items()},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
    }


# --- protobuf: a field is (number, bytes); only what clients read is written


@cache
def v2_protobuf() -> bytes:
    """The OpenAPI 2 document as gnostic's message openapi.v2.Document."""
    document = _v2()
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(
        _message(2, _text(1, path) + _message(2, _pb_path_item(item))) for path, item in document["paths"].items()
    )
    definitions = b"".join(
        _message(1, _text(1, name) + _message(2, _pb_schema(item))) for name, item in document["definitions"].items()
    )
    return _text(1, "2.0") + _message(2, info) + _message(8, paths) + _message(9, definitions)


def _pb_path_item(item: Document) -> bytes:
    numbers = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}
    return b"".join(_message(numbers[method], _pb_operation(item[method])) for method in item if method in numbers)


def _pb_operation(operation: Document) -> bytes:
    made = _text(5, operation["operationId"])
    made += b"".join(_text(6, media) for media in operation["produces"])
    made += b"".join(_text(7, media) for media in operation["consumes"])
    for parameter in operation["parameters"]:
        made += _message(8, _message(1, _pb_parameter(parameter)))  # ParametersItem.parameter
    for code, response in operation["responses"].items():
        body = _text(1, response["description"]) + _message(2, _message(1, _pb_schema(response["schema"])))
        made += _message(9, _message(1, _text(1, code) + _message(2, _message(1, body))))
    return made + _pb_extensions(13, operation)


def _pb_parameter(parameter: Document) -> bytes:
    if parameter["in"] == "body":
        body = _text(2, parameter["name"]) + _text(3, "body") + _flag(4, parameter.get("required", False))
        return _message(1, body + _message(5, _pb_schema(parameter["schema"])))  # Parameter.body_parameter
    # QueryParameterSubSchema: required 1, in 2, description 3, name 4, allow_empty_value 5, type 6
    query = _text(2, "query") + _text(4, parameter["name"]) + _text(6, parameter["type"])
    return _message(2, _message(3, query))  # Parameter.non_body_parameter.query_parameter_sub_schema


def _pb_schema(item: Document) -> bytes:
    # Schema: _ref 1, format 2, required 19, additional_properties 21, type 22, items 23, properties 25, vendor 31
    made = b""
    if "$ref" in item:
        made += _text(1, item["$ref"])
    if "format" in item:
        made += _text(2, item["format"])
    made += b"".join(_text(19, name) for name in item.get("required", ()))
    if "additionalProperties" in item:
        made += _message(21, _message(1, _pb_schema(item["additionalProperties"])))
    if "type" in item:
        made += _message(22, _text(1, item["type"]))
    if "items" in item:
        made += _message(23, _message(1, _pb_schema(item["items"])))
    if "properties" in item:
        entries = (_text(1, name) + _message(2, _pb_schema(value)) for name, value in item["properties"].items())
        made += _message(25, b"".join(_message(1, entry) for entry in entries))
    return made + _pb_extensions(31, item)


def _pb_extensions(number: int, item: Document) -> bytes:
    """NamedAny entries: name, and the value as YAML text, of which JSON is a part."""
    return b"".join(
        _message(number, _text(1, name) + _message(2, _text(2, json.dumps(value))))
        for name, value in item.items()
        if name.startswith("x-")
    )


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _message(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _flag(number: int, value: bool) -> bytes:
    return _varint(number << 3) + (b"\1" if value else b"\0")
