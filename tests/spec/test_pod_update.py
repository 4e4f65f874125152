"""What of a Pod may change once it is there."""

from copy import deepcopy
from typing import Any

import pytest

from services_app.spec import objects
from services_app.spec.kinds import POD
from tests.spec.sample import NOW, SINGLE, UID, fields_of

Document = dict[str, Any]

MANIFEST: Document = {
    "metadata": {"name": "one", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "app", "image": "example.org/app:1"}], "tolerations": [{"key": "own"}]},
}


@pytest.fixture
def old() -> Document:
    made = objects.prepare_create(
        POD, deepcopy(MANIFEST), namespace="shop", now=NOW, uid=UID, cluster=SINGLE, name_suffix="abcde"
    )
    made["metadata"]["resourceVersion"] = "7"
    return made


def judged(old: Document, new: Document) -> tuple[Document, list[tuple[str, str]]]:
    made = objects.prepare_update(POD, old, new, cluster=SINGLE)
    return made, fields_of(objects.validate_update(POD, old, made, cluster=SINGLE))


def test_the_manifest_it_was_made_from_can_be_sent_again(old: Document) -> None:
    made, errors = judged(old, deepcopy(MANIFEST))
    assert errors == []
    assert made["spec"] == old["spec"]
    assert made["metadata"].get("generation") == old["metadata"].get("generation")


def test_how_long_a_toleration_holds_may_change_and_more_may_come(old: Document) -> None:
    new = deepcopy(old)
    new["spec"]["tolerations"][1]["tolerationSeconds"] = 9
    new["spec"]["tolerations"].append({"key": "more", "operator": "Exists"})
    made, errors = judged(old, new)
    assert errors == []
    assert made["spec"]["tolerations"][1]["tolerationSeconds"] == 9


def test_a_toleration_does_not_go(old: Document) -> None:
    new = deepcopy(old)
    new["spec"]["tolerations"] = new["spec"]["tolerations"][1:]
    assert judged(old, new)[1] == [("Forbidden", "spec.tolerations")]


@pytest.mark.parametrize(
    "change", [{"priority": 9}, {"preemptionPolicy": "Never"}, {"hostNetwork": True}, {"nodeName": "n1"}], ids=str
)
def test_the_rest_of_the_spec_stays(old: Document, change: Document) -> None:
    new = deepcopy(old)
    new["spec"] |= change
    assert ("Forbidden", "spec") in judged(old, new)[1]
