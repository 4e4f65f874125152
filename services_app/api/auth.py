"""Who asks, and whether they may: bearer tokens for clients, the Django session for the dashboard."""

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication

from services_app import audit
from services_app.api.paths import Asked
from services_app.models import ApiToken, Grant
from services_app.spec import kinds
from services_app.spec.errors import BadRequest, Forbidden, Resource, Unauthorized
from services_app.spec.kinds import Kind

Document = dict[str, Any]

KEPT_S = 2.0  # how long a token or a grant that was taken back may still open doors


@dataclass(frozen=True)
class _Known:
    user: Any
    until: float


_known: dict[str, _Known] = {}
_lock = threading.Lock()


def user_of(header: str) -> Any:
    """The active user of an Authorization header; None when it names nobody. At most one query."""
    scheme, _, plain = header.partition(" ")
    if scheme.lower() != "bearer" or not plain.strip():
        return None
    digest = ApiToken.digest_of(plain.strip())
    now = time.monotonic()
    known = _known.get(digest)
    if known is not None and known.until > now:
        return known.user
    alive = Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
    row = ApiToken.objects.filter(alive, digest=digest, user__is_active=True).select_related("user").first()
    if row is None:
        return None
    with _lock:
        if len(_known) > 1000:
            _known.clear()
        left_s = (row.expires_at - timezone.now()).total_seconds() if row.expires_at else KEPT_S
        _known[digest] = _Known(row.user, now + min(KEPT_S, left_s))
    return row.user


def acting(user: Any, headers: Mapping[str, str]) -> Any:
    """The user a request is to be judged and recorded as: the one who asks, or whom a superuser asks to stand in for.

    headers: by names as HTTP has them, in whatever case the mapping knows. Raises Forbidden and BadRequest, in the words
    of k8s v1.36 apiserver/pkg/endpoints/filters/impersonation. At most one query.
    """
    name = headers.get("Impersonate-User", "")
    more = [header for header in ("Impersonate-Group", "Impersonate-Uid") if headers.get(header)]
    if not name:
        if more:
            raise BadRequest(f"requested {', '.join(more)} without impersonating a user")
        return user
    resource = "users" if not more else "groups" if "Impersonate-Group" in more else "uids"
    told = f'User "{user.get_username()}" cannot impersonate resource "{resource}" in API group "" at the cluster scope'
    if not user.is_superuser or more:
        raise Forbidden(Resource("", resource), name, told + (": a user has the groups he has" if more else ""))
    found: Any = get_user_model().objects.filter(username=name.replace("\0", ""), is_active=True).first()
    if found is None:
        raise Forbidden(Resource("", resource), name, f"{told}: there is no such user")
    found.stood_in_by = user.get_username()
    return found


def recorded_name(user: Any) -> str:
    """A user as records name him: "ana", or "ana for dev" when she stands in for dev."""
    by = getattr(user, "stood_in_by", "")
    return f"{by} for {user.get_username()}" if by else str(user.get_username())


# Rights that a role alone does not give, as Django permissions: superusers have them, others by grant in the admin.
# Whoever holds one can receive traffic meant for others: CVE-2020-8554 (addresses) and CVE-2021-25740 (endpoints).
USE_EXTERNAL_IPS = "services_app.use_external_ips"
WRITE_ENDPOINTS = "services_app.write_endpoints"

# Groups that the API itself knows
AUTHENTICATED, MASTERS = "system:authenticated", "system:masters"

READING = ("get", "list", "watch")
# Below a Pod or Service, what reaches into it: more than reading, whatever the verb.
CONNECTING = ("attach", "exec", "portforward", "proxy")

_RANKS = {Grant.Role.VIEW.value: 1, Grant.Role.EDIT.value: 2, Grant.Role.ADMIN.value: 3}
_VIEW, _EDIT, _ADMIN = 1, 2, 3


def right_needed(verb: str, kind: Kind | None) -> str:
    """The right a verb needs beside a role, "" for none."""
    by_hand = kind in (kinds.ENDPOINTS, kinds.ENDPOINT_SLICE)
    return WRITE_ENDPOINTS if by_hand and verb not in READING else ""


