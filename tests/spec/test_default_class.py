"""Which class an Ingress gets that names none."""

import pytest

from services_app.spec import ingress

MARK = {ingress.DEFAULT_ANNOTATION: "true"}


def one(name, created, annotations=None):
    return {"metadata": {"name": name, "creationTimestamp": created, "annotations": annotations}}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], ""),
        ([one("a", "2026-01-01T00:00:00Z")], ""),
        ([one("a", "2026-01-01T00:00:00Z", {ingress.DEFAULT_ANNOTATION: "false"})], ""),
        ([one("a", "2026-01-01T00:00:00Z", {ingress.DEFAULT_ANNOTATION: "True"})], ""),
        ([one("a", "2026-01-01T00:00:00Z", MARK)], "a"),
        ([one("a", "2026-01-01T00:00:00Z", MARK), one("b", "2026-01-02T00:00:00Z")], "a"),
        ([one("a", "2026-01-01T00:00:00Z", MARK), one("b", "2026-01-02T00:00:00Z", MARK)], "b"),
        ([one("b", "2026-01-01T00:00:00Z", MARK), one("a", "2026-01-01T00:00:00Z", MARK)], "a"),
    ],
)
def test_the_newest_of_those_marked_is_the_default(classes, expected):
    assert ingress.default_class(classes) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"metadata": {}, "spec": {}}, True),
        ({"metadata": {"annotations": {}}, "spec": {}}, True),
        ({"metadata": {}, "spec": {"ingressClassName": "a"}}, False),
        ({"metadata": {}, "spec": {"ingressClassName": ""}}, False),
        ({"metadata": {"annotations": {ingress.CLASS_ANNOTATION: ""}}, "spec": {}}, False),
    ],
)
def test_who_names_a_class_keeps_it(document, expected):
    assert ingress.wants_class(document) is expected
