"""KubeProxyConfiguration: how nodes serve Services, for the cluster and for one Node.

The cluster's stands in ConfigMap kube-system/kube-proxy under `config.conf`, as kubeadm writes it; a Node's annotation
overrides single fields. Judged when written: what is unknown or impossible is refused, what has no effect is warned of.
Source: k8s v1.36 staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go, pkg/proxy/apis/config/validation.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

from services_app.spec import wire
from services_app.spec.errors import ApiError, FieldError, invalid, not_supported, required

Document = dict[str, Any]
Network = IPv4Network | IPv6Network

NAMESPACE, NAME, KEY = "kube-system", "kube-proxy", "config.conf"
ANNOTATION = "timonel.io/kube-proxy-configuration"
API_VERSION, KIND = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
PRIMARY = "primary"
MODES = ("nftables", "iptables", "ipvs", "userspace")
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")  # of IPVS
SCHEDULER_ANNOTATION = "timonel.io/ipvs-scheduler"  # of a Service
# What something is done about; the rest is read and judged, so that a file of kubeadm's may be used as it is.
EFFECTIVE = (
    "apiVersion",
    "kind",
    "conntrack",
    "healthzBindAddress",
    "iptables",
    "ipvs",
    "mode",
    "nftables",
    "nodePortAddresses",
)
IDLE_PARTS = (
    ("conntrack", "max"),
    ("iptables", "localhostNodePorts"),
    ("iptables", "masqueradeBit"),
    ("iptables", "minSyncPeriod"),
    ("iptables", "syncPeriod"),
    *(("ipvs", part) for part in ("excludeCIDRs", "minSyncPeriod", "strictARP", "syncPeriod")),
    *(("ipvs", part) for part in ("tcpFinTimeout", "tcpTimeout", "udpTimeout")),
    ("nftables", "masqueradeBit"),
    ("nftables", "minSyncPeriod"),
    ("nftables", "syncPeriod"),
)
MAX_TIMEOUT_S = 596 * 3600
DEFAULT_PER_CORE, DEFAULT_MIN = 32 * 1024, 128 * 1024  # of conntrack, where the other one is given

Judge = Callable[[Any, str], list[FieldError]]
_DURATION = re.compile(r"[+-]?(?:0|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|ms|s|m|h))+", re.ASCII)


def is_cluster_configuration(config_map: Document) -> bool:
    """Whether a ConfigMap is the one that nodes follow."""
    metadata = config_map["metadata"]
    return (metadata.get("namespace"), metadata.get("name")) == (NAMESPACE, NAME)


def validate_config_map(config_map: Document) -> list[FieldError]:
    """What is wrong with the configuration in a ConfigMap, if it holds one."""
    text = (config_map.get("data") or {}).get(KEY) if is_cluster_configuration(config_map) else None
    return [] if text is None else _validate(text, f"data[{KEY}]", is_whole=True)


def validate_node(old: Document | None, new: Document) -> list[FieldError]:
    """What is wrong with a Node's own configuration, if it has one that is new."""
    text = _changed(old, new)
    return [] if text is None else _validate(text, f"metadata.annotations[{ANNOTATION}]", is_whole=False)


def warnings(config_map: Document) -> list[str]:
    """Fields of the cluster's configuration that are set and change nothing."""
    text = (config_map.get("data") or {}).get(KEY) if is_cluster_configuration(config_map) else None
    return [] if text is None else _warnings(text, f"data[{KEY}]")


def node_warnings(old: Document | None, new: Document) -> list[str]:
    """The same for a Node's own, if it is new."""
    text = _changed(old, new)
    return [] if text is None else _warnings(text, f"metadata.annotations[{ANNOTATION}]")


