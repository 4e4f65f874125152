"""The records of what people did to nodes."""

from datetime import timedelta

import pytest
from django.utils import timezone

from services_app.models import NodeOperation
from services_app.push import operations


@pytest.mark.django_db
def test_records_go_when_their_time_is_over_and_what_runs_stays() -> None:
    now = timezone.now()
    for node, ended in (("old", now - timedelta(days=91)), ("new", now - timedelta(days=89)), ("running", None)):
        began = now - timedelta(days=100)
        NodeOperation.objects.create(node=node, verb="PushAgain", by="ana", started_at=began, ended_at=ended)
    assert operations.drop_old(keep=timedelta(days=90)) == 1
    assert {operation.node for operation in NodeOperation.objects.all()} == {"new", "running"}
