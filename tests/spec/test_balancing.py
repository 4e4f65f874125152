"""Annotations about how connections are spread: what is refused, with its field, value and rule."""

import pytest

from services_app.spec import balancing

RULE = "must be a whole number from 0 (no new connections) to 100 (the default)"


def annotated(spec=None, **annotations):
    names = {"weight": balancing.WEIGHT, "weights": balancing.WEIGHTS, "by": balancing.LOAD_BALANCING}
    return {"metadata": {"annotations": {names[key]: text for key, text in annotations.items()}}, "spec": spec or {}}


@pytest.mark.parametrize("text", ["0", "1", "99", "100"])
def test_a_weight_is_a_whole_number_up_to_100(text):
    pod = annotated(weight=text)
    assert balancing.validate_pod(None, pod) == []
    assert balancing.weight_of(pod) == int(text)


@pytest.mark.parametrize("text", ["", "101", "-1", "007", "5.0", "much", "१"])
def test_other_weights_are_refused_unless_they_stand_there_already(text):
    pod = annotated(weight=text)
    (error,) = balancing.validate_pod(annotated(weight="5"), pod)
    assert (error.field, error.value) == ("metadata.annotations[timonel.io/weight]", text)
    assert error.detail == RULE
    assert balancing.validate_pod(pod, pod) == []
    assert balancing.weight_of(pod) == 100


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("192.0.2.1", "must be ADDRESS=WEIGHT, separated by commas; '192.0.2.1' has no IP address"),
        ("192.0.2.1=5,", "must be ADDRESS=WEIGHT, separated by commas; '' has no IP address"),
        ("a.example.org=5", "must be ADDRESS=WEIGHT, separated by commas; 'a.example.org=5' has no IP address"),
        ("192.0.2.1=500", f"192.0.2.1: {RULE}"),
        ("fd00::1=5, fd00:0::1=7", "fd00:0::1 stands here twice"),
    ],
)
def test_weights_by_address_are_judged_whole(text, detail):
    item = annotated(weights=text)
    (error,) = balancing.validate_weights(None, item)
    assert (error.field, error.value) == ("metadata.annotations[timonel.io/weights]", text)
    assert error.detail == detail
    assert balancing.weights_of(item) == {}


def test_weights_by_address():
    item = annotated(weights="192.0.2.1=50, fd00:0::2=0")
    assert balancing.validate_weights(None, item) == []
    assert balancing.weights_of(item) == {"192.0.2.1": 50, "fd00::2": 0}
    assert balancing.weights_text(balancing.weights_of(item)) == "192.0.2.1=50,fd00::2=0"


def test_how_endpoints_are_drawn():
    for text in ("random", "source-hash"):
        assert balancing.validate_service(annotated(by=text)) == []
    (unknown,) = balancing.validate_service(annotated(by="maglev"))
    assert unknown.field == "metadata.annotations[timonel.io/load-balancing]"
    assert unknown.value == "maglev"
    (both,) = balancing.validate_service(annotated({"sessionAffinity": "ClientIP"}, by="source-hash"))
    assert both.detail == "may not be used together with `sessionAffinity` ClientIP"
