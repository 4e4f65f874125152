"""Who asks, and whether they may: bearer tokens for clients, the Django session for the dashboard."""

import threading
import time
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication

from services_app.api.paths import Target
from services_app.models import ApiToken
from services_app.spec import kinds
from services_app.spec.errors import Forbidden, Unauthorized
from services_app.spec.kinds import Kind

Document = dict[str, Any]

KEPT_S = 2.0  # how long a token that was taken back may still open doors


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
        _known[digest] = _Known(row.user, now + KEPT_S)
    return row.user


# Rights that writing alone does not give, as Django permissions: superusers have them, others by grant.
# Whoever holds one can receive traffic meant for others: CVE-2020-8554 (addresses) and CVE-2021-25740 (endpoints).
USE_EXTERNAL_IPS = "services_app.use_external_ips"
WRITE_ENDPOINTS = "services_app.write_endpoints"
READING = ("get", "list", "watch")


def right_needed(verb: str, kind: Kind | None) -> str:
    """The right a verb needs beside being staff, "" for none."""
    by_hand = kind in (kinds.ENDPOINTS, kinds.ENDPOINT_SLICE)
    return WRITE_ENDPOINTS if by_hand and verb not in READING else ""


def may(user: Any, verb: str, kind: Kind | None, namespace: str | None) -> bool:
    """Whether a user may do this at all; `require_field_rights` judges what is written."""
    if not (user and user.is_active and user.is_staff):
        return False
    right = right_needed(verb, kind)
    return not right or user.has_perm(right)


def refusal(user: Any, verb: str, target: Target) -> Forbidden:
    """What is answered when `may` says no."""
    kind, where = target.kind, f' in the namespace "{target.namespace}"' if target.namespace else ""
    said = f'User "{user.get_username()}" cannot {verb} resource "{kind.plural}" in API group "{kind.group}"{where}'
    right = right_needed(verb, kind)
    return Forbidden(kind, target.name, f"{said}: the right {right} is missing" if right else said)


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
