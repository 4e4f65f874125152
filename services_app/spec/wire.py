"""From bytes to a document: JSON or YAML, fields of the right types, unknown and duplicate ones noticed.

A decoded document is what Kubernetes would write back before it fills in defaults: empty values are gone where
Kubernetes leaves them out, and present where it always writes them. Values are judged elsewhere.
Source: k8s v1.36 apimachinery/pkg/runtime/serializer/json, sigs.k8s.io/json; quantities: pkg/api/resource.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import yaml

from services_app.spec import protobuf, schema
from services_app.spec.errors import BadRequest, UnsupportedMediaType
from services_app.spec.kinds import Kind
from services_app.spec.protobuf import PROTOBUF

Document = dict[str, Any]

JSON, YAML = "application/json", "application/yaml"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
_BOUNDS = {"int32": 2**31, "int64": 2**63}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {"bool": bool, "float": (int, float)}  # str for all else
_GO_TYPES = {"time": "string", "microtime": "string", "bytes": "[]uint8", "float": "float64"}


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice."""

    duplicates: tuple[str, ...] = ()


def _object(pairs: Iterable[tuple[str, Any]]) -> _Object:
    made = _Object()
    twice: list[str] = []
    for key, value in pairs:
        if key in made:
            twice.append(key)
        made[key] = value
    made.duplicates = tuple(dict.fromkeys(twice))
    return made


