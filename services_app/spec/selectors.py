"""Label and field selectors: parsing their text, matching objects.

Source: k8s v1.36 apimachinery/pkg/labels/selector.go, pkg/fields/selector.go; the fields each kind can be selected by
are those of pkg/apis/core/v1/conversion.go.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services_app.spec import names
from services_app.spec.errors import BadRequest
from services_app.spec.kinds import EVENT, EVENTS_EVENT, NAMESPACE, NODE, POD, SECRET, SERVICE, Kind

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Requirement:
    """One term. op: "=", "==", "!=", "in", "notin", "exists", "!", "gt", "lt"."""

    key: str
    op: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.key)
        if self.op in ("=", "==", "in"):
            return value is not None and value in self.values
        if self.op in ("!=", "notin"):
            return value is None or value not in self.values
        if self.op == "exists":
            return value is not None
        if self.op == "!":
            return value is None
        number = _integer(value) if value is not None else None
        if number is None:
            return False
        bound = int(self.values[0])
        return number > bound if self.op == "gt" else number < bound


@dataclass(frozen=True)
class Selector:
    """All requirements must hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels | None) -> bool:
        return all(requirement.matches(labels or {}) for requirement in self.requirements)


@dataclass(frozen=True)
class FieldSelector:
    """Terms of (field, op, value) that must all hold. op: "=" or "!="."""

    kind: Kind
    terms: tuple[tuple[str, str, str], ...] = ()

    def matches(self, document: dict[str, Any]) -> bool:
        return all((field_value(self.kind, document, field) == value) == (op == "=") for field, op, value in self.terms)


def match_labels(selector: Labels | None, labels: Labels | None) -> bool:
    """Whether every pair of a Service's selector is among the labels. An empty selector matches nothing."""
    if not selector:
        return False
    have = labels or {}
    return all(have.get(key) == value for key, value in selector.items())


def _integer(text: str) -> int | None:
    """A 64 bit number as Go's strconv reads it, None when it is none."""
    if not re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


_TOKEN = re.compile(r"\s*(?:(?P<op>==|!=|=|!|,|\(|\)|>|<)|(?P<word>[^\s=!,()<>]+))")
_WORD_OPS = ("in", "notin")


class _Lexer:
    """Tokens of a label selector. `kind` of the next one: "word", "op", "end"."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            found = _TOKEN.match(stripped, position)
            if found is None:  # every character is an operator, a space or part of a word
                raise BadRequest(f"unable to parse requirement: unexpected text at {position} in {text!r}")
            self.tokens.append(found["op"] or found["word"])
            position = found.end()
        self.at = 0

    def peek(self) -> str:
        """The next token, "" at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token


_OPERATORS = {"=", "==", "!=", "!", ",", "(", ")", ">", "<", ""}


def parse_label_selector(text: str) -> Selector:
    """The selector a query parameter spells. Raises BadRequest."""
    lexer = _Lexer(text)
    requirements: list[Requirement] = []
    if not lexer.peek():
        return Selector()
    while True:
        requirements.append(_requirement(lexer))
        token = lexer.take()
        if token == "":
            break
        if token != ",":
            raise _unparsable(f"found '{token}', expected: ',' or 'end of string'")
        following = lexer.peek()
        if following in _OPERATORS - {"!"}:
            raise _unparsable(f"found '{following}', expected: identifier after ','")
    return Selector(tuple(sorted(requirements, key=lambda r: r.key)))


def _unparsable(detail: str) -> BadRequest:
    return BadRequest(f"unable to parse requirement: {detail}")


def _requirement(lexer: _Lexer) -> Requirement:
    negated = lexer.peek() == "!"
    if negated:
        lexer.take()
    key = lexer.take()
    if key in _OPERATORS:
        raise _unparsable(f"found '{key}', expected: identifier")
    if problems := names.qualified_name_problems(key):
        raise _unparsable(f'<nil>: Invalid value: "{key}": {"; ".join(problems)}')
    if negated:
        return Requirement(key, "!")
    if lexer.peek() in ("", ","):
        return Requirement(key, "exists")
    op = lexer.take()
    if op in _WORD_OPS:
        values = _value_list(lexer)
    elif op in ("=", "==", "!=", ">", "<"):
        values = (_exact_value(lexer),)
    else:
        raise _unparsable(f"found '{op}', expected: in, notin, =, ==, !=, gt, lt")
    if op in (">", "<"):
        if _integer(values[0]) is None:
            raise _unparsable(
                f"values[0][{key}]: Invalid value: \"{values[0]}\": for 'Gt', 'Lt' operators, the value must be an integer"
            )
        return Requirement(key, "gt" if op == ">" else "lt", values)
    for value in values:
        if problems := names.label_value_problems(value):
            raise _unparsable(f'values[0][{key}]: Invalid value: "{value}": {"; ".join(problems)}')
    return Requirement(key, op, values)


def _exact_value(lexer: _Lexer) -> str:
    if lexer.peek() in ("", ","):
        return ""
    value = lexer.take()
    if value in _OPERATORS:
        raise _unparsable(f"found '{value}', expected: identifier")
    return value


