"""The sample Services of demo and compose stack, applied to a control plane without enrolled hosts."""

from collections.abc import Iterator

import pytest

from services_app.lab.client import CORE, ApiClient, ApiRefused, pod
from services_app.lab.samples import SAMPLES, beside_nodes, publish

NODES = ["sample-1", "sample-2", "sample-3"]
ADDRESSES = {name: f"192.0.2.{number}" for number, name in enumerate(beside_nodes(), start=1)}


@pytest.fixture
def nodes(api: ApiClient) -> Iterator[list[str]]:
    for name in NODES:
        api.create(f"{CORE}/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield NODES
    for name in NODES:
        api.request("DELETE", f"{CORE}/nodes/{name}")
    for sample in SAMPLES:
        api.request("DELETE", f"{CORE}/namespaces/{sample.namespace}")


def versions(api: ApiClient) -> dict[str, str]:
    """Path of each object of the samples -> its resource version."""
    found = {}
    for sample in SAMPLES:
        collection = f"{CORE}/namespaces/{sample.namespace}"
        for path in (f"{collection}/services/{sample.name}", *(f"{collection}/pods/{p.name}" for p in sample.pods)):
            found[path] = api.request("GET", path)["metadata"]["resourceVersion"]
    return found


def test_samples_are_applied_once_and_what_keeps_them_from_being_live_is_said(api: ApiClient, nodes: list[str]) -> None:
    said: list[str] = []
    with pytest.raises(TimeoutError, match=r"^/nodes/sample-1 is not Ready: "):
        publish(api, nodes, ADDRESSES, said.append, timeout_s=0)
    before = versions(api)
    assert len(before) == 12
    with pytest.raises(TimeoutError):
        publish(api, nodes, ADDRESSES, said.append, timeout_s=0)
    assert versions(api) == before
    assert said == []


def test_a_pod_beside_its_node_has_its_own_address_and_one_on_it_the_nodes(api: ApiClient, nodes: list[str]) -> None:
    with pytest.raises(TimeoutError):
        publish(api, nodes, ADDRESSES, lambda line: None, timeout_s=0)
    for sample in SAMPLES:
        for sample_pod in sample.pods:
            found = api.request("GET", f"{CORE}/namespaces/{sample.namespace}/pods/{sample_pod.name}")
            assert found["spec"]["nodeName"] == nodes[sample_pod.node]
            address = found["metadata"].get("annotations", {}).get("timonel.io/pod-ip")
            assert address == (None if sample_pod.is_on_node else ADDRESSES[sample_pod.name])


def test_apply_makes_and_changes_and_hands_refusals_on(api: ApiClient) -> None:
    api.ensure_namespace("applied")
    pods = f"{CORE}/namespaces/applied/pods"
    made = api.apply(pods, pod("web", {"app": "web"}, "somewhere", {"http": (80, "TCP")}, address="192.0.2.7"))
    changed = api.apply(pods, pod("web", {"tier": "front"}, "somewhere", {"http": (80, "TCP")}, address="192.0.2.8"))
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]
    assert changed["metadata"]["annotations"] == {"timonel.io/pod-ip": "192.0.2.8"}
    assert changed["metadata"]["labels"] == {"app": "web", "tier": "front"}, "fields it does not name stay"
    with pytest.raises(ApiRefused) as refused:
        api.apply(pods, pod("web", {"app": "web"}, "elsewhere", {"http": (80, "TCP")}))
    assert refused.value.code == 422
    api.request("DELETE", f"{CORE}/namespaces/applied")
