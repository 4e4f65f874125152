import json
from uuid import UUID

from django.db import migrations, models

# (model, apiVersion, kind, plural, whether in namespaces), as they were served when this was written
KINDS = (
    ("Namespace", "v1", "Namespace", "namespaces", False),
    ("Service", "v1", "Service", "services", True),
    ("Endpoints", "v1", "Endpoints", "endpoints", True),
    ("EndpointSlice", "discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True),
    ("Pod", "v1", "Pod", "pods", True),
    ("Node", "v1", "Node", "nodes", False),
    ("ConfigMap", "v1", "ConfigMap", "configmaps", True),
    ("Secret", "v1", "Secret", "secrets", True),
    ("Lease", "coordination.k8s.io/v1", "Lease", "leases", True),
    ("Ingress", "networking.k8s.io/v1", "Ingress", "ingresses", True),
    ("IngressClass", "networking.k8s.io/v1", "IngressClass", "ingressclasses", False),
    ("IPAddress", "networking.k8s.io/v1", "IPAddress", "ipaddresses", False),
    ("ServiceCIDR", "networking.k8s.io/v1", "ServiceCIDR", "servicecidrs", False),
)
BY_KIND = {(api_version, kind): (plural, namespaced) for _, api_version, kind, plural, namespaced in KINDS}
BY_KIND["events.k8s.io/v1", "Event"] = "events", True
DERIVED_BY = ("endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io")


def turn_references_round(apps, schema_editor):
    """A row for each owner that a stored object names; none for derived slices whose owner is there."""
    causes = {
        *apps.get_model("services_app", "Service").objects.values_list("uid", flat=True),
        *apps.get_model("services_app", "Endpoints").objects.values_list("uid", flat=True),
    }
    reference = apps.get_model("services_app", "OwnerReference")
    for model, _, _, plural, _ in KINDS:
        objects = apps.get_model("services_app", model).objects
        rows = objects.all() if plural == "secrets" else objects.filter(document__contains='"ownerReferences":')
        found = []
        for text in rows.values_list("document", flat=True).iterator():
            metadata = _metadata(plural, text)
            owners = {owner["uid"]: owner for owner in metadata.get("ownerReferences") or ()}
            if plural == "endpointslices" and len(owners) == 1 and _uid(*owners) in causes:
                if (metadata.get("labels") or {}).get("endpointslice.kubernetes.io/managed-by") in DERIVED_BY:
                    continue
            found += [reference(**_row(plural, metadata, owner)) for owner in owners.values()]
        reference.objects.bulk_create(found, batch_size=1000)


def _row(plural, metadata, owner):
    namespace = metadata.get("namespace", "")
    owner_kind, namespaced = BY_KIND.get((owner["apiVersion"], owner["kind"]), ("", False))
    return {
        "owner": _uid(owner["uid"]),
        "owner_kind": "" if namespaced and not namespace else owner_kind,
        "owner_name": owner["name"].replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "blocks": bool(owner.get("blockOwnerDeletion")),
        "dependent": metadata["uid"],
        "kind": plural,
        "namespace": namespace,
        "name": metadata["name"],
    }


def _metadata(plural, text):
    """Of a Secret it is sealed; one that no known key opens has no owners until it is written again."""
    if plural != "secrets":
        return json.loads(text)["metadata"]
    from services_app.spec.errors import InternalError
    from services_app.spec.kinds import SECRET
    from services_app.store.forms import shown_text

    try:
        return json.loads(shown_text(SECRET, text))["metadata"]
    except InternalError:
        return {}


def _uid(text):
    try:
        uid = UUID(text)
    except ValueError:
        return None
    return uid if str(uid) == text else None


class Migration(migrations.Migration):
    dependencies = [("services_app", "0003_grants_and_audit")]

    operations = [
        migrations.CreateModel(
            name="OwnerReference",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "owner",
                    models.UUIDField(
                        db_index=True, help_text="Empty: no object can have the uid that is named.", null=True
                    ),
                ),
                (
                    "owner_kind",
                    models.TextField(
                        help_text="Its plural; empty: nobody can say whether it is there (not served, or out of reach)."
                    ),
                ),
                ("owner_name", models.TextField(db_collation="C")),
                ("blocks", models.BooleanField(help_text="An owner that goes in the foreground waits for this one.")),
                ("dependent", models.UUIDField(db_index=True)),
                ("kind", models.TextField(help_text="The dependent's plural.")),
                ("namespace", models.TextField(db_collation="C", default="")),
                ("name", models.TextField(db_collation="C")),
            ],
        ),
        migrations.CreateModel(
            name="WaitingOwner",
            fields=[
                ("uid", models.UUIDField(primary_key=True, serialize=False)),
                ("kind", models.TextField(help_text="Its plural.")),
                ("namespace", models.TextField(db_collation="C", default="")),
                ("name", models.TextField(db_collation="C")),
                (
                    "policy",
                    models.TextField(help_text="Foreground: they go first. Orphan: they are freed of it first."),
                ),
            ],
        ),
        migrations.RunPython(turn_references_round, migrations.RunPython.noop),
    ]