def _value_list(lexer: _Lexer) -> tuple[str, ...]:
    token = lexer.take()
    if token != "(":
        raise _unparsable(f"found '{token}', expected: '('")
    values: set[str] = set()
    expects_value = True  # a comma where a value may stand gives the empty value
    while True:
        token = lexer.take()
        if token == ")":
            if expects_value:
                values.add("")
            return tuple(sorted(values))
        if token == ",":
            if expects_value:
                values.add("")
            expects_value = True
        elif token in _OPERATORS or not expects_value:
            raise _unparsable(f"found '{token}', expected: ',', or ')'")
        else:
            values.add(token)
            expects_value = False


# field -> path in the document; what is not listed here cannot be selected by
_COMMON = {"metadata.name": ("metadata", "name"), "metadata.namespace": ("metadata", "namespace")}
_FIELDS: dict[Kind, dict[str, tuple[str, ...]]] = {
    SERVICE: {"spec.clusterIP": ("spec", "clusterIP"), "spec.type": ("spec", "type")},
    POD: {
        "spec.nodeName": ("spec", "nodeName"),
        "spec.restartPolicy": ("spec", "restartPolicy"),
        "spec.schedulerName": ("spec", "schedulerName"),
        "spec.serviceAccountName": ("spec", "serviceAccountName"),
        "spec.hostNetwork": ("spec", "hostNetwork"),
        "status.phase": ("status", "phase"),
        "status.podIP": ("status", "podIP"),
        "status.nominatedNodeName": ("status", "nominatedNodeName"),
    },
    NODE: {"spec.unschedulable": ("spec", "unschedulable")},
    NAMESPACE: {"status.phase": ("status", "phase")},
    EVENT: {
        "involvedObject.kind": ("involvedObject", "kind"),
        "involvedObject.namespace": ("involvedObject", "namespace"),
        "involvedObject.name": ("involvedObject", "name"),
        "involvedObject.uid": ("involvedObject", "uid"),
        "involvedObject.apiVersion": ("involvedObject", "apiVersion"),
        "involvedObject.resourceVersion": ("involvedObject", "resourceVersion"),
        "involvedObject.fieldPath": ("involvedObject", "fieldPath"),
        "reason": ("reason",),
        "reportingComponent": ("reportingComponent",),
        "source": ("source", "component"),
        "type": ("type",),
    },
    EVENTS_EVENT: {
        **{
            f"regarding.{key}": ("regarding", key)
            for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
        },
        "reason": ("reason",),
        "reportingController": ("reportingController",),
        "type": ("type",),
    },
    SECRET: {"type": ("type",)},
}
_BOOLEANS = {"spec.hostNetwork", "spec.unschedulable"}


def field_value(kind: Kind, document: dict[str, Any], field: str) -> str:
    """What a field selector compares with: text, "" where the document has nothing."""
    value: Any = document
    for step in _path(kind, field):
        value = value.get(step) if isinstance(value, dict) else None
    if field in _BOOLEANS:
        return "true" if value else "false"
    if field == "source" and not value:
        value = document.get("reportingComponent")
    return value or ""


def _path(kind: Kind, field: str) -> tuple[str, ...]:
    if field == "metadata.name" or (field == "metadata.namespace" and kind.namespaced):
        return _COMMON[field]
    found = _FIELDS.get(kind, {}).get(field)
    if found is None:
        raise BadRequest(f"field label not supported: {field}")
    return found


def parse_field_selector(kind: Kind, text: str) -> FieldSelector:
    """The field selector a query parameter spells. Raises BadRequest, also for fields the kind cannot be selected by."""
    terms = []
    for part in _split_terms(text):
        if not part:
            continue
        field, op, value = _split_term(part, text)
        _path(kind, field)
        terms.append((field, op, _unescape(value)))
    return FieldSelector(kind, tuple(terms))


def _split_terms(text: str) -> list[str]:
    """Split at commas that are not escaped by a backslash."""
    return re.findall(r"(?:[^,\\]|\\.|\\$)+", text, re.S)


def _split_term(part: str, text: str) -> tuple[str, str, str]:
    found = re.match(r"(?P<field>(?:[^=!\\]|\\.|!(?!=))*)(?P<op>==|=|!=)(?P<value>.*)", part, re.S)
    if found is None:
        raise BadRequest(f"invalid selector: '{text}'; can't understand '{part}'")
    return found["field"], "!=" if found["op"] == "!=" else "=", found["value"]


def _unescape(value: str) -> str:
    """Resolve the escapes of a field selector's value: \\\\, \\, and \\=. Raises BadRequest for others."""
    if re.search(r"(?<!\\)[,=]", re.sub(r"\\.", "", value)):
        raise BadRequest(f"invalid field selector: unescaped character in value: {value}")
    for escape in re.findall(r"\\(.?)", value, re.S):
        if escape not in ("\\", ",", "="):
            raise BadRequest(f"invalid field selector: invalid escape sequence: \\{escape}")
    return re.sub(r"\\(.)", r"\1", value, flags=re.S)