def may(
    user: Any, verb: str, kind: Kind | None, namespace: str | None, *, name: str = "", subresource: str = ""
) -> bool:
    """Whether a user may do this at all; `require_field_rights` judges what is written. At most one query.

    The roles are those of Kubernetes: view reads everything but Secrets, edit reads Secrets and writes what lies in
    namespaces, admin may give grants as well. Cluster-wide kinds are for grants that hold everywhere: view reads them,
    admin writes them. Whoever has a role in a namespace may get that Namespace itself. Superusers may do everything;
    a user without grants may only ask about himself. About others admins may ask.

    kind None: what this API does not serve, or all of it. verb "*": all of them. namespace None or "": all namespaces.
    """
    if not (user and user.is_active):
        return False
    if user.is_superuser:
        return True
    if kind is None or not _is_verb(kind, verb, subresource):
        return False
    if kind in kinds.SELF_REVIEWS:
        return True
    right = right_needed(verb, kind)
    if right and not user.has_perm(right):
        return False
    where = namespace or ""
    if not kind.namespaced:
        is_own = kind is kinds.NAMESPACE and verb in READING and not subresource
        where = (name or where) if is_own else ""
    return rank_in(user, where) >= _rank_needed(verb, kind, subresource)


def _is_verb(kind: Kind, verb: str, subresource: str) -> bool:
    if not subresource:
        return verb in kind.verbs
    return subresource in kind.subresources and verb in kinds.SUBRESOURCES[subresource].verbs


def _rank_needed(verb: str, kind: Kind, subresource: str) -> int:
    if kind in kinds.REVIEWS:
        return _ADMIN
    is_read = verb in READING and subresource not in CONNECTING
    if not kind.namespaced:
        return _VIEW if is_read else _ADMIN
    return _VIEW if is_read and kind is not kinds.SECRET else _EDIT


def rank_in(user: Any, namespace: str) -> int:
    """How much a user may do in a namespace, or everywhere when that is "": 0 nothing, 1 view, 2 edit, 3 admin."""
    ranks = _ranks_of(user)
    return max(ranks.get("", 0), ranks.get(namespace, 0))


def _ranks_of(user: Any) -> dict[str, int]:
    """Namespace, "" for everywhere -> rank. Read once for each user object; a token's lives for KEPT_S."""
    known: dict[str, int] | None = getattr(user, "_ranks", None)
    if known is None:
        known = user._ranks = _highest(Q(everyone=True) | Q(user=user.pk) | Q(group__user=user.pk))
    return known


def _highest(held: Q) -> dict[str, int]:
    """As `_ranks_of`, of the grants that are held. One query."""
    known: dict[str, int] = {}
    for namespace, role in Grant.objects.filter(held).order_by().values_list("namespace", "role"):
        known[namespace] = max(known.get(namespace, 0), _RANKS[role])
    return known


@dataclass(frozen=True)
class Subject:
    """Somebody as others describe him: judged by `may` as a user of this name and a member of these groups."""

    is_superuser: bool
    rights: frozenset[str]
    _ranks: dict[str, int]
    is_active: bool = True

    def has_perm(self, right: str) -> bool:
        return self.is_superuser or right in self.rights


def described(name: str, groups: Collection[str]) -> Subject:
    """Who has this name, if anybody, in these groups alone: as in Kubernetes, his own are not looked up. Three queries."""
    user: Any = get_user_model().objects.filter(username=name.replace("\0", ""), is_active=True).first()
    own = [group.replace("\0", "") for group in groups if not group.startswith("system:")]
    held = Q(group__name__in=own)
    if user is not None:
        held |= Q(user=user.pk)
    rights = Permission.objects.filter(held).order_by().values_list("content_type__app_label", "codename")
    if AUTHENTICATED in groups:
        held |= Q(everyone=True)
    return Subject(
        is_superuser=MASTERS in groups or (user is not None and user.is_superuser),
        rights=frozenset(f"{app}.{codename}" for app, codename in rights),
        _ranks=_highest(held),
    )


