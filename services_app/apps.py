"""Wiring that needs Django to be up: who is told after a commit."""

from django.apps import AppConfig


class TimonelConfig(AppConfig):
    """The one Django app."""

    name = "services_app"
    verbose_name = "Timonel"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from services_app import celery, changes  # noqa: F401 - tasks are sent to the broker of this application
        from services_app.push import wake

        changes.wake_pushers[:] = [wake.request_wake]
