"""Questions a client asks about himself: who he is, whether he may do something, what he may do. Nothing is stored.

Source: k8s v1.36 pkg/registry/{authentication,authorization}, pkg/apis/authorization/validation.
"""

from collections import defaultdict
from typing import Any

from services_app.api import auth
from services_app.spec import kinds
from services_app.spec.errors import FieldError, Invalid, invalid
from services_app.spec.kinds import Kind

Document = dict[str, Any]

AUTHENTICATED = "system:authenticated"
OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")
FOR_ALL_USERS = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")


def answer(kind: Kind, review: Document, user: Any) -> Document:
    """The review with its status. Raises Invalid for a question that is none."""
    if errors := _validate(kind, review):
        raise Invalid(kind, "", errors)
    given = {key: value for key, value in review.items() if key in ("kind", "apiVersion", "spec")}
    answered = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}} | given
    if kind is kinds.SELF_SUBJECT_REVIEW:
        return answered | {"status": {"userInfo": who(user)}}
    if kind is kinds.SELF_SUBJECT_ACCESS_REVIEW:
        return answered | {"status": _access(review["spec"], user)}
    return answered | {"status": _rules(review["spec"].get("namespace") or "", user)}


def who(user: Any) -> Document:
    """A user as Kubernetes describes one: his name, his Django groups, and the group of all who are known."""
    groups = sorted(user.groups.values_list("name", flat=True))
    return {"username": user.get_username(), "uid": str(user.pk), "groups": [*groups, AUTHENTICATED]}


def _validate(kind: Kind, review: Document) -> list[FieldError]:
    errors = []
    if any((review.get("metadata") or {}).values()):
        errors.append(invalid("metadata", review["metadata"], "must be empty"))
    spec = review.get("spec") or {}
    if kind is kinds.SELF_SUBJECT_RULES_REVIEW and not spec.get("namespace"):
        errors.append(FieldError("Required", "spec.namespace", "", "namespace is required"))
    if kind is kinds.SELF_SUBJECT_ACCESS_REVIEW:
        resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if resource is not None and path is not None:
            detail = "cannot be specified in combination with resourceAttributes"
            errors.append(invalid("spec.nonResourceAttributes", path, detail))
        if resource is None and path is None:
            detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            errors.append(invalid("spec.resourceAttributes", None, detail))
    return errors


def _access(spec: Document, user: Any) -> Document:
    attributes = spec.get("resourceAttributes")
    if attributes is None:
        path = spec["nonResourceAttributes"].get("path") or ""
        # Whoever is known may read what the API says about itself.
        is_open = path in OPEN_PATHS or path.startswith(("/api", "/openapi"))
        reads = spec["nonResourceAttributes"].get("verb") in ("get", "head")
        return {"allowed": bool((is_open and reads) or auth.may(user, "*", None, None))}
    resource, group = attributes.get("resource") or "", attributes.get("group") or ""
    kind = kinds.by_group_resource(group, resource)
    if kind in kinds.REVIEWS:
        return {"allowed": attributes.get("verb") in kind.verbs}
    answered: Document = {
        "allowed": bool(auth.may(user, attributes.get("verb") or "", kind, attributes.get("namespace") or None))
    }
    if kind is None and "*" not in (resource, group):
        named = f"{resource}.{group}" if group else resource
        answered["reason"] = f'no resource "{named}" is served here'
    return answered


def _rules(namespace: str, user: Any) -> Document:
    # (group, verbs allowed) -> the resources they are allowed on
    allowed: defaultdict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for kind in kinds.STORED:
        where = namespace if kind.namespaced else None
        verbs = tuple(verb for verb in kind.verbs if auth.may(user, verb, kind, where))
        if verbs:
            allowed[kind.group, verbs] += [kind.plural, *(f"{kind.plural}/{name}" for name in kind.subresources)]
    for kind in kinds.REVIEWS:
        allowed[kind.group, kind.verbs].append(kind.plural)
    return {
        "resourceRules": [
            {"verbs": [*verbs], "apiGroups": [group], "resources": resources}
            for (group, verbs), resources in allowed.items()
        ],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": [*OPEN_PATHS, *FOR_ALL_USERS]}],
        "incomplete": False,
    }
