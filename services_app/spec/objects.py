"""The life of an object of any kind: decode, prepare, validate. One table, kind -> functions.

Preparing makes a document what Kubernetes would store if it were valid; validating then finds everything wrong with it.
Neither gives out addresses, ports or revisions: the store does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services_app.spec import (
    configmap,
    endpoints,
    endpointslice,
    event,
    ingress,
    ipaddress,
    kube_proxy,
    lease,
    meta,
    namespace,
    node,
    pod,
    secret,
    service,
    servicecidr,
)
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError
from services_app.spec.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    ENDPOINTS,
    EVENT,
    EVENTS_EVENT,
    INGRESS,
    INGRESS_CLASS,
    IP_ADDRESS,
    LEASE,
    NAMESPACE,
    NODE,
    POD,
    SECRET,
    SERVICE,
    SERVICE_CIDR,
    Kind,
)
from services_app.spec.names import parse_network
from services_app.spec.wire import decode, decode_with_warnings, shaped, strict_error

__all__ = [
    "ClusterSettings",
    "decode",
    "decode_with_warnings",
    "prepare_create",
    "prepare_update",
    "shaped",
    "strict_error",
    "validate_create",
    "validate_update",
    "warnings",
]

Document = dict[str, Any]


@dataclass(frozen=True)
class Strategy:
    """What is particular to a kind. The preparing functions change the new document in place."""

    prepare_create: Callable[[Document, ClusterSettings], None]
    prepare_update: Callable[[Document, Document, str, ClusterSettings], None]
    validate_create: Callable[[Document, ClusterSettings], list[FieldError]]
    validate_update: Callable[[Document, Document, str, ClusterSettings], list[FieldError]]
    warnings: Callable[[Document | None, Document], list[str]] = lambda old, new: []


def _prepare_service(old: Document, new: Document, subresource: str, cluster: ClusterSettings) -> None:
    if subresource == "status":
        service.prepare_status_update(old, new)
    else:
        service.prepare_update(old, new, cluster)


def _validate_service(old: Document, new: Document, subresource: str, cluster: ClusterSettings) -> list[FieldError]:
    if subresource == "status":
        return service.validate_status_update(old, new)
    return service.validate_update(old, new, cluster)


STRATEGIES: dict[Kind, Strategy] = {
    SERVICE: Strategy(
        service.prepare_create,
        _prepare_service,
        service.validate_create,
        _validate_service,
        service.warnings,
    ),
    ENDPOINTS: Strategy(
        lambda new, cluster: endpoints.set_defaults(new),
        lambda old, new, subresource, cluster: endpoints.set_defaults(new),
        endpoints.validate_create,
        lambda old, new, subresource, cluster: endpoints.validate_update(old, new, cluster),
        lambda old, new: [endpoints.DEPRECATED],
    ),
    ENDPOINT_SLICE: Strategy(
        lambda new, cluster: endpointslice.prepare_create(new),
        lambda old, new, subresource, cluster: endpointslice.prepare_update(old, new),
        endpointslice.validate_create,
        lambda old, new, subresource, cluster: endpointslice.validate_update(old, new, cluster),
        lambda old, new: endpointslice.warnings(new),
    ),
    NAMESPACE: Strategy(
        lambda new, cluster: namespace.prepare_create(new),
        lambda old, new, subresource, cluster: namespace.prepare_update(old, new, subresource),
        lambda new, cluster: namespace.validate_create(new),
        lambda old, new, subresource, cluster: namespace.validate_update(old, new),
    ),
    POD: Strategy(
        lambda new, cluster: pod.prepare_create(new),
        lambda old, new, subresource, cluster: pod.prepare_update(old, new, subresource),
        pod.validate_create,
        pod.validate_update,
        lambda old, new: [] if old else pod.warnings(new),
    ),
    NODE: Strategy(
        lambda new, cluster: node.prepare_create(new),
        lambda old, new, subresource, cluster: node.prepare_update(old, new, subresource),
        lambda new, cluster: node.validate_create(new),
        lambda old, new, subresource, cluster: node.validate_update(old, new),
        kube_proxy.node_warnings,
    ),
    EVENT: Strategy(
        lambda new, cluster: None,
        lambda old, new, subresource, cluster: None,
        lambda new, cluster: event.validate_create(new),
        lambda old, new, subresource, cluster: event.validate_update(old, new),
    ),
    EVENTS_EVENT: Strategy(
        lambda new, cluster: None,
        lambda old, new, subresource, cluster: None,
        lambda new, cluster: event.validate_create_strictly(new),
        lambda old, new, subresource, cluster: event.validate_update_strictly(old, new),
    ),
    CONFIG_MAP: Strategy(
        lambda new, cluster: None,
        lambda old, new, subresource, cluster: None,
        lambda new, cluster: configmap.validate_create(new),
        lambda old, new, subresource, cluster: configmap.validate_update(old, new),
        lambda old, new: kube_proxy.warnings(new),
    ),
    SECRET: Strategy(
        lambda new, cluster: secret.prepare(new),
        lambda old, new, subresource, cluster: secret.prepare(new),
        lambda new, cluster: secret.validate_create(new),
        lambda old, new, subresource, cluster: secret.validate_update(old, new),
    ),
    LEASE: Strategy(
        lambda new, cluster: lease.prepare(new),
        lambda old, new, subresource, cluster: lease.prepare(new),
        lambda new, cluster: lease.validate_create(new),
        lambda old, new, subresource, cluster: lease.validate_update(old, new),
    ),
    INGRESS: Strategy(
        lambda new, cluster: ingress.prepare_create(new),
        lambda old, new, subresource, cluster: ingress.prepare_update(old, new, subresource),
        lambda new, cluster: ingress.validate_create(new),
        lambda old, new, subresource, cluster: ingress.validate_update(old, new, subresource),
    ),
    INGRESS_CLASS: Strategy(
        lambda new, cluster: ingress.prepare_class_create(new),
        lambda old, new, subresource, cluster: ingress.prepare_class_update(old, new),
        lambda new, cluster: ingress.validate_class_create(new),
        lambda old, new, subresource, cluster: ingress.validate_class_update(old, new),
    ),
    IP_ADDRESS: Strategy(
        lambda new, cluster: ipaddress.prepare(new),
        lambda old, new, subresource, cluster: ipaddress.prepare(new),
        lambda new, cluster: ipaddress.validate_create(new),
        lambda old, new, subresource, cluster: ipaddress.validate_update(old, new),
    ),
    SERVICE_CIDR: Strategy(
        lambda new, cluster: servicecidr.prepare_create(new),
        lambda old, new, subresource, cluster: servicecidr.prepare_update(old, new, subresource),
        lambda new, cluster: servicecidr.validate_create(new),
        lambda old, new, subresource, cluster: servicecidr.validate_update(old, new, subresource),
    ),
}


def copied(value: Any) -> Any:
    """A copy of a JSON value that shares nothing with it; much quicker than `deepcopy`, which looks for cycles."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def prepare_create(
    kind: Kind,
    document: Document,
    *,
    namespace: str,
    now: datetime,
    uid: str,
    cluster: ClusterSettings,
    name_suffix: str = "",
) -> Document:
    """A new object with defaults and server-set metadata; the argument stays as it is.

    Accepts documents that never went through `decode`, too. name_suffix: what a generateName is completed with.
    Raises BadRequest for fields of a wrong type.
    """
    prepared, _ = shaped(kind, copied(document))
    meta.prepare_create(kind, prepared, namespace=namespace, now=now, uid=uid, name_suffix=name_suffix)
    STRATEGIES[kind].prepare_create(prepared, cluster)
    return prepared


