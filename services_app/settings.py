"""Every setting, read once from the environment; nothing else in the code base reads it.

A bad value stops start-up with a sentence that says what to write. docs/settings.md lists them.
"""

import os
import secrets
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

ROOT = Path(__file__).resolve().parent.parent


def _bad(name: str, value: str, rule: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name}={value!r} is not usable: {rule}")


def read_networks(name: str, default: str, *, least: int = 1) -> tuple[IPv4Network | IPv6Network, ...]:
    """Address ranges, comma separated; least: how many there must be."""
    text = os.environ.get(name, default)
    try:
        networks = tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as err:
        raise _bad(name, text, f"{err}; write ranges such as 10.96.0.0/16,fd00:10:96::/112") from err
    if not least <= len(networks) <= 8:
        raise _bad(name, text, f"write {least} to 8 ranges such as 10.96.0.0/16")
    for network in networks:
        if network.num_addresses < 8:
            raise _bad(name, text, f"{network} has too few addresses; write a range of at least 8")
    for one, other in combinations(networks, 2):
        if one.overlaps(other):
            raise _bad(name, text, f"{one} and {other} overlap; write ranges apart from each other")
    return networks


def read_port_range(name: str, default: str) -> range:
    """Ports from the first to the last, both included."""
    text = os.environ.get(name, default)
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535):
        raise _bad(name, text, "write two port numbers such as 30000-32767")
    return range(int(first), int(last) + 1)


def read_bind(name: str, default: str) -> tuple[str, int]:
    """Address and port to listen on; port 0 takes a free one."""
    text = os.environ.get(name, default)
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise _bad(name, text, "write address and port such as 127.0.0.1:8443")
    return host.strip("[]"), int(port)


def read_int(name: str, default: int, *, least: int, most: int) -> int:
    """A whole number within bounds."""
    text = os.environ.get(name, str(default))
    if not text.isdigit() or not least <= int(text) <= most:
        raise _bad(name, text, f"write a whole number from {least} to {most}")
    return int(text)


def read_domain(name: str, default: str) -> str:
    """A domain name, without the final dot."""
    text = os.environ.get(name, default).strip(".")
    if not all(part and part.replace("-", "").isalnum() and len(part) < 64 for part in text.split(".")):
        raise _bad(name, text, "write a domain name such as cluster.local")
    return text.lower()


def read_level(name: str, default: str) -> str:
    """A level of Python's logging."""
    text = os.environ.get(name, default)
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise _bad(name, text, "write DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def read_redis(name: str, default: str) -> str:
    """A redis address; unix:// names a socket."""
    text = os.environ.get(name, default)
    if urlsplit(text).scheme not in ("redis", "rediss", "unix"):
        raise _bad(name, "…", "write redis://host:6379/0, rediss://… for TLS or unix:///path/redis.sock")
    return text


def read_secret(name: str, path: Path) -> str:
    """The secret from the environment, else from the data directory, made there at the first start."""
    if value := os.environ.get(name):
        if len(value) < 32:
            raise _bad(name, "…", "write at least 32 random characters")
        return value
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        # Several processes may start at once: the first link wins, and all read the same secret.
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        new.unlink()
    return path.read_text().strip()


def read_secrets(name: str) -> list[str]:
    """Secrets with commas between; none when it is not set."""
    values = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
    if any(len(value) < 32 for value in values):
        raise _bad(name, "…", "write the secrets that were used before, with commas between")
    return values


def read_database(name: str, default: str) -> dict[str, object]:
    """A postgresql:// address; ?host=/directory names a socket."""
    text = os.environ.get(name, default)
    parts = urlsplit(text)
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
        raise _bad(name, "…", "write postgresql://user:password@host:5432/timonel")
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.strip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(query.get("host", "")) or parts.hostname or "",
        "PORT": query.get("port") or str(parts.port or ""),
        "OPTIONS": {
            "pool": {"min_size": 1, "max_size": DATABASE_POOL_SIZE, "timeout": 30},
            "server_side_binding": True,
            # The store's few statements are planned once a connection; planning took a third of the database's time.
            "prepare_threshold": 5,
        },
    }


