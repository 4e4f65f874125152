"""The ASGI application: watches and live pages first, then Django."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "services_app.settings")
django.setup()

from services_app.api.dispatch import application  # noqa: E402 - needs Django to be set up

__all__ = ["application"]
