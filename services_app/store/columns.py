"""From a document to its row: the model of each kind and the columns that serve constraints, queries and people."""

from datetime import datetime, timedelta
from typing import Any

from services_app import models
from services_app.plan import endpoints
from services_app.plan.routing import canonical_address
from services_app.spec import kinds, servicecidr
from services_app.spec.kinds import Kind

Document = dict[str, Any]

MODELS: dict[str, type[models.ApiObject]] = {
    kinds.NAMESPACE.plural: models.Namespace,
    kinds.SERVICE.plural: models.Service,
    kinds.ENDPOINTS.plural: models.Endpoints,
    kinds.ENDPOINT_SLICE.plural: models.EndpointSlice,
    kinds.POD.plural: models.Pod,
    kinds.NODE.plural: models.Node,
    kinds.EVENT.plural: models.Event,
    kinds.CONFIG_MAP.plural: models.ConfigMap,
    kinds.SECRET.plural: models.Secret,
    kinds.LEASE.plural: models.Lease,
    kinds.INGRESS.plural: models.Ingress,
    kinds.INGRESS_CLASS.plural: models.IngressClass,
    kinds.IP_ADDRESS.plural: models.IPAddress,
    kinds.SERVICE_CIDR.plural: models.ServiceCIDR,
}


def model_of(kind: Kind) -> type[models.ApiObject]:
    return MODELS[kind.plural]


def columns_of(kind: Kind, document: Document) -> dict[str, Any]:
    """The typed columns of a document beside name, revision and text."""
    extract = _EXTRACT.get(kind.plural)
    return extract(document) if extract else {}


def _service(document: Document) -> Document:
    spec = document["spec"]
    address = spec.get("clusterIP")
    selector = spec.get("selector") if endpoints.has_endpoints(document) else None
    return {
        "type": spec.get("type", "ClusterIP"),
        "cluster_ip": address if address and address != "None" else None,
        "selector": selector or None,
        "selector_pair": endpoints.selector_pair(selector),
        "programmed": _is_programmed(document),
    }


def _is_programmed(document: Document) -> bool | None:
    for condition in (document.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Programmed":
            return condition["status"] == "True"
    return None


def _slice(document: Document) -> Document:
    labels = document["metadata"].get("labels") or {}
    return {
        "service_name": labels.get(endpoints.SERVICE_NAME, ""),
        "managed_by": labels.get(endpoints.MANAGED_BY, ""),
    }


def _pod(document: Document) -> Document:
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    gone_at = None
    if metadata.get("deletionTimestamp"):
        # Kubernetes notes the moment the grace period ends.
        gone_at = datetime.fromisoformat(metadata["deletionTimestamp"].replace("Z", "+00:00"))
    return {
        "node_name": spec.get("nodeName") or "",
        "pod_ip": status.get("podIP") or None,
        "ready": endpoints.is_ready(document),
        "endpoint": endpoints.traits(document),
        "gone_at": gone_at,
    }


def _node(document: Document) -> Document:
    return {"address": next(iter(node_addresses(document)), None)}


def node_addresses(document: Document) -> list[str]:
    """A Node's InternalIPs, its main one first; at most one of each family."""
    first: dict[bool, str] = {}
    for entry in (document.get("status") or {}).get("addresses") or ():
        if entry.get("type") == "InternalIP" and (address := canonical_address(entry.get("address") or "")):
            first.setdefault(":" in address, address)
    return [*first.values()]


def _event(document: Document) -> Document:
    involved = document.get("involvedObject") or document.get("regarding") or {}
    return {
        "involved_kind": involved.get("kind") or "",
        "involved_name": involved.get("name") or "",
        "reason": document.get("reason") or "",
        "type": document.get("type") or "Normal",
    }


def _secret(document: Document) -> Document:
    return {"type": document.get("type") or "Opaque"}


def _lease(document: Document) -> Document:
    return {"holder": document["spec"].get("holderIdentity") or ""}


def _ingress(document: Document) -> Document:
    return {"class_name": document["spec"].get("ingressClassName") or ""}


def _ingress_class(document: Document) -> Document:
    return {"controller": document["spec"].get("controller") or ""}


def _ip_address(document: Document) -> Document:
    reference = document["spec"].get("parentRef") or {}
    return {"parent": "/".join(filter(None, (reference.get(key) for key in ("resource", "namespace", "name"))))}


def _service_cidr(document: Document) -> Document:
    return {"cidrs": document["spec"].get("cidrs") or [], "is_ready": servicecidr.is_ready(document)}


_EXTRACT = {
    kinds.SERVICE.plural: _service,
    kinds.ENDPOINT_SLICE.plural: _slice,
    kinds.POD.plural: _pod,
    kinds.NODE.plural: _node,
    kinds.EVENT.plural: _event,
    kinds.SECRET.plural: _secret,
    kinds.LEASE.plural: _lease,
    kinds.INGRESS.plural: _ingress,
    kinds.INGRESS_CLASS.plural: _ingress_class,
    kinds.IP_ADDRESS.plural: _ip_address,
    kinds.SERVICE_CIDR.plural: _service_cidr,
}


def deletion_deadline(now: datetime, grace_s: int) -> datetime:
    return now + timedelta(seconds=grace_s)