DATA_DIR = Path(os.environ.get("TIMONEL_DATA_DIR", ROOT / "var")).resolve()
TIMONEL_SERVICE_CIDRS = read_networks("TIMONEL_SERVICE_CIDRS", "10.96.0.0/16")
TIMONEL_POD_CIDRS = read_networks("TIMONEL_POD_CIDRS", "", least=0)
TIMONEL_NODE_PORT_RANGE = read_port_range("TIMONEL_NODE_PORT_RANGE", "30000-32767")
TIMONEL_CLUSTER_DOMAIN = read_domain("TIMONEL_CLUSTER_DOMAIN", "cluster.local")
TIMONEL_MAX_ENDPOINTS_PER_SLICE = read_int("TIMONEL_MAX_ENDPOINTS_PER_SLICE", 100, least=1, most=1000)
TIMONEL_BIND = read_bind("TIMONEL_BIND", "127.0.0.1:8443")
TIMONEL_AUDIT_KEPT = timedelta(days=read_int("TIMONEL_AUDIT_DAYS", 90, least=1, most=36500))
TIMONEL_WEB_PROCESSES = read_int("TIMONEL_WEB_PROCESSES", 2, least=1, most=64)
TIMONEL_WORKER_PROCESSES = read_int("TIMONEL_WORKER_PROCESSES", 1, least=1, most=64)
TIMONEL_WORKER_THREADS = read_int("TIMONEL_WORKER_THREADS", 32, least=2, most=1024)

DATABASE_POOL_SIZE = read_int("TIMONEL_DATABASE_POOL_SIZE", 32, least=2, most=256)
DATABASES = {"default": read_database("DATABASE_URL", f"postgresql://timonel@/timonel?host={DATA_DIR}/postgres/run")}
REDIS_URL = read_redis("REDIS_URL", f"unix://{DATA_DIR}/redis/redis.sock")

SECRET_KEY = read_secret("TIMONEL_SECRET_KEY", DATA_DIR / "secret.key")
# What these sealed can be opened until `timonel reseal` has sealed it anew; sessions they signed go on.
SECRET_KEY_FALLBACKS = read_secrets("TIMONEL_OLD_SECRET_KEYS")
DEBUG = False
ALLOWED_HOSTS = ["*"]  # clients come by any address of the host; TLS and tokens protect, not the Host header
ROOT_URLCONF = "services_app.urls"
ASGI_APPLICATION = "services_app.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
LANGUAGE_CODE = "en-us"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "rest_framework",
    "django_htmx",
    "services_app",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
STATICFILES_DIRS = [ROOT / "static"]
LOGIN_URL = "web:login"
LOGIN_REDIRECT_URL = "/ui/"
LOGOUT_REDIRECT_URL = "web:login"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 1024 * 1024  # the API's own limit is 3 MiB

# Push: one queue a shard; a node's name decides its shard, so scaling workers moves shards and not nodes.
PUSH_SHARDS = 64
# The addresses as given, for the supervisor: empty means "run an embedded server".
GIVEN_DATABASE_URL = os.environ.get("DATABASE_URL", "")
GIVEN_REDIS_URL = os.environ.get("REDIS_URL", "")
CELERY_BROKER_URL = (
    f"redis+socket://{REDIS_URL.removeprefix('unix://')}" if REDIS_URL.startswith("unix://") else REDIS_URL
)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_CREATE_MISSING_QUEUES = True
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = TIMONEL_WORKER_THREADS
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "visibility_timeout": 120,
    "priority_steps": [0],
}
CELERY_BEAT_SCHEDULE: dict[str, dict[str, object]] = {
    "sweep": {"task": "services_app.push.tasks.sweep", "schedule": timedelta(seconds=1)},
    "tidy": {"task": "services_app.push.tasks.tidy", "schedule": timedelta(seconds=2)},
    "audit": {"task": "services_app.push.tasks.audit", "schedule": timedelta(seconds=30)},
    "repair": {"task": "services_app.push.tasks.repair", "schedule": timedelta(minutes=3)},
    "compact": {"task": "services_app.push.tasks.compact", "schedule": timedelta(minutes=5)},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": read_level("TIMONEL_LOG_LEVEL", "INFO")},
    "loggers": {"paramiko": {"level": "WARNING"}, "httpx": {"level": "WARNING"}},
}
