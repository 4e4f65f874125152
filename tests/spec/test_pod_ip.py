"""The annotation that gives a Pod record its workload's address."""

import pytest

from services_app.spec import pod
from tests.spec.sample import DUAL


def a_pod(annotation):
    document = {
        "metadata": {"name": "p", "namespace": "shop", "resourceVersion": "7", "annotations": {pod.POD_IP: annotation}},
        "spec": {"containers": [{"name": "c", "image": "example.org/app"}]},
    }
    pod.set_defaults(document)
    return document


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7", "192.0.2.7,2001:db8::7", "2001:db8::7, 192.0.2.7", ""])
def test_one_address_of_each_family_is_taken(text):
    assert pod.validate_create(a_pod(text), DUAL) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("192.0.2.700", "must be a valid IP address"),
        ("192.0.2.7,", "must be a valid IP address"),
        ("localhost", "must be a valid IP address"),
        ("192.0.2.007", "leading 0s"),
        ("192.0.2.7,192.0.2.8", "no more than one IP for each IP family"),
        ("127.0.0.1", "loopback"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "unspecified"),
    ],
)
def test_what_no_endpoint_may_be_is_refused_with_field_value_and_rule(text, rule):
    for errors in (
        pod.validate_create(a_pod(text), DUAL),
        pod.validate_update(a_pod("192.0.2.7"), a_pod(text), "", DUAL),
    ):
        assert [error.field for error in errors] == [f"metadata.annotations[{pod.POD_IP}]"]
        assert rule in errors[0].detail


def test_what_was_stored_before_the_rule_may_stay():
    assert pod.validate_update(a_pod("localhost"), a_pod("localhost"), "", DUAL) == []
