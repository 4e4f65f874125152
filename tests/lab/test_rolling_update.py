"""Backends are replaced one node after the other behind an external load balancer, and no connection fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient, pod, service
from services_app.lab.cluster import Cluster
from tests.agents.test_node import eventually

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.timeout(180),
]
ROOT = Path(__file__).parents[2]
NAMESPACE, OLD, NEW = "rolling", 18080, 18081
GRACE_S = 6


def endpoints(api: ApiClient) -> dict[str, bool]:
    """Pod -> whether it is ready, of all that are endpoints."""
    slices = api.request("GET", f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")["items"]
    return {
        endpoint["targetRef"]["name"]: endpoint["conditions"]["ready"]
        for one in slices
        for endpoint in one.get("endpoints") or ()
    }


def test_a_rolling_update_behind_a_load_balancer_loses_nothing(cluster: Cluster) -> None:
    """externalTrafficPolicy Local: a node whose Pod ends says so at its health check port, and serves on until the Pod is gone."""
    api, lab = cluster.api, cluster.lab
    api.ensure_namespace(NAMESPACE)
    pods = f"{CORE}/namespaces/{NAMESPACE}/pods"
    for node in lab.nodes:
        node.serve(f"old-{node.name}", OLD, address=node.address)
        api.create(pods, pod(f"old-{node.name}", {"app": "web"}, node.name, {"app": (OLD, "TCP")}))
    spec = {"externalTrafficPolicy": "Local", "ipFamilies": ["IPv4"]}
    ports = [{"port": 80, "targetPort": "app"}]
    made = api.create(
        f"{CORE}/namespaces/{NAMESPACE}/services",
        service("web", {"app": "web"}, ports, kind="LoadBalancer", **spec),
    )["spec"]
    health, port = made["healthCheckNodePort"], made["ports"][0]["nodePort"]
    nodes = {node.name: (node.address, health, port) for node in lab.nodes}
    config = json.dumps({"nodes": nodes, "probe_s": 0.2, "interval_s": 0.01})
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.lab.balancer", config]
    balancer = subprocess.Popen(lab.client.inside(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for node in lab.nodes:
            time.sleep(2)  # as an update waits between two nodes, so that the balancer has taken the one before again
            api.request("DELETE", f"{pods}/old-{node.name}?gracePeriodSeconds={GRACE_S}")
            eventually(lambda node=node: f"old-{node.name}" not in endpoints(api), "the old Pod is gone")
            node.stop_serving(OLD, address=node.address)
            node.serve(f"new-{node.name}", NEW, address=node.address)
            api.create(pods, pod(f"new-{node.name}", {"app": "web"}, node.name, {"app": (NEW, "TCP")}))
            eventually(lambda node=node: endpoints(api).get(f"new-{node.name}", False), "the new Pod is ready")
        time.sleep(2)
        said, _ = balancer.communicate(timeout=20)
    finally:
        balancer.kill()
        balancer.wait()
        api.request("DELETE", f"{CORE}/namespaces/{NAMESPACE}")
        for node in lab.nodes:
            node.stop_serving(NEW, address=node.address)
    report = json.loads(said)
    assert report["failed"] == []
    assert {name for name, times in report["left"].items() if times} == {node.name for node in lab.nodes}
    assert report["backends"].keys() == {f"{age}-{node.name}" for age in ("old", "new") for node in lab.nodes}
    assert report["asked"] > 500, report
