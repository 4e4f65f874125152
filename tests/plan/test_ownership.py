"""What ownerReferences say, and what becomes of an object whose owners go."""

import pytest

from services_app.plan import ownership
from services_app.plan.ownership import Fate, Owner
from services_app.spec import kinds


def owner(kind="ConfigMap", api_version="v1", name="a", uid="1", **more):
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, **more}


@pytest.mark.parametrize(
    ("owners", "has_dependents", "fate"),
    [
        ([], False, Fate.STAYS),
        ([Owner.THERE, Owner.THERE], True, Fate.STAYS),
        ([Owner.THERE, Owner.GONE], False, Fate.LOSES_REFERENCES),
        ([Owner.WAITING, Owner.THERE], True, Fate.LOSES_REFERENCES),
        ([Owner.GONE], True, Fate.GOES),
        ([Owner.WAITING], False, Fate.GOES),
        ([Owner.WAITING, Owner.GONE], True, Fate.GOES_FOREGROUND),
    ],
)
def test_what_becomes_of_an_object(owners, has_dependents, fate):
    assert ownership.fate(owners, has_dependents=has_dependents) is fate


@pytest.mark.parametrize(
    ("entry", "namespace", "kind", "where"),
    [
        (owner(), "shop", kinds.CONFIG_MAP, "shop"),
        (owner("Node"), "shop", kinds.NODE, ""),
        (owner("Node"), "", kinds.NODE, ""),
        (owner(), "", None, ""),
        (owner("Deployment", "apps/v1"), "shop", None, ""),
        (owner("SelfSubjectReview", "authentication.k8s.io/v1"), "shop", None, ""),
        (owner("ConfigMap", "v2"), "shop", None, ""),
    ],
)
def test_where_an_owner_would_have_to_be(entry, namespace, kind, where):
    (found,) = ownership.references({"namespace": namespace, "ownerReferences": [entry]})
    assert (found.kind, found.namespace, found.blocks) == (kind, where, False)


def test_only_what_is_marked_waits():
    finalizers = ["example.org/hold", "foregroundDeletion"]
    assert ownership.waits({"finalizers": finalizers}) is None
    assert ownership.waits({"finalizers": finalizers, "deletionTimestamp": "x"}) == "Foreground"
    assert ownership.waits({"finalizers": ["example.org/hold"], "deletionTimestamp": "x"}) is None