def of_node(node: Document | None) -> str | None:
    """The text of a Node's own configuration."""
    text: str | None = ((node or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION)
    return text


def _changed(old: Document | None, new: Document) -> str | None:
    text = of_node(new)
    return None if text == of_node(old) else text


@dataclass(frozen=True)
class Configuration:
    """What a node follows. node_port_addresses: "primary" and networks; none means every address of the node.

    conntrack: (name, value) of what the agent sets, none of what stays as it is on the host. healthz: the address and
    port where the node says whether it is healthy, "" for nowhere. masquerade_all: endpoints see the node whenever a
    cluster IP was asked for, whoever asked. ipvs_scheduler: of Services that choose none, in mode ipvs; "" for the default.
    """

    mode: str = MODES[0]
    node_port_addresses: tuple[str, ...] = ()
    conntrack: tuple[tuple[str, str], ...] = ()
    healthz: str = ""
    masquerade_all: bool = False
    ipvs_scheduler: str = ""

    def without_node_ports(self, addresses: Sequence[IPv4Address | IPv6Address]) -> list[Network]:
        """The networks where a node answers no node ports; addresses: the node's own, "primary" among them."""
        if not self.node_port_addresses:
            return []
        found: list[Network] = []
        for whole in (ip_network("0.0.0.0/0"), ip_network("::/0")):
            own = [str(address) for address in addresses] if PRIMARY in self.node_port_addresses else []
            texts = [*own, *(text for text in self.node_port_addresses if text != PRIMARY)]
            kept = [network for network in map(ip_network, texts) if network.version == whole.version]
            rest: list[Network] = [whole]
            for network in collapse_addresses(kept):  # type: ignore[type-var]  # of one version
                rest = [part for old in rest for part in _without(old, network)]
            found += sorted(rest)  # type: ignore[type-var]
        return found


def _without(whole: Network, part: Network) -> list[Network]:
    if not part.subnet_of(whole):  # type: ignore[arg-type]  # of one version
        return [whole]
    return [] if part == whole else list(whole.address_exclude(part))  # type: ignore[arg-type]


def configuration(config_map: Document | None, node: Document | None) -> Configuration:
    """What a Node follows, by the cluster's ConfigMap and its own annotation; what cannot be read counts for nothing."""
    fields: Document = {}
    for text in (((config_map or {}).get("data") or {}).get(KEY), of_node(node)):
        if text is not None and not _validate(text, "", is_whole=False):
            fields |= {key: value for key, value in _read(text)[0].items() if value is not None}
    mode = fields.get("mode") or MODES[0]
    return Configuration(
        mode,
        tuple(fields.get("nodePortAddresses") or ()),
        _conntrack(fields.get("conntrack") or {}),
        _canonical_listener(fields.get("healthzBindAddress") or ""),
        # As kube-proxy, which has this field for two modes only.
        bool((fields.get("nftables" if mode == "nftables" else "iptables") or {}).get("masqueradeAll")),
        (fields.get("ipvs") or {}).get("scheduler") or "",
    )


def _conntrack(fields: Document) -> tuple[tuple[str, str], ...]:
    """What is asked for, in the agent's words. Nothing, or zero, leaves the host's own, whatever kube-proxy's default is:
    other traffic of a host uses the same table.
    """
    found: list[tuple[str, str]] = []
    per_core, least = fields.get("maxPerCore"), fields.get("min")
    if per_core or (least and per_core is None):
        found.append(("max", f"{per_core or DEFAULT_PER_CORE} {least or DEFAULT_MIN}"))
    for field, name in _CONNTRACK_TIMEOUTS.items():
        seconds = int(duration_s(fields.get(field) or "0"))
        if seconds:
            found.append((name, str(seconds)))
    if fields.get("tcpBeLiberal"):
        found.append(("tcp-be-liberal", "1"))
    return tuple(found)


_CONNTRACK_TIMEOUTS = {
    "tcpEstablishedTimeout": "tcp-established",
    "tcpCloseWaitTimeout": "tcp-close-wait",
    "udpTimeout": "udp",
    "udpStreamTimeout": "udp-stream",
}
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def duration_s(text: str) -> float:
    """The seconds of a duration as Go writes it: "1h30m"."""
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _canonical_listener(text: str) -> str:
    """The same address and port, as everybody spells them."""
    host, _, port = text.rpartition(":")
    if not host or not int(port):
        return ""
    address = ip_address(host.removeprefix("[").removesuffix("]"))
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def validate_service(old: Document | None, service: Document) -> list[FieldError]:
    """What is wrong with the IPVS scheduler that a Service chooses, if it is a new one."""
    chosen, path = ipvs_scheduler(service), f"metadata.annotations[{SCHEDULER_ANNOTATION}]"
    if chosen in ("", *SCHEDULERS) or (old and chosen == ipvs_scheduler(old)):
        return []
    return [not_supported(path, chosen, SCHEDULERS)]


def ipvs_scheduler(service: Document) -> str:
    """What a Service chooses, "" for nothing."""
    chosen: str = (service["metadata"].get("annotations") or {}).get(SCHEDULER_ANNOTATION) or ""
    return chosen


# Judging


def _read(text: str) -> tuple[Document, str]:
    """The fields of a text, or why there are none."""
    try:
        documents = wire.parse_documents(text)
    except ApiError as err:
        return {}, err.message
    if len(documents) != 1 or not isinstance(documents[0], dict):
        return {}, "must be one YAML document, an object"
    return documents[0], ""


def _validate(text: str, path: str, *, is_whole: bool) -> list[FieldError]:
    fields, problem = _read(text)
    if problem:
        return [invalid(path, text if len(text) < 200 else f"{text[:200]}…", problem)]
    errors = []
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if is_whole and not fields.get(key):
            errors.append(required(f"{path}.{key}", f"must be {wanted}"))
        elif fields.get(key) not in (None, wanted):
            errors.append(not_supported(f"{path}.{key}", fields[key], [wanted]))
    return errors + _judge_fields(
        {key: item for key, item in fields.items() if key not in ("apiVersion", "kind")}, path
    )


def _warnings(text: str, path: str) -> list[str]:
    if _validate(text, path, is_whole=False):
        return []
    fields = _read(text)[0]
    idle = [key for key, value in fields.items() if key not in EFFECTIVE and _is_set(value)]
    idle += [f"{key}.{part}" for key, part in IDLE_PARTS if _is_set((fields.get(key) or {}).get(part))]
    found = [f"{path}.{key}: has no effect on Timonel's nodes" for key in idle]
    for index, network in enumerate(fields.get("nodePortAddresses") or ()):
        if network != PRIMARY and ip_network(network).is_loopback:
            field = f"{path}.nodePortAddresses[{index}]"
            found.append(f"{field}: node ports are not answered on loopback addresses, route_localnet is never set")
    return found


def _is_set(value: Any) -> bool:
    """Whether something is asked for: kubeadm writes every field, most as nothing."""
    if isinstance(value, dict):
        return any(map(_is_set, value.values()))
    return value not in (None, "", "0", "0s", 0, False, [])


def _judge_fields(fields: Mapping[str, Any], path: str, table: Mapping[str, Any] | None = None) -> list[FieldError]:
    errors = []
    for key, value in fields.items():
        judge = (FIELDS if table is None else table).get(key)
        if judge is None:
            errors.append(invalid(f"{path}.{key}", value, "no such field in KubeProxyConfiguration"))
        elif value is None:
            continue
        elif isinstance(judge, dict):
            errors += (
                _judge_fields(value, f"{path}.{key}", judge)
                if isinstance(value, dict)
                else [invalid(f"{path}.{key}", value, "must be an object")]
            )
        else:
            errors += judge(value, f"{path}.{key}")
    return errors


def _text(value: Any, path: str) -> list[FieldError]:
    return [] if isinstance(value, str) else [invalid(path, value, "must be a string")]


def _boolean(value: Any, path: str) -> list[FieldError]:
    return [] if isinstance(value, bool) else [invalid(path, value, "must be true or false")]


def _anything(value: Any, path: str) -> list[FieldError]:
    return []


def _number(least: int, most: int) -> Judge:
    def judge(value: Any, path: str) -> list[FieldError]:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return []
        return [invalid(path, value, f"must be a whole number from {least} to {most}")]

    return judge


def _duration(value: Any, path: str) -> list[FieldError]:
    """Also zero, which stands for the default."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return [invalid(path, value, "must be a duration, like 30s or 1h30m")]
    if value.startswith("-"):
        return [invalid(path, value, "must be greater than or equal to 0")]
    return []


def _timeout(value: Any, path: str) -> list[FieldError]:
    """Of conntrack: the kernel counts it in ticks, up to 2**31 of them."""
    errors = _duration(value, path)
    if not errors and duration_s(value) > MAX_TIMEOUT_S:
        errors.append(invalid(path, value, f"must be at most {MAX_TIMEOUT_S // 3600}h"))
    return errors


def _one_of(*words: str) -> Judge:
    def judge(value: Any, path: str) -> list[FieldError]:
        return [] if value in words else [not_supported(path, value, [word for word in words if word])]

    return judge


def _address(value: Any, path: str) -> list[FieldError]:
    try:
        ip_address(value if isinstance(value, str) else "")
    except ValueError:
        return [invalid(path, value, "not a valid textual representation of an IP address")]
    return []


def _listener(value: Any, path: str) -> list[FieldError]:
    """An address and a port, "" for none."""
    if value == "":
        return []
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if _address(host.removeprefix("[").removesuffix("]"), path):
        return [invalid(path, value, "must be IP:port")]
    is_port = port.isascii() and port.isdigit() and int(port) <= 65535
    return [] if is_port else [invalid(path, value, "must be a valid port")]


def _network(value: Any, path: str) -> list[FieldError]:
    try:
        ip_network(value if isinstance(value, str) and "/" in value else "")
    except ValueError:
        return [invalid(path, value, "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)")]
    return []


def _networks(value: Any, path: str) -> list[FieldError]:
    """At most one of each family, separated by commas; "" for none."""
    if value == "":
        return []
    texts = value.split(",") if isinstance(value, str) else [value]
    errors = [error for text in texts for error in _network(text, path)]
    if not errors and len({ip_network(text).version for text in texts}) < len(texts):
        errors.append(invalid(path, value, "must be a CIDR block, or one of each family separated by a comma"))
    return errors


def _list_of(judge: Judge) -> Judge:
    def judge_all(value: Any, path: str) -> list[FieldError]:
        if not isinstance(value, list):
            return [invalid(path, value, "must be a list")]
        return [error for index, item in enumerate(value) for error in judge(item, f"{path}[{index}]")]

    return judge_all


def _node_port_addresses(value: Any, path: str) -> list[FieldError]:
    if isinstance(value, list) and PRIMARY in value:
        return [] if value == [PRIMARY] else [invalid(path, value, f"{PRIMARY!r} stands alone")]
    return _list_of(_network)(value, path)


def _gates(value: Any, path: str) -> list[FieldError]:
    if not isinstance(value, dict):
        return [invalid(path, value, "must be an object")]
    return [error for key, item in value.items() for error in _boolean(item, f"{path}.{key}")]


def _port_range(value: Any, path: str) -> list[FieldError]:
    if value == "":
        return []
    found = re.fullmatch(r"([0-9]+)(?:([-+])([0-9]+))?", value if isinstance(value, str) else "", re.ASCII)
    if not found:
        return [invalid(path, value, "must be a port range like 30000-32767")]
    first = int(found[1])
    last = first if not found[2] else int(found[3]) + (first if found[2] == "+" else 0)
    return [] if first <= last <= 65535 else [invalid(path, value, "must be a port range like 30000-32767")]


_COUNT = _number(0, 2**31 - 1)
_RULES = {
    "masqueradeAll": _boolean,
    "masqueradeBit": _number(0, 31),
    "minSyncPeriod": _duration,
    "syncPeriod": _duration,
}
FIELDS: dict[str, Any] = {
    "bindAddress": _address,
    "bindAddressHardFail": _boolean,
    "clientConnection": {
        "acceptContentTypes": _text,
        "burst": _COUNT,
        "contentType": _text,
        "kubeconfig": _text,
        "qps": _anything,
    },
    "clusterCIDR": _networks,
    "configSyncPeriod": _duration,
    "conntrack": {
        "max": _COUNT,
        "maxPerCore": _number(0, 10**8),
        "min": _number(0, 10**8),
        "tcpBeLiberal": _boolean,
        "tcpCloseWaitTimeout": _timeout,
        "tcpEstablishedTimeout": _timeout,
        "udpStreamTimeout": _timeout,
        "udpTimeout": _timeout,
    },
    "detectLocal": {"bridgeInterface": _text, "interfaceNamePrefix": _text},
    "detectLocalMode": _one_of("", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"),
    "enableProfiling": _boolean,
    "featureGates": _gates,
    "healthzBindAddress": _listener,
    "hostnameOverride": _text,
    "iptables": {**_RULES, "localhostNodePorts": _boolean},
    "ipvs": {
        "excludeCIDRs": _list_of(_network),
        "minSyncPeriod": _duration,
        "scheduler": _one_of("", *SCHEDULERS),
        "strictARP": _boolean,
        "syncPeriod": _duration,
        "tcpFinTimeout": _duration,
        "tcpTimeout": _duration,
        "udpTimeout": _duration,
    },
    "logging": {
        "flushFrequency": _anything,
        "format": _text,
        "options": _anything,
        "verbosity": _COUNT,
        "vmodule": _anything,
    },
    "metricsBindAddress": _listener,
    "mode": _one_of("", *MODES),
    "nftables": _RULES,
    "nodePortAddresses": _node_port_addresses,
    "oomScoreAdj": _number(-1000, 1000),
    "portRange": _port_range,
    "showHiddenMetricsForVersion": _text,
    "windowsRunAsService": _boolean,
    "winkernel": {
        "enableDSR": _boolean,
        "forwardHealthCheckVip": _boolean,
        "networkName": _text,
        "rootHnsEndpointName": _text,
        "sourceVip": _text,
    },
}
