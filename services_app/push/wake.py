"""From a commit to the pushers, in a millisecond and without ever failing the writer. A hint: the sweep finds the rest."""

import logging
import threading

import redis
from django.conf import settings

logger = logging.getLogger(__name__)

PENDING = "timonel:wake"
NODES_CHANNEL = "timonel:nodes"
PENDING_MS = 200  # a wake that got lost with its worker holds others back no longer than this

_lock = threading.Lock()
_client: redis.Redis | None = None


def client() -> redis.Redis:
    """This process's Redis client, with timeouts short enough for a request."""
    global _client
    with _lock:
        if _client is None:
            _client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=0.5, socket_connect_timeout=0.5)
    return _client


def request_wake() -> None:
    """Ask for a look at which nodes are behind; many requests at once make one. Without Redis: nothing, but a log line."""
    try:
        if client().set(PENDING, "1", nx=True, px=PENDING_MS):
            from services_app.push.tasks import wake

            wake.apply_async(retry=False, expires=10)
    except Exception as err:  # the commit is done: nothing here may reach the client
        logger.warning("cannot wake the pushers: %s reason=redis_away", err)


def begin_look() -> None:
    """Called when a look starts: what is written from now on needs another one."""
    try:
        client().delete(PENDING)
    except redis.RedisError as err:
        logger.warning("cannot clear the wake flag: %s reason=redis_away", err)


def announce_node(node: str) -> None:
    """Tell live pages that a node reported."""
    try:
        client().publish(NODES_CHANNEL, node)
    except redis.RedisError as err:
        logger.warning("cannot announce %s: %s reason=redis_away", node, err)
