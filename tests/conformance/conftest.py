"""A cluster as the cases expect it: bootstrapped, with a token, its address ranges to itself."""

import ipaddress
import threading
from dataclasses import dataclass

import pytest
import uvicorn
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections

from services_app import store
from services_app.models import ApiToken
from tests.conformance.player import wait_until

DUAL = tuple(ipaddress.ip_network(text) for text in ("10.96.0.0/16", "fd00:10:96::/112"))


@dataclass(frozen=True)
class Cluster:
    token: str


@pytest.fixture(scope="module")
def cluster(django_db_setup, django_db_blocker):
    """Committed once: what every case finds there. Cases in a transaction leave it as it is."""
    with django_db_blocker.unblock():
        store.bootstrap()
        user = get_user_model().objects.create(username="corpus", is_staff=True, is_superuser=True)
        yield Cluster(ApiToken.issue(user, "corpus"))
        call_command("flush", verbosity=0, interactive=False)
        connections.close_all()


@pytest.fixture(scope="module")
def server(cluster):
    """The port of a server in this process; what it writes is committed."""
    from services_app.asgi import application

    settings = uvicorn.Config(application, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(settings)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join(timeout=10)
