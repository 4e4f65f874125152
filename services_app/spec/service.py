"""Services: defaults, what a change of type keeps or gives up, address families, validation.

Nothing is allocated here. Empty clusterIP, clusterIPs, nodePort and healthCheckNodePort of a prepared Service mean
"give it one"; the store does. Steps of an update, in this order: values the client left out are carried over, singular
and plural fields are brought in line, what the new type does not know is dropped, a second family is dropped on
downgrade, families and policy are filled in.
Source: k8s v1.36 pkg/apis/core/v1/defaults.go, pkg/registry/core/service/{strategy.go,storage/{alloc,storage}.go},
pkg/apis/core/validation, ValidateService and ValidateServiceUpdate.
"""

from collections.abc import Callable
from typing import Any

from services_app.spec import balancing, kube_proxy, meta, names
from services_app.spec.addresses import validate_address, validate_network, validate_reachable
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from services_app.spec.kinds import SERVICE

Document = dict[str, Any]

CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME = "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"
TYPES = (CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT)
PROTOCOLS = ("SCTP", "TCP", "UDP")
FAMILIES = ("IPv4", "IPv6")
SINGLE_STACK, PREFER_DUAL, REQUIRE_DUAL = "SingleStack", "PreferDualStack", "RequireDualStack"
TRAFFIC_POLICIES = ("Cluster", "Local")
TRAFFIC_DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
NONE = "None"
AFFINITY_TIMEOUT_S, AFFINITY_TIMEOUT_MAX_S = 10800, 86400
KUBELET_PORT = 10250
SOURCE_RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"


def is_headless(spec: Document) -> bool:
    ips = spec.get("clusterIPs") or []
    return (len(ips) == 1 and ips[0] == NONE) or spec.get("clusterIP") == NONE


def needs_cluster_ip(spec: Document) -> bool:
    """Whether the type has cluster IPs; a headless Service counts."""
    return spec.get("type") in (CLUSTER_IP, NODE_PORT, LOAD_BALANCER)


def needs_node_port(spec: Document) -> bool:
    if spec.get("type") == NODE_PORT:
        return True
    return spec.get("type") == LOAD_BALANCER and spec.get("allocateLoadBalancerNodePorts") is not False


def may_have_node_port(spec: Document) -> bool:
    return spec.get("type") in (NODE_PORT, LOAD_BALANCER)


def needs_health_port(spec: Document) -> bool:
    return spec.get("type") == LOAD_BALANCER and spec.get("externalTrafficPolicy") == "Local"


def is_externally_accessible(spec: Document) -> bool:
    return spec.get("type") in (NODE_PORT, LOAD_BALANCER) or (
        spec.get("type") == CLUSTER_IP and bool(spec.get("externalIPs"))
    )


def _ports(spec: Document) -> list[Document]:
    return spec.get("ports") or []


def _node_ports(spec: Document) -> set[int]:
    return {port["nodePort"] for port in _ports(spec) if port.get("nodePort")}


# --- defaults


def set_defaults(service: Document) -> None:
    """Fill in what depends on nothing but the Service itself. In place."""
    spec = service.setdefault("spec", {})
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        if client.get("timeoutSeconds") is None:
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_S}}
    spec.setdefault("type", CLUSTER_IP)
    for port in _ports(spec):
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, 0, ""):
            port["targetPort"] = port.get("port", 0)
    if is_externally_accessible(spec):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if needs_cluster_ip(spec):
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] == LOAD_BALANCER:
        spec.setdefault("allocateLoadBalancerNodePorts", True)
        for entry in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
            if entry.get("ip"):
                entry.setdefault("ipMode", "VIP")
    service["status"] = {"loadBalancer": {}} | (service.get("status") or {})


def prepare_create(service: Document, cluster: ClusterSettings) -> None:
    set_defaults(service)
    service["status"] = {"loadBalancer": {}}
    spec = service["spec"]
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    _fill_families(None, spec, cluster)


