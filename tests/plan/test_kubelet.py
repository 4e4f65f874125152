"""The status that a Pod on an enrolled node gets."""

import pytest

from services_app.plan import kubelet
from services_app.spec.pod import POD_IP

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
BOTH = ["192.0.2.1", "2001:db8::1"]


def a_pod(annotation=None, **container):
    annotations = {POD_IP: annotation} if annotation is not None else {}
    return {"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": [{"name": "c", **container}]}}


@pytest.mark.parametrize(
    ("annotation", "node", "pod_ips"),
    [
        (None, ["192.0.2.1"], ["192.0.2.1"]),
        (None, BOTH, BOTH),
        ("", BOTH, BOTH),
        ("198.51.100.7", BOTH, ["198.51.100.7"]),
        ("198.51.100.7, 2001:db8::7", ["192.0.2.1"], ["198.51.100.7", "2001:db8::7"]),
        ("2001:db8::7,198.51.100.7,198.51.100.8", BOTH, ["2001:db8::7", "198.51.100.7"]),
    ],
)
def test_addresses_are_the_annotations_or_the_nodes_one_of_each_family(annotation, node, pod_ips):
    status = kubelet.observe(a_pod(annotation), node, NOW)["status"]
    assert [entry["ip"] for entry in status["podIPs"]] == pod_ips
    assert status["podIP"] == pod_ips[0]
    assert (status["hostIP"], status["hostIPs"]) == (node[0], [{"ip": address} for address in node])


def test_a_pod_that_runs_is_left_as_it_is_until_an_address_changes():
    first = kubelet.observe(a_pod(), ["192.0.2.1"], NOW)
    assert kubelet.observe(first, ["192.0.2.1"], LATER) is first
    second = kubelet.observe(first, BOTH, LATER)
    assert [entry["ip"] for entry in second["status"]["podIPs"]] == BOTH
    assert second["status"]["conditions"] == first["status"]["conditions"]


@pytest.mark.parametrize(("container", "ready"), [({}, "True"), ({"readinessProbe": {"exec": {}}}, "False")])
def test_ready_at_once_only_without_a_probe(container, ready):
    conditions = kubelet.observe(a_pod(**container), BOTH, NOW)["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions}["Ready"] == ready
