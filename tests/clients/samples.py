"""One object of each kind that is stored, as a client would send it."""

from copy import deepcopy
from typing import Any

from services_app.spec import kinds
from services_app.spec.kinds import Kind

Document = dict[str, Any]

_BODIES: dict[str, Document] = {
    "v1/Namespace": {},
    "v1/Service": {"spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}},
    "v1/Endpoints": {
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]
    },
    "v1/Pod": {
        "spec": {
            "containers": [
                {"name": "app", "image": "example.org/app", "ports": [{"name": "http", "containerPort": 8080}]}
            ]
        }
    },
    "v1/Node": {"spec": {"podCIDR": "192.0.2.0/24"}},
    "v1/Event": {
        "involvedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
        "reason": "Tested",
        "message": "it works",
        "type": "Normal",
    },
    "events.k8s.io/v1/Event": {
        "eventTime": "2024-05-01T12:00:00.000001Z",
        "action": "Testing",
        "regarding": {"apiVersion": "v1", "kind": "Service", "name": "web"},
        "reason": "Tested",
        "note": "it works",
        "reportingController": "example.org/tester",
        "reportingInstance": "tester-1",
        "type": "Normal",
    },
    "v1/ConfigMap": {"data": {"colour": "blue"}},
    "v1/Secret": {"data": {"password": "czNjcmV0"}},
    "discovery.k8s.io/v1/EndpointSlice": {
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.7"], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    },
    "coordination.k8s.io/v1/Lease": {"spec": {"holderIdentity": "one", "leaseDurationSeconds": 15}},
    "networking.k8s.io/v1/Ingress": {
        "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}},
    },
    "networking.k8s.io/v1/IngressClass": {"spec": {"controller": "example.org/edge"}},
    "networking.k8s.io/v1/IPAddress": {
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "web"}},
    },
    "networking.k8s.io/v1/ServiceCIDR": {"spec": {"cidrs": ["10.112.0.0/24"]}},
}


def key(kind: Kind) -> str:
    return f"{kind.api_version}/{kind.kind}"


def name_for(kind: Kind, word: str) -> str:
    """A name for an object; addresses are named by themselves."""
    return f"10.96.200.{sum(word.encode()) % 250 + 1}" if kind.kind == "IPAddress" else word


def sample(kind: Kind, name: str, namespace: str) -> Document:
    """A valid object. Events of a Service are in its namespace."""
    metadata: Document = {"name": name_for(kind, name), "labels": {"made-by": name}}
    body = deepcopy(_BODIES[key(kind)])
    if kind.namespaced:
        metadata["namespace"] = namespace
        for about in ("involvedObject", "regarding"):
            if about in body:
                body[about] = {**body[about], "namespace": namespace}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}


STORED = {key(kind): kind for kind in kinds.STORED}