def prepare_update(old: Document, new: Document, cluster: ClusterSettings) -> None:
    set_defaults(new)
    new["status"] = old.get("status") or {"loadBalancer": {}}
    had, spec = old["spec"], new["spec"]
    _carry_allocated(had, spec)
    _align_cluster_ips(had, spec)
    _carry_families(had, spec)
    if _drop_what_type_lacks(had, spec):
        new["status"] = new["status"] | {"loadBalancer": {}}
    _trim_on_downgrade(had, spec)
    _fill_families(had, spec, cluster)


def prepare_status_update(old: Document, new: Document) -> None:
    new["spec"] = old["spec"]
    set_defaults(new)


def _carry_allocated(had: Document, spec: Document) -> None:
    """Take over addresses and ports that the client left out."""
    if needs_cluster_ip(had) and needs_cluster_ip(spec):
        if not spec.get("clusterIP") and had.get("clusterIP"):
            spec["clusterIP"] = had["clusterIP"]
        if not spec.get("clusterIPs") and spec.get("clusterIP") == had.get("clusterIP") and had.get("clusterIPs"):
            spec["clusterIPs"] = list(had["clusterIPs"])
    if needs_node_port(had) and needs_node_port(spec):
        used = _node_ports(had) & _node_ports(spec)
        by_name = {port.get("name", ""): port.get("nodePort", 0) for port in _ports(had)}
        for port in _ports(spec):
            before = by_name.get(port.get("name", ""), 0)
            if not port.get("nodePort") and before and before not in used:
                port["nodePort"] = before
                used.add(before)
    if needs_health_port(had) and needs_health_port(spec) and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = had.get("healthCheckNodePort", 0)


def _align_cluster_ips(had: Document, spec: Document) -> None:
    """Whichever of clusterIP and clusterIPs the client changed decides the other."""
    single_before, single = had.get("clusterIP", ""), spec.get("clusterIP", "")
    many_before, many = had.get("clusterIPs") or [], spec.get("clusterIPs") or []
    if single != single_before and many == many_before:
        many = [single] if single else []
    elif single == single_before and many != many_before:
        single = many[0] if many else ""
    _set_or_drop(spec, "clusterIP", single)
    _set_or_drop(spec, "clusterIPs", many)


def _set_or_drop(spec: Document, key: str, value: Any) -> None:
    if value:
        spec[key] = value
    else:
        spec.pop(key, None)


def _carry_families(had: Document, spec: Document) -> None:
    if not needs_cluster_ip(had) or not needs_cluster_ip(spec):
        return
    if spec.get("ipFamilyPolicy") is None and had.get("ipFamilyPolicy") is not None:
        spec["ipFamilyPolicy"] = had["ipFamilyPolicy"]
    if not spec.get("ipFamilies") and had.get("ipFamilies"):
        spec["ipFamilies"] = list(had["ipFamilies"])


