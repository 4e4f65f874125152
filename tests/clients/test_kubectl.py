"""kubectl, the one of the machine and any newer that is there: what tests/api/test_kubectl.py leaves out."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services_app.lab.client import CORE, ApiClient, Kubectl
from services_app.local.supervisor import Stack
from services_app.spec import kinds
from services_app.spec.kinds import Kind
from tests.api.conftest import said
from tests.clients.samples import STORED, name_for, sample

Document = dict[str, Any]
NAMED = "TIMONEL_TEST_KUBECTL"
# kubectl before 1.33 describes them by v1beta1, which Kubernetes 1.36 does not serve either.
DESCRIBED_BY_BETA = ("IPAddress", "ServiceCIDR")


def others() -> list[str]:
    """Further kubectls: the one that is named, and what is called kubectl1.36 or so in PATH."""
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    found = {path.name: str(path) for place in places if place.is_dir() for path in place.glob("kubectl[0-9.-]*")}
    return [
        *filter(None, [os.environ.get(NAMED)]),
        *(path for _, path in sorted(found.items()) if os.access(path, os.X_OK)),
    ]


@pytest.fixture(params=["kubectl", *others()], ids=lambda program: Path(program).name)
def kubectl(stack: Stack, request: pytest.FixtureRequest) -> Kubectl:
    assert shutil.which(request.param), f"{request.param} is not there"
    return Kubectl(stack.kubeconfig, request.param)


def test_another_kubectl_is_there() -> None:
    """All tests here run with each: the oldest that is supported and the newest are both worth it."""
    if not others():
        pytest.skip(f"no other kubectl: name one in {NAMED}, or put kubectl1.36 or so into PATH")
    for program in others():
        command = [program, "version", "--client", "-o", "json"]
        assert "clientVersion" in subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def editing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let `kubectl edit` open an editor that does what a sed script says."""
    return lambda script: monkeypatch.setenv("KUBE_EDITOR", f"sed -i -e '{script}'")


def resource_of(kind: Kind) -> str:
    return f"{kind.plural}.{kind.version}.{kind.group}" if kind.group else kind.plural


