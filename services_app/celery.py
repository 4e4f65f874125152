"""The Celery application: `celery -A services_app.celery`. Named explicitly, so that `services_app` loads without it."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "services_app.settings")

app = Celery("timonel")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()  # for every thread: a request's thread may be the first to send a task
app.autodiscover_tasks(["services_app.push"])
