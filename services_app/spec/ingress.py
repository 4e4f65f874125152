"""Ingresses and their classes: stored and judged; nothing here answers requests for them.

Source: k8s v1.36 pkg/apis/networking/validation, pkg/registry/networking/{ingress,ingressclass}/strategy.go.
"""

from typing import Any

from services_app.spec import meta, names
from services_app.spec.addresses import validate_address
from services_app.spec.errors import FieldError, forbidden, invalid, not_supported, required, too_long
from services_app.spec.kinds import INGRESS, INGRESS_CLASS

Document = dict[str, Any]

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
PATH_TYPES = ("Exact", "Prefix", "ImplementationSpecific")
SCOPES = ("Cluster", "Namespace")
CONTROLLER_LENGTH = 250
_NOT_IN_PATHS = ("//", "/./", "/../", "%2f", "%2F")
_NOT_ENDING_PATHS = ("/..", "/.")


# --- Ingress


def default_class(classes: list[Document]) -> str:
    """The class for an Ingress that names none: the newest that is marked as default; "" when none is.

    Source: k8s v1.36 plugin/pkg/admission/network/defaultingressclass.
    """
    marked = [one for one in classes if (one["metadata"].get("annotations") or {}).get(DEFAULT_ANNOTATION) == "true"]
    marked.sort(key=lambda one: one["metadata"]["name"])
    marked.sort(key=lambda one: one["metadata"]["creationTimestamp"], reverse=True)
    return str(marked[0]["metadata"]["name"]) if marked else ""


def wants_class(ingress: Document) -> bool:
    """Whether a new Ingress gets the default class: neither field nor annotation names one."""
    annotations = ingress["metadata"].get("annotations") or {}
    return ingress["spec"].get("ingressClassName") is None and CLASS_ANNOTATION not in annotations


def prepare_create(ingress: Document) -> None:
    ingress["spec"] = ingress.get("spec") or {}
    ingress["status"] = {"loadBalancer": {}}
    meta.raise_generation(ingress)


def prepare_update(old: Document, new: Document, subresource: str) -> None:
    new["spec"] = new.get("spec") or {}
    if subresource == "status":
        new["spec"] = old["spec"]
        new.setdefault("status", {}).setdefault("loadBalancer", {})
        return
    new["status"] = old["status"]
    if new["spec"] != old["spec"]:
        meta.raise_generation(new)


def validate_create(ingress: Document) -> list[FieldError]:
    errors = meta.validate(INGRESS, ingress["metadata"], names.subdomain_problems)
    name = ingress["spec"].get("ingressClassName")
    annotation = (ingress["metadata"].get("annotations") or {}).get(CLASS_ANNOTATION)
    if annotation is not None and name is not None and annotation != name:
        detail = "must match `ingressClassName` when both are specified"
        errors.append(invalid(f"annotations.{CLASS_ANNOTATION}", annotation, detail))
    return errors + _validate(ingress["spec"])


def validate_update(old: Document, new: Document, subresource: str) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    if subresource == "status":
        return changes + changes + _validate_status(old["status"], new["status"])
    return changes + changes + _validate(new["spec"])


