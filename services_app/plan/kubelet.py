"""The status a kubelet would report for a Pod on an enrolled node. Timonel starts nothing: the workload already runs."""

from collections.abc import Sequence
from typing import Any

from services_app.spec.pod import annotated_addresses

Document = dict[str, Any]

CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def has_readiness_probe(pod: Document) -> bool:
    return any(c.get("readinessProbe") for c in pod["spec"].get("containers") or ())


def pod_addresses(pod: Document, node_addresses: Sequence[str]) -> list[str]:
    """The Pod's addresses: those its annotation gives, else its node's; at most one of each family."""
    first: dict[bool, str] = {}
    for address in annotated_addresses(pod) or node_addresses:
        first.setdefault(":" in address, address)
    return [*first.values()]


def observe(pod: Document, node_addresses: Sequence[str], now: str) -> Document:
    """The Pod with the status of one that runs on its node; the same Pod when its status says so already.

    Ready is set when the Pod is first seen running: at once without a readiness probe, False until reported with one.
    A Ready condition that somebody wrote later is left alone. node_addresses: not empty, the first is the host IP.
    now: RFC 3339.
    """
    status = dict(pod.get("status") or {})
    if status.get("phase") in ("Failed", "Succeeded"):
        return pod
    pod_ips = [{"ip": address} for address in pod_addresses(pod, node_addresses)]
    host_ips = [{"ip": address} for address in node_addresses]
    first_seen = status.get("phase") != "Running"
    if not first_seen and status.get("podIPs") == pod_ips and status.get("hostIPs") == host_ips:
        return pod
    status.update(
        phase="Running",
        hostIP=node_addresses[0],
        hostIPs=host_ips,
        podIP=pod_ips[0]["ip"],
        podIPs=pod_ips,
    )
    status.setdefault("startTime", now)
    if first_seen:
        ready = "False" if has_readiness_probe(pod) else "True"
        known = {c["type"]: c for c in status.get("conditions") or ()}
        for kind in CONDITIONS:
            value = ready if kind in ("Ready", "ContainersReady") else "True"
            if known.get(kind, {}).get("status") != value:
                known[kind] = {"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": now}
        status["conditions"] = list(known.values())
    return {**pod, "status": status}
