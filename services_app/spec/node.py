"""Nodes: defaults and validation.

Source: k8s v1.36 pkg/apis/core/v1/{defaults,conversion}.go, pkg/registry/core/node/strategy.go, pkg/apis/core/validation,
ValidateNode and ValidateNodeUpdate; the taint comes from plugin/pkg/admission/nodetaint.
"""

from typing import Any

from services_app.spec import kube_proxy, meta, names, schema
from services_app.spec.addresses import validate_network
from services_app.spec.errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from services_app.spec.kinds import NODE

Document = dict[str, Any]

NOT_READY = "node.kubernetes.io/not-ready"
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
EFFECTS = ("NoExecute", "NoSchedule", "PreferNoSchedule")


def is_leaving(node: Document | None) -> bool:
    """Whether the Node is about to go, so that load balancers should look for another.

    Source: k8s v1.36 pkg/proxy/healthcheck/proxy_health.go, SyncNode. One that is drained alone still takes traffic.
    """
    if node is None:
        return False
    taints = (node.get("spec") or {}).get("taints") or ()
    is_going = bool((node.get("metadata") or {}).get("deletionTimestamp"))
    return is_going or any(taint.get("key") == TO_BE_DELETED for taint in taints)


def set_defaults(node: Document) -> None:
    spec = node.setdefault("spec", {})
    if spec.get("podCIDR") and (spec.get("podCIDRs") or [""])[0] != spec["podCIDR"]:
        spec["podCIDRs"] = [spec["podCIDR"]]
    elif spec.get("podCIDRs"):
        spec["podCIDR"] = spec["podCIDRs"][0]
    status = node["status"] = schema.zero("NodeStatus") | (node.get("status") or {})
    if status.get("capacity") and not status.get("allocatable"):
        status["allocatable"] = dict(status["capacity"])


def prepare_create(node: Document) -> None:
    set_defaults(node)
    taints = node["spec"].get("taints") or []
    if not any(taint.get("key") == NOT_READY for taint in taints):
        node["spec"]["taints"] = [*taints, {"key": NOT_READY, "effect": "NoSchedule"}]


def prepare_update(old: Document, new: Document, subresource: str) -> None:
    if subresource == "status":
        new["spec"] = old["spec"]
    else:
        new["status"] = old["status"]
    set_defaults(new)


def validate_create(node: Document) -> list[FieldError]:
    return (
        meta.validate(NODE, node["metadata"], names.subdomain_problems)
        + _validate(node, ())
        + kube_proxy.validate_node(None, node)
    )


def validate_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes
    had, spec = old["spec"], new["spec"]
    if had.get("podCIDRs") and had["podCIDRs"] != spec.get("podCIDRs"):
        detail = 'node updates may not change podCIDR except from "" to valid'
        errors.append(forbidden("spec.podCIDRs", detail))
    if had.get("providerID") and had["providerID"] != spec.get("providerID"):
        detail = 'node updates may not change providerID except from "" to valid'
        errors.append(forbidden("spec.providerID", detail))
    free = {"podCIDR", "podCIDRs", "providerID", "taints", "unschedulable", "configSource"}
    if {k: v for k, v in had.items() if k not in free} != {k: v for k, v in spec.items() if k not in free}:
        detail = "node updates may only change labels, taints, or capacity (or configSource)"
        errors.append(forbidden("spec", detail))
    return errors + _validate(new, had.get("podCIDRs") or ()) + kube_proxy.validate_node(old, new)


def _validate(node: Document, known: Any) -> list[FieldError]:
    spec = node["spec"]
    errors: list[FieldError] = []
    seen = set()
    for index, taint in enumerate(spec.get("taints") or []):
        path = f"spec.taints[{index}]"
        key, value, effect = taint.get("key", ""), taint.get("value", ""), taint.get("effect", "")
        errors += [invalid(f"{path}.key", key, problem) for problem in names.qualified_name_problems(key)]
        errors += [invalid(f"{path}.value", value, problem) for problem in names.label_value_problems(value)]
        if not effect:
            errors.append(required(f"{path}.effect"))
        elif effect not in EFFECTS:
            errors.append(not_supported(f"{path}.effect", effect, EFFECTS))
        if (key, effect) in seen:
            errors.append(duplicate(path, taint))
        seen.add((key, effect))
    networks = spec.get("podCIDRs") or []
    wrong = [e for i, text in enumerate(networks) for e in validate_network(text, f"spec.podCIDRs[{i}]", known)]
    if not wrong and len(networks) > 1:
        versions = [network.version for text in networks if (network := names.parse_network_leniently(text))]
        if sorted(versions) != [4, 6]:
            detail = "may specify no more than one CIDR for each IP family"
            wrong.append(invalid("spec.podCIDRs", networks, detail))
    addresses = [(a.get("type"), a.get("address")) for a in node["status"].get("addresses") or []]
    twice = [
        duplicate(f"status.addresses[{index}]", {"type": pair[0], "address": pair[1]})
        for index, pair in enumerate(addresses)
        if pair in addresses[:index]
    ]
    return errors + wrong + twice
