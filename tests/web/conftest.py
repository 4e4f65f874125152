"""What tests of the pages share: a person who is logged in, and a real web server on loopback."""

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from django.contrib.auth import get_user_model
from django.test import Client

from services_app.models import Grant

PASSWORD = "long enough for a test"


@pytest.fixture
def person(db):
    """A user of the dashboard who may see everything and write nothing, without rights in the admin."""
    user = get_user_model().objects.create_user("ana", password=PASSWORD)
    Grant.objects.create(role="view", user=user)
    return user


@pytest.fixture
def page(person) -> Client:
    """A browser's stand-in, logged in."""
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def administrator(db) -> Client:
    """A browser's stand-in, logged in as a superuser."""
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("root", password=PASSWORD))
    return client


@pytest.fixture
def server(transactional_db) -> Iterator[str]:
    """The address of a real web server over the test's database."""
    from services_app.asgi import application

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, lifespan="off", log_level="warning", timeout_graceful_shutdown=10)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the web server does not end"
    listener.close()
