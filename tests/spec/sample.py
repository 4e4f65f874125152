"""Services to judge: created and updated as the store does, with what it would allocate filled in."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from services_app.spec import objects
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError
from services_app.spec.kinds import SERVICE
from services_app.spec.names import Network, parse_network

Document = dict[str, Any]

NOW = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)
UID = "3f1c1e0a-0000-4000-8000-000000000001"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(network for text in texts if (network := parse_network(text)))


SINGLE = ClusterSettings(_networks("10.96.0.0/16"), range(30000, 32768))
DUAL = ClusterSettings(_networks("10.96.0.0/16", "fd00:10:96::/112"), range(30000, 32768))

ADDRESSES = {"IPv4": "10.96.0.50", "IPv6": "fd00:10:96::50"}


def service(name: str = "web", *, metadata: Document | None = None, **spec: Any) -> Document:
    """What a client sends. Port 80 unless ports are given; a value of None leaves the key out."""
    spec = {"ports": [{"port": 80}]} | spec
    kept = {key: value for key, value in spec.items() if value is not None}
    return {"metadata": {"name": name} | (metadata or {}), "spec": kept}


def prepared(document: Document, cluster: ClusterSettings = SINGLE) -> Document:
    """The Service with defaults, before anything is allocated."""
    return objects.prepare_create(SERVICE, document, namespace="shop", now=NOW, uid=UID, cluster=cluster)


def errors_of(document: Document, cluster: ClusterSettings = SINGLE) -> list[FieldError]:
    """What is wrong with a new Service."""
    return objects.validate_create(SERVICE, prepared(document, cluster), cluster)


def stored(document: Document, cluster: ClusterSettings = SINGLE) -> Document:
    """The Service as it stands in the store: valid, with addresses and node ports."""
    made = prepared(document, cluster)
    assert objects.validate_create(SERVICE, made, cluster) == []
    spec = made["spec"]
    made["metadata"]["resourceVersion"] = "7"
    if spec["type"] == "ExternalName":
        return made
    if not spec.get("clusterIPs"):
        spec["clusterIPs"] = [ADDRESSES[family] for family in spec["ipFamilies"]]
        spec["clusterIP"] = spec["clusterIPs"][0]
    if spec["type"] != "ClusterIP" and spec.get("allocateLoadBalancerNodePorts") is not False:
        for index, port in enumerate(spec["ports"]):
            port.setdefault("nodePort", 30100 + index)
    if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        spec.setdefault("healthCheckNodePort", 30900)
    return made


def updated(old: Document, new: Document, cluster: ClusterSettings = SINGLE) -> Document:
    """The wanted state as it would be stored, before anything is allocated."""
    return objects.prepare_update(SERVICE, old, new, cluster=cluster)


def update_errors(old: Document, new: Document, cluster: ClusterSettings = SINGLE) -> list[FieldError]:
    made = updated(old, new, cluster)
    return objects.validate_update(SERVICE, old, made, cluster=cluster)


def changed(document: Document, **spec: Any) -> Document:
    """The same with these fields of the spec; None takes a field away."""
    made = deepcopy(document)
    made["spec"] = {key: value for key, value in (made["spec"] | spec).items() if value is not None}
    return made


def fields_of(errors: list[FieldError]) -> list[tuple[str, str]]:
    """(type, field) of every error, each once, sorted."""
    return sorted({(error.type, error.field) for error in errors})
