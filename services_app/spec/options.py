"""What a list, watch or delete asks for beside its object: read, and judged as Kubernetes judges it.

Source: k8s v1.36 apimachinery/pkg/apis/internalversion/validation (ValidateListOptions), runtime/conversion.go for
how parameters are read, and the table of resourceVersion semantics in the API concepts of the documentation.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services_app.spec import wire
from services_app.spec.errors import BadRequest, FieldError, Invalid, forbidden, invalid, not_supported
from services_app.spec.kinds import Kind
from services_app.spec.selectors import FieldSelector, Selector, parse_field_selector, parse_label_selector

EXACT, NOT_OLDER_THAN = "Exact", "NotOlderThan"
POLICIES = ("Background", "Foreground", "Orphan")
DELETE = Kind("", "v1", "DeleteOptions", "deleteoptions", "deleteoptions", verbs=())

Query = Mapping[str, Sequence[str]]
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class ListOptions:
    """The options of a list or watch. version None: none was given, 0: any will do. limit 0: no limit.

    sends_initial None: not said. timeout_s 0: as the server likes.
    """

    labels: Selector | None = None
    fields: FieldSelector | None = None
    version: int | None = None
    match: str = ""
    limit: int = 0
    continue_token: str = ""
    bookmarks: bool = False
    sends_initial: bool | None = None
    timeout_s: int = 0

    @property
    def at(self) -> int | None:
        """The one revision whose state is wanted; None for the newest.

        A limit with a version and without a word on how to match means exactly that version, as it did before there
        was such a word.
        """
        if self.version and (self.match == EXACT or (self.limit and not self.match)):
            return self.version
        return None


def about(name: str, errors: list[FieldError]) -> Invalid:
    """The error about a request's own options; name: ListOptions, DeleteOptions and the like."""
    return Invalid(Kind("meta.k8s.io", "v1", name, name, name), "", errors)


def read(kind: Kind, query: Query, *, is_watch: bool = False) -> ListOptions:
    """The options in a query, name -> its values. Raises BadRequest for unreadable, Invalid for forbidden ones."""
    limit = integer(query, "limit")
    timeout_s = integer(query, "timeoutSeconds")
    labels, fields = text(query, "labelSelector"), text(query, "fieldSelector")
    label_selector = parse_label_selector(labels) if labels else None
    version, match = text(query, "resourceVersion"), text(query, "resourceVersionMatch")
    continue_token = text(query, "continue")
    sends_initial = flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None
    errors = (_judge_watch if is_watch else _judge_list)(version, match, continue_token, sends_initial)
    if errors:
        raise about("ListOptions", errors)
    field_selector = parse_field_selector(kind, fields) if fields else None
    if continue_token and version not in ("", "0") and not is_watch:
        raise BadRequest("specifying resource version is not allowed when using continue")
    return ListOptions(
        labels=label_selector,
        fields=field_selector,
        version=revision(version) if version else None,
        match=match,
        limit=0 if version == "0" and not continue_token else max(limit, 0),
        continue_token=continue_token,
        bookmarks=flag(query, "allowWatchBookmarks"),
        sends_initial=sends_initial,
        timeout_s=max(timeout_s, 0),
    )


def read_delete(body: bytes, content_type: str, query: Query) -> dict[str, Any]:
    """The options of a delete, from its body and its query. Raises BadRequest, Invalid and UnsupportedMediaType."""
    asked: dict[str, Any] = {}
    if body.strip():
        given = wire.parse(body, content_type)
        if not isinstance(given, dict) or given.get("kind", DELETE.kind) != DELETE.kind:
            raise BadRequest("the body is not DeleteOptions")
        # Any group may name the options its own.
        asked, _ = wire.shaped(DELETE, {**given, "kind": DELETE.kind, "apiVersion": DELETE.version})
    if "gracePeriodSeconds" in query:
        asked["gracePeriodSeconds"] = integer(query, "gracePeriodSeconds")
    if "propagationPolicy" in query:
        asked["propagationPolicy"] = text(query, "propagationPolicy")
    if "orphanDependents" in query:
        asked["orphanDependents"] = flag(query, "orphanDependents")
    policy = asked.get("propagationPolicy")
    if policy and "orphanDependents" in asked:
        rule = "orphanDependents and deletionPropagation cannot be both set"
        raise about(DELETE.kind, [invalid("propagationPolicy", policy, rule)])
    if policy and policy not in POLICIES:
        raise about(DELETE.kind, [not_supported("propagationPolicy", policy, POLICIES)])
    if "orphanDependents" in asked:
        asked["propagationPolicy"] = "Orphan" if asked["orphanDependents"] else "Background"
    if asked.get("gracePeriodSeconds", 0) < 0:
        asked["gracePeriodSeconds"] = 1
    return asked


def _judge_list(version: str, match: str, continue_token: str, sends_initial: bool | None) -> list[FieldError]:
    errors = []
    field = "resourceVersionMatch"
    if match:
        if not version:
            errors.append(forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
        if continue_token:
            errors.append(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"))
        if match not in (EXACT, NOT_OLDER_THAN):
            errors.append(not_supported(field, match, (EXACT, NOT_OLDER_THAN, "")))
        if match == EXACT and version == "0":
            errors.append(forbidden(field, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
    if sends_initial is not None:
        errors.append(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    return errors


def _judge_watch(version: str, match: str, continue_token: str, sends_initial: bool | None) -> list[FieldError]:
    errors = []
    field = "resourceVersionMatch"
    if sends_initial is not None and match != NOT_OLDER_THAN:
        detail = f"sendInitialEvents requires setting resourceVersionMatch to {NOT_OLDER_THAN}"
        errors.append(forbidden(field, detail))
    if match:
        if sends_initial is None:
            detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            errors.append(forbidden(field, detail))
        if match != NOT_OLDER_THAN:
            errors.append(not_supported(field, match, (NOT_OLDER_THAN,)))
        if continue_token:
            errors.append(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"))
    return errors


def text(query: Query, name: str) -> str:
    """The first value of an option; "" when it is not there."""
    values = query.get(name)
    return values[0] if values else ""


def flag(query: Query, name: str) -> bool:
    """Whether an option is on: it is there, and not as "false" or "0"."""
    values = query.get(name)
    return bool(values) and values[0].lower() not in ("false", "0")  # type: ignore[index]


def integer(query: Query, name: str) -> int:
    """The number of an option, within 64 bits; 0 when it is not there."""
    spelled = text(query, name)
    if not spelled:
        return 0
    if not _INTEGER.fullmatch(spelled) or not -(2**63) <= int(spelled) < 2**63:
        raise BadRequest(f'Invalid value: "{spelled}": {name} must be a whole number')
    return int(spelled)


def revision(spelled: str) -> int:
    """A resourceVersion as a number. Raises BadRequest."""
    if not _INTEGER.fullmatch(spelled) or not 0 <= int(spelled) < 2**63:
        raise BadRequest(f'Invalid value: "{spelled}": the resource version must be a whole number')
    return int(spelled)
