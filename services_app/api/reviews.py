"""Questions a client asks: who he is, whether he may do something, what he may do; the same about others. Nothing is stored.

Source: k8s v1.36 pkg/registry/{authentication,authorization}, pkg/apis/authorization/validation.
"""

from collections import defaultdict
from typing import Any

from django.conf import settings

from services_app.api import auth
from services_app.spec import kinds
from services_app.spec.errors import BadRequest, FieldError, Invalid, invalid
from services_app.spec.kinds import Kind

Document = dict[str, Any]

OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")
ABOUT_ITSELF = ("/api", "/apis", "/openapi")
FOR_ALL_USERS = tuple(path for root in ABOUT_ITSELF for path in (root, f"{root}/*"))


def answer(kind: Kind, review: Document, user: Any, namespace: str) -> Document:
    """The review with its status. namespace: that of the path. Raises Invalid, or BadRequest, for a question that is none."""
    if errors := _validate(kind, review, namespace):
        raise Invalid(kind, "", errors)
    given = {key: value for key, value in review.items() if key in ("kind", "apiVersion", "spec")}
    answered = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}} | given
    if kind is kinds.SELF_SUBJECT_REVIEW:
        return answered | {"status": {"userInfo": who(user)}}
    if kind is kinds.SELF_SUBJECT_ACCESS_REVIEW:
        return answered | {"status": _access(review["spec"], user)}
    if kind is kinds.TOKEN_REVIEW:
        return answered | {"status": _token(review["spec"])}
    if kind in (kinds.SUBJECT_ACCESS_REVIEW, kinds.LOCAL_SUBJECT_ACCESS_REVIEW):
        spec = review["spec"]
        subject = auth.described(spec.get("user") or "", spec.get("groups") or ())
        metadata = {"namespace": namespace} if kind.namespaced else {}
        return answered | {"metadata": metadata, "status": _access(spec, subject)}
    return answered | {"status": _rules(review["spec"].get("namespace") or "", user)}


def who(user: Any) -> Document:
    """A user as Kubernetes describes one: his name, his Django groups, and the groups that the API itself knows."""
    own = sorted(user.groups.exclude(name__startswith="system:").values_list("name", flat=True))
    groups = [*own, *([auth.MASTERS] if user.is_superuser else []), auth.AUTHENTICATED]
    return {"username": user.get_username(), "uid": str(user.pk), "groups": groups}


def _validate(kind: Kind, review: Document, namespace: str) -> list[FieldError]:
    spec = review.get("spec") or {}
    if kind is kinds.TOKEN_REVIEW:
        if not spec.get("token"):
            raise BadRequest("token is required for TokenReview in authentication")
        return []
    errors = []
    metadata = {key: value for key, value in (review.get("metadata") or {}).items() if value}
    if kind.namespaced:
        metadata.pop("namespace", None)
    if metadata:
        rule = "must be empty except for namespace" if kind.namespaced else "must be empty"
        errors.append(invalid("metadata", review["metadata"], rule))
    if kind is kinds.SELF_SUBJECT_RULES_REVIEW and not spec.get("namespace"):
        errors.append(FieldError("Required", "spec.namespace", "", "namespace is required"))
    if kind in (kinds.SELF_SUBJECT_REVIEW, kinds.SELF_SUBJECT_RULES_REVIEW):
        return errors
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and path is not None:
        detail = "cannot be specified in combination with resourceAttributes"
        errors.append(invalid("spec.nonResourceAttributes", path, detail))
    if resource is None and path is None:
        detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        errors.append(invalid("spec.resourceAttributes", None, detail))
    if kind is not kinds.SELF_SUBJECT_ACCESS_REVIEW and not spec.get("user") and not spec.get("groups"):
        errors.append(invalid("spec.user", "", "at least one of user or group must be specified"))
    if kind.namespaced and resource is not None and (resource.get("namespace") or "") != namespace:
        found = resource.get("namespace") or ""
        errors.append(invalid("spec.resourceAttributes.namespace", found, "must match metadata.namespace"))
    if kind.namespaced and path is not None:
        errors.append(invalid("spec.nonResourceAttributes", path, "disallowed on this kind of request"))
    return errors


def _token(spec: Document) -> Document:
    """Whose token it is. All tokens are for this API: whoever asks for another audience is told that they are for none."""
    audience = f"https://kubernetes.default.svc.{settings.TIMONEL_CLUSTER_DOMAIN}"
    is_for = spec.get("audiences") or [audience]
    user = auth.user_of(f"Bearer {spec['token']}") if audience in is_for else None
    if user is None:
        return {"user": {}, "error": "invalid bearer token"}
    return {"authenticated": True, "user": who(user), "audiences": [audience]}


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
