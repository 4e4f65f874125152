"""The official Python client, as it ships."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kubernetes import client, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.informer import SharedInformer

from services_app.lab.client import ApiClient
from services_app.local.supervisor import Stack
from services_app.spec.kinds import Kind
from tests.clients.conftest import compact
from tests.clients.samples import STORED, name_for, sample
from tests.conformance.player import wait_until

Document = dict[str, Any]

SERVICE = STORED["v1/Service"]
GROUPS = {
    "": client.CoreV1Api,
    "coordination.k8s.io": client.CoordinationV1Api,
    "discovery.k8s.io": client.DiscoveryV1Api,
    "events.k8s.io": client.EventsV1Api,
    "networking.k8s.io": client.NetworkingV1Api,
}
PATCHES = {
    "json": ("application/json-patch+json", [{"op": "add", "path": "/metadata/labels/patched", "value": "json"}]),
    "merge": ("application/merge-patch+json", {"metadata": {"labels": {"patched": "merge"}}}),
    "strategic": ("application/strategic-merge-patch+json", {"metadata": {"labels": {"patched": "strategic"}}}),
}


@pytest.fixture
def connected(stack: Stack) -> Iterator[client.ApiClient]:
    with kubernetes.config.new_client_from_config(str(stack.kubeconfig)) as made:
        yield made


@pytest.fixture
def core(connected: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(connected)


class Typed:
    """The methods of one kind in the client's typed classes."""

    def __init__(self, connected: client.ApiClient, kind: Kind, namespace: str) -> None:
        self.api = GROUPS[kind.group](connected)
        self.words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=IP)(?=A)", "_", kind.kind).lower()
        self.place = "namespaced_" if kind.namespaced else ""
        self.where = {"namespace": namespace} if kind.namespaced else {}

    def __call__(self, verb: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self.api, f"{verb}_{self.place}{self.words}")(*arguments, **self.where, **named)


@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_typed(connected: client.ApiClient, kind: Kind, space: str) -> None:
    typed = Typed(connected, kind, space)
    name = name_for(kind, f"typed-{space}"[:60].rstrip("-"))
    wanted = sample(kind, "x", space)
    wanted["metadata"] |= {"name": name, "labels": {"typed": space}}
    made = typed("create", body=wanted)
    assert made.metadata.name == name
    assert made.metadata.uid
    read = typed("read", name)
    assert read.metadata.uid == made.metadata.uid
    listed = typed("list", label_selector=f"typed={space}")
    assert [item.metadata.name for item in listed.items] == [name]
    assert listed.metadata.resource_version
    # A typed object goes back as it came: what was read must be good to write.
    read.metadata.labels["replaced"] = "yes"
    assert typed("replace", name, body=read).metadata.labels["replaced"] == "yes"
    for content_type, patch in PATCHES.values():
        patched = typed("patch", name, body=patch, _content_type=content_type)
    assert patched.metadata.labels["patched"] == "strategic"
    applied = typed(
        "patch",
        name,
        body={
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {"name": name, "labels": {"applied": "a"}},
        },
        _content_type="application/apply-patch+yaml",
        field_manager="tester",
        force=True,
    )
    assert {"applied": "a", "replaced": "yes"}.items() <= applied.metadata.labels.items()
    assert "tester" in [entry.manager for entry in applied.metadata.managed_fields]
    if "status" in kind.subresources:
        status = getattr(typed.api, f"read_{typed.place}{typed.words}_status")(name, **typed.where)
        assert status.metadata.uid == made.metadata.uid
    stale = typed("read", name)
    stale.metadata.resource_version = made.metadata.resource_version
    with pytest.raises(ApiException) as refusal:
        typed("replace", name, body=stale)
    assert refusal.value.status == 409
    assert json.loads(refusal.value.body)["reason"] == "Conflict"
    typed("delete", name, grace_period_seconds=0)
    wait_until(lambda: is_gone(typed, name), 30)


def is_gone(typed: Typed, name: str) -> bool:
    return name not in [item.metadata.name for item in typed("list").items]


