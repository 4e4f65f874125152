"""Who asks, and whether he may: bearer tokens for clients, the Django session for the dashboard."""

import threading
import time
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, SessionAuthentication

from services_app.models import ApiToken
from services_app.spec.errors import Unauthorized
from services_app.spec.kinds import Kind

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


def may(user: Any, verb: str, kind: Kind | None, namespace: str | None) -> bool:
    """Whether a user may do this: staff may do everything."""
    return bool(user and user.is_active and user.is_staff)


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