@pytest.mark.parametrize("kind", STORED.values(), ids=[*STORED])
def test_every_kind(kubectl: Kubectl, editing: Callable[[str], None], kind: Kind, space: str) -> None:
    on = ("-n", space) if kind.namespaced else ()
    name = name_for(kind, f"k-{space}"[:50].rstrip("-"))
    manifest = sample(kind, "x", space)
    manifest["metadata"] |= {"name": name, "labels": {"kubectl": space[:60]}}
    text, resource = json.dumps(manifest), resource_of(kind)
    made = said(kubectl("apply", "-f", "-", input=text))
    assert made.endswith("created")
    assert said(kubectl("apply", "-f", "-", input=text)).endswith("unchanged")
    assert kubectl("diff", "-f", "-", input=text).returncode == 0
    assert name in said(kubectl("get", resource, *on, "-l", f"kubectl={space[:60]}", "-o", "wide"))
    if kind.kind not in DESCRIBED_BY_BETA:
        described = said(kubectl("describe", resource, name, *on))
        assert [line.split()[1] for line in described.splitlines() if line.startswith("Name:")] == [name]
    assert said(kubectl("label", resource, name, *on, "tier=web")).endswith("labeled")
    assert said(kubectl("annotate", resource, name, *on, "note=one")).endswith("annotated")
    for form in ("strategic", "merge", "json"):
        patch: Any = {"metadata": {"annotations": {"form": form}}}
        if form == "json":
            patch = [{"op": "replace", "path": "/metadata/annotations/form", "value": form}]
        assert said(kubectl("patch", resource, name, *on, f"--type={form}", "-p", json.dumps(patch))).endswith(
            "patched"
        )
    editing("s/note: one/note: two/")
    assert said(kubectl("edit", resource, name, *on)).endswith("edited")
    found = json.loads(said(kubectl("get", resource, name, *on, "-o", "json")))
    assert {"note": "two", "form": "json"}.items() <= found["metadata"]["annotations"].items()
    assert found["metadata"]["labels"]["tier"] == "web"
    manifest["metadata"]["labels"]["replaced"] = "yes"
    if not kind.unconditional_update or kind is kinds.NODE:
        manifest["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
    assert said(kubectl("replace", "-f", "-", input=json.dumps(manifest))).endswith("replaced")
    assert said(kubectl("get", resource, name, *on, "-o", "jsonpath={.metadata.labels.replaced}")) == "yes"
    if kind.kind != "IPAddress":  # whose rows have a cell more than columns, in Kubernetes as well
        assert "replaced=yes" in said(kubectl("get", resource, name, *on, "--show-labels", "--no-headers"))
    assert "deleted" in said(kubectl("delete", resource, name, *on, "--now"))
    assert "NotFound" in kubectl("get", resource, name, *on).stderr


def test_services_of_every_type(kubectl: Kubectl, api: ApiClient, space: str) -> None:
    on = ("-n", space)
    said(kubectl("create", "service", "clusterip", "a", "--tcp=80:8080", *on))
    said(kubectl("create", "service", "clusterip", "headless", "--clusterip=None", *on))
    said(kubectl("create", "service", "nodeport", "b", "--tcp=80:8080", "--node-port=32100", *on))
    said(kubectl("create", "service", "loadbalancer", "c", "--tcp=443:8443", *on))
    said(kubectl("create", "service", "externalname", "d", "--external-name=db.example.org", *on))
    rows = {row.split()[0]: row.split()[1:5] for row in said(kubectl("get", "svc", *on, "--no-headers")).splitlines()}
    assert (rows["a"][0], rows["a"][3]) == ("ClusterIP", "80/TCP")
    assert rows["headless"][:3] == ["ClusterIP", "None", "<none>"]
    assert (rows["b"][0], rows["b"][3]) == ("NodePort", "80:32100/TCP")
    assert rows["c"][0::2] == ["LoadBalancer", "<pending>"]
    assert rows["d"] == ["ExternalName", "<none>", "db.example.org", "<none>"]
    taken = kubectl("create", "service", "nodeport", "e", "--tcp=80:8080", "--node-port=32100", *on)
    assert "provided port is already allocated" in taken.stderr


def test_expose(kubectl: Kubectl, space: str) -> None:
    on = ("-n", space)
    said(kubectl("run", "one", "--image=example.org/app", "--port=8080", "--labels=app=web", *on))
    said(
        kubectl(
            "expose", "pod", "one", "--name=web", "--port=80", "--type=NodePort", "--session-affinity=ClientIP", *on
        )
    )
    spec = json.loads(said(kubectl("get", "svc", "web", *on, "-o", "json")))["spec"]
    assert (spec["selector"], spec["type"], spec["sessionAffinity"]) == ({"app": "web"}, "NodePort", "ClientIP")
    assert (spec["ports"][0]["port"], spec["ports"][0]["targetPort"]) == (80, 80)
    said(kubectl("expose", "service", "web", "--name=again", "--port=443", "--target-port=8080", *on))
    assert said(kubectl("get", "svc", "again", *on, "-o", "jsonpath={.spec.ports[0].targetPort}")) == "8080"
    listed = said(kubectl("get", "all", *on, "-o", "name")).split()
    assert sorted(listed) == ["pod/one", "service/again", "service/web"]


def test_server_side_with_conflicts(kubectl: Kubectl, space: str) -> None:
    on = ("-n", space)

    def text(colour: str) -> str:
        return json.dumps({**sample(STORED["v1/ConfigMap"], "settings", space), "data": {"colour": colour}})

    apply = ("apply", "--server-side", *on, "-f", "-")
    assert said(kubectl(*apply, "--field-manager=one", input=text("blue"))).endswith("serverside-applied")
    assert said(kubectl(*apply, "--dry-run=server", "--field-manager=one", input=text("red"))).endswith(
        "(server dry run)"
    )
    refused = kubectl(*apply, "--field-manager=two", input=text("red"))
    assert refused.returncode != 0
    assert 'conflict with "one": .data.colour' in refused.stderr
    assert (
        kubectl(
            "diff", "--server-side", "--force-conflicts", "--field-manager=two", *on, "-f", "-", input=text("red")
        ).returncode
        == 1
    )
    said(kubectl(*apply, "--field-manager=two", "--force-conflicts", input=text("red")))
    assert said(kubectl("get", "cm", "settings", *on, "-o", "jsonpath={.data.colour}")) == "red"


def test_client_side_apply_takes_back_what_it_gave(kubectl: Kubectl, space: str) -> None:
    on = ("-n", space)
    manifest = sample(STORED["v1/Service"], "web", space)
    manifest["spec"]["ports"].append({"name": "https", "port": 443, "targetPort": 8443})
    manifest["metadata"]["annotations"] = {"note": "x"}
    said(kubectl("apply", *on, "-f", "-", input=json.dumps(manifest)))
    said(kubectl("label", "svc", "web", *on, "by-hand=yes"))
    del manifest["spec"]["ports"][1], manifest["metadata"]["annotations"]
    difference = kubectl("diff", *on, "-f", "-", input=json.dumps(manifest))
    assert difference.returncode == 1
    assert "443" in difference.stdout
    assert said(kubectl("apply", *on, "-f", "-", input=json.dumps(manifest))).endswith("configured")
    found = json.loads(said(kubectl("get", "svc", "web", *on, "-o", "json")))
    assert [port["port"] for port in found["spec"]["ports"]] == [80]
    assert "note" not in found["metadata"]["annotations"]
    assert found["metadata"]["labels"]["by-hand"] == "yes"
    assert "selector:" in said(kubectl("apply", "view-last-applied", "svc/web", *on))


def test_watching_and_waiting(stack: Stack, kubectl: Kubectl, api: ApiClient, space: str) -> None:
    maps = f"{CORE}/namespaces/{space}/configmaps"
    program, on = kubectl._program, ("-n", space)
    api.create(maps, {"metadata": {"name": "there"}, "data": {"colour": "blue"}})
    watching = subprocess.Popen(
        [program, f"--kubeconfig={stack.kubeconfig}", "get", "cm", *on, "-w", "--output-watch-events", "--no-headers"],
        stdout=subprocess.PIPE,
        text=True,
    )
    waits = {
        "jsonpath={.data.colour}=green": "cm/there",
        "jsonpath={.data.size}": "cm/there",
        "delete": "cm/gone",
    }
    api.create(maps, {"metadata": {"name": "gone"}})
    waiting = {
        what: subprocess.Popen(
            # At this verbosity it names its requests, once they are answered.
            [
                program,
                f"--kubeconfig={stack.kubeconfig}",
                "wait",
                f"--for={what}",
                target,
                *on,
                "--timeout=30s",
                "-v=6",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for what, target in waits.items()
    }
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().split()[0] == "ADDED"
        for process in waiting.values():
            # Whoever comes after the change waits for nothing.
            assert process.stderr is not None
            assert any("watch=true" in line for line in process.stderr), "it ended without a watch"
        api.request("PATCH", f"{maps}/there", {"data": {"colour": "green", "size": "9"}})
        api.request("DELETE", f"{maps}/gone")
        said_at_last = {what: process.communicate(timeout=60)[0] for what, process in waiting.items()}
        assert {what: words.split()[-2:] for what, words in said_at_last.items()} == {
            "jsonpath={.data.colour}=green": ["condition", "met"],
            "jsonpath={.data.size}": ["condition", "met"],
            "delete": ["condition", "met"],
        }
        while (line := watching.stdout.readline().split())[:2] != ["DELETED", "gone"]:
            assert line[0] in ("ADDED", "MODIFIED")
    finally:
        for process in (watching, *waiting.values()):
            process.kill()
            process.communicate()
    late = kubectl("wait", "--for=jsonpath={.data.colour}=red", "cm/there", *on, "--timeout=1s")
    assert late.returncode == 1
    assert "timed out" in late.stderr


def test_deleting_with_every_policy(kubectl: Kubectl, space: str) -> None:
    on = ("-n", space)
    for policy, left in (("background", 0), ("foreground", 0), ("orphan", 1)):
        said(kubectl("apply", *on, "-f", "-", input=json.dumps(sample(STORED["v1/Service"], "web", space))))
        assert len(said(kubectl("get", "endpointslices", *on, "-o", "name")).split()) == 1
        said(kubectl("delete", "svc", "web", *on, f"--cascade={policy}"))
        assert len(said(kubectl("get", "endpointslices", *on, "-o", "name")).split()) == left, policy
    assert "(server dry run)" in said(kubectl("delete", "endpointslices", "--all", *on, "--dry-run=server"))
    assert said(kubectl("delete", "endpointslices", "--all", *on)).count("deleted") == 1


def test_what_is_owned_goes_with_its_owner(kubectl: Kubectl, space: str) -> None:
    on = ("-n", space)

    def config_map(name: str, owner: str = "") -> str:
        metadata: dict[str, Any] = {"name": name}
        if owner:
            uid = said(kubectl("get", "cm", owner, *on, "-o", "jsonpath={.metadata.uid}"))
            entry = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": True}
            metadata["ownerReferences"] = [entry]
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    for policy, left in (("background", []), ("foreground", []), ("orphan", ["middle", "bottom"])):
        for name, owner in (("top", ""), ("middle", "top"), ("bottom", "middle")):
            said(kubectl("apply", *on, "-f", "-", input=config_map(name, owner)))
        said(kubectl("delete", "cm", "top", *on, f"--cascade={policy}"))
        found = kubectl("get", "cm", "top", "middle", "bottom", *on, "--ignore-not-found", "-o", "name")
        assert said(found).split() == [f"configmap/{name}" for name in left], policy
    assert said(kubectl("get", "cm", "middle", *on, "-o", "jsonpath={.metadata.ownerReferences}")) == ""
    said(kubectl("delete", "cm", "middle", *on))
    assert said(kubectl("get", "cm", "bottom", *on, "--ignore-not-found", "-o", "name")) == ""
    # An owner that is gone before: the worker finds it.
    said(kubectl("apply", *on, "-f", "-", input=config_map("top")))
    late = config_map("late", "top")
    said(kubectl("delete", "cm", "top", *on))
    said(kubectl("apply", *on, "-f", "-", input=late))
    said(kubectl("wait", "--for=delete", "cm/late", *on, "--timeout=20s"))


@pytest.mark.parametrize(
    "kind", [kind for kind in kinds.KINDS if kind is not kinds.EVENTS_EVENT], ids=lambda kind: kind.kind
)
def test_explain(kubectl: Kubectl, kind: Kind) -> None:
    arguments = ("explain", kind.plural, f"--api-version={kind.api_version}", "--recursive")
    text = said(kubectl(*arguments))
    assert f"KIND: {kind.kind}" in " ".join(text.split())
    assert "metadata" in text


def test_what_is_served(kubectl: Kubectl) -> None:
    listed = said(kubectl("api-resources", "--no-headers", "-o", "wide"))
    rows = {row.split()[0]: row for row in listed.splitlines()}
    assert {kind.plural for kind in kinds.STORED} <= rows.keys()
    assert "svc" in rows["services"]
    assert "deletecollection" in rows["services"]
    names = said(kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name")).split()
    assert "endpointslices.discovery.k8s.io" in names
    assert {kind.api_version for kind in kinds.KINDS} <= set(said(kubectl("api-versions")).split())
    assert "v1.36" in said(kubectl("version", "-o", "json"))
    assert said(kubectl("get", "--raw", "/readyz")) == "ok"


def test_nodes_are_cordoned_and_tainted(kubectl: Kubectl, api: ApiClient, space: str) -> None:
    api.create(f"{CORE}/nodes", {"metadata": {"name": space}})
    assert said(kubectl("cordon", space)).endswith("cordoned")
    assert "SchedulingDisabled" in said(kubectl("get", "node", space, "--no-headers"))
    assert said(kubectl("uncordon", space)).endswith("uncordoned")
    said(kubectl("taint", "node", space, "colour=blue:NoSchedule"))
    assert "colour=blue:NoSchedule" in said(kubectl("describe", "node", space))
    said(kubectl("delete", "node", space))


def test_prune(kubectl: Kubectl, space: str) -> None:
    """Apply a set, then a smaller one: what left it goes."""
    on = ("-n", space)
    both = [sample(STORED["v1/ConfigMap"], name, space) for name in ("a", "b")]
    for document in both:
        document["metadata"]["labels"] = {"set": "one"}
    apply = ("apply", *on, "-l", "set=one", "--prune", "--prune-allowlist=core/v1/ConfigMap", "-f", "-")
    said(kubectl(*apply, input=json.dumps({"apiVersion": "v1", "kind": "List", "items": both})))
    assert "configmap/b pruned" in said(kubectl(*apply, input=json.dumps(both[0])))
    assert said(kubectl("get", "cm", *on, "-o", "name")) == "configmap/a"


def test_warnings_are_shown(kubectl: Kubectl, space: str) -> None:
    document = {**sample(STORED["v1/ConfigMap"], "odd", space), "colour": "blue", "size": 1}
    done = kubectl("create", "-f", "-", "--validate=warn", input=json.dumps(document))
    assert done.returncode == 0
    assert 'unknown field "colour"' in done.stderr
    assert 'unknown field "size"' in done.stderr
    refused = kubectl("create", "-f", "-", "--validate=strict", input=json.dumps(document))
    assert refused.returncode == 1
    assert 'unknown field "colour"' in refused.stderr


def test_big_lists_come_compressed_and_in_pieces(kubectl: Kubectl, api: ApiClient, space: str) -> None:
    maps = f"{CORE}/namespaces/{space}/configmaps"
    for number in range(6):
        api.create(maps, {"metadata": {"name": f"m{number}"}, "data": {"word": "abc " * 20_000}})
    for extra in ((), ("--chunk-size=2",), ("--disable-compression",)):
        found = json.loads(said(kubectl("get", "cm", "-n", space, "-o", "json", *extra)))
        assert [item["metadata"]["name"] for item in found["items"]] == [f"m{number}" for number in range(6)]
