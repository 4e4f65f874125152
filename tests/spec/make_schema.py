"""Writes services_app/spec/schema.json: type -> field -> type name, for the kinds served and all they are made of.

    python tests/spec/make_schema.py > services_app/spec/schema.json

Facts only: names and types of API 1.36, from the tables of the official client 36 or 37; both make the same file
(test_schema.py). What these tables do not tell (pointers, patch keys, number widths) stands in services_app/spec/schema.py.
"""

import importlib
import inspect
import json
import re
import sys
from typing import Any

ROOTS = [
    "V1Service",
    "V1Endpoints",
    "V1EndpointSlice",
    "V1Namespace",
    "CoreV1Event",
    "V1Node",
    "V1Pod",
    "V1ObjectMeta",
    "V1DeleteOptions",
    "V1Binding",
    "V1ListMeta",
    "V1Status",
    "EventsV1Event",
    "V1ConfigMap",
    "V1Secret",
    "V1Lease",
    "V1Ingress",
    "V1IngressClass",
    "V1IPAddress",
    "V1ServiceCIDR",
    "V1SelfSubjectReview",
    "V1SelfSubjectAccessReview",
    "V1SelfSubjectRulesReview",
    "V1TokenReview",
    "V1SubjectAccessReview",
    "V1LocalSubjectAccessReview",
]
PLAIN = {"str": "string", "int": "int32", "bool": "bool", "float": "float", "datetime": "time", "object": "any"}
INT64 = {
    "generation", "deletionGracePeriodSeconds", "terminationGracePeriodSeconds", "activeDeadlineSeconds", "runAsUser",
    "runAsGroup", "fsGroup", "supplementalGroups", "tolerationSeconds", "observedGeneration", "expirationSeconds",
    "gracePeriodSeconds", "remainingItemCount", "seconds", "sizeBytes", "rootHash",
}  # fmt: skip
MICROTIME = {
    ("Event", "eventTime"), ("EventSeries", "lastObservedTime"),
    ("EventsEvent", "eventTime"), ("EventsEventSeries", "lastObservedTime"),
    ("LeaseSpec", "acquireTime"), ("LeaseSpec", "renewTime"),
}  # fmt: skip
BYTES = {("ConfigMap", "binaryData"), ("Secret", "data")}
QUANTITIES = {"limits", "requests", "capacity", "allocatable", "overhead", "allocatedResources", "sizeLimit", "divisor"}
PORTS = {("ServicePort", "targetPort"), ("HTTPGetAction", "port"), ("TCPSocketAction", "port")}

# What API 1.37 has beyond 1.36, and what it has no more.
LATER = {
    "ClusterTrustBundleProjection": "user",
    "ConfigMapVolumeSource": "defaultUser",
    "DownwardAPIVolumeFile": "user",
    "DownwardAPIVolumeSource": "defaultUser",
    "EmptyDirVolumeSource": "mode",
    "GRPCAction": "mode",
    "HTTPGetAction": "protocol",
    "KeyToPath": "user",
    "NodeAllocatableResourceClaimStatus": "mapping overhead",
    "NodeSpec": "podPreemptionPolicy",
    "NodeSystemInfo": "runningInUserNamespace",
    "PodCertificateProjection": "user",
    "PodSpec": "evictionResponders",
    "PodStatus": "volumeHealth",
    "ProjectedVolumeSource": "defaultUser",
    "SecretVolumeSource": "defaultUser",
    "ServiceAccountTokenProjection": "user",
    "VolumeMount": "bindMountOptions",
}
GONE = {"NodeAllocatableResourceClaimStatus": {"resources": "{}string!"}}


def short(model: str) -> str:
    if model.startswith(("DiscoveryV1", "EventsV1")):
        return model.replace("V1", "")
    return re.sub(r"^(Core|Storage)?V1", "", model)


def spelled(owner: str, field: str, declared: str) -> str:
    if inner := re.fullmatch(r"[Ll]ist\[(.*)\]", declared):
        return "[]" + spelled(owner, field, inner[1])
    if inner := re.fullmatch(r"[Dd]ict\[str, (.*)\]", declared):
        return "{}" + spelled(owner, field, inner[1])
    if (owner, field) in BYTES:
        return "bytes"
    if (owner, field) in PORTS:
        return "intstr"
    if (owner, field) in MICROTIME:
        return "microtime"
    if field in QUANTITIES and declared == "str":
        return "quantity"
    if declared == "int" and field in INT64:
        return "int64"
    return PLAIN.get(declared) or short(declared)


def is_required(model: Any, attribute: str) -> bool:
    """Whether the API calls a field required. Client 37 keeps that with pydantic, 36 in the setter of a property."""
    if fields := getattr(model, "model_fields", None):
        named = (
            attribute if attribute in fields else f"var_{attribute.lstrip('_')}"
        )  # names that pydantic or Python has
        return bool(fields[named].is_required())
    # The whole phrase: "must not be" alone is in the description of a Pod's overhead, too.
    return "must not be `None`" in inspect.getsource(getattr(model, attribute).fset)


def made() -> str:
    """The text of schema.json."""
    models = importlib.import_module("kubernetes.client.models")
    schema: dict[str, dict[str, str]] = {}
    waiting = list(ROOTS)
    while waiting:
        model = getattr(models, waiting.pop())
        name = short(model.__name__)
        if name in schema:
            continue
        found = dict(GONE.get(name, {}))
        for attribute, declared in model.openapi_types.items():
            field = model.attribute_map[attribute]
            if field in LATER.get(name, "").split():
                continue
            found[field] = spelled(name, field, declared) + ("!" if is_required(model, attribute) else "")
            waiting += [word for word in re.findall(r"\w+", declared) if hasattr(models, word)]
        schema[name] = dict(sorted(found.items()))
    rows = [f"{json.dumps(name)}:{json.dumps(schema[name], separators=(',', ':'))}" for name in sorted(schema)]
    return "{\n" + ",\n".join(rows) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(made())
