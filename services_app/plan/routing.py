"""Where a Service's traffic goes and which names it has: from documents to routes and records.

Pure, and without any word of nftables or Knot: `render` spells what is decided here.
Rules: k8s v1.36 pkg/proxy (endpointslicecache.go, topology.go) and the Kubernetes DNS specification 1.1.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

from services_app.spec import balancing

Document = dict[str, Any]
Network = IPv4Network | IPv6Network

CLUSTER, LOCAL = "Cluster", "Local"  # traffic policies
SERVICE_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
MAX_NAME_LENGTH, MAX_LABEL_LENGTH = 254, 63  # with the final dot


@dataclass(frozen=True, order=True)
class Backend:
    """One endpoint of one port: address and number, the Node it is on ("" when unknown), its share of new connections."""

    address: str
    port: int
    node: str = ""
    weight: int = balancing.DEFAULT_WEIGHT


@dataclass(frozen=True)
class Group:
    """The endpoints that traffic under the Cluster policy may reach, in the order of their slots.

    nodes: Node -> those that it prefers; zones: zone -> those that Nodes there prefer which are not in `nodes`; never
    empty. backends: what every other Node takes. kept: those of weight 0, which keep the connections they have.
    """

    id: int
    backends: tuple[Backend, ...]
    nodes: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)
    zones: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)
    kept: tuple[Backend, ...] = ()


@dataclass(frozen=True)
class LocalGroup:
    """The endpoints that traffic under a Local policy may reach.

    nodes: Node -> those on it, never empty; kept: Node -> those of weight 0 on it.
    """

    id: int
    nodes: Mapping[str, tuple[Backend, ...]]
    kept: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """One Service port in one address family: the addresses it is reached by, and where its traffic goes.

    external_ips: externalIPs and load balancers' addresses that everybody may use. restricted_ips: load balancers'
    addresses that only clients in source_ranges (networks, none in another) may use. is_internal_local: by the cluster
    IP only endpoints on the same node; is_external_local: by the other addresses. cluster is None when no traffic may
    go everywhere, local when none must stay. has_endpoints: anywhere; without any, traffic is refused, with one that it
    may not reach, dropped. affinity_s: how long a client keeps its endpoint, None for no affinity. is_by_source_hash:
    the client's address decides on the endpoint.
    """

    version: int
    protocol: str
    port: int
    cluster_ip: str
    external_ips: tuple[str, ...]
    restricted_ips: tuple[str, ...]
    source_ranges: tuple[str, ...]
    node_port: int | None
    is_internal_local: bool
    is_external_local: bool
    cluster: Group | None
    local: LocalGroup | None
    has_endpoints: bool
    affinity_s: int | None
    is_by_source_hash: bool = False

    @property
    def is_external(self) -> bool:
        return bool(self.external_ips or self.restricted_ips or self.node_port)


@dataclass(frozen=True)
class HealthCheck:
    """What load balancers may ask every node. endpoints: Node -> how many ready ones are on it, those with any."""

    port: int
    endpoints: Mapping[str, int]


@dataclass(frozen=True, order=True)
class Record:
    """One DNS record; names end with a dot."""

    name: str
    type: str
    data: str


# (port, policy) -> group id; port as `group_port` writes it
Groups = Mapping[tuple[str, str], int]
# (address, port, "forNodes" or "forZones") -> the Nodes or zones an endpoint is meant for
_Hints = Mapping[tuple[str, int, str], Set[str]]
_HINTS = ("forNodes", "forZones")


def group_port(port: Document) -> str:
    """How a Service port is known in `EndpointGroup.port`."""
    return f"{port.get('protocol', 'TCP')}/{port['port']}"


def groups_wanted(service: Document) -> set[tuple[str, str]]:
    """(port, policy) of every group a Service needs: one a port, and one more where a policy is Local."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") == "None":
        return set()
    has_local = LOCAL in (spec.get("internalTrafficPolicy"), spec.get("externalTrafficPolicy"))
    policies = (CLUSTER, LOCAL) if has_local else (CLUSTER,)
    return {(group_port(port), policy) for port in spec.get("ports") or () for policy in policies}


