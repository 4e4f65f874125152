"""What a node's kernel and resolver hold, and what the API says they should; neither asks Timonel's own renderer."""

import re
import time
from collections import defaultdict

from services_app.lab.client import CORE, DISCOVERY, ApiClient
from services_app.lab.cluster import DNS_ADDRESS
from services_app.lab.namespaces import ProbeFailed
from services_app.lab.network import Node

# ("10.96.0.1", "tcp", 80), or ("node", "tcp", 30007) for a node port -> endpoints "10.1.0.1:8080"
Routes = dict[tuple[str, str, int], frozenset[str]]

_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)


def wanted_routes(api: ApiClient) -> Routes:
    """By the API's Services and EndpointSlices."""
    endpoints = defaultdict(set)
    for item in api.request("GET", f"{DISCOVERY}/endpointslices")["items"]:
        metadata = item["metadata"]
        owner = metadata["namespace"], metadata["labels"]["kubernetes.io/service-name"]
        for port in item.get("ports") or ():
            for endpoint in item["endpoints"] or ():
                if endpoint.get("conditions", {}).get("ready", True):
                    key = (*owner, port.get("name", ""))
                    endpoints[key].add(f"{endpoint['addresses'][0]}:{port['port']}")
    routes: Routes = {}
    for item in api.request("GET", f"{CORE}/services")["items"]:
        name = item["metadata"]["namespace"], item["metadata"]["name"]
        for port in item["spec"].get("ports") or ():
            found = frozenset(endpoints[*name, port.get("name", "")])
            protocol = port.get("protocol", "TCP").lower()
            if item["spec"].get("clusterIP", "None") not in ("None", ""):
                routes[item["spec"]["clusterIP"], protocol, port["port"]] = found
            if port.get("nodePort"):
                routes["node", protocol, port["nodePort"]] = found
    return routes


def held_routes(node: Node) -> Routes:
    """By the node's nftables: frontends and node ports, each through its group to the slots."""
    slots = defaultdict(set)
    for key, value in _elements(node, "slots"):
        address, port = value.split(" . ")
        slots[key.split(" . ")[0]].add(f"{address}:{port}")
    routes: Routes = {}
    for key, group in _elements(node, "frontends"):
        address, protocol, port = key.split(" . ")
        routes[address, protocol, int(port)] = frozenset(slots[group])
    for key, group in _elements(node, "nodeports"):
        protocol, port = key.split(" . ")
        routes["node", protocol, int(port)] = frozenset(slots[group])
    return routes


def _elements(node: Node, name: str) -> list[tuple[str, str]]:
    text = node.run(["nft", "list", "map", "ip", "timonel", name]).stdout
    found = _ELEMENTS.search(text)
    pairs = found[1].split(",") if found else []
    return [(key.strip(), value.strip()) for key, _, value in (pair.partition(" : ") for pair in pairs)]


def wanted_names(api: ApiClient) -> dict[str, str]:
    """Full name -> cluster IP, of every Service that has one."""
    return {
        f"{item['metadata']['name']}.{item['metadata']['namespace']}.svc.cluster.local.": item["spec"]["clusterIP"]
        for item in api.request("GET", f"{CORE}/services")["items"]
        if item["spec"].get("clusterIP", "None") not in ("None", "")
    }


def differences(api: ApiClient, nodes: list[Node]) -> list[str]:
    """Every way in which a node is not what the API says, in words; empty when all is right."""
    wanted, names = wanted_routes(api), wanted_names(api)
    found = []
    for node in nodes:
        held = held_routes(node)
        for key in sorted(wanted.keys() | held.keys()):
            if wanted.get(key) != held.get(key):
                found.append(f"{node.name} {key}: {_words(held.get(key))} instead of {_words(wanted.get(key))}")
        for name, address in names.items():
            try:
                answer = node.lookup(name, "A", DNS_ADDRESS)
            except ProbeFailed as err:
                found.append(f"{node.name} {name}: {err}")
                continue
            if answer != ("NOERROR", [address]):
                found.append(f"{node.name} {name}: {answer} instead of {address}")
    return found


def _words(endpoints: frozenset[str] | None) -> str:
    return "nothing" if endpoints is None else ", ".join(sorted(endpoints)) or "no endpoint"


def wait_equal(api: ApiClient, nodes: list[Node], deadline_s: float = 30.0) -> None:
    """Return once every node is what the API says, twice in a row. Fails with the differences."""
    deadline = time.monotonic() + deadline_s
    equal = 0
    while equal < 2:
        found = differences(api, nodes)
        equal = 0 if found else equal + 1
        assert not found or time.monotonic() < deadline, "\n".join(found[:20])
        time.sleep(0.2)
