"""kr8s, its synchronous and its asynchronous API."""

import asyncio
import threading
from typing import Any

import kr8s
import kr8s.asyncio
import pytest
from kr8s.objects import ConfigMap, Namespace, Node, Pod, Service, object_from_spec

from services_app.local.supervisor import Stack
from services_app.spec.kinds import Kind
from tests.clients.samples import STORED, name_for, sample
from tests.conformance.player import wait_until

SERVICE, CONFIG_MAP, POD = STORED["v1/Service"], STORED["v1/ConfigMap"], STORED["v1/Pod"]


@pytest.fixture
def kr(stack: Stack) -> Any:
    return kr8s.api(kubeconfig=str(stack.kubeconfig))


@pytest.fixture
def there(kr: Any, space: str) -> str:
    """The namespace, by kr8s' own eyes."""
    assert Namespace.get(space, api=kr).exists()
    return space


@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_every_kind(kr: Any, kind: Kind, there: str) -> None:
    name = name_for(kind, f"kr8s-{there}"[:60].rstrip("-"))
    wanted = sample(kind, "x", there)
    wanted["metadata"] |= {"name": name, "labels": {"kr8s": there}}
    made = object_from_spec(wanted, api=kr, allow_unknown_type=True)
    made.create()
    assert made.exists()
    assert made.raw["metadata"]["uid"]
    full_name = f"{kind.plural}.{kind.group}/{kind.version}" if kind.group else kind.plural
    where = {"namespace": there} if kind.namespaced else {}
    (found,) = kr.get(full_name, label_selector={"kr8s": there}, **where)
    assert (found.name, found.raw["metadata"]["uid"]) == (name, made.raw["metadata"]["uid"])
    made.patch({"metadata": {"annotations": {"note": "merge"}}})
    assert made.annotations["note"] == "merge"
    made.patch([{"op": "replace", "path": "/metadata/annotations/note", "value": "json"}], type="json")
    made.label(tier="web")
    made.annotate({"more": "yes"})
    made.remove_label("tier")
    found.refresh()
    assert {"note": "json", "more": "yes"}.items() <= dict(found.annotations).items()
    assert "tier" not in found.labels
    made.delete(grace_period=0)
    wait_until(lambda: not made.exists(), 30)


def test_lookups_by_every_name(kr: Any, there: str) -> None:
    Service(sample(SERVICE, "web", there), api=kr).create()
    for word in ("svc", "service", "services", "Service", "services.v1", "service/v1"):
        assert [found.name for found in kr.get(word, namespace=there)] == ["web"], word
    assert [found.name for found in kr.get("svc", "web", namespace=there)] == ["web"]
    found = [(one.namespace, one.name) for one in kr.get("svc", namespace=kr8s.ALL, label_selector="made-by=web")]
    assert found == [(there, "web")]
    assert [one["metadata"]["name"] for one in kr.get("svc", namespace=there, raw=True)] == ["web"]
    names = {resource["name"] for resource in kr.api_resources()}
    assert {kind.plural for kind in STORED.values()} <= names
    assert "discovery.k8s.io/v1" in [*kr.api_versions()]
    assert kr.version()["major"] == "1"


def test_what_is_not_there(kr: Any, there: str) -> None:
    with pytest.raises(kr8s.NotFoundError):
        Service.get("none", namespace=there, api=kr, timeout=1)
    missing = Service(sample(SERVICE, "none", there), api=kr)
    assert not missing.exists()
    with pytest.raises(kr8s.NotFoundError):
        missing.patch({"metadata": {"labels": {"a": "b"}}})
    broken = sample(SERVICE, "broken", there)
    broken["spec"]["ports"][0]["port"] = 0
    with pytest.raises(kr8s.ServerError, match=r"spec\.ports\[0\]\.port"):
        Service(broken, api=kr).create()


def test_a_service_and_its_pods(kr: Any, there: str) -> None:
    service = Service(sample(SERVICE, "web", there), api=kr)
    service.create()
    node = Node({"metadata": {"name": there}}, api=kr)
    node.create()  # as in Kubernetes, a Pod without its Node is no endpoint
    pod = sample(POD, "one", there)
    pod["metadata"]["labels"] = {"app": "web"}
    pod["spec"] |= {"nodeName": there, "terminationGracePeriodSeconds": 0}
    made = Pod(pod, api=kr)
    made.create()
    assert service.raw["spec"]["clusterIP"]
    assert not made.ready()
    assert service.ready_pods() == []
    ready = [{"type": word, "status": "True"} for word in ("Ready", "ContainersReady")]
    made.patch({"status": {"phase": "Running", "podIP": "192.0.2.9", "conditions": ready}}, subresource="status")
    made.wait("condition=Ready", timeout=20)
    made.wait("jsonpath='{.status.phase}'=Running", timeout=20)
    assert [found.name for found in service.ready_pods()] == ["one"]
    (slices,) = kr.get("endpointslices.discovery.k8s.io/v1", namespace=there)
    assert [endpoint["addresses"] for endpoint in slices.raw["endpoints"]] == [["192.0.2.9"]]
    made.delete()
    made.wait("delete", timeout=20)
    node.delete()


def test_owners(kr: Any, there: str) -> None:
    owner = ConfigMap(sample(CONFIG_MAP, "owner", there), api=kr)
    owned = ConfigMap(sample(CONFIG_MAP, "owned", there), api=kr)
    owner.create()
    owned.create()
    owner.adopt(owned)
    owned.refresh()
    assert owned.raw["metadata"]["ownerReferences"][0]["uid"] == owner.raw["metadata"]["uid"]


def test_nodes_are_cordoned(kr: Any, there: str) -> None:
    node = Node({"metadata": {"name": there}}, api=kr)
    node.create()
    node.cordon()
    node.refresh()
    assert node.unschedulable
    node.uncordon()
    node.taint("colour", "blue", effect="NoSchedule")
    node.refresh()
    assert not node.unschedulable
    assert "colour" in [taint["key"] for taint in node.taints]
    node.delete()


def test_watching(kr: Any, there: str) -> None:
    def write() -> None:
        wait_until(lambda: bool(told), 20)
        one = ConfigMap(sample(CONFIG_MAP, "one", there), api=kr)
        one.create()
        one.patch({"data": {"colour": "green"}})
        one.delete()

    told: list[tuple[str, str]] = []
    ConfigMap(sample(CONFIG_MAP, "there", there), api=kr).create()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for event, found in kr.watch("configmaps", namespace=there):
            told.append((event, found.name))
            if event == "DELETED":
                break
    finally:
        writer.join()
    assert told == [("ADDED", "there"), ("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]


def test_asynchronously(stack: Stack, space: str) -> None:
    async def whole() -> None:
        kr = await kr8s.asyncio.api(kubeconfig=str(stack.kubeconfig))
        kind: Any = kr8s.asyncio.objects.ConfigMap
        made = [await kind(sample(CONFIG_MAP, f"m{number}", space), api=kr) for number in range(5)]
        await asyncio.gather(*(one.create() for one in made))
        listed = [one.name async for one in kr.get("configmaps", namespace=space)]
        assert listed == [f"m{number}" for number in range(5)]
        await made[0].patch({"data": {"size": "9"}})
        again = await kind.get("m0", namespace=space, api=kr)
        assert dict(again.data) == {"colour": "blue", "size": "9"}
        waiting = asyncio.create_task(made[1].wait("delete", timeout=20))
        await made[1].delete()
        await waiting
        assert not await made[1].exists()

    asyncio.run(whole())