def plan_routes(service: Document, slices: Iterable[Document], groups: Groups) -> tuple[Route, ...]:
    """The routes of a Service: its ports in the order of the spec, each in every family it has a cluster IP of.

    None for headless and ExternalName. slices: every EndpointSlice that names the Service. groups: an id for each of
    `groups_wanted`.
    """
    spec = service["spec"]
    cluster_ips = tuple(spec.get("clusterIPs") or ())
    if spec.get("type") == "ExternalName" or not cluster_ips or "None" in cluster_ips:
        return ()
    if SERVICE_PROXY_NAME in (service["metadata"].get("labels") or {}):
        return ()  # somebody else's proxy serves it
    slices = list(slices)
    families = [_Addresses.of(service, canonical_address(text) or text) for text in cluster_ips]
    return tuple(
        _route(service, port, addresses, slices, groups) for port in spec.get("ports") or () for addresses in families
    )


@dataclass(frozen=True)
class _Addresses:
    """What a Service is reached by in one address family; see Route."""

    version: int
    cluster_ip: str
    external_ips: tuple[str, ...]
    restricted_ips: tuple[str, ...]
    source_ranges: tuple[str, ...]

    @classmethod
    def of(cls, service: Document, cluster_ip: str) -> "_Addresses":
        version = 6 if ":" in cluster_ip else 4
        external = _of_version(service["spec"].get("externalIPs") or (), version)
        balancers = _of_version(_balancer_addresses(service), version)
        ranges = _source_ranges(service["spec"], version)
        restricted = set() if ranges is None else balancers
        return cls(
            version,
            cluster_ip,
            tuple(sorted((external | balancers) - restricted)),
            tuple(sorted(restricted)),
            ranges or (),
        )


def _of_version(texts: Iterable[str], version: int) -> set[str]:
    addresses = {canonical_address(text) for text in texts}
    return {text for text in addresses if text is not None and (":" in text) == (version == 6)}