def places(user: Any, verb: str, kind: Kind) -> frozenset[str] | None:
    """The namespaces where a user may do this with objects of a kind; None: everywhere. Empty: nowhere."""
    if may(user, verb, kind, None):
        return None
    if not (user and user.is_active) or not kind.namespaced:
        return frozenset()
    return frozenset(place for place in _ranks_of(user) if place and may(user, verb, kind, place))


def places_to_grant(user: Any) -> frozenset[str] | None:
    """The namespaces where a user may give and take back grants; None: everywhere."""
    if not (user and user.is_active):
        return frozenset()
    if user.is_superuser or rank_in(user, "") >= _ADMIN:
        return None
    return frozenset(place for place, rank in _ranks_of(user).items() if rank >= _ADMIN)


def refusal(user: Any, verb: str, asked: Asked) -> Forbidden:
    """What is answered when `may` says no, in Kubernetes' words.

    Source: k8s v1.36 apiserver/pkg/endpoints/handlers/responsewriters, forbiddenMessage.
    """
    resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    said = f'User "{user.get_username()}" cannot {verb} resource "{resource}" in API group "{asked.group}" {where}'
    right = right_needed(verb, kinds.by_group_resource(asked.group, asked.resource))
    if right and not user.has_perm(right):
        said += f": the right {right} is missing"
    return Forbidden(Resource(asked.group, asked.resource), asked.name, said)


def require_field_rights(
    user: Any, kind: Kind, before: Document | None, after: Document, subresource: str = ""
) -> None:
    """Raise Forbidden when a write adds what needs a right the user has not; keeping and removing need none.

    before: the object as stored, None on create.
    """
    if kind is not kinds.SERVICE:
        return
    addresses_in = _balancer_addresses if subresource == "status" else _external_ips
    field = "status.loadBalancer.ingress" if subresource == "status" else "spec.externalIPs"
    added = [ip for ip in addresses_in(after) if ip not in addresses_in(before or {})]
    if added and not user.has_perm(USE_EXTERNAL_IPS):
        name = (after.get("metadata") or {}).get("name") or ""
        message = f'User "{user.get_username()}" cannot set {field} to {", ".join(added)}: the right {USE_EXTERNAL_IPS} is missing'
        raise Forbidden(kind, name, message)


def require_right(
    user: Any,
    request_id: str,
    verb: str,
    kind: Kind,
    namespace: str,
    *,
    before: Document | None,
    wanted: Document | None,
) -> None:
    """For a write by a page: raise Forbidden, and have it recorded, when the one who asks may not do this.

    before: the object as stored, None when it is created. wanted: as it would be stored, None when it is deleted.
    """
    name = ((wanted or before or {}).get("metadata") or {}).get("name") or ""
    try:
        if not may(user, verb, kind, namespace, name=name):
            raise refusal(user, verb, Asked(kind.group, kind.version, kind.plural, namespace, name))
        if wanted is not None:
            require_field_rights(user, kind, before, wanted)
    except Forbidden as err:
        who = user.get_username()
        audit.refused(kind.plural, name, err.message, user=who, request_id=request_id, namespace=namespace)
        raise


def _external_ips(service: Document) -> list[str]:
    return [*map(str, (service.get("spec") or {}).get("externalIPs") or ())]


def _balancer_addresses(service: Document) -> list[str]:
    balancer = (service.get("status") or {}).get("loadBalancer") or {}
    return [entry["ip"] for entry in balancer.get("ingress") or () if entry.get("ip")]


class BearerToken(BaseAuthentication):
    """DRF's way to `user_of`."""

    def authenticate(self, request: Any) -> tuple[Any, None] | None:
        header = request.META.get("HTTP_AUTHORIZATION", "")
        if not header:
            return None
        user = user_of(header)
        if user is None:
            raise Unauthorized
        return user, None

    def authenticate_header(self, request: Any) -> str:
        return "Bearer"


class Session(SessionAuthentication):
    """The dashboard's login, with Django's protection against forged requests."""


def session_user(session_key: str | None) -> Any:
    """The user of a Django session, for views outside Django's middleware; None when there is none."""
    if not session_key:
        return None
    from django.contrib.sessions.backends.db import SessionStore

    data = SessionStore(session_key).load()
    identity = data.get("_auth_user_id")
    return get_user_model().objects.filter(pk=identity, is_active=True).first() if identity else None