def test_typed_lists_of_everything(connected: client.ApiClient) -> None:
    """No field that a typed class requires is null in what the control plane makes by itself."""
    core, networking = client.CoreV1Api(connected), client.NetworkingV1Api(connected)
    lists = [core.list_namespace, core.list_service_for_all_namespaces, core.list_endpoints_for_all_namespaces]
    lists += [core.list_node, core.list_pod_for_all_namespaces, core.list_event_for_all_namespaces]
    lists += [core.list_config_map_for_all_namespaces, core.list_secret_for_all_namespaces]
    lists += [client.DiscoveryV1Api(connected).list_endpoint_slice_for_all_namespaces]
    lists += [client.CoordinationV1Api(connected).list_lease_for_all_namespaces]
    lists += [client.EventsV1Api(connected).list_event_for_all_namespaces]
    lists += [networking.list_ingress_for_all_namespaces, networking.list_ingress_class]
    for function in lists:
        assert function().metadata.resource_version
    assert "kubernetes" in [item.metadata.name for item in core.list_namespaced_service("default").items]


def test_collections_go_at_once(core: client.CoreV1Api, space: str) -> None:
    for name in ("a", "b", "c"):
        core.create_namespaced_config_map(
            space, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"n": name}))
        )
    core.delete_collection_namespaced_config_map(space, label_selector="n in (a,b)")
    assert [item.metadata.name for item in core.list_namespaced_config_map(space).items] == ["c"]


def test_pages(core: client.CoreV1Api, space: str) -> None:
    for number in range(7):
        core.create_namespaced_config_map(space, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"m{number}")))
    seen, token, versions = [], None, set()
    while True:
        page = core.list_namespaced_config_map(space, limit=3, _continue=token)
        seen += [item.metadata.name for item in page.items]
        versions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if not token:
            break
        assert page.metadata.remaining_item_count == 7 - len(seen)
        core.delete_namespaced_config_map(f"m{len(seen)}", space)  # later pages still show it
    assert seen == [f"m{number}" for number in range(7)]
    assert len(versions) == 1


def test_about_the_server(connected: client.ApiClient) -> None:
    assert client.VersionApi(connected).get_code().major == "1"
    groups = {group.name for group in client.ApisApi(connected).get_api_versions().groups}
    assert set(GROUPS) - {""} <= groups
    assert {r.name for r in client.CoreV1Api(connected).get_api_resources().resources} >= {
        "services",
        "services/status",
    }
    me = client.AuthenticationV1Api(connected).create_self_subject_review(client.V1SelfSubjectReview())
    assert "system:authenticated" in me.status.user_info.groups
    asked = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="create", resource="services", namespace="default")
        )
    )
    authorization = client.AuthorizationV1Api(connected)
    assert authorization.create_self_subject_access_review(asked).status.allowed
    rules = authorization.create_self_subject_rules_review(
        client.V1SelfSubjectRulesReview(spec=client.V1SelfSubjectRulesReviewSpec(namespace="default"))
    )
    assert rules.status.resource_rules


# --- the dynamic client


@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_dynamic(connected: client.ApiClient, kind: Kind, space: str, tmp_path: Path) -> None:
    resources = dynamic.DynamicClient(connected, cache_file=str(tmp_path / "discovery"))
    resource = resources.resources.get(api_version=kind.api_version, kind=kind.kind)
    where = {"namespace": space} if kind.namespaced else {}
    name = name_for(kind, f"dynamic-{space}"[:60].rstrip("-"))
    wanted = sample(kind, "x", space)
    wanted["metadata"] |= {"name": name, "labels": {"dynamic": space}}
    made = resource.server_side_apply(body=wanted, field_manager="dynamic", **where)
    assert made.metadata.uid
    again = resource.server_side_apply(body=wanted, field_manager="dynamic", **where)
    assert again.metadata.managedFields == made.metadata.managedFields
    merged = resource.patch(
        body={"metadata": {"name": name, "labels": {"more": "yes"}}},
        content_type="application/merge-patch+json",
        **where,
    )
    assert {"dynamic": space, "more": "yes"}.items() <= merged.metadata.labels.to_dict().items()
    listed = resource.get(label_selector=f"dynamic={space}", **where)
    assert [item.metadata.name for item in listed.items] == [name]
    whole = resource.get(name=name, **where).to_dict()
    whole["metadata"]["labels"]["replaced"] = "yes"
    assert resource.replace(body=whole, **where).metadata.labels.replaced == "yes"
    seen = next(resource.watch(timeout=5, label_selector=f"dynamic={space}", **where))
    assert (seen["type"], seen["object"].metadata.name) == ("ADDED", name)
    resource.delete(name=name, body={"gracePeriodSeconds": 0}, **where)


