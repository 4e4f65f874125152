"""What a node's kernel and resolver hold, and what the API says they should; neither asks Timonel's own renderer."""

import re
import time
from collections import defaultdict
from ipaddress import ip_address, ip_network

from services_app.lab.client import CORE, DISCOVERY, ApiClient, Document
from services_app.lab.cluster import DNS_ADDRESS
from services_app.lab.namespaces import ProbeFailed
from services_app.lab.network import Node

# ("10.96.0.1", "tcp", 80), or ("node" or "node6", "tcp", 30007) for a node port -> endpoints "10.1.0.1 8080"; without any
# "refuse" or "drop"; "sticky 600" where clients keep their endpoint, "only 192.0.2.0/24" where not everybody may come
Routes = dict[tuple[str, str, int], frozenset[str]]

NO_GROUP = frozenset({"a group that is not there"})  # also where the maps changed between two looks

_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)


def wanted_routes(api: ApiClient) -> dict[str, Routes]:
    """Node -> its routes, by the API's Services, EndpointSlices and Nodes."""
    slices = defaultdict(list)
    for item in api.request("GET", f"{DISCOVERY}/endpointslices")["items"]:
        metadata = item["metadata"]
        slices[metadata["namespace"], metadata["labels"]["kubernetes.io/service-name"]].append(item)
    services = api.request("GET", f"{CORE}/services")["items"]
    nodes = [item["metadata"]["name"] for item in api.request("GET", f"{CORE}/nodes")["items"]]
    routes: dict[str, Routes] = {node: {} for node in nodes}
    for item in services:
        metadata, spec = item["metadata"], item["spec"]
        if spec.get("clusterIP", "None") in ("None", ""):
            continue
        own = slices[metadata["namespace"], metadata["name"]]
        ingress = [i["ip"] for i in item["status"].get("loadBalancer", {}).get("ingress") or () if i.get("ip")]
        external = {address: frozenset() for address in spec.get("externalIPs") or ()}
        for address in ingress:
            ranges = [text for text in spec.get("loadBalancerSourceRanges") or () if (":" in text) == (":" in address)]
            external[address] = frozenset(f"only {ip_network(text)}" for text in ranges)
        for node in nodes:
            for port in spec["ports"]:
                for cluster_ip in spec["clusterIPs"]:
                    routes[node] |= _wanted(spec, port, cluster_ip, external, own, node)
    return routes


def _wanted(
    spec: Document,
    port: Document,
    cluster_ip: str,
    external: dict[str, frozenset[str]],
    slices: list[Document],
    node: str,
) -> Routes:
    protocol, version = port.get("protocol", "TCP").lower(), 6 if ":" in cluster_ip else 4
    found: list[tuple[str, str, str]] = []  # state, endpoint, node
    for item in slices:
        for of_slice in item.get("ports") or ():
            names = of_slice.get("name", ""), of_slice["protocol"].lower()
            if item["addressType"] == f"IPv{version}" and names == (port.get("name", ""), protocol):
                for endpoint in item["endpoints"] or ():
                    conditions = endpoint.get("conditions", {})
                    is_draining = conditions.get("serving", True) and conditions.get("terminating")
                    state = "ready" if conditions.get("ready", True) else "draining" if is_draining else ""
                    text = f"{ip_address(endpoint['addresses'][0])} {of_slice['port']}"
                    found.append((state, text, endpoint.get("nodeName", "")))
    affinity = spec.get("sessionAffinityConfig", {}).get("clientIP", {}).get("timeoutSeconds")

    def by_policy(policy: str | None) -> frozenset[str]:
        here = [f for f in found if policy != "Local" or f[2] == node]
        for state in ("ready", "draining"):
            if chosen := {text for s, text, _ in here if s == state}:
                return frozenset(chosen | ({f"sticky {affinity}"} if affinity else set()))
        return frozenset({"drop" if any(state for state, _, _ in found) else "refuse"})

    routes = {(cluster_ip, protocol, port["port"]): by_policy(spec.get("internalTrafficPolicy"))}
    outside = by_policy(spec.get("externalTrafficPolicy"))
    for address, clients in external.items():
        if (":" in address) == (version == 6):
            routes[address, protocol, port["port"]] = outside | clients
    if port.get("nodePort"):
        routes["node6" if version == 6 else "node", protocol, port["nodePort"]] = outside
    return routes