def _drop_what_type_lacks(had: Document, spec: Document) -> bool:
    """Drop what the new type does not know, unless the client changed it. True when the load balancer is given up."""
    before, now = had.get("type"), spec.get("type")
    if needs_cluster_ip(had) and not needs_cluster_ip(spec):
        if (spec.get("clusterIP"), spec.get("clusterIPs")) == (had.get("clusterIP"), had.get("clusterIPs")):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        for key in ("ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            _drop_if_same(had, spec, key)
    if may_have_node_port(had) and not may_have_node_port(spec) and _node_ports(had) == _node_ports(spec):
        for port in _ports(spec):
            port.pop("nodePort", None)
    if needs_health_port(had) and not needs_health_port(spec):
        _drop_if_same(had, spec, "healthCheckNodePort")
    if is_externally_accessible(had) and not is_externally_accessible(spec):
        _drop_if_same(had, spec, "externalTrafficPolicy")
    if before == LOAD_BALANCER and now != LOAD_BALANCER:
        _drop_if_same(had, spec, "allocateLoadBalancerNodePorts")
        _drop_if_same(had, spec, "loadBalancerClass")
        return True
    return False


def _drop_if_same(had: Document, spec: Document, key: str) -> None:
    if key in spec and spec[key] == had.get(key):
        del spec[key]


def _trim_on_downgrade(had: Document, spec: Document) -> None:
    """From two families to SingleStack: the second address and family go, if the client left them as they were."""
    if had.get("ipFamilyPolicy") not in (PREFER_DUAL, REQUIRE_DUAL) or spec.get("ipFamilyPolicy") != SINGLE_STACK:
        return
    for key in ("clusterIPs", "ipFamilies"):
        if len(spec.get(key) or []) > 1 and spec[key] == had.get(key):
            spec[key] = spec[key][:1]


def _fill_families(had: Document | None, spec: Document, cluster: ClusterSettings) -> None:
    """Fill in ipFamilies and ipFamilyPolicy. Leaves a Service alone whose families or addresses are wrong."""
    if not needs_cluster_ip(spec) or _validate_cluster_ips(spec, ()) or _validate_families(spec, cluster):
        return
    if had is not None and (_keeps_preferring(had, spec) or _gives_up_family(had, spec)):
        return
    families = _implied_families(spec)
    if spec.get("ipFamilyPolicy") is None:
        spec["ipFamilyPolicy"] = REQUIRE_DUAL if _is_selectorless_headless(spec) else SINGLE_STACK
    if not families:
        families = [cluster.families[0]]
    wants_two = spec["ipFamilyPolicy"] == REQUIRE_DUAL or (
        spec["ipFamilyPolicy"] == PREFER_DUAL and (len(cluster.families) > 1 or _is_selectorless_headless(spec))
    )
    if wants_two and len(families) == 1:
        families.append("IPv6" if families[0] == "IPv4" else "IPv4")
    spec["ipFamilies"] = families


def _keeps_preferring(had: Document, spec: Document) -> bool:
    """A PreferDualStack Service that was not touched is neither upgraded nor downgraded when the cluster changes."""
    return (
        spec.get("ipFamilyPolicy") == had.get("ipFamilyPolicy") == PREFER_DUAL
        and spec.get("clusterIPs") == had.get("clusterIPs")
        and spec.get("ipFamilies") == had.get("ipFamilies")
    )


def _gives_up_family(had: Document, spec: Document) -> bool:
    """One family is named where there were two: nothing is added to it, so that validation sees what was asked for."""
    return len(had.get("ipFamilies") or []) > len(spec.get("ipFamilies") or []) == 1


def _is_selectorless_headless(spec: Document) -> bool:
    return is_headless(spec) and not spec.get("selector")


def _implied_families(spec: Document) -> list[str]:
    """The families named, and those of further addresses given."""
    families = list(spec.get("ipFamilies") or [])
    for address in (spec.get("clusterIPs") or [])[len(families) :]:
        if address != NONE:
            families.append(names.family_of(address))
    return families


# --- validation


def validate_create(service: Document, cluster: ClusterSettings) -> list[FieldError]:
    """All errors of a prepared Service."""
    errors = meta.validate(SERVICE, service["metadata"], names.label_problems)
    return errors + _validate_spec(None, service, cluster)


def validate_update(old: Document, new: Document, cluster: ClusterSettings) -> list[FieldError]:
    """All errors of a prepared new state; those of the metadata come three times, as Kubernetes tells them."""
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes
    had, spec = old["spec"], new["spec"]
    if needs_health_port(had) and needs_health_port(spec):
        before, now = had.get("healthCheckNodePort"), spec.get("healthCheckNodePort")
        errors += [forbidden("spec.healthCheckNodePort", "field is immutable")] if before != now else []
    if not _validate_cluster_ips(spec, had.get("clusterIPs") or ()):
        errors += _validate_address_change(had, spec)
        errors += _validate_family_change(had, spec)
    balancer_class = spec.get("loadBalancerClass")
    if had.get("type") == spec.get("type") == LOAD_BALANCER and had.get("loadBalancerClass") != balancer_class:
        errors.append(invalid("spec.loadBalancerClass", balancer_class, "may not change once set"))
    errors += meta.validate(SERVICE, new["metadata"], names.label_problems)
    return errors + _validate_spec(old, new, cluster)


def _validate_spec(old: Document | None, service: Document, cluster: ClusterSettings) -> list[FieldError]:
    spec = service["spec"]
    had: Document = old["spec"] if old else {}
    errors = balancing.validate_service(service)
    if not _ports(spec) and not is_headless(spec) and spec.get("type") != EXTERNAL_NAME:
        errors.append(required("spec.ports"))
    errors += kube_proxy.validate_service(old, service)
    errors += _validate_type(spec)
    errors += _validate_ports(spec)
    errors += meta.validate_labels(spec.get("selector"), "spec.selector")
    errors += _validate_affinity(spec)
    errors += _validate_addresses(had, spec, cluster)
    known = set(had.get("externalIPs") or ())
    for index, address in enumerate(spec.get("externalIPs") or []):
        path = f"spec.externalIPs[{index}]"
        errors += validate_address(address, path, known) or validate_reachable(address, path)
    errors += _validate_node_ports(had, spec, cluster)
    errors += _validate_load_balancer(had, service)
    errors += _validate_traffic(spec)
    return errors


def _validate_type(spec: Document) -> list[FieldError]:
    kind = spec.get("type")
    errors: list[FieldError] = []
    if kind not in TYPES:
        return [not_supported("spec.type", kind, TYPES)]
    if kind == LOAD_BALANCER:
        for index, port in enumerate(_ports(spec)):
            if port.get("port") == KUBELET_PORT:
                detail = f"may not expose port {KUBELET_PORT} externally since it is used by kubelet"
                errors.append(invalid(f"spec.ports[{index}]", KUBELET_PORT, detail))
    if kind in (LOAD_BALANCER, NODE_PORT) and is_headless(spec):
        errors.append(invalid("spec.clusterIPs[0]", NONE, f"may not be set to 'None' for {kind} services"))
    if kind == EXTERNAL_NAME:
        for key in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(key):
                errors.append(forbidden(f"spec.{key}", "may not be set for ExternalName services"))
        name = spec.get("externalName", "").removesuffix(".")
        if name:
            errors += [invalid("spec.externalName", name, problem) for problem in names.subdomain_problems(name)]
        else:
            errors.append(required("spec.externalName"))
    return errors


def _validate_ports(spec: Document) -> list[FieldError]:
    ports = _ports(spec)
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        name = port.get("name", "")
        if name:
            errors += [invalid(f"{path}.name", name, problem) for problem in names.label_problems(name)]
            if name in seen:
                errors.append(duplicate(f"{path}.name", name))
            seen.add(name)
        elif len(ports) > 1:
            errors.append(required(f"{path}.name"))
        number = port.get("port", 0)
        errors += [invalid(f"{path}.port", number, problem) for problem in names.port_number_problems(number)]
        errors += validate_protocol(port.get("protocol", ""), f"{path}.protocol")
        errors += validate_port_or_name(port.get("targetPort", 0), f"{path}.targetPort")
        if port.get("appProtocol") is not None:
            errors += validate_qualified_name(port["appProtocol"], f"{path}.appProtocol")
    return errors


def validate_protocol(protocol: str, path: str) -> list[FieldError]:
    if not protocol:
        return [required(path)]
    return [] if protocol in PROTOCOLS else [not_supported(path, protocol, PROTOCOLS)]


def validate_port_or_name(value: int | str, path: str) -> list[FieldError]:
    problems = names.port_number_problems(value) if isinstance(value, int) else names.port_name_problems(value)
    return [invalid(path, value, problem) for problem in problems]


def validate_qualified_name(text: str, path: str) -> list[FieldError]:
    return [invalid(path, text, problem) for problem in names.qualified_name_problems(text)]


def _validate_affinity(spec: Document) -> list[FieldError]:
    affinity, config = spec.get("sessionAffinity", ""), spec.get("sessionAffinityConfig")
    path = "spec.sessionAffinityConfig"
    if affinity not in ("ClientIP", "None"):
        return [not_supported("spec.sessionAffinity", affinity, ("ClientIP", "None"))]
    if affinity == "None":
        return [forbidden(path, "must not be set when session affinity is None")] if config is not None else []
    timeout_s = ((config or {}).get("clientIP") or {}).get("timeoutSeconds")
    if timeout_s is None:
        return [required(path, "when session affinity type is ClientIP")]
    if not 0 < timeout_s <= AFFINITY_TIMEOUT_MAX_S:
        detail = f"must be greater than 0 and less than {AFFINITY_TIMEOUT_MAX_S}"
        return [invalid(f"{path}.clientIP.timeoutSeconds", timeout_s, detail)]
    return []


def _validate_addresses(had: Document, spec: Document, cluster: ClusterSettings) -> list[FieldError]:
    """Cluster IPs and families: first each for itself, then beside what is configured, then within the ranges."""
    if spec.get("type") == EXTERNAL_NAME:
        return []
    known = had.get("clusterIPs") or ()
    errors = _validate_cluster_ips(spec, known)
    if not errors and needs_cluster_ip(spec) and not (had and _keeps_preferring(had, spec)):
        errors = _validate_families(spec, cluster)
    if errors or is_headless(spec) or not needs_cluster_ip(spec):
        return errors
    for text in spec.get("clusterIPs") or []:
        if text not in known and (problem := _range_problem(text, cluster)):
            errors.append(invalid("spec.clusterIPs", [text], f"failed to allocate IP {text}: {problem}"))
    return errors


def _range_problem(text: str, cluster: ClusterSettings) -> str:
    """Why an address cannot be given out, "" when it can be."""
    address = names.parse_address_leniently(text)
    ranges = [network for network in cluster.service_cidrs if address and network.version == address.version]
    holding = [network for network in ranges if address in network]
    if any(address not in _reserved(network) for network in holding):
        return ""
    if holding:
        return "the network and broadcast address cannot be given out"
    shown = ", ".join(map(str, ranges))
    return f"the provided IP ({text}) is not in the valid range. The range of valid IPs is {shown}"


def _reserved(network: names.Network) -> set[names.Address]:
    """The addresses of a range that nobody gets: its own, and with IPv4 the broadcast address."""
    return {network.network_address, *([network.broadcast_address] if network.version == 4 else [])}


def _validate_cluster_ips(spec: Document, known: Any) -> list[FieldError]:
    """clusterIP, clusterIPs, ipFamilies and ipFamilyPolicy, whatever the cluster is configured for."""
    errors: list[FieldError] = []
    path = "spec.clusterIPs"
    single, many = spec.get("clusterIP", ""), spec.get("clusterIPs") or []
    families = spec.get("ipFamilies") or []
    if not single and many:
        errors.append(invalid(path, many, "must be empty when `clusterIP` is not specified"))
    elif single and not many:
        errors.append(required(path))
    elif single and many[0] != single:
        errors.append(invalid(path, many, "first value must match `clusterIP`"))
    policy = spec.get("ipFamilyPolicy")
    policies = (PREFER_DUAL, REQUIRE_DUAL, SINGLE_STACK)
    if policy is not None and policy not in policies:
        errors.append(not_supported("spec.ipFamilyPolicy", policy, policies))
    for index, family in enumerate(families):
        if family not in FAMILIES:
            errors.append(not_supported(f"spec.ipFamilies[{index}]", family, FAMILIES))
        if family in families[:index]:
            errors.append(duplicate(f"spec.ipFamilies[{index}]", family))
    unreadable = False
    for index, address in enumerate(many):
        if index == 0 and address == NONE:
            if len(many) > 1:
                unreadable = True
                errors.append(invalid(path, many, "'None' must be the first and only value"))
            continue
        wrong = validate_address(address, f"{path}[{index}]", known)
        unreadable = unreadable or bool(wrong)
        errors += wrong
    if len(many) > 2:
        errors.append(invalid(path, many, "may only hold up to 2 values"))
    if unreadable:
        return errors
    if len(many) > 1 and sorted(map(names.family_of, many)) != list(FAMILIES):
        errors.append(invalid(path, many, "may specify no more than one IP for each IP family"))
    if not errors and not is_headless(spec):
        for index, (address, family) in enumerate(zip(many, families, strict=False)):
            if names.family_of(address) != family:
                detail = f"expected an {family} value as indicated by `ipFamilies[{index}]`"
                errors.append(invalid(f"{path}[{index}]", address, detail))
    return errors


def _validate_families(spec: Document, cluster: ClusterSettings) -> list[FieldError]:
    """Families and policy beside what the cluster is configured for."""
    errors: list[FieldError] = []
    policy, many = spec.get("ipFamilyPolicy"), spec.get("clusterIPs") or []
    families = spec.get("ipFamilies") or []
    anything_goes = _is_selectorless_headless(spec)
    if not anything_goes:
        for index, address in enumerate(many):
            family = names.family_of(address)
            if address != NONE and family not in cluster.families:
                errors.append(invalid(f"spec.clusterIPs[{index}]", many, f"{family} is not configured on this cluster"))
        for index, family in enumerate(families):
            if family not in cluster.families:
                errors.append(invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster"))
        if policy == REQUIRE_DUAL and len(cluster.families) < 2 and not errors:
            detail = "this cluster is not configured for dual-stack services"
            errors.append(invalid("spec.ipFamilyPolicy", policy, detail))
    if policy in (None, SINGLE_STACK) and not (anything_goes and policy is None):
        for key, given in (("clusterIPs", many), ("ipFamilies", families)):
            if len(given) > 1:
                detail = f"must be RequireDualStack or PreferDualStack when multiple {key} are specified"
                errors.append(invalid("spec.ipFamilyPolicy", policy, detail))
                break
    return errors


def _validate_address_change(had: Document, spec: Document) -> list[FieldError]:
    if not (needs_cluster_ip(had) and needs_cluster_ip(spec)) or (is_headless(had) and is_headless(spec)):
        return []
    before, now = had.get("clusterIPs") or [], spec.get("clusterIPs") or []
    if len(before) == len(now):
        return [
            invalid(f"spec.clusterIPs[{index}]", now, "may not change once set")
            for index, (was, address) in enumerate(zip(before, now, strict=True))
            if was != address
        ]
    return _validate_first_kept(before, now, "clusterIPs", "clusterIP", spec)


def _validate_family_change(had: Document, spec: Document) -> list[FieldError]:
    if not (needs_cluster_ip(had) and needs_cluster_ip(spec)):
        return []
    if _is_selectorless_headless(had) and _is_selectorless_headless(spec):
        return []
    before, now = had.get("ipFamilies") or [], spec.get("ipFamilies") or []
    if len(before) == len(now):
        return [
            invalid(f"spec.ipFamilies[{index}]", now, "may not change once set")
            for index, (was, family) in enumerate(zip(before, now, strict=True))
            if was != family
        ]
    return _validate_first_kept(before, now, "ipFamilies", "ipFamily", spec)


def _validate_first_kept(
    before: list[str], now: list[str], plural: str, singular: str, spec: Document
) -> list[FieldError]:
    """Lists of different lengths: the first entry is fixed, and giving up the second is for SingleStack alone."""
    errors = []
    if before and not now:
        errors.append(invalid(f"spec.{plural}[0]", now, f"primary {singular} can not be unset"))
    elif before and now[0] != before[0]:
        errors.append(invalid(f"spec.{plural}[0]", now, "may not change once set"))
    if len(now) == 1 and len(before) > 1 and spec.get("ipFamilyPolicy") != SINGLE_STACK:
        detail = f"must be set to 'SingleStack' when releasing the secondary {singular}"
        errors.append(invalid("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), detail))
    return errors


def _validate_node_ports(had: Document, spec: Document, cluster: ClusterSettings) -> list[FieldError]:
    errors: list[FieldError] = []
    ports = _ports(spec)
    if spec.get("type") == CLUSTER_IP:
        for index, port in enumerate(ports):
            if port.get("nodePort"):
                detail = "may not be used when `type` is 'ClusterIP'"
                errors.append(forbidden(f"spec.ports[{index}].nodePort", detail))
    errors += _repeated(ports, "nodePort", lambda index: f"spec.ports[{index}].nodePort")
    errors += _repeated(ports, "port", lambda index: f"spec.ports[{index}]")
    known = _node_ports(had) if may_have_node_port(had) else set()
    if may_have_node_port(spec):
        for index, port in enumerate(ports):
            number = port.get("nodePort")
            if number and number not in known:
                errors += _validate_node_port(number, f"spec.ports[{index}].nodePort", cluster)
    number = spec.get("healthCheckNodePort")
    if number and needs_health_port(spec) and number != had.get("healthCheckNodePort"):
        errors += _validate_node_port(number, "spec.healthCheckNodePort", cluster)
    return errors


def _repeated(ports: list[Document], key: str, path: Callable[[int], str]) -> list[FieldError]:
    """Ports that share a number and a protocol with one before them."""
    errors = []
    seen = set()
    for index, port in enumerate(ports):
        pair = (port.get("protocol"), port.get(key))
        if port.get(key) and pair in seen:
            shown = port[key] if key == "nodePort" else {"protocol": pair[0], "port": pair[1]}
            errors.append(duplicate(path(index), shown))
        seen.add(pair)
    return errors


def _validate_node_port(number: int, path: str, cluster: ClusterSettings) -> list[FieldError]:
    if number in cluster.node_port_range:
        return []
    first, last = cluster.node_port_range[0], cluster.node_port_range[-1]
    detail = f"provided port is not in the valid range. The range of valid ports is {first}-{last}"
    return [invalid(path, number, detail)]


def _validate_load_balancer(had: Document, service: Document) -> list[FieldError]:
    spec = service["spec"]
    is_balancer = spec.get("type") == LOAD_BALANCER
    only_balancer = "may only be used when `type` is 'LoadBalancer'"
    errors: list[FieldError] = []
    ranges = spec.get("loadBalancerSourceRanges") or []
    annotation = (service["metadata"].get("annotations") or {}).get(SOURCE_RANGES_ANNOTATION)
    if ranges:
        if not is_balancer:
            errors.append(forbidden("spec.LoadBalancerSourceRanges", only_balancer))
        known = {text.strip() for text in had.get("loadBalancerSourceRanges") or ()}
        for index, text in enumerate(ranges):
            errors += validate_network(text.strip(), f"spec.LoadBalancerSourceRanges[{index}]", known)
    elif annotation is not None:
        path = f"metadata.annotations[{SOURCE_RANGES_ANNOTATION}]"
        if not is_balancer:
            errors.append(forbidden(path, only_balancer))
        for text in annotation.split(",") if annotation.strip() else ():
            errors += validate_network(text.strip(), path)
    allocates = spec.get("allocateLoadBalancerNodePorts")
    if is_balancer and allocates is None:
        errors.append(required("spec.allocateLoadBalancerNodePorts"))
    if not is_balancer and allocates is not None:
        errors.append(forbidden("spec.allocateLoadBalancerNodePorts", only_balancer))
    balancer_class = spec.get("loadBalancerClass")
    if balancer_class is not None:
        if is_balancer:
            errors += validate_qualified_name(balancer_class, "spec.loadBalancerClass")
        else:
            errors.append(forbidden("spec.loadBalancerClass", only_balancer))
    return errors


def _validate_traffic(spec: Document) -> list[FieldError]:
    errors: list[FieldError] = []
    outside, inside = spec.get("externalTrafficPolicy", ""), spec.get("internalTrafficPolicy")
    if is_externally_accessible(spec):
        if outside not in TRAFFIC_POLICIES:
            errors.append(not_supported("spec.externalTrafficPolicy", outside, TRAFFIC_POLICIES))
    elif outside:
        detail = "may only be set for externally-accessible services"
        errors.append(invalid("spec.externalTrafficPolicy", outside, detail))
    if spec.get("healthCheckNodePort") and not needs_health_port(spec):
        detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        errors.append(invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"], detail))
    if inside is not None and inside not in TRAFFIC_POLICIES:
        errors.append(not_supported("spec.internalTrafficPolicy", inside, TRAFFIC_POLICIES))
    spread = spec.get("trafficDistribution")
    if spread is not None and spread not in TRAFFIC_DISTRIBUTIONS:
        errors.append(not_supported("spec.trafficDistribution", spread, TRAFFIC_DISTRIBUTIONS))
    return errors


def validate_status_update(old: Document, new: Document) -> list[FieldError]:
    changes = meta.validate_update(old["metadata"], new["metadata"])
    errors = changes + changes
    path = "status.loadBalancer.ingress"
    entries = (new["status"].get("loadBalancer") or {}).get("ingress") or []
    known = {e.get("ip") for e in ((old.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []}
    if entries and new["spec"].get("type") != LOAD_BALANCER:
        return [*errors, forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'")]
    for index, entry in enumerate(entries):
        address, mode, host = entry.get("ip", ""), entry.get("ipMode"), entry.get("hostname", "")
        if address:
            errors += validate_address(address, f"{path}[{index}].ip", {ip for ip in known if ip})
        if mode is not None and not address:
            errors.append(forbidden(f"{path}[{index}].ipMode", "may not be specified when `ip` is not set"))
        elif mode is not None and mode not in ("Proxy", "VIP"):
            errors.append(not_supported(f"{path}[{index}].ipMode", mode, ("Proxy", "VIP")))
        if host:
            errors += [invalid(f"{path}[{index}].hostname", host, p) for p in names.subdomain_problems(host)]
            if names.parse_address_leniently(host) is not None:
                errors.append(invalid(f"{path}[{index}].hostname", host, "must be a DNS name, not an IP address"))
    return errors


def warnings(old: Document | None, service: Document) -> list[str]:
    """Sentences for the Warning header of a write."""
    spec, had = service["spec"], (old or {}).get("spec") or {}
    said: list[str] = []
    if spec.get("externalIPs"):
        said.append("spec.externalIPs is deprecated; it lets whoever may write Services intercept traffic")
    if spec.get("externalName") and spec.get("type") != EXTERNAL_NAME:
        said.append('spec.externalName is ignored when spec.type is not "ExternalName"')
    if is_headless(spec):
        if spec.get("loadBalancerIP"):
            said.append("spec.loadBalancerIP is ignored for headless services")
        if spec.get("externalIPs"):
            said.append("spec.externalIPs is ignored for headless services")
        if spec.get("sessionAffinity") not in (None, "None"):
            said.append("spec.SessionAffinity is ignored for headless services")
        if balancing.LOAD_BALANCING in (service["metadata"].get("annotations") or {}):
            said.append(f"metadata.annotations[{balancing.LOAD_BALANCING}] is ignored for headless services")
    fields = [("spec.clusterIPs", "clusterIPs"), ("spec.externalIPs", "externalIPs")]
    for path, key in fields:
        if spec.get(key) != had.get(key):
            said += [s for i, text in enumerate(spec.get(key) or []) if (s := _spelling(f"{path}[{i}]", text))]
    if spec.get("loadBalancerIP") and (s := _spelling("spec.loadBalancerIP", spec["loadBalancerIP"])):
        said.append(s)
    if spec.get("trafficDistribution") == "PreferClose":
        said.append("spec.trafficDistribution: PreferClose is deprecated, use PreferSameZone")
    return said


def _spelling(path: str, text: str) -> str:
    """A sentence about an address that is not in its canonical form."""
    address = names.parse_address(text)
    if address is None or str(address) == text:
        return ""
    return f'{path}: IPv6 address "{text}" should be in RFC 5952 canonical format ("{address}")'
