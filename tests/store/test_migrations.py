"""Migrations that carry data over, on a database of the version before them."""

import json
from uuid import uuid4

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from services_app.spec import kinds
from services_app.store import forms

APP = "services_app"


def migrated(name):
    """The models as they are after a migration, having gone there."""
    executor = MigrationExecutor(connection)
    executor.migrate([(APP, name)])
    return MigrationExecutor(connection).loader.project_state([(APP, name)]).apps


@pytest.fixture
def back_to(transactional_db):
    yield migrated
    newest = MigrationExecutor(connection).loader.graph.leaf_nodes(APP)
    MigrationExecutor(connection).migrate(newest)


def test_whoever_was_staff_may_still_write(back_to):
    users = back_to("0002_service_ranges_are_objects").get_model("auth", "User").objects
    for name, more in {"dev": {}, "ana": {"is_staff": True}, "root": {"is_staff": True, "is_superuser": True}}.items():
        users.create(username=name, **more)
    apps = back_to("0003_grants_and_audit")
    grants = apps.get_model(APP, "Grant").objects.values_list("user__username", "role", "namespace", "given_by")
    assert [*grants] == [("ana", "admin", "", "timonel:upgrade")]
    apps.get_model(APP, "Grant").objects.all().delete()
    apps.get_model("auth", "User").objects.all().delete()


def test_owners_of_what_is_stored_are_known_after_the_upgrade(back_to):
    apps = back_to("0003_grants_and_audit")

    def stored(kind, name, *owners, namespace="shop", labels=None, **columns):
        uid = uuid4()
        metadata = {"name": name, "namespace": namespace, "uid": str(uid), "labels": labels or {}}
        metadata = {key: value for key, value in metadata.items() if value}
        if owners:
            metadata["ownerReferences"] = [*owners]
        document = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
        apps.get_model(APP, kind.kind).objects.create(
            uid=uid,
            namespace=namespace,
            name=name,
            revision=1,
            created_at=timezone.now(),
            document=forms.stored_text(kind, document, json.dumps(document, separators=(",", ":"))),
            **columns,
        )
        return {"apiVersion": kind.api_version, "kind": kind.kind, "name": name, "uid": str(uid)}

    owner = stored(kinds.CONFIG_MAP, "owner")
    service = stored(kinds.SERVICE, "web", changed_revision=1)
    foreign = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "no uid"}
    by_controller = {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    stored(kinds.SECRET, "sealed", owner)
    stored(kinds.POD, "p", foreign, {**owner, "blockOwnerDeletion": True})
    stored(kinds.ENDPOINT_SLICE, "web-derived", service, labels=by_controller)
    stored(kinds.ENDPOINT_SLICE, "web-left", {**service, "uid": str(uuid4())}, labels=by_controller)
    stored(kinds.INGRESS_CLASS, "wide", owner, namespace="")

    apps = back_to("0004_owner_references")
    columns = ("kind", "namespace", "name", "owner_kind", "owner_name", "blocks")
    rows = sorted(apps.get_model(APP, "OwnerReference").objects.values_list(*columns))
    assert rows == [
        ("endpointslices", "shop", "web-left", "services", "web", False),
        ("ingressclasses", "", "wide", "", "owner", False),
        ("pods", "shop", "p", "", "web-5d", False),
        ("pods", "shop", "p", "configmaps", "owner", True),
        ("secrets", "shop", "sealed", "configmaps", "owner", False),
    ]
    known = {*apps.get_model(APP, "OwnerReference").objects.values_list("name", "owner")}
    assert {(name, str(uid)) for name, uid in known if name in ("sealed", "p") and uid} == {
        ("sealed", owner["uid"]),
        ("p", owner["uid"]),
    }
