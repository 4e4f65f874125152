"""lightkube, its synchronous and its asynchronous client."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import lightkube
import pytest
from lightkube import ApiError, AsyncClient, Client, KubeConfig, operators
from lightkube.core.resource_registry import resource_registry
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.core_v1 import NodeCondition, ServicePort, ServiceSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources import coordination_v1, core_v1, discovery_v1, events_v1, networking_v1
from lightkube.types import CascadeType, PatchType

from services_app.local.supervisor import Stack
from services_app.spec.kinds import Kind
from tests.clients.conftest import compact
from tests.clients.samples import STORED, name_for, sample
from tests.conformance.player import wait_until

MODULES = {
    "": core_v1,
    "coordination.k8s.io": coordination_v1,
    "discovery.k8s.io": discovery_v1,
    "events.k8s.io": events_v1,
    "networking.k8s.io": networking_v1,
}


@pytest.fixture
def config(stack: Stack) -> KubeConfig:
    return KubeConfig.from_file(str(stack.kubeconfig))


@pytest.fixture
def client(config: KubeConfig) -> Iterator[Client]:
    with Client(config, trust_env=False, field_manager="lightkube") as made:
        yield made


def service(name: str, namespace: str, port: int = 80, **labels: str) -> core_v1.Service:
    return core_v1.Service(
        apiVersion="v1",
        kind="Service",
        metadata=ObjectMeta(name=name, namespace=namespace, labels=labels or None),
        spec=ServiceSpec(selector={"app": name}, ports=[ServicePort(name="http", port=port)]),
    )


@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_every_kind(client: Client, kind: Kind, space: str) -> None:
    resource: Any = resource_registry.get(kind.api_version, kind.kind) or getattr(MODULES[kind.group], kind.kind)
    where: Any = {"namespace": space} if kind.namespaced else {}
    name = name_for(kind, f"light-{space}"[:60].rstrip("-"))
    wanted = sample(kind, "x", space)
    wanted["metadata"] |= {"name": name, "labels": {"light": space}}
    made = client.create(resource.from_dict(wanted))
    assert made.metadata.uid
    assert client.get(resource, name, **where).metadata.uid == made.metadata.uid
    assert [item.metadata.name for item in client.list(resource, labels={"light": space}, **where)] == [name]
    made = client.get(resource, name, **where)
    made.metadata.labels["replaced"] = "yes"
    assert client.replace(made).metadata.labels["replaced"] == "yes"
    for patch_type in (PatchType.MERGE, PatchType.STRATEGIC):
        patch = {"metadata": {"labels": {"patched": patch_type.name}}}
        assert client.patch(resource, name, patch, patch_type=patch_type, **where).metadata.labels["patched"]
    operations = [{"op": "remove", "path": "/metadata/labels/patched"}]
    patched = client.patch(resource, name, operations, patch_type=PatchType.JSON, **where)
    assert "patched" not in patched.metadata.labels
    again = sample(kind, "x", space)
    again["metadata"] |= {"name": name, "annotations": {"note": "a"}}
    assert client.apply(resource.from_dict(again), force=True).metadata.annotations["note"] == "a"
    client.delete(resource, name, cascade=CascadeType.BACKGROUND, grace_period=0, **where)
    wait_until(lambda: not [*client.list(resource, labels={"light": space}, **where)], 30)


def test_selectors(client: Client, space: str) -> None:
    for name, tier in (("a", "front"), ("b", "back"), ("c", "front")):
        client.create(service(name, space, tier=tier))
    client.create(service("d", space))

    def names(**selectors: Any) -> list[str]:
        return [item.metadata.name for item in client.list(core_v1.Service, namespace=space, **selectors)]

    assert names(labels={"tier": operators.in_(["back", "front"])}) == ["a", "b", "c"]
    assert names(labels={"tier": operators.not_in(["back"])}) == ["a", "c", "d"]
    assert names(labels={"tier": operators.exists()}) == ["a", "b", "c"]
    assert names(labels={"tier": operators.not_exists()}) == ["d"]
    assert names(labels={"tier": operators.not_equal("front")}) == ["b", "d"]
    assert names(fields={"metadata.name": "b"}) == ["b"]
    assert names(fields={"metadata.name": operators.not_equal("b")}) == ["a", "c", "d"]
    assert names(chunk_size=1) == ["a", "b", "c", "d"]
    everywhere = client.list(core_v1.Service, namespace="*", labels={"tier": "back"})
    assert [(item.metadata.namespace, item.metadata.name) for item in everywhere] == [(space, "b")]
    client.deletecollection(core_v1.Service, namespace=space)
    assert names() == []


def test_apply_conflicts_until_forced(client: Client, space: str) -> None:
    client.apply(service("web", space, 80), field_manager="one")
    assert client.apply(service("web", space, 80), field_manager="one") == client.get(
        core_v1.Service, "web", namespace=space
    )
    other = service("web", space)
    other.spec = ServiceSpec(sessionAffinity="ClientIP", selector={"app": "other"})
    with pytest.raises(ApiError) as refusal:
        client.apply(other, field_manager="two")
    assert (refusal.value.status.code, refusal.value.status.reason) == (409, "Conflict")
    assert [cause.field for cause in refusal.value.status.details.causes] == [".spec.selector"]
    taken = client.apply(other, field_manager="two", force=True)
    assert (taken.spec.selector, taken.spec.sessionAffinity) == ({"app": "other"}, "ClientIP")
    # What one does not ask for any more goes, unless somebody else asks for it.
    fewer = service("web", space)
    fewer.spec = ServiceSpec(ports=[ServicePort(name="http", port=80)])
    kept = client.apply(fewer, field_manager="one")
    assert kept.spec.selector == {"app": "other"}


def test_dry_runs_keep_nothing(config: KubeConfig, client: Client, space: str) -> None:
    with Client(config, trust_env=False, field_manager="dry", dry_run=True) as dry:
        assert dry.create(service("web", space)).metadata.uid
    with pytest.raises(ApiError) as refusal:
        client.get(core_v1.Service, "web", namespace=space)
    assert refusal.value.status.code == 404


def test_a_watch_goes_on_where_the_list_ended(client: Client, space: str) -> None:
    client.create(service("old", space))
    listed = client.list(core_v1.Service, namespace=space)
    assert [item.metadata.name for item in listed] == ["old"]
    client.create(service("new", space, tier="x"))
    client.delete(core_v1.Service, "old", namespace=space)
    stream = client.watch(core_v1.Service, namespace=space, resource_version=listed.resourceVersion, server_timeout=20)
    assert [(kind, next_name.metadata.name) for kind, next_name in (next(stream), next(stream))] == [
        ("ADDED", "new"),
        ("DELETED", "old"),
    ]


def test_a_watch_that_comes_too_late_is_told(stack: Stack, client: Client, space: str) -> None:
    listed = client.list(core_v1.Service, namespace=space)
    assert [*listed] == []
    client.create(service("new", space))
    compact(stack)
    with pytest.raises(ApiError) as refusal:
        next(client.watch(core_v1.Service, namespace=space, resource_version=listed.resourceVersion))
    assert refusal.value.status.code == 410


def test_waiting_for_a_condition(client: Client, space: str) -> None:
    node = core_v1.Node(metadata=ObjectMeta(name=space))
    client.create(node)

    def become_ready() -> None:
        wait_until(started.is_set)
        seen = client.get(core_v1.Node, space)
        conditions = [NodeCondition(type="Ready", status="True", lastTransitionTime=datetime.now(UTC))]
        patch = {"status": {"conditions": [conditions[0].to_dict()]}}
        client.patch(core_v1.Node.Status, space, patch, patch_type=PatchType.STRATEGIC)
        assert seen.metadata.uid

    started = threading.Event()
    helper = threading.Thread(target=become_ready)
    helper.start()
    started.set()
    try:
        ready = client.wait(core_v1.Node, space, for_conditions=["Ready"], raise_for_conditions=["Never"])
        assert {c.type: c.status for c in ready.status.conditions}["Ready"] == "True"
    finally:
        helper.join()
        client.delete(core_v1.Node, space)


def test_a_lease_changes_hands_by_its_version(client: Client, space: str) -> None:
    """What any election on Leases does: renew with the version that was read, and lose when another was quicker."""
    now = datetime.now(UTC)
    spec = LeaseSpec(holderIdentity="one", leaseDurationSeconds=1, acquireTime=now, renewTime=now)
    made = client.create(coordination_v1.Lease(metadata=ObjectMeta(name="leader", namespace=space), spec=spec))
    rival = client.get(coordination_v1.Lease, "leader", namespace=space)
    assert rival.spec.renewTime == now
    made.spec.renewTime = now + timedelta(seconds=1)
    client.replace(made)
    rival.spec.holderIdentity = "two"
    with pytest.raises(ApiError) as refusal:
        client.replace(rival)
    assert refusal.value.status.code == 409
    rival = client.get(coordination_v1.Lease, "leader", namespace=space)
    rival.spec.holderIdentity, rival.spec.leaseTransitions = "two", 1
    assert client.replace(rival).spec.holderIdentity == "two"


def test_asynchronously(config: KubeConfig, space: str) -> None:
    async def whole() -> None:
        client = AsyncClient(config, trust_env=False, field_manager="async")
        try:
            made = await client.create(service("web", space))
            stream = client.watch(core_v1.Service, namespace=space, resource_version=made.metadata.resourceVersion)
            others = [service(f"web-{number}", space, tier="many") for number in range(10)]
            await asyncio.gather(*(client.create(other) for other in others))
            seen = [await anext(stream) for _ in others]
            assert {kind for kind, _ in seen} == {"ADDED"}
            versions = [int(found.metadata.resourceVersion) for _, found in seen]
            assert versions == sorted(versions)
            assert len({found.spec.clusterIP for _, found in seen}) == 10
            listed = [
                item
                async for item in client.list(core_v1.Service, namespace=space, labels={"tier": "many"}, chunk_size=3)
            ]
            assert sorted(item.metadata.name for item in listed) == sorted(found.metadata.name for _, found in seen)
            applied = await client.apply(service("web", space, 80), force=True)
            assert applied.metadata.uid == made.metadata.uid
            patch = {"spec": {"sessionAffinity": "ClientIP"}}
            patched = await client.patch(core_v1.Service, "web", patch, namespace=space, patch_type=PatchType.MERGE)
            assert patched.spec.sessionAffinityConfig.clientIP.timeoutSeconds == 10800
            await client.delete(core_v1.Service, "web", namespace=space)
            with pytest.raises(lightkube.ApiError):
                await client.get(core_v1.Service, "web", namespace=space)
        finally:
            await client.close()

    asyncio.run(whole())