def _validate(spec: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    rules, backend, name = spec.get("rules") or [], spec.get("defaultBackend"), spec.get("ingressClassName")
    if not rules and backend is None:
        errors.append(invalid("spec", rules, "either `defaultBackend` or `rules` must be specified"))
    if backend is not None:
        errors += _validate_backend(backend, "spec.defaultBackend")
    for index, rule in enumerate(rules):
        errors += _validate_rule(rule, f"spec.rules[{index}]")
    for index, tls in enumerate(spec.get("tls") or []):
        path = f"spec.tls[{index}]"
        for at, host in enumerate(tls.get("hosts") or []):
            errors += [invalid(f"{path}.hosts[{at}]", host, problem) for problem in _host_problems(host)]
        if secret := tls.get("secretName"):
            errors += [invalid(f"{path}.secretName", secret, problem) for problem in names.subdomain_problems(secret)]
    if name is not None:
        errors += [invalid("spec.ingressClassName", name, problem) for problem in names.subdomain_problems(name)]
    return errors


def _host_problems(host: str) -> list[str]:
    if "*" not in host:
        return names.subdomain_problems(host)
    if not host.startswith("*.") or names.subdomain_problems(host[2:]):
        return [names.WILDCARD_RULE]
    return []


def _validate_rule(rule: Document, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if host := rule.get("host"):
        if names.parse_address_leniently(host) is not None:
            errors.append(invalid(f"{path}.host", host, "must be a DNS name, not an IP address"))
        errors += [invalid(f"{path}.host", host, problem) for problem in _host_problems(host)]
    http = rule.get("http")
    if http is None:
        return errors
    if not http.get("paths"):
        errors.append(required(f"{path}.http.paths"))
    for index, entry in enumerate(http.get("paths") or []):
        errors += _validate_path(entry, f"{path}.http.paths[{index}]")
    return errors


def _validate_path(entry: Document, at: str) -> list[FieldError]:
    errors: list[FieldError] = []
    kind, path = entry.get("pathType"), entry.get("path") or ""
    if not kind:
        errors.append(required(f"{at}.pathType", "pathType must be specified"))
    elif kind not in PATH_TYPES:
        errors.append(not_supported(f"{at}.pathType", kind, PATH_TYPES))
    elif not path.startswith("/") and (path or kind != "ImplementationSpecific"):
        errors.append(invalid(f"{at}.path", path, "must be an absolute path"))
    if kind in ("Exact", "Prefix"):
        errors += [
            invalid(f"{at}.path", path, f"must not contain '{sequence}'")
            for sequence in _NOT_IN_PATHS
            if sequence in path
        ]
        errors += [
            invalid(f"{at}.path", path, f"cannot end with '{ending}'")
            for ending in _NOT_ENDING_PATHS
            if path.endswith(ending)
        ]
    return errors + _validate_backend(entry.get("backend") or {}, f"{at}.backend")


def _validate_backend(backend: Document, path: str) -> list[FieldError]:
    resource, service = backend.get("resource"), backend.get("service")
    if resource is not None and service is not None:
        return [invalid(path, "", "cannot set both resource and service backends")]
    if resource is not None:
        return _validate_reference(resource, f"{path}.resource")
    if service is None:
        return [invalid(path, "", "resource or service backend is required")]
    errors: list[FieldError] = []
    if not service.get("name"):
        errors.append(required(f"{path}.service.name"))
    else:
        problems = names.label_1035_problems(service["name"])
        errors += [invalid(f"{path}.service.name", service["name"], problem) for problem in problems]
    port = service.get("port") or {}
    name, number = port.get("name"), port.get("number")
    if name and number:
        errors.append(invalid(path, "", "cannot set both port name & port number"))
    elif name:
        errors += [invalid(f"{path}.service.port.name", name, problem) for problem in names.port_name_problems(name)]
    elif number:
        problems = names.port_number_problems(number)
        errors += [invalid(f"{path}.service.port.number", number, problem) for problem in problems]
    else:
        errors.append(required(path, "port name or number is required"))
    return errors


def _validate_reference(reference: Document, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    group = reference.get("apiGroup")
    if group:
        errors += [invalid(f"{path}.apiGroup", group, problem) for problem in names.subdomain_problems(group)]
    for key in ("kind", "name"):
        value = reference.get(key) or ""
        if not value:
            errors.append(required(f"{path}.{key}", f"{key} is required"))
        elif value in (".", "..") or "/" in value or "%" in value:
            errors.append(invalid(f"{path}.{key}", value, "may not be '.' or '..', nor contain '/' or '%'"))
    return errors


def _validate_status(old: Document, new: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    known = {entry.get("ip") for entry in old.get("loadBalancer", {}).get("ingress") or [] if entry.get("ip")}
    for index, entry in enumerate(new.get("loadBalancer", {}).get("ingress") or []):
        path = f"status.loadBalancer.ingress[{index}]"
        if ip := entry.get("ip"):
            errors += validate_address(ip, f"{path}.ip", known)
        if host := entry.get("hostname"):
            errors += [invalid(f"{path}.hostname", host, problem) for problem in names.subdomain_problems(host)]
            if names.parse_address_leniently(host) is not None:
                errors.append(invalid(f"{path}.hostname", host, "must be a DNS name, not an IP address"))
    return errors


# --- IngressClass


def prepare_class_create(ingress_class: Document) -> None:
    _set_class_defaults(ingress_class)
    meta.raise_generation(ingress_class)


def prepare_class_update(old: Document, new: Document) -> None:
    _set_class_defaults(new)
    if new["spec"] != old["spec"]:
        meta.raise_generation(new)


def _set_class_defaults(ingress_class: Document) -> None:
    spec = ingress_class["spec"] = ingress_class.get("spec") or {}
    if spec.get("parameters") is not None:
        spec["parameters"].setdefault("scope", "Cluster")


def validate_class_create(ingress_class: Document) -> list[FieldError]:
    errors = meta.validate(INGRESS_CLASS, ingress_class["metadata"], names.subdomain_problems)
    return errors + _validate_class(ingress_class["spec"])


def validate_class_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes + _validate_class(new["spec"])
    if old["spec"].get("controller") != new["spec"].get("controller"):
        errors.append(invalid("spec.controller", new["spec"].get("controller"), "field is immutable"))
    return errors


def _validate_class(spec: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    controller, parameters = spec.get("controller") or "", spec.get("parameters")
    if len(controller.encode()) > CONTROLLER_LENGTH:
        errors.append(too_long("spec.controller", CONTROLLER_LENGTH))
    errors += _validate_domain_path(controller, "spec.controller")
    if parameters is None:
        return errors
    path = "spec.parameters"
    errors += _validate_reference(parameters, path)
    scope, namespace = parameters.get("scope"), parameters.get("namespace")
    if scope not in SCOPES:
        errors.append(not_supported(f"{path}.scope", scope, SCOPES))
    elif scope == "Namespace" and not namespace:
        errors.append(required(f"{path}.namespace", "`parameters.scope` is set to 'Namespace'"))
    elif scope == "Namespace":
        problems = names.label_problems(namespace or "")
        errors += [invalid(f"{path}.namespace", namespace, problem) for problem in problems]
    elif namespace is not None:
        errors.append(forbidden(f"{path}.namespace", "`parameters.scope` is set to 'Cluster'"))
    return errors


def _validate_domain_path(text: str, path: str) -> list[FieldError]:
    """Of a name such as example.org/controller."""
    if not text:
        return [required(path)]
    domain, slash, rest = text.partition("/")
    if not slash or not domain or not rest:
        return [invalid(path, text, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    errors = [invalid(path, domain, problem) for problem in names.subdomain_problems(domain)]
    if not names.is_url_path(rest):
        errors.append(invalid(path, rest, names.URL_PATH_RULE))
    return errors
