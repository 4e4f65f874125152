"""Bodies in Kubernetes' protobuf form, which Go clients send for the kinds they have types for (`kubectl create service`).

Read only: answers are JSON, which every such client accepts. A body is the bytes "k8s\\0" and a runtime.Unknown
message around the object's own. Field numbers: k8s v1.36 staging/src/k8s.io/{api,apimachinery}/**/generated.proto.
"""

from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from services_app.spec import kinds, schema
from services_app.spec.errors import BadRequest, UnsupportedMediaType

Document = dict[str, Any]

PROTOBUF = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# type -> its fields in the order of their numbers from 1; "-" for a number that is not used or not of interest
_NUMBERS = {
    "Condition": "type status observedGeneration lastTransitionTime reason message",
    "ClientIPConfig": "timeoutSeconds",
    "ConfigMap": "metadata data binaryData immutable",
    "DeleteOptions": "gracePeriodSeconds preconditions orphanDependents propagationPolicy dryRun",
    "DiscoveryEndpointPort": "name protocol port appProtocol",
    "Endpoint": "addresses conditions hostname targetRef deprecatedTopology nodeName zone hints",
    "EndpointAddress": "ip targetRef hostname nodeName",
    "EndpointConditions": "ready serving terminating",
    "EndpointHints": "forZones forNodes",
    "EndpointPort": "name port protocol appProtocol",
    "EndpointSlice": "metadata endpoints ports addressType",
    "EndpointSubset": "addresses notReadyAddresses ports",
    "Endpoints": "metadata subsets",
    "Event": "metadata involvedObject reason message source firstTimestamp lastTimestamp count type eventTime series "
    "action related reportingComponent reportingInstance",
    "EventSeries": "count lastObservedTime",
    "EventSource": "component host",
    "EventsEvent": "metadata eventTime series reportingController reportingInstance action reason regarding related note "
    "type deprecatedSource deprecatedFirstTimestamp deprecatedLastTimestamp deprecatedCount",
    "EventsEventSeries": "count lastObservedTime",
    "FieldSelectorAttributes": "rawSelector requirements",
    "FieldSelectorRequirement": "key operator values",
    "ForNode": "name",
    "ForZone": "name",
    "HTTPIngressPath": "path backend pathType",
    "HTTPIngressRuleValue": "paths",
    "Ingress": "metadata spec status",
    "IngressBackend": "- - resource service",
    "IngressClass": "metadata spec",
    "IngressClassParametersReference": "apiGroup kind name scope namespace",
    "IngressClassSpec": "controller parameters",
    "IngressLoadBalancerIngress": "ip hostname - ports",
    "IngressLoadBalancerStatus": "ingress",
    "IngressPortStatus": "port protocol error",
    "IngressRule": "host http",
    "IngressServiceBackend": "name port",
    "IngressSpec": "defaultBackend tls rules ingressClassName",
    "IngressStatus": "loadBalancer",
    "IngressTLS": "hosts secretName",
    "LabelSelectorAttributes": "rawSelector requirements",
    "LabelSelectorRequirement": "key operator values",
    "Lease": "metadata spec",
    "LeaseSpec": "holderIdentity leaseDurationSeconds acquireTime renewTime leaseTransitions strategy preferredHolder",
    "LoadBalancerIngress": "ip hostname ipMode ports",
    "LoadBalancerStatus": "ingress",
    "LocalSubjectAccessReview": "metadata spec status",
    "Namespace": "metadata spec status",
    "NamespaceCondition": "type status - lastTransitionTime reason message",
    "NamespaceSpec": "finalizers",
    "NamespaceStatus": "phase conditions",
    "NonResourceAttributes": "path verb",
    "ObjectMeta": "name generateName namespace selfLink uid resourceVersion generation creationTimestamp "
    "deletionTimestamp deletionGracePeriodSeconds labels annotations ownerReferences finalizers",
    "ObjectReference": "kind namespace name uid apiVersion resourceVersion fieldPath",
    "OwnerReference": "kind - name uid apiVersion controller blockOwnerDeletion",
    "PortStatus": "port protocol error",
    "Preconditions": "uid resourceVersion",
    "ResourceAttributes": "namespace verb group version resource subresource name fieldSelector labelSelector",
    "Secret": "metadata data type stringData immutable",
    "SelfSubjectAccessReview": "metadata spec status",
    "SelfSubjectAccessReviewSpec": "resourceAttributes nonResourceAttributes",
    "SelfSubjectReview": "metadata status",
    "SelfSubjectRulesReview": "metadata spec status",
    "SelfSubjectRulesReviewSpec": "namespace",
    "Service": "metadata spec status",
    "ServiceBackendPort": "name number",
    "ServicePort": "name protocol port targetPort nodePort appProtocol",
    "ServiceSpec": "ports selector clusterIP type externalIPs - sessionAffinity loadBalancerIP "
    "loadBalancerSourceRanges externalName externalTrafficPolicy healthCheckNodePort publishNotReadyAddresses "
    "sessionAffinityConfig - - ipFamilyPolicy clusterIPs ipFamilies allocateLoadBalancerNodePorts loadBalancerClass "
    "internalTrafficPolicy trafficDistribution",
    "ServiceStatus": "loadBalancer conditions",
    "SessionAffinityConfig": "clientIP",
    "SubjectAccessReview": "metadata spec status",
    "SubjectAccessReviewSpec": "resourceAttributes nonResourceAttributes user groups - uid",
    "TokenReview": "metadata spec status",
    "TokenReviewSpec": "token audiences",
    "TypedLocalObjectReference": "apiGroup kind name",
}


