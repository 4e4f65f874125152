"""Pods: defaults, what may change, validation of what Timonel reads or shows.

A Pod is a record of something that runs already. Of a PodSpec's many rules those are kept that concern its name, place,
addresses, ports, probes and restarts; volumes, security and scheduling are stored as they were sent, typed.
Source: k8s v1.36 pkg/apis/core/v1/{defaults,conversion}.go, pkg/registry/core/pod/strategy.go, pkg/apis/core/validation,
ValidatePodCreate, ValidatePodUpdate and ValidatePodStatusUpdate; plugin/pkg/admission/{defaulttolerationseconds,priority}.
"""

import re
from copy import deepcopy
from datetime import datetime
from typing import Any

from services_app.spec import balancing, meta, names
from services_app.spec.addresses import validate_address, validate_destination
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from services_app.spec.kinds import POD
from services_app.spec.service import validate_port_or_name, validate_protocol

Document = dict[str, Any]

POD_IP = "timonel.io/pod-ip"  # annotation: where a Pod answers, one address or one of each family with a comma between
CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
RESTART_POLICIES = ("Always", "Never", "OnFailure")
DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")
_NOT_READY_S = 300


# --- defaults


def set_defaults(pod: Document) -> None:
    spec = pod.setdefault("spec", {})
    spec.setdefault("containers", None)
    for key in CONTAINER_LISTS:
        for container in spec.get(key) or []:
            _set_container_defaults(container, bool(spec.get("hostNetwork")))
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("enableServiceLinks", True)
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for volume in spec.get("volumes") or []:
        if set(volume) <= {"name"}:
            volume["emptyDir"] = {}
        for source in ("configMap", "downwardAPI", "projected", "secret"):
            if volume.get(source) is not None:
                volume[source].setdefault("defaultMode", 0o644)
        if volume.get("hostPath") is not None:
            volume["hostPath"].setdefault("type", "")


def _set_container_defaults(container: Document, shares_host: bool) -> None:
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
        if shares_host and not port.get("hostPort") and port.get("containerPort"):
            port["hostPort"] = port["containerPort"]
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")
    resources = container.setdefault("resources", {})
    if resources.get("limits"):
        resources["requests"] = resources["limits"] | (resources.get("requests") or {})
    for key in PROBES:
        probe = container.get(key)
        if probe is None:
            continue
        _set_handler_defaults(probe)
        for field, value in (
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ):
            probe.setdefault(field, value)
    for handler in (container.get("lifecycle") or {}).values():
        if isinstance(handler, dict):
            _set_handler_defaults(handler)
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("imagePullPolicy", "Always" if _is_latest(container.get("image", "")) else "IfNotPresent")


def _set_handler_defaults(handler: Document) -> None:
    request = handler.get("httpGet")
    if request is not None:
        request.setdefault("path", "/")
        request.setdefault("scheme", "HTTP")
    if handler.get("grpc") is not None:
        handler["grpc"].setdefault("service", "")


def _is_latest(image: str) -> bool:
    if "@" in image:
        return False
    tag = re.search(r":([^/:]+)$", image)
    return tag is None or tag[1] == "latest"


def _quality(spec: Document) -> str:
    """The quality of service class: which resources are asked for and bounded."""
    requests: dict[str, set[str]] = {}
    bounded = True
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        for name, amount in [*(resources.get("requests") or {}).items(), *limits.items()]:
            if name in ("cpu", "memory") and amount not in ("0", 0):
                requests.setdefault(name, set()).add(amount)
        if not {"cpu", "memory"} <= set(limits) or limits != (resources.get("requests") or limits):
            bounded = False
    if not requests:
        return "BestEffort"
    return "Guaranteed" if bounded else "Burstable"


def _align_ips(status: Document) -> None:
    """podIP leads podIPs, hostIP hostIPs: where they differ the singular one is right."""
    for single, many in (("podIP", "podIPs"), ("hostIP", "hostIPs")):
        listed = status.get(many) or []
        if status.get(single):
            if not listed or listed[0].get("ip") != status[single]:
                status[many] = [{"ip": status[single]}]
        elif listed:
            status[single] = listed[0].get("ip", "")


