"""Writes services_app/spec/schema.json: type -> field -> type name, for the kinds served and all they are made of.

    pip install 'kubernetes==36.*'; python tests/spec/make_schema.py > services_app/spec/schema.json

Facts only: names and types from the tables of the official client of API 1.36. What these tables do not tell (pointers,
patch keys, number widths) stands in services_app/spec/schema.py.
"""

import importlib
import inspect
import json
import re
import sys

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


def short(model: str) -> str:
    if model.startswith(("DiscoveryV1", "EventsV1")):
        return model.replace("V1", "")
    return re.sub(r"^(Core|Storage)?V1", "", model)


def spelled(owner: str, field: str, declared: str) -> str:
    if inner := re.fullmatch(r"list\[(.*)\]", declared):
        return "[]" + spelled(owner, field, inner[1])
    if inner := re.fullmatch(r"dict\[str, (.*)\]", declared):
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


def main() -> None:
    models = importlib.import_module("kubernetes.client.models")
    schema: dict[str, dict[str, str]] = {}
    waiting = list(ROOTS)
    while waiting:
        model = getattr(models, waiting.pop())
        name = short(model.__name__)
        if name in schema:
            continue
        schema[name] = {}
        for attribute, declared in sorted(model.openapi_types.items(), key=lambda item: model.attribute_map[item[0]]):
            field = model.attribute_map[attribute]
            required = "must not be" in inspect.getsource(getattr(model, attribute).fset)
            schema[name][field] = spelled(name, field, declared) + ("!" if required else "")
            waiting += [word for word in re.findall(r"\w+", declared) if hasattr(models, word)]
    rows = [f"{json.dumps(name)}:{json.dumps(schema[name], separators=(',', ':'))}" for name in sorted(schema)]
    sys.stdout.write("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
