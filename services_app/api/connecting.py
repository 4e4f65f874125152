"""What reaches into a workload in Kubernetes, and is answered with why not here: proxy, port-forward, exec, attach, log.

Timonel starts no workload and runs nothing beside one: a Pod is a record, and whoever may write Pods chooses its address. A
control plane that connected there would reach for its users what they cannot: the confused deputy that Kubernetes avoids
by going to addresses of Pods alone. So no connection is opened; what is wrong with the question itself is told first, in the
order and the words of Kubernetes.

Source: k8s v1.36 pkg/registry/core/{pod,service}, ResourceLocation, LogLocation, ExecLocation, validateContainer.
"""

import json
from collections.abc import Mapping
from typing import Any

from services_app import store
from services_app.api.paths import Target
from services_app.spec import kinds
from services_app.spec.errors import ApiError, BadRequest, MethodNotAllowed, NotFound, ServiceUnavailable

Document = dict[str, Any]

INTO_CONTAINERS = ("attach", "exec", "log")
ANSWERED = (*INTO_CONTAINERS, "portforward", "proxy")
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_SCHEMES = ("", "http", "https")


def refusal(target: Target, query: Mapping[str, str]) -> ApiError:
    """Why what is asked for is not done. Raises NotFound when the object is not there. A few queries."""
    if target.kind is kinds.SERVICE:
        return _of_service(target)
    if target.kind is kinds.NODE:
        _, name, _ = _split(target.name, "node")
        store.get(kinds.NODE, "", name)
        return MethodNotAllowed(
            f'"{name}" is a host without a kubelet: there is nothing to proxy to. Log in to it over SSH.'
        )
    return _of_pod(target, query)


def _of_service(target: Target) -> ApiError:
    namespace = target.namespace or ""
    _, name, port_name = _split(target.name, "service")
    service = _read(kinds.SERVICE, namespace, name)
    if port_name.isdecimal():
        named = [
            port.get("name") or "" for port in service["spec"].get("ports") or () if str(port["port"]) == port_name
        ]
        if not named:
            return ServiceUnavailable(f'no service port {port_name} found for service "{name}"')
        port_name = named[0]
    try:
        subsets = _read(kinds.ENDPOINTS, namespace, name).get("subsets") or []
    except NotFound:
        subsets = []
    ready = [
        (address, port["port"])
        for subset in subsets
        for port in subset.get("ports") or ()
        if (port.get("name") or "") == port_name
        for address in subset.get("addresses") or ()
    ]
    found = [(address, port) for address, port in ready if _is_of_pod(address, namespace)]
    if not found:
        told = f'no endpoints available for service "{name}"'
        if ready:
            told += (
                ": none of its addresses is one of a Pod, and nothing else is proxied to. Connect to it from a node."
            )
        return ServiceUnavailable(told)
    address, port = found[0]
    pod = address["targetRef"]["name"]
    return MethodNotAllowed(
        f'the control plane opens no connection to workloads: service "{name}" leads to {_socket(address["ip"], port)} '
        f'(pod "{pod}"). Connect to its cluster IP from a node, or publish it with a node port.'
    )


def _is_of_pod(address: Document, namespace: str) -> bool:
    """Whether an address is what a Pod of the namespace has."""
    reference = address.get("targetRef") or {}
    if reference.get("namespace") != namespace or reference.get("kind") != "Pod":
        return False
    try:
        pod = _read(kinds.POD, namespace, reference.get("name") or "")
    except NotFound:
        return False
    return address.get("ip") in _addresses(pod)


def _addresses(pod: Document) -> list[str]:
    status = pod.get("status") or {}
    return [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]


def _of_pod(target: Target, query: Mapping[str, str]) -> ApiError:
    name, port = target.name, ""
    if target.subresource == "proxy":
        _, name, port = _split(target.name, "pod")
    pod = _read(kinds.POD, target.namespace or "", name)
    container = _container(pod, query.get("container", "")) if target.subresource in INTO_CONTAINERS else ""
    node, addresses = pod["spec"].get("nodeName") or "", _addresses(pod)
    if target.subresource == "proxy" and not addresses:
        return BadRequest("address not allowed")
    if target.subresource != "proxy" and not node:
        return BadRequest(f"pod {name} does not have a host assigned")
    where = f'node "{node}"' if node else "its host"
    if target.subresource in ("portforward", "proxy"):
        wanted = port or next((str(p["containerPort"]) for c in _containers(pod) for p in c.get("ports") or ()), "")
        socket = _socket(addresses[0], wanted) if addresses else where
        return MethodNotAllowed(
            f'the control plane opens no connection to workloads: pod "{name}" runs on {where}. Connect to {socket} from '
            f"there, for instance with ssh -L; or make a Service with a node port."
        )
    doing = "has no logs of" if target.subresource == "log" else "runs nothing in"
    hint = "read its log there" if target.subresource == "log" else "log in there"
    return MethodNotAllowed(
        f'a Pod is a record of a workload that others run: the control plane {doing} container "{container}" of pod '
        f'"{name}". It runs on {where}: {hint}.'
    )


def _container(pod: Document, wanted: str) -> str:
    """The container that is meant. Raises BadRequest when there is none, or the choice is open."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    own = [c["name"] for c in spec.get("containers") or ()]
    first = [c["name"] for c in spec.get("initContainers") or ()]
    later = [c["name"] for c in spec.get("ephemeralContainers") or ()]
    if wanted:
        if wanted not in (*own, *first, *later):
            raise BadRequest(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(own) == 1:
        return str(own[0])
    annotated = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    if annotated in own:
        return str(annotated)
    told = f"a container name must be specified for pod {name}, choose one of: [{' '.join(own)}]"
    if first:
        told += f" or one of the init containers: [{' '.join(first)}]"
    if later:
        told += f" or one of the ephemeral containers: [{' '.join(later)}]"
    raise BadRequest(told)


def _containers(pod: Document) -> list[Document]:
    return pod["spec"].get("containers") or []


def _read(kind: kinds.Kind, namespace: str, name: str) -> Document:
    document: Document = json.loads(store.get(kind, namespace, name).document)
    return document


def _split(text: str, what: str) -> tuple[str, str, str]:
    """Scheme, name and port of "name", "name:port" or "scheme:name:port". Raises BadRequest."""
    parts = text.split(":")
    if len(parts) == 1:
        return "", parts[0], ""
    if len(parts) == 2:
        return "", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in _SCHEMES:
        return parts[0], parts[1], parts[2]
    raise BadRequest(f'invalid {what} request "{text}"')


def _socket(address: str, port: Any) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" if port else host