def validate_create(kind: Kind, document: Document, cluster: ClusterSettings) -> list[FieldError]:
    """All that is wrong with a prepared new object."""
    return STRATEGIES[kind].validate_create(document, cluster)


def prepare_update(
    kind: Kind, old: Document, new: Document, *, subresource: str = "", cluster: ClusterSettings | None = None
) -> Document:
    """The wanted state as it would be stored; the arguments stay as they are.

    cluster None: the families of the old object are taken for those configured, so a Service is not upgraded to two
    by its policy alone. Raises BadRequest for fields of a wrong type.
    """
    prepared, _ = shaped(kind, copied(new))
    before = copied(old)
    meta.prepare_update(kind, before, prepared)
    STRATEGIES[kind].prepare_update(before, prepared, subresource, cluster or _assumed(old))
    return prepared


def _assumed(old: Document) -> ClusterSettings:
    families = (old.get("spec") or {}).get("ipFamilies") or ["IPv4"]
    networks = (parse_network("0.0.0.0/0" if family == "IPv4" else "::/0") for family in families)
    return ClusterSettings(tuple(network for network in networks if network), range(1, 65536))


def validate_update(
    kind: Kind, old: Document, new: Document, *, subresource: str = "", cluster: ClusterSettings
) -> list[FieldError]:
    """All that is wrong with a prepared new state, or with the way to it from the old."""
    return STRATEGIES[kind].validate_update(old, new, subresource, cluster)


def warnings(kind: Kind, document: Document, old: Document | None = None) -> list[str]:
    """Sentences for the Warning header of a successful write of a prepared document."""
    return STRATEGIES[kind].warnings(old, document)
