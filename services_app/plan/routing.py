"""Where a Service's traffic goes and which names it has: from documents to routes and records.

Pure, and without any word of nftables or Knot: `render` spells what is decided here.
Rules: k8s v1.36 pkg/proxy (endpointslicecache.go, topology.go) and the Kubernetes DNS specification 1.1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

Document = dict[str, Any]

SERVICE_PROXY_NAME = "service.kubernetes.io/service-proxy-name"


@dataclass(frozen=True, order=True)
class Backend:
    """One endpoint of one port: address and number, and the Node it is on ("" when unknown)."""

    address: str
    port: int
    node: str = ""


@dataclass(frozen=True)
class Route:
    """One Service port: the addresses it is reached by, and the backends in the order of their slots."""

    group: int
    protocol: str
    port: int
    cluster_ips: tuple[str, ...]
    node_port: int | None
    backends: tuple[Backend, ...]


@dataclass(frozen=True, order=True)
class Record:
    """One DNS record; names end with a dot."""

    name: str
    type: str
    data: str


def group_key(port: Document) -> str:
    """How a Service port is known in `EndpointGroup.port`."""
    return f"{port.get('protocol', 'TCP')}/{port['port']}"


def plan_routes(service: Document, slices: Iterable[Document], groups: Mapping[str, int]) -> tuple[Route, ...]:
    """The routes of a Service, one per port in the order of the spec; none for headless and ExternalName.

    slices: every EndpointSlice that names the Service. groups: group_key -> group id, for every port.
    """
    spec = service["spec"]
    cluster_ips = tuple(spec.get("clusterIPs") or ())
    if spec.get("type") == "ExternalName" or not cluster_ips or "None" in cluster_ips:
        return ()
    if SERVICE_PROXY_NAME in (service["metadata"].get("labels") or {}):
        return ()  # somebody else's proxy serves it
    slices = list(slices)
    return tuple(
        Route(
            group=groups[group_key(port)],
            protocol=port["protocol"].lower(),
            port=port["port"],
            cluster_ips=cluster_ips,
            node_port=port.get("nodePort") or None,
            backends=_backends(port, slices),
        )
        for port in spec.get("ports") or ()
    )


def _backends(port: Document, slices: Iterable[Document]) -> tuple[Backend, ...]:
    """Ready endpoints, or, when there is none, those that end but still serve (KEP-1669)."""
    ready: set[Backend] = set()
    draining: set[Backend] = set()
    for item in slices:
        number = _port_number(item, port.get("name") or "")
        if number is None:
            continue
        for endpoint in item.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            backend = Backend(endpoint["addresses"][0], number, endpoint.get("nodeName") or "")
            if conditions.get("ready", True) is not False:
                ready.add(backend)
            elif conditions.get("serving") and conditions.get("terminating"):
                draining.add(backend)
    return tuple(sorted(_distinct(ready or draining)))


def _port_number(item: Document, name: str) -> int | None:
    for port in item.get("ports") or ():
        if (port.get("name") or "") == name:
            return port.get("port")
    return None


def _distinct(backends: Iterable[Backend]) -> Iterable[Backend]:
    """One backend per address and port: two slices may name the same endpoint, with or without its Node."""
    return {(b.address, b.port): b for b in sorted(backends)}.values()


def plan_records(service: Document, slices: Iterable[Document], domain: str) -> list[Record]:
    """The DNS records of a Service, sorted: A, AAAA, SRV, PTR, CNAME. domain: the cluster's, without final dot."""
    metadata, spec = service["metadata"], service["spec"]
    name = f"{metadata['name']}.{metadata['namespace']}.svc.{domain}."
    if spec.get("type") == "ExternalName":
        return [Record(name, "CNAME", spec["externalName"].rstrip(".") + ".")]
    if spec.get("clusterIP") == "None":
        return sorted(_headless_records(spec, name, slices))
    records = set()
    for address in spec.get("clusterIPs") or ():
        records.add(_address_record(name, address))
        records.add(Record(reverse_name(address), "PTR", name))
    for port in spec.get("ports") or ():
        if port.get("name"):
            records.add(_srv(port["name"], port["protocol"], name, port["port"], name))
    return sorted(records)


def _headless_records(spec: Document, name: str, slices: Iterable[Document]) -> set[Record]:
    records = set()
    publish_all = bool(spec.get("publishNotReadyAddresses"))
    for item in slices:
        if item["addressType"] == "FQDN":
            continue
        for endpoint in item.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True) is False and not publish_all:
                continue
            address = endpoint["addresses"][0]
            host = f"{endpoint.get('hostname') or address.replace('.', '-').replace(':', '-')}.{name}"
            records.add(_address_record(name, address))
            records.add(_address_record(host, address))
            for port in item.get("ports") or ():
                if port.get("name") and port.get("port"):
                    records.add(_srv(port["name"], port["protocol"], name, port["port"], host))
    return records


def _address_record(name: str, address: str) -> Record:
    return Record(name, "AAAA" if ":" in address else "A", address)


def _srv(port_name: str, protocol: str, name: str, number: int, target: str) -> Record:
    return Record(f"_{port_name}._{protocol.lower()}.{name}", "SRV", f"0 100 {number} {target}")


def reverse_name(address: str) -> str:
    """The name under which the PTR record of an address stands, with final dot."""
    return ip_address(address).reverse_pointer + "."