class _YamlLoader(yaml.SafeLoader):
    """Plain JSON values only: no dates, keys as text, duplicate keys noticed, no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # An alias may stand for a value many times over: the limit on bodies bounds the text, not what it unfolds to.
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)  # type: ignore[arg-type]


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml_mapping(loader: _YamlLoader, node: yaml.MappingNode) -> _Object:
    loader.flatten_mapping(node)
    return _object(
        (_yaml_key(loader.construct_object(key, deep=True)), loader.construct_object(value, deep=True))  # type: ignore[no-untyped-call]
        for key, value in node.value
    )


def _yaml_key(key: Any) -> str:
    if isinstance(key, dict | list):
        raise yaml.YAMLError("a key is no plain value")
    if isinstance(key, bool):
        return "true" if key else "false"
    return "null" if key is None else str(key)


_YamlLoader.add_constructor("tag:yaml.org,2002:map", _yaml_mapping)
for _tag in ("binary", "omap", "pairs", "set", "timestamp"):  # would make what JSON does not have
    _YamlLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]


def parse(body: bytes, content_type: str) -> Any:
    """The value of a body. Raises BadRequest and, for other media than JSON, YAML, protobuf, UnsupportedMediaType."""
    media = content_type.split(";")[0].strip().lower() or JSON
    if media == YAML:
        try:
            return yaml.load(body, Loader=_YamlLoader)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as err:
            raise BadRequest(f"error converting YAML to JSON: {err}") from err
    if media == PROTOBUF:
        return protobuf.decode(body)
    if media != JSON:
        raise UnsupportedMediaType(
            f"the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}"
        )
    try:
        # As in Go: always UTF-8, and what is none of it inside a text becomes the sign for that.
        text = body.decode("utf-8", "replace")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"couldn't get version/kind; json parse error: {err}") from err


def parse_documents(text: str) -> list[Any]:
    """The values of a YAML text, which may hold several documents; empty ones are passed over. Raises BadRequest."""
    try:
        return [value for value in yaml.load_all(text, Loader=_YamlLoader) if value is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise BadRequest(f"error converting YAML to JSON: {err}") from err


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid character in {text!r} looking for beginning of value")


def decode(kind: Kind, body: bytes, content_type: str) -> Document:
    """The document of a kind in a body, unknown and duplicate fields passed over. Raises as decode_with_warnings."""
    return decode_with_warnings(kind, body, content_type)[0]


def decode_with_warnings(kind: Kind, body: bytes, content_type: str) -> tuple[Document, list[str]]:
    """The document of a kind in a body, and a sentence for each unknown or duplicate field.

    fieldValidation=Strict refuses the sentences (strict_error), Warn sends them along, Ignore drops them. Raises
    BadRequest for what is no object of the kind, UnsupportedMediaType.
    """
    return shaped(kind, parse(body, content_type))


def strict_error(warnings: list[str]) -> BadRequest:
    """What fieldValidation=Strict answers to a body with unknown or duplicate fields."""
    return BadRequest("strict decoding error: " + ", ".join(warnings))


def shaped(kind: Kind, value: Any) -> tuple[Document, list[str]]:
    """A parsed value as a document of the kind, and a sentence for each field that was dropped or given twice."""
    return _decoded(kind, value, as_given=False)


def partial(kind: Kind, value: Any) -> tuple[Document, list[str]]:
    """A part of a document, as server-side apply takes it: typed as by `shaped`, but with just the fields it was given.

    Empty values and nulls are kept: to name a field is to own it.
    """
    return _decoded(kind, value, as_given=True)


def _decoded(kind: Kind, value: Any, *, as_given: bool) -> tuple[Document, list[str]]:
    prefix = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
    if not isinstance(value, dict):
        raise BadRequest(
            "couldn't get version/kind; json parse error: json: cannot unmarshal "
            f"{_json_type(value)} into Go value of type struct"
        )
    for key in ("apiVersion", "kind"):
        if not isinstance(value.get(key, ""), str | None):
            raise BadRequest(
                "couldn't get version/kind; json parse error: json: cannot unmarshal "
                f"{_json_type(value[key])} into Go struct field .{key} of type string"
            )
    api_version, name = value.get("apiVersion") or kind.api_version, value.get("kind") or kind.kind
    if (api_version, name) != (kind.api_version, kind.kind):
        raise BadRequest(
            f"the API version in the data ({api_version}) does not match the expected API version ({kind.api_version})"
            if name == kind.kind
            else f"the kind in the data ({api_version}, Kind={name}) does not match the expected kind "
            f"({kind.api_version}, Kind={kind.kind})"
        )
    decoder = _Decoder(prefix, as_given=as_given)
    document = decoder.struct(value, schema.root(kind), "", is_root=True)
    return {"kind": kind.kind, "apiVersion": kind.api_version, **document}, decoder.warnings


class _Decoder:
    """Walks a value beside its type. Collects warnings; raises BadRequest for a wrong type.

    as_given: nothing is filled in where a field is missing, nothing left out where it is empty.
    """

    def __init__(self, prefix: str, *, as_given: bool) -> None:
        self.prefix, self.as_given = prefix, as_given
        self.warnings: list[str] = []

    def struct(self, value: Any, type_name: str, path: str, *, is_root: bool = False) -> Document:
        """Fields in the order of the schema, so that equal documents are equal texts."""
        known = schema.fields(type_name)
        for key in value:
            if key not in known and not (is_root and key in ("apiVersion", "kind")):
                self.warnings.append(f'unknown field "{_join(path, key)}"')
        for key in getattr(value, "duplicates", ()):
            self.warnings.append(f'duplicate field "{_join(path, key)}"')
        document: Document = {}
        for field in known.values():
            given = value.get(field.name)
            if given is None:
                if self.as_given:
                    document |= {field.name: None} if field.name in value else {}
                elif field.always and not (is_root and field.name in ("spec", "status")):
                    document[field.name] = schema.zero(field.type)
                continue
            decoded = self.value(given, field.type, _join(path, field.name), type_name)
            if self.as_given:
                document[field.name] = decoded
            elif field.always or field.is_pointer or not _is_empty(decoded, field.type):
                document[field.name] = None if decoded in ([], {}) and field.type[:2] in ("[]", "{}") else decoded
        return document

    def value(self, value: Any, type_name: str, path: str, owner: str) -> Any:
        if type_name == "any":
            return value
        if type_name.startswith("[]"):
            if not isinstance(value, list):
                raise self.wrong(value, owner, path, "[]" + _go_type(type_name[2:]))
            return [self.element(item, type_name[2:], f"{path}[{index}]", owner) for index, item in enumerate(value)]
        if not isinstance(value, dict) and type_name not in schema.SCALARS:
            raise self.wrong(value, owner, path, "map[string]string" if type_name[:2] == "{}" else f"v1.{type_name}")
        if type_name.startswith("{}"):
            self.warnings += [f'duplicate field "{_join(path, key)}"' for key in getattr(value, "duplicates", ())]
            return {
                key: self.element(item, type_name[2:], _join(path, key), owner) for key, item in sorted(value.items())
            }
        if type_name in schema.SCALARS:
            return self.scalar(value, type_name, path, owner)
        return self.struct(value, type_name, path)

    def element(self, item: Any, type_name: str, path: str, owner: str) -> Any:
        """An element of a list or map, where null stands for the zero value."""
        if item is None:
            return schema.zero(type_name)
        return self.value(item, type_name, path, owner)

    def scalar(self, value: Any, type_name: str, path: str, owner: str) -> Any:
        if type_name == "intstr":
            if isinstance(value, str):
                return value
            type_name = "int32"
        if type_name in _BOUNDS:
            bound = _BOUNDS[type_name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.wrong(value, owner, path, type_name)
            if not -bound <= value < bound or value != int(value):
                raise self.wrong(value, owner, path, type_name, f"number {value}")
            return int(value)
        if type_name == "quantity":
            return self.quantity(value)
        right: Any = _PYTHON_TYPES.get(type_name, str)
        if not isinstance(value, right) or (type_name == "float" and isinstance(value, bool)):
            raise self.wrong(value, owner, path, _GO_TYPES.get(type_name, type_name))
        if type_name in ("time", "microtime"):
            return self.time(value, precise=type_name == "microtime")
        if type_name == "bytes":
            return self.base64(value)
        if right is str and not value.isascii():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates, as Go does
        return value

    def time(self, value: str, *, precise: bool) -> str | None:
        """A time in UTC, to the second or the microsecond, as Kubernetes writes it back."""
        if not value:
            return None
        try:
            if not _TIME.fullmatch(value):
                raise ValueError(value)
            at = datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError) as err:
            raise BadRequest(
                f'{self.prefix}parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}"'
            ) from err
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if precise else "%Y-%m-%dT%H:%M:%SZ")

    def base64(self, value: str) -> str:
        """Base64 as it is written back. The error says nothing of the value: it may be secret."""
        try:
            return b64encode(b64decode(re.sub(r"[\r\n]", "", value), validate=True)).decode()
        except ValueError as err:
            raise BadRequest(f"{self.prefix}illegal base64 data") from err

    def quantity(self, value: Any) -> Any:
        text = json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not _QUANTITY.fullmatch(text):
            raise BadRequest(
                f"{self.prefix}quantities must match the regular expression "
                "'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
        return text

    def wrong(self, value: Any, owner: str, path: str, go_type: str, shown: str = "") -> BadRequest:
        path = re.sub(r"\[\d+\]", "", path)
        return BadRequest(
            f"{self.prefix}json: cannot unmarshal {shown or _json_type(value)} into Go struct field "
            f"{owner}.{path} of type {go_type}"
        )


def _go_type(type_name: str) -> str:
    if type_name in schema.SCALARS:
        return _GO_TYPES.get(type_name, type_name)
    return f"v1.{type_name}"


def _is_empty(value: Any, type_name: str) -> bool:
    """Whether Kubernetes leaves a value out. An empty object that was given is something."""
    if isinstance(value, dict):
        return type_name.startswith("{}") and not value
    if type_name == "intstr":
        return value in (0, "")
    return value in ("", 0, False, None) or value == []


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "null" if value is None else "object"