def test_server_side_apply_conflicts(connected: client.ApiClient, space: str) -> None:
    services = dynamic.DynamicClient(connected).resources.get(api_version="v1", kind="Service")

    def wanted(port: int) -> Document:
        document = sample(SERVICE, "web", space)
        document["spec"]["sessionAffinity"] = "ClientIP" if port == 81 else "None"
        return document

    services.server_side_apply(body=wanted(80), namespace=space, field_manager="one")
    with pytest.raises(dynamic.exceptions.ConflictError) as refusal:
        services.server_side_apply(body=wanted(81), namespace=space, field_manager="two")
    status = json.loads(refusal.value.body)
    assert [cause["reason"] for cause in status["details"]["causes"]] == ["FieldManagerConflict"]
    assert status["details"]["causes"][0]["field"] == ".spec.sessionAffinity"
    forced = services.server_side_apply(body=wanted(81), namespace=space, field_manager="two", force_conflicts=True)
    assert forced.spec.sessionAffinity == "ClientIP"


# --- watches


def test_a_watch_from_a_list_sees_what_came_after(core: client.CoreV1Api, space: str) -> None:
    maps = [client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)) for name in ("a", "b")]
    core.create_namespaced_config_map(space, maps[0])
    version = core.list_namespaced_config_map(space).metadata.resource_version
    core.create_namespaced_config_map(space, maps[1])
    core.patch_namespaced_config_map("a", space, {"data": {"x": "1"}})
    core.delete_namespaced_config_map("b", space)
    stream = watch.Watch().stream(core.list_namespaced_config_map, space, resource_version=version, timeout_seconds=3)
    events = [(event["type"], event["object"].metadata.name) for event in stream]
    assert events == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


def test_a_watch_from_before_a_compaction_is_told_410(stack: Stack, core: client.CoreV1Api, space: str) -> None:
    version = core.list_namespaced_config_map(space).metadata.resource_version
    core.create_namespaced_config_map(space, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a")))
    compact(stack)
    with pytest.raises(ApiException) as refusal:
        for _ in watch.Watch().stream(
            core.list_namespaced_config_map, space, resource_version=version, timeout_seconds=5
        ):
            pass
    assert refusal.value.status == 410


def test_an_informer_lives_through_restarts_and_a_compaction(
    stack: Stack, core: client.CoreV1Api, connected: client.ApiClient, space: str
) -> None:
    """What it holds is the list, whatever happened to the servers in between."""
    told: list[tuple[str, str]] = []
    expired: list[int] = []
    informer = SharedInformer(client.CoreV1Api(connected).list_namespaced_config_map, namespace=space)
    for kind in ("ADDED", "DELETED"):
        informer.add_event_handler(kind, lambda found, kind=kind: told.append((kind, found.metadata.name)))
    informer.add_event_handler("ERROR", lambda err: expired.append(getattr(err, "status", 0)))

    def make(name: str) -> None:
        core.create_namespaced_config_map(space, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))

    make("before")
    informer.start()
    try:
        wait_until(lambda: ("ADDED", "before") in told)
        make("live")
        wait_until(lambda: ("ADDED", "live") in told)
        for pid in stack.pids_of("web"):
            os.kill(pid, signal.SIGKILL)
        retried(lambda: make("restarted"))
        wait_until(lambda: ("ADDED", "restarted") in told, 30)
        # It is away while the log is cut: its version is refused, and it has to list again.
        for pid in stack.pids_of("web"):
            os.kill(pid, signal.SIGKILL)
        retried(lambda: core.delete_namespaced_config_map("before", space))
        make("after")
        compact(stack)
        wait_until(lambda: ("DELETED", "before") in told and ("ADDED", "after") in told, 60)
        wait_until(
            lambda: sorted(informer.cache.list_keys()) == [f"{space}/{n}" for n in ("after", "live", "restarted")]
        )
    finally:
        informer.stop()
    listed = core.list_namespaced_config_map(space)
    held = {found.metadata.name: found.metadata.resource_version for found in informer.cache.list()}
    assert held == {item.metadata.name: item.metadata.resource_version for item in listed.items}
    assert told.count(("ADDED", "live")) == 1