def _source_ranges(spec: Document, version: int) -> tuple[str, ...] | None:
    """The networks a load balancer's clients may be in, none in another; None: they may be anywhere.

    As k8s v1.36 pkg/proxy does: ranges of one family alone leave the other open. What is no network lets nobody in.
    """
    texts = [text.strip() for text in spec.get("loadBalancerSourceRanges") or ()]
    of_family = [text for text in texts if (":" in text) == (version == 6)]
    networks = [network for text in of_family if (network := _network(text)) is not None]
    if not of_family or any(network.prefixlen == 0 for network in networks):
        return None
    return tuple(map(str, collapse_addresses(networks)))  # type: ignore[type-var]  # of one version


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _balancer_addresses(service: Document) -> list[str]:
    """The load balancers' addresses that packets carry to the node (not of those that end the connection: Proxy)."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [entry["ip"] for entry in ingress if entry.get("ip") and entry.get("ipMode") != "Proxy"]


def _route(
    service: Document,
    port: Document,
    addresses: _Addresses,
    slices: Iterable[Document],
    groups: Groups,
) -> Route:
    """Which endpoints each policy takes follows k8s v1.36 pkg/proxy/topology.go, CategorizeEndpoints."""
    spec = service["spec"]
    ready, draining, kept, hints = _endpoints(port, slices, addresses.version)
    node_port = port.get("nodePort") or None
    is_external = bool(node_port or addresses.external_ips or addresses.restricted_ips)
    is_internal_local = spec.get("internalTrafficPolicy") == LOCAL
    is_external_local = is_external and spec.get("externalTrafficPolicy") == LOCAL
    cluster = local = None
    # Also where the external policy is Local: clients on the node reach every endpoint by an external address.
    if not is_internal_local or is_external:
        nodes, zones = (_hinted(ready, hints, key) if hints else {} for key in _HINTS)
        cluster = Group(groups[group_port(port), CLUSTER], ready or draining, nodes, zones, kept)
    if is_internal_local or is_external_local:
        on_nodes = {**by_node(draining), **by_node(ready)}
        local = LocalGroup(groups[group_port(port), LOCAL], on_nodes, by_node(kept))
    affinity = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return Route(
        version=addresses.version,
        protocol=port["protocol"].lower(),
        port=port["port"],
        cluster_ip=addresses.cluster_ip,
        external_ips=addresses.external_ips,
        restricted_ips=addresses.restricted_ips,
        source_ranges=addresses.source_ranges,
        node_port=node_port,
        is_internal_local=is_internal_local,
        is_external_local=is_external_local,
        cluster=cluster,
        local=local,
        has_endpoints=bool(ready or draining),
        affinity_s=affinity.get("timeoutSeconds", 10800) if spec.get("sessionAffinity") == "ClientIP" else None,
        is_by_source_hash=balancing.is_by_source_hash(service),
    )


def plan_health_check(service: Document, slices: Iterable[Document]) -> HealthCheck | None:
    """The Service's health check, None when it has none.

    An endpoint counts once for all ports, in the Service's first family, and not while it ends: load balancers are to
    send nothing new to a node whose endpoints go away (KEP-1669).
    """
    spec = service["spec"]
    number, cluster_ip = spec.get("healthCheckNodePort"), spec.get("clusterIP")
    if not number or not cluster_ip or SERVICE_PROXY_NAME in (service["metadata"].get("labels") or {}):
        return None
    slices, version = list(slices), 6 if ":" in cluster_ip else 4
    found: dict[str, set[str]] = {}
    for port in spec.get("ports") or ():
        for backend in _endpoints(port, slices, version)[0]:
            if backend.node:
                found.setdefault(backend.node, set()).add(backend.address)
    return HealthCheck(number, {node: len(addresses) for node, addresses in sorted(found.items())})


def _hinted(ready: tuple[Backend, ...], hints: _Hints, key: str) -> dict[str, tuple[Backend, ...]]:
    """Node or zone -> the endpoints that are meant for it; none as soon as one ready endpoint is meant for nobody."""
    found: dict[str, list[Backend]] = {}
    for backend in ready:
        names = hints.get((backend.address, backend.port, key))
        if not names:
            return {}
        for name in names:
            found.setdefault(name, []).append(backend)
    return {name: tuple(backends) for name, backends in sorted(found.items())}


def _endpoints(
    port: Document, slices: Iterable[Document], version: int
) -> tuple[tuple[Backend, ...], tuple[Backend, ...], tuple[Backend, ...], _Hints]:
    """Ready endpoints, those that end but still serve (KEP-1669), both of weight 0; and hints.

    Each address and port once, sorted. Two slices may name the same endpoint, with or without its Node: what is known
    of the Node wins, hints add up. Weight 0 is as good as not ready, for policies and hints, too.
    """
    ready: dict[tuple[str, int], Backend] = {}
    draining: dict[tuple[str, int], Backend] = {}
    hints: dict[tuple[str, int, str], set[str]] = {}
    for item in slices:
        number = _port_number(item, port)
        if number is None or item["addressType"] != f"IPv{version}":
            continue
        weights = balancing.weights_of(item)
        for endpoint in item.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            address = canonical_address(endpoint["addresses"][0])
            if address is None:
                continue
            weight = weights.get(address, balancing.DEFAULT_WEIGHT)
            backend = Backend(address, number, endpoint.get("nodeName") or "", weight)
            if conditions.get("ready") is not False:
                found = ready
            elif conditions.get("serving") is not False and conditions.get("terminating"):
                found = draining
            else:
                continue
            key = backend.address, backend.port
            found[key] = max(backend, found.get(key, backend))
            for kind in _HINTS:
                for hint in (endpoint.get("hints") or {}).get(kind) or ():
                    hints.setdefault((address, number, kind), set()).add(hint["name"])
    for key in ready:
        draining.pop(key, None)
    kept = sorted(backend for backend in (*ready.values(), *draining.values()) if not backend.weight)
    return _taking_new(ready), _taking_new(draining), tuple(kept), hints


def _taking_new(backends: Mapping[tuple[str, int], Backend]) -> tuple[Backend, ...]:
    return tuple(sorted(backend for backend in backends.values() if backend.weight))


def by_node(backends: Iterable[Backend]) -> dict[str, tuple[Backend, ...]]:
    """Node -> the endpoints on it, in their order; without those whose Node is unknown."""
    found: dict[str, list[Backend]] = {}
    for backend in backends:
        if backend.node:
            found.setdefault(backend.node, []).append(backend)
    return {node: tuple(on_it) for node, on_it in sorted(found.items())}


def _port_number(item: Document, wanted: Document) -> int | None:
    """The number of a Service port in a slice: by name and protocol, as kube-proxy's endpointslicecache.go."""
    for port in item.get("ports") or ():
        is_same_name = (port.get("name") or "") == (wanted.get("name") or "")
        if is_same_name and (port.get("protocol") or "TCP") == wanted["protocol"]:
            return port.get("port")
    return None