def prepare_create(pod: Document) -> None:
    set_defaults(pod)
    spec = pod["spec"]
    spec["tolerations"] = _with_default_tolerations(spec.get("tolerations") or [])
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    pod["status"] = {"phase": "Pending", "qosClass": _quality(spec)}
    meta.raise_generation(pod)


def _with_default_tolerations(tolerations: list[Document]) -> list[Document]:
    added = []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(t.get("key", "") in ("", key) and t.get("effect", "") in ("", "NoExecute") for t in tolerations):
            added.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _NOT_READY_S})
    return tolerations + added


def prepare_update(old: Document, new: Document, subresource: str) -> None:
    if subresource == "status":
        new["spec"] = old["spec"]
        meta.keep_or_drop(old["metadata"], new["metadata"], "ownerReferences")
        status = new.setdefault("status", {})
        status["qosClass"] = old["status"].get("qosClass", "BestEffort")
        status.setdefault("phase", "Pending")
        _align_ips(status)
        return
    if subresource == "binding":  # made by `bound`
        return
    set_defaults(new)
    # What admission gives a new Pod it gives again to one that comes without: a manifest can be sent a second time.
    spec = new["spec"]
    spec["tolerations"] = _with_default_tolerations(spec.get("tolerations") or [])
    for key in ("priority", "preemptionPolicy"):
        if spec.get(key) is None and old["spec"].get(key) is not None:
            spec[key] = old["spec"][key]
    new["status"] = old["status"]
    if new["spec"] != old["spec"]:
        meta.raise_generation(new)


def bound(pod: Document, node_name: str, now: datetime) -> Document:
    """The Pod as the binding subresource leaves it: on a node, scheduled."""
    done = deepcopy(pod)
    done["spec"]["nodeName"] = node_name
    condition = {
        "type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": meta.timestamp(now),
    }  # fmt: skip
    others = [c for c in done["status"].get("conditions") or [] if c.get("type") != "PodScheduled"]
    done["status"]["conditions"] = [*others, condition]
    return done


def validate_binding(binding: Document) -> list[FieldError]:
    """All that is wrong with what names a Pod's Node."""
    target = binding.get("target") or {}
    errors = []
    if target.get("kind", "") not in ("", "Node"):
        errors.append(not_supported("target.kind", target["kind"], ("Node", "<empty>")))
    if not target.get("name"):
        errors.append(required("target.name"))
    return errors


# --- validation


