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

AUTHENTICATED, MASTERS = "system:authenticated", "system:masters"
OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")
ABOUT_ITSELF = ("/api", "/apis", "/openapi")
FOR_ALL_USERS = tuple(path for root in ABOUT_ITSELF for path in (root, f"{root}/*"))


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
    """A user as Kubernetes describes one: his name, his Django groups, and the groups that the API itself knows."""
    own = sorted(user.groups.exclude(name__startswith="system:").values_list("name", flat=True))
    groups = [*own, *([MASTERS] if user.is_superuser else []), AUTHENTICATED]
    return {"username": user.get_username(), "uid": str(user.pk), "groups": groups}


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
        asked = spec["nonResourceAttributes"]
        return {"allowed": may_read_path(user, asked.get("verb") or "", asked.get("path") or "")}
    resource, group = attributes.get("resource") or "", attributes.get("group") or ""
    kind = kinds.by_group_resource(group, resource)
    allowed = auth.may(
        user,
        attributes.get("verb") or "",
        kind,
        attributes.get("namespace") or "",
        name=attributes.get("name") or "",
        subresource=attributes.get("subresource") or "",
    )
    answered: Document = {"allowed": allowed}
    if kind is None and "*" not in (resource, group):
        named = f"{resource}.{group}" if group else resource
        answered["reason"] = f'no resource "{named}" is served here'
    return answered


def may_read_path(user: Any, verb: str, path: str) -> bool:
    """Whether a user may do this with a path that names no resource: what the API says about itself is for all."""
    if user.is_superuser:
        return True
    is_open = path in OPEN_PATHS or any(path == root or path.startswith(f"{root}/") for root in ABOUT_ITSELF)
    return is_open and verb in ("get", "head")


def _rules(namespace: str, user: Any) -> Document:
    paths: list[Document] = [{"verbs": ["get"], "nonResourceURLs": [*OPEN_PATHS, *FOR_ALL_USERS]}]
    rules: list[Document] = []
    if user.is_superuser:
        rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
        paths.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
    # (group, verbs allowed, the one object they are for) -> the resources they are allowed on
    allowed: defaultdict[tuple[str, tuple[str, ...], str], list[str]] = defaultdict(list)
    for kind in kinds.REVIEWS if user.is_superuser else kinds.KINDS:
        for name in ("", *kind.subresources):
            verbs = kinds.SUBRESOURCES[name].verbs if name else kind.verbs
            resource = f"{kind.plural}/{name}" if name else kind.plural
            may = tuple(verb for verb in verbs if auth.may(user, verb, kind, namespace, subresource=name))
            if kind is kinds.NAMESPACE and not auth.may(user, "get", kind, None):
                if may:
                    allowed[kind.group, may, namespace].append(resource)
            elif may:
                allowed[kind.group, may, ""].append(resource)
    for (group, verbs, name), resources in allowed.items():
        rule: Document = {"verbs": [*verbs], "apiGroups": [group], "resources": resources}
        rules.append(rule | {"resourceNames": [name]} if name else rule)
    return {"resourceRules": rules, "nonResourceRules": paths, "incomplete": False}