def plan_records(
    service: Document, slices: Iterable[Document], domain: str, pod_cidrs: Sequence[Network] = ()
) -> list[Record]:
    """The DNS records of a Service, sorted: A, AAAA, SRV, PTR, CNAME. domain: the cluster's, without final dot.

    pod_cidrs: where endpoints have reverse names. Elsewhere an address may be a host's, and its name is not ours to say.
    A record whose name no DNS message can carry is left out: the others are better than none.
    """
    metadata, spec = service["metadata"], service["spec"]
    name = f"{metadata['name']}.{metadata['namespace']}.svc.{domain}."
    if spec.get("type") == "ExternalName":
        return [Record(name, "CNAME", spec["externalName"].rstrip(".").lower() + ".")]
    if spec.get("clusterIP") == "None":
        records = _headless_records(spec, name, slices, pod_cidrs)
    else:
        records = set()
        for address in spec.get("clusterIPs") or ():
            records.add(_address_record(name, address))
            records.add(Record(reverse_name(address), "PTR", name))
        for port in spec.get("ports") or ():
            if port.get("name"):
                records.add(_srv(port["name"], port["protocol"], name, port["port"], name))
    return sorted(record for record in records if _is_sayable(record.name))


def _is_sayable(name: str) -> bool:
    """Whether a name fits into a DNS message: a port's name may have 63 characters, with its underscore one too many."""
    return len(name) <= MAX_NAME_LENGTH and all(len(label) <= MAX_LABEL_LENGTH for label in name.split("."))


def _headless_records(
    spec: Document, name: str, slices: Iterable[Document], pod_cidrs: Sequence[Network]
) -> set[Record]:
    records = set()
    publish_all = bool(spec.get("publishNotReadyAddresses"))
    for item in slices:
        if item["addressType"] == "FQDN":
            continue
        for endpoint in item.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is False and not publish_all:
                continue
            address = canonical_address(endpoint["addresses"][0])
            if address is None:
                continue
            host = f"{endpoint.get('hostname') or _dashed(address)}.{name}"
            records.add(_address_record(name, address))
            records.add(_address_record(host, address))
            if any(ip_address(address) in cidr for cidr in pod_cidrs):
                records.add(Record(reverse_name(address), "PTR", host))
            for port in item.get("ports") or ():
                if port.get("name") and port.get("port"):
                    records.add(_srv(port["name"], port.get("protocol") or "TCP", name, port["port"], host))
    return records


def _dashed(address: str) -> str:
    """The label of an endpoint that has no hostname, as CoreDNS makes it: 10-0-0-1, fd00--1."""
    label = address.replace(".", "-").replace(":", "-")
    # No label begins or ends with a dash ("fd00::").
    return f"{'0' if label.startswith('-') else ''}{label}{'0' if label.endswith('-') else ''}"


def _address_record(name: str, address: str) -> Record:
    return Record(name, "AAAA" if ":" in address else "A", canonical_address(address) or address)


def _srv(port_name: str, protocol: str, name: str, number: int, target: str) -> Record:
    return Record(f"_{port_name}._{protocol.lower()}.{name}", "SRV", f"0 100 {number} {target}")


@lru_cache(maxsize=1 << 16)  # parsing was half of the time to render a Service; the same addresses come again and again
def canonical_address(text: str) -> str | None:
    """An address as everybody spells it, None for what is none: a Pod's status is whatever somebody reported."""
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def reverse_name(address: str) -> str:
    """The name under which the PTR record of an address stands, with final dot."""
    return ip_address(address).reverse_pointer + "."