def retried(function: Any) -> Any:
    """Ask again while nobody answers, as every client has to."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return function()
        except ApiException as err:
            if err.status == 409:
                return None
            if err.status < 500 or time.monotonic() > deadline:
                raise
        except Exception:  # urllib3 has many ways to say that a connection broke
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


# --- leader election

CANDIDATE = """
import sys, time
from kubernetes import config
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.{module} import {lock}

config.load_kube_config(sys.argv[1])
identity = sys.argv[2]

def leading():
    print(identity, "leads", flush=True)
    time.sleep(600)

leaderelection.LeaderElection(electionconfig.Config(
    {lock}("leader", sys.argv[3], identity), lease_duration=3, renew_deadline=2, retry_period=1,
    onstarted_leading=leading, onstopped_leading=lambda: print(identity, "stopped", flush=True),
)).run()
"""


@pytest.mark.parametrize(
    "module, lock", [("leaselock", "LeaseLock"), ("configmaplock", "ConfigMapLock")], ids=["lease", "configmap"]
)
def test_a_killed_leader_is_followed_by_another(stack: Stack, space: str, module: str, lock: str) -> None:
    program = CANDIDATE.format(module=module, lock=lock)

    def candidate(identity: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", program, str(stack.kubeconfig), identity, space]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    first = candidate("first")
    second = None
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "first leads\n"
        second = candidate("second")
        assert second.stdout is not None
        api = ApiClient(stack.kubeconfig)
        assert holder(api, lock, space) == "first"
        first.kill()
        assert second.stdout.readline() == "second leads\n"
        assert holder(api, lock, space) == "second"
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()


def holder(api: ApiClient, lock: str, namespace: str) -> str:
    if lock == "LeaseLock":
        lease = api.request("GET", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/leader")
        return str(lease["spec"]["holderIdentity"])
    found = api.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/leader")
    record = json.loads(found["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"])
    return str(record["holderIdentity"])


# --- manifests


def test_manifests_from_files(connected: client.ApiClient, core: client.CoreV1Api, space: str, tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    # Endpoints and a second Event of that name are there by then.
    wanted = [kind for name, kind in STORED.items() if kind.namespaced and name not in ("v1/Endpoints", "v1/Event")]
    documents = [sample(kind, "filed", space) for kind in wanted]
    path.write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
    made = utils.create_from_yaml(connected, str(path), namespace=space)
    assert sorted(entry[0].kind for entry in made) == sorted(document["kind"] for document in documents)
    assert core.read_namespaced_service("filed", space).spec.cluster_ip
    with pytest.raises(utils.FailToCreateError) as refusal:
        utils.create_from_yaml(connected, str(path), namespace=space)
    assert {err.status for err in refusal.value.api_exceptions} == {409}
    for colour in ("blue", "green"):
        path.write_text(json.dumps({**sample(STORED["v1/ConfigMap"], "applied", space), "data": {"colour": colour}}))
        utils.create_from_yaml(connected, str(path), namespace=space, apply=True)
        assert core.read_namespaced_config_map("applied", space).data == {"colour": colour}


def test_times_are_times(core: client.CoreV1Api, connected: client.ApiClient, space: str) -> None:
    now = datetime.now(UTC)
    lease = client.V1Lease(
        metadata=client.V1ObjectMeta(name="timed"), spec=client.V1LeaseSpec(holder_identity="x", renew_time=now)
    )
    made = client.CoordinationV1Api(connected).create_namespaced_lease(space, lease)
    assert made.spec.renew_time == now
    assert made.metadata.creation_timestamp.tzinfo is not None