def annotated_addresses(pod: Document) -> list[str]:
    """The addresses the Pod's annotation gives, none without it."""
    text = (pod["metadata"].get("annotations") or {}).get(POD_IP) or ""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def validate_create(pod: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors = meta.validate(POD, pod["metadata"], names.subdomain_problems)
    errors += _validate_annotation([], pod, cluster) + balancing.validate_pod(None, pod)
    return errors + _validate_spec(pod["spec"])


def validate_update(old: Document, new: Document, subresource: str, cluster: ClusterSettings) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes + _validate_annotation(annotated_addresses(old), new, cluster)
    errors += balancing.validate_pod(old, new)
    if subresource == "status":
        return errors + _validate_status(old, new, cluster)
    if subresource == "binding":
        return errors + _validate_spec(new["spec"])
    deadline, before = new["spec"].get("activeDeadlineSeconds"), old["spec"].get("activeDeadlineSeconds")
    if before is not None and deadline is None:
        errors.append(
            invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")
        )
    if before is not None and deadline is not None and deadline > before:
        detail = "must be less than or equal to previous value"
        errors.append(invalid("spec.activeDeadlineSeconds", deadline, detail))
    before_all, after_all = ([*map(_without_seconds, pod["spec"].get("tolerations") or ())] for pod in (old, new))
    if any(toleration not in after_all for toleration in before_all):
        detail = "existing toleration can not be modified except its tolerationSeconds"
        errors.append(forbidden("spec.tolerations", detail))
    if _fixed(old["spec"]) != _fixed(new["spec"]):
        errors.append(
            forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`, "
                "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to "
                "existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
                "previously negative)",
            )
        )
        return errors
    return errors + _validate_spec(new["spec"])


def _without_seconds(toleration: Document) -> Document:
    return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}


def _fixed(spec: Document) -> Document:
    """The part of a spec that never changes."""
    fixed = {k: v for k, v in spec.items() if k not in ("activeDeadlineSeconds", "tolerations")}
    for key in ("containers", "initContainers"):
        if fixed.get(key):
            fixed[key] = [{k: v for k, v in container.items() if k != "image"} for container in fixed[key]]
    return fixed


def _validate_spec(spec: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    if not spec.get("containers"):
        errors.append(required("spec.containers"))
    seen: set[str] = set()
    for key in CONTAINER_LISTS:
        for index, container in enumerate(spec.get(key) or []):
            errors += _validate_container(container, f"spec.{key}[{index}]", seen, key)
    if spec.get("restartPolicy") not in RESTART_POLICIES:
        errors.append(not_supported("spec.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES))
    if spec.get("dnsPolicy") not in DNS_POLICIES:
        errors.append(not_supported("spec.dnsPolicy", spec.get("dnsPolicy"), DNS_POLICIES))
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        value = spec["terminationGracePeriodSeconds"]
        errors.append(invalid("spec.terminationGracePeriodSeconds", value, "must be greater than or equal to 0"))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        detail = "must be between 1 and 2147483647, inclusive"
        errors.append(invalid("spec.activeDeadlineSeconds", deadline, detail))
    for key in ("hostname", "subdomain"):
        if spec.get(key):
            errors += [invalid(f"spec.{key}", spec[key], problem) for problem in names.label_problems(spec[key])]
    for key in ("nodeName", "serviceAccountName"):
        if spec.get(key):
            errors += [invalid(f"spec.{key}", spec[key], problem) for problem in names.subdomain_problems(spec[key])]
    errors += meta.validate_labels(spec.get("nodeSelector"), "spec.nodeSelector")
    for index, alias in enumerate(spec.get("hostAliases") or []):
        errors += validate_address(alias.get("ip", ""), f"spec.hostAliases[{index}].ip")
        for host in alias.get("hostnames") or []:
            path = f"spec.hostAliases[{index}].hostnames"
            errors += [invalid(path, host, problem) for problem in names.subdomain_problems(host)]
    return errors + _validate_volumes(spec)


def _validate_volumes(spec: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or []):
        name = volume.get("name", "")
        path = f"spec.volumes[{index}].name"
        if not name:
            errors.append(required(path))
        else:
            errors += [invalid(path, name, problem) for problem in names.label_problems(name)]
        if name in seen:
            errors.append(duplicate(path, name))
        seen.add(name)
    for key in CONTAINER_LISTS:
        for index, container in enumerate(spec.get(key) or []):
            for at, mount in enumerate(container.get("volumeMounts") or []):
                path = f"spec.{key}[{index}].volumeMounts[{at}]"
                if not mount.get("mountPath"):
                    errors.append(required(f"{path}.mountPath"))
                if not mount.get("name"):
                    errors.append(required(f"{path}.name"))
                elif mount["name"] not in seen:
                    errors.append(FieldError("NotFound", f"{path}.name", mount["name"]))
    return errors


def _validate_container(container: Document, path: str, seen: set[str], key: str) -> list[FieldError]:
    errors: list[FieldError] = []
    name, image = container.get("name", ""), container.get("image", "")
    if not name:
        errors.append(required(f"{path}.name"))
    else:
        errors += [invalid(f"{path}.name", name, problem) for problem in names.label_problems(name)]
        if name in seen:
            errors.append(duplicate(f"{path}.name", name))
        seen.add(name)
    if not image:
        errors.append(required(f"{path}.image"))
    elif image != image.strip():
        errors.append(invalid(f"{path}.image", image, "must not have leading or trailing whitespace"))
    errors += _validate_container_ports(container.get("ports") or [], f"{path}.ports")
    for index, variable in enumerate(container.get("env") or []):
        variable_name = variable.get("name", "")
        if not variable_name:
            errors.append(required(f"{path}.env[{index}].name"))
    for probe in PROBES:
        if container.get(probe) is not None:
            errors += _validate_probe(container[probe], f"{path}.{probe}", probe)
    if container.get("imagePullPolicy") not in PULL_POLICIES:
        errors.append(not_supported(f"{path}.imagePullPolicy", container.get("imagePullPolicy"), PULL_POLICIES))
    policies = ("FallbackToLogsOnError", "File")
    if container.get("terminationMessagePolicy") not in policies:
        value = container.get("terminationMessagePolicy")
        errors.append(not_supported(f"{path}.terminationMessagePolicy", value, policies))
    if container.get("restartPolicy") is not None and container["restartPolicy"] not in RESTART_POLICIES:
        errors.append(not_supported(f"{path}.restartPolicy", container["restartPolicy"], RESTART_POLICIES))
    return errors


def _validate_container_ports(ports: list[Document], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{path}[{index}]"
        name, number = port.get("name", ""), port.get("containerPort", 0)
        if name:
            problems = names.port_name_problems(name)
            errors += [invalid(f"{at}.name", name, problem) for problem in problems]
            if not problems and name in seen:
                errors.append(duplicate(f"{at}.name", name))
            seen.add(name)
        if not number:
            errors.append(required(f"{at}.containerPort"))
        else:
            errors += [invalid(f"{at}.containerPort", number, p) for p in names.port_number_problems(number)]
        if port.get("hostPort"):
            errors += [
                invalid(f"{at}.hostPort", port["hostPort"], p) for p in names.port_number_problems(port["hostPort"])
            ]
        errors += validate_protocol(port.get("protocol", ""), f"{at}.protocol")
    return errors


def _validate_probe(probe: Document, path: str, kind: str) -> list[FieldError]:
    errors: list[FieldError] = []
    handlers = [key for key in HANDLERS if probe.get(key) is not None]
    if not handlers:
        errors.append(required(path, "must specify a handler type"))
    for key in handlers[1:]:
        errors.append(forbidden(f"{path}.{key}", "may not specify more than 1 handler type"))
    for key in handlers[:1]:
        errors += _validate_handler(key, probe[key], f"{path}.{key}")
    for key in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        if probe.get(key, 0) < 0:
            errors.append(invalid(f"{path}.{key}", probe[key], "must be greater than or equal to 0"))
    if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        errors.append(invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1"))
    return errors


def _validate_handler(key: str, handler: Document, path: str) -> list[FieldError]:
    if key == "exec":
        return [] if handler.get("command") else [required(f"{path}.command")]
    errors = validate_port_or_name(handler.get("port", 0), f"{path}.port")
    if key == "httpGet":
        if not handler.get("path"):
            errors.append(required(f"{path}.path"))
        if handler.get("scheme") not in ("HTTP", "HTTPS"):
            errors.append(not_supported(f"{path}.scheme", handler.get("scheme"), ("HTTP", "HTTPS")))
    return errors


def _validate_annotation(known: list[str], pod: Document, cluster: ClusterSettings) -> list[FieldError]:
    path = f"metadata.annotations[{POD_IP}]"
    given = annotated_addresses(pod)
    if given == known:
        return []
    errors = [e for text in given for e in validate_address(text, path) or validate_destination(text, path, cluster)]
    if not errors and len({names.family_of(text) for text in given}) < len(given):
        errors.append(invalid(path, ",".join(given), "may specify no more than one IP for each IP family"))
    return errors


def _validate_status(old: Document, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors: list[FieldError] = []
    for key in ("podIPs", "hostIPs"):
        path = f"status.{key}"
        given = [entry.get("ip", "") for entry in new["status"].get(key) or []]
        known = [entry.get("ip", "") for entry in old["status"].get(key) or []]
        wrong = [error for i, ip in enumerate(given) for error in validate_address(ip, f"{path}[{i}]", known)]
        if not wrong and key == "podIPs":
            for index, ip in enumerate(given):
                wrong += [] if ip in known else validate_destination(ip, f"{path}[{index}]", cluster)
        if not wrong and len(given) > 1 and sorted(map(names.family_of, given)) != ["IPv4", "IPv6"]:
            wrong.append(invalid(path, given, "may specify no more than one IP for each IP family"))
        errors += wrong
    phases = ("Failed", "Pending", "Running", "Succeeded", "Unknown")
    if new["status"].get("phase") not in phases:
        errors.append(not_supported("status.phase", new["status"].get("phase"), phases))
    return errors


def warnings(pod: Document) -> list[str]:
    """Sentences for the Warning header of a write."""
    name = pod["metadata"].get("name", "")
    if "." in name:
        return [
            f"metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; "
            f"a DNS label is recommended: [must not contain dots: {name}]"
        ]
    return []