def decode(body: bytes) -> Document:
    """The object in a body, as it would be in JSON.

    Raises BadRequest for what is no such body, UnsupportedMediaType for kinds that are taken as JSON only.
    """
    if not body.startswith(_MAGIC):
        raise BadRequest("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = dict(_fields(body[len(_MAGIC) :]))
        about = dict(_fields(envelope.get(1, b"")))
        api_version, kind = about.get(1, b"").decode(), about.get(2, b"").decode()
        served = kinds.by_kind(api_version, kind)
        type_name = schema.root(served) if served is not None else kind
        if type_name not in _NUMBERS:
            raise UnsupportedMediaType(f"{kind} is accepted as application/json and application/yaml only")
        return {"apiVersion": api_version, "kind": kind, **_message(envelope.get(2, b""), type_name)}
    except (ValueError, IndexError, AttributeError, TypeError, OverflowError, RecursionError) as err:
        raise BadRequest(f"cannot read the protobuf message: {err}") from err


def _message(body: bytes, type_name: str) -> Document:
    names = _NUMBERS.get(type_name, "").split()
    known = schema.fields(type_name)
    made: Document = {}
    for number, raw in _fields(body):
        if (type_name, number) == ("IngressRule", 2):
            raw = dict(_fields(raw)).get(1, b"")  # an IngressRuleValue, which JSON does not show
        name = names[number - 1] if number <= len(names) else "-"
        if name not in known:
            continue
        field = known[name]
        if field.is_list:
            made.setdefault(name, []).append(_value(raw, field.element))
        elif field.is_map:
            entry = dict(_fields(raw))
            made.setdefault(name, {})[_text(entry.get(1, b""))] = _value(entry.get(2, b""), field.element)
        else:
            made[name] = _value(raw, field.type)
    return made


def _value(raw: Any, type_name: str) -> Any:
    if type_name == "bool":
        return bool(raw)
    if type_name in ("int32", "int64"):
        return raw - (1 << 64) if raw >= 1 << 63 else raw
    if type_name == "intstr":
        parts = dict(_fields(raw))
        return _text(parts.get(3, b"")) if parts.get(1) else _value(parts.get(2, 0), "int64")
    if type_name in ("time", "microtime"):
        return _time(dict(_fields(raw)), precise=type_name == "microtime")
    if type_name == "string":
        return _text(raw)
    if type_name == "bytes":
        return b64encode(raw).decode()
    return _message(raw, type_name)


def _time(parts: dict[int, Any], *, precise: bool) -> str | None:
    seconds = _value(parts.get(1, 0), "int64")
    if not seconds:
        return None
    at = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{at}.{parts.get(2, 0) // 1000:06d}Z" if precise else f"{at}Z"


def _text(raw: Any) -> str:
    text: str = raw.decode()
    return text


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, or the bytes of a text or message."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(body, at)
            yield key >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if kind == _BYTES:
            size, at = _varint(body, at)
        if size < 0 or at + size > len(body):
            raise ValueError("unexpected end or unknown wire type")
        yield key >> 3, body[at : at + size]
        at += size


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number longer than ten bytes")