def held_routes(node: Node) -> Routes:
    """By the node's nftables: frontends and node ports of both families, each through its group to the slots."""
    routes: Routes = {}
    for ip, node_port_word in (("ip", "node"), ("ip6", "node6")):
        if node.run(["nft", "list", "table", ip, "timonel"], check=False).returncode:
            continue
        slots, picked = defaultdict(dict), defaultdict(set)
        for key, value in _elements(node, ip, "slots"):
            group, slot = key.split(" . ")
            slots[group][slot] = value.replace(" . ", " ")
        for key, slot in _elements(node, ip, "pick"):
            picked[key.split(" . ")[0]].add(slot)
        endpoints: dict[int, frozenset[str]] = {}
        for group, verdict in _elements(node, ip, "groups"):
            chain = re.fullmatch(r"goto (?:lb|aff_(?P<timeout>\d+))_(?P<count>\d+)", verdict)
            if chain is None:
                endpoints[int(group, 16)] = frozenset({verdict.removeprefix("goto ")})
                continue
            texts = {*slots[group].values()}
            if len(texts) != int(chain["count"]):
                texts.add(f"in a chain for {chain['count']}")
            if chain["timeout"]:
                texts.add(f"sticky {chain['timeout']}")
                if picked[group] != slots[group].keys():
                    texts.add("other slots than are picked")
            endpoints[int(group, 16)] = frozenset(texts)
        clients = defaultdict(set)
        for key, _ in _elements(node, ip, "source_ranges", "set"):
            mark, network = key.split(" . ")
            clients[mark].add(f"only {ip_network(network)}")
        for key, mark in _elements(node, ip, "frontends"):
            address, protocol, port = key.split(" . ")
            routes[address, protocol, int(port)] = endpoints.get(int(mark, 16) & 0x0FFFFFFF, NO_GROUP) | clients[mark]
        for key, mark in _elements(node, ip, "nodeports"):
            protocol, port = key.split(" . ")
            routes[node_port_word, protocol, int(port)] = endpoints.get(int(mark, 16) & 0x0FFFFFFF, NO_GROUP)
    return routes


def _elements(node: Node, ip: str, name: str, kind: str = "map") -> list[tuple[str, str]]:
    text = node.run(["nft", "list", kind, ip, "timonel", name]).stdout
    found = _ELEMENTS.search(text)
    pairs = found[1].split(",") if found else []
    return [(key.strip(), value.strip()) for key, _, value in (pair.partition(" : ") for pair in pairs)]


def wanted_names(api: ApiClient) -> dict[tuple[str, str], str]:
    """(full name, "A" or "AAAA") -> cluster IP, of every Service that has one."""
    return {
        (
            f"{item['metadata']['name']}.{item['metadata']['namespace']}.svc.cluster.local.",
            "AAAA" if ":" in address else "A",
        ): address
        for item in api.request("GET", f"{CORE}/services")["items"]
        if item["spec"].get("clusterIP", "None") not in ("None", "")
        for address in item["spec"]["clusterIPs"]
    }


def differences(api: ApiClient, nodes: list[Node]) -> list[str]:
    """Every way in which a node is not what the API says, in words; empty when all is right."""
    wanted_by_node, names = wanted_routes(api), wanted_names(api)
    found = []
    for node in nodes:
        held, wanted = held_routes(node), wanted_by_node[node.name]
        for key in sorted(wanted.keys() | held.keys()):
            if wanted.get(key) != held.get(key):
                found.append(f"{node.name} {key}: {_words(held.get(key))} instead of {_words(wanted.get(key))}")
        for (name, kind), address in names.items():
            try:
                answer = node.lookup(name, kind, DNS_ADDRESS)
            except ProbeFailed as err:
                found.append(f"{node.name} {name}: {err}")
                continue
            if answer != ("NOERROR", [address]):
                found.append(f"{node.name} {name} {kind}: {answer} instead of {address}")
    return found


def _words(endpoints: frozenset[str] | None) -> str:
    return "nothing" if endpoints is None else ", ".join(sorted(endpoints))


def wait_equal(api: ApiClient, nodes: list[Node], deadline_s: float = 30.0) -> None:
    """Return once every node is what the API says, twice in a row. Fails with the differences."""
    deadline = time.monotonic() + deadline_s
    equal = 0
    while equal < 2:
        found = differences(api, nodes)
        equal = 0 if found else equal + 1
        assert not found or time.monotonic() < deadline, "\n".join(found[:20])
        time.sleep(0.2)
