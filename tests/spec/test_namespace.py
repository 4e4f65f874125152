"""Namespaces: what their status may say."""

import pytest

from services_app.spec import namespace as rules
from services_app.spec import objects
from services_app.spec.kinds import NAMESPACE
from tests.spec.sample import NOW, SINGLE, UID


def namespace(**metadata):
    made = objects.prepare_create(
        NAMESPACE, {"metadata": {"name": "a"}}, namespace="", now=NOW, uid=UID, cluster=SINGLE
    )
    made["metadata"] |= {"resourceVersion": "7"} | metadata
    return made


@pytest.mark.parametrize(
    ("status", "goes", "problems"),
    [
        (None, False, []),
        ({}, False, []),
        ({"phase": "Active"}, False, []),
        ({"phase": "Nope"}, False, ["status.phase"]),
        ({"phase": "Terminating"}, False, ["status.phase"]),
        ({"phase": "Terminating"}, True, []),
        ({}, True, ["status.phase"]),
    ],
    ids=str,
)
def test_the_phase_says_whether_it_goes(status, goes, problems):
    old = namespace(**({"deletionTimestamp": "2024-05-01T12:00:00Z"} if goes else {}))
    new = {key: value for key, value in old.items() if key != "status"} | ({} if status is None else {"status": status})
    made = objects.prepare_update(NAMESPACE, old, new, subresource="status")
    errors = objects.validate_update(NAMESPACE, old, made, subresource="status", cluster=SINGLE)
    assert [error.field for error in errors] == problems


@pytest.mark.parametrize("spec", [None, {}, {"finalizers": None}, {"finalizers": ["example.com/a"]}])
def test_a_namespace_has_a_spec_whatever_is_finalized_with(spec):
    old = {"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    new = {"metadata": {"name": "a"}, "spec": spec}
    rules.prepare_update(old, new, "finalize")
    assert new["spec"] == (spec or {})
    for subresource in ("status", ""):
        later = {"metadata": {"name": "a"}, "status": {"phase": "Active"}}
        rules.prepare_update({**new, "spec": None}, later, subresource)
        assert later["spec"] == {}
