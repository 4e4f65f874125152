"""A Service as a form: what was typed, and what of it becomes part of the object. No database, no request here.

Only fields that differ between the form as it was shown and as it came back are written, so that nothing the form does
not know is lost and no default is spelled out. What a type has no use for is kept in the form and not written.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

from services_app.spec.errors import FieldError, duplicate, invalid, required
from services_app.spec.service import CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT, NONE

Document = dict[str, Any]

AUTO, HEADLESS, CHOSEN = "auto", "none", "chosen"
PORTS_LIMIT, PAIRS_LIMIT = 60, 60  # rows of a form; Django takes a thousand fields
LONG_VALUE = 200  # characters of an annotation beyond which it is no matter for a form
_WHOLE_NUMBER = re.compile(r"-?\d{1,9}", re.ASCII)
_MUST_BE_NUMBER = "must be a whole number"


@dataclass(frozen=True)
class PortInput:
    """One row of ports, as text. origin: its place in the object that was shown; empty for a new one."""

    name: str = ""
    port: str = ""
    protocol: str = "TCP"
    target: str = ""
    node: str = ""
    app: str = ""
    origin: str = ""

    @property
    def is_blank(self) -> bool:
        return not (self.name or self.port or self.target or self.node or self.app)


@dataclass(frozen=True)
class Pair:
    """One row of a map."""

    key: str = ""
    value: str = ""


@dataclass(frozen=True)
class ServiceForm:
    """Everything that can be typed, as text."""

    name: str = ""
    namespace: str = "default"
    type: str = CLUSTER_IP
    ports: tuple[PortInput, ...] = ()
    selector: tuple[Pair, ...] = ()
    ip_mode: str = AUTO  # AUTO, HEADLESS or CHOSEN
    cluster_ip: str = ""  # one or two addresses
    family_policy: str = ""
    families: str = ""  # "IPv4,IPv6"
    affinity: str = "None"
    affinity_timeout: str = ""
    internal_policy: str = "Cluster"
    external_policy: str = "Cluster"
    distribution: str = ""
    publish_not_ready: bool = False
    external_name: str = ""
    external_ips: str = ""  # separated by spaces, commas or lines, as every list here
    source_ranges: str = ""
    balancer_class: str = ""
    allocate_node_ports: bool = True
    labels: tuple[Pair, ...] = ()
    annotations: tuple[Pair, ...] = ()

    @property
    def is_alias(self) -> bool:
        return self.type == EXTERNAL_NAME

    @property
    def has_node_ports(self) -> bool:
        return self.type in (NODE_PORT, LOAD_BALANCER)

    @property
    def is_reached_from_outside(self) -> bool:
        return self.has_node_ports or (self.type == CLUSTER_IP and bool(self.external_ips.strip()))


# From an object, from a request


def from_document(document: Document) -> ServiceForm:
    """The form that shows an object."""
    metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
    addresses = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    timeout = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
    return ServiceForm(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        type=spec.get("type", CLUSTER_IP),
        ports=tuple(
            PortInput(
                name=port.get("name", ""),
                port=_text(port.get("port")),
                protocol=port.get("protocol", "TCP"),
                target=_text(port.get("targetPort")),
                node=_text(port.get("nodePort")),
                app=port.get("appProtocol") or "",
                origin=str(index),
            )
            for index, port in enumerate(spec.get("ports") or [])
        ),
        selector=_pairs(spec.get("selector")),
        ip_mode=HEADLESS if addresses[:1] == [NONE] else CHOSEN if addresses else AUTO,
        cluster_ip="" if addresses[:1] == [NONE] else ", ".join(addresses),
        family_policy=spec.get("ipFamilyPolicy") or "",
        families=",".join(spec.get("ipFamilies") or []),
        affinity=spec.get("sessionAffinity", "None"),
        affinity_timeout=_text(timeout),
        internal_policy=spec.get("internalTrafficPolicy") or "Cluster",
        external_policy=spec.get("externalTrafficPolicy") or "Cluster",
        distribution=spec.get("trafficDistribution") or "",
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        external_name=spec.get("externalName", ""),
        external_ips="\n".join(spec.get("externalIPs") or []),
        source_ranges="\n".join(spec.get("loadBalancerSourceRanges") or []),
        balancer_class=spec.get("loadBalancerClass") or "",
        allocate_node_ports=spec.get("allocateLoadBalancerNodePorts") is not False,
        labels=_pairs(metadata.get("labels")),
        annotations=_pairs({k: v for k, v in (metadata.get("annotations") or {}).items() if not is_long(v)}),
    )


def is_long(value: str) -> bool:
    """Whether an annotation is kept as it is, beside the form."""
    return len(value) > LONG_VALUE or "\n" in value


def is_too_large(form: ServiceForm) -> bool:
    """Whether an object has more rows than a form can carry."""
    pairs = (form.selector, form.labels, form.annotations)
    return len(form.ports) > PORTS_LIMIT or any(len(rows) > PAIRS_LIMIT for rows in pairs)


def from_request(data: Mapping[str, str], *, keep_blank: bool = False) -> ServiceForm:
    """What was typed. Rows with nothing in them are left out unless they are to be kept."""
    given: dict[str, Any] = {}
    for field in fields(ServiceForm):
        if field.name == "ports":
            given["ports"] = _read_ports(data, keep_blank)
        elif field.name in ("selector", "labels", "annotations"):
            given[field.name] = _read_pairs(data, field.name, keep_blank)
        elif field.type in (bool, "bool"):
            given[field.name] = data.get(field.name) == "on"
        else:
            given[field.name] = data.get(field.name, "").strip()
    return ServiceForm(**given)


def _read_ports(data: Mapping[str, str], keep_blank: bool) -> tuple[PortInput, ...]:
    rows = []
    for index in range(PORTS_LIMIT):
        prefix = f"ports-{index}-"
        if prefix + "port" in data:
            values = {field.name: data.get(prefix + field.name, "").strip() for field in fields(PortInput)}
            rows.append(PortInput(**values))
    return tuple(row for row in rows if keep_blank or not row.is_blank)


def _read_pairs(data: Mapping[str, str], name: str, keep_blank: bool) -> tuple[Pair, ...]:
    rows = [
        Pair(data.get(f"{name}-{index}-key", "").strip(), data.get(f"{name}-{index}-value", "").strip())
        for index in range(PAIRS_LIMIT)
        if f"{name}-{index}-key" in data
    ]
    return tuple(row for row in rows if keep_blank or row.key or row.value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _pairs(mapping: Mapping[str, str] | None) -> tuple[Pair, ...]:
    return tuple(Pair(key, value) for key, value in sorted((mapping or {}).items()))


# Into an object


def apply_form(base: Document, shown: ServiceForm, wanted: ServiceForm) -> tuple[Document, list[FieldError]]:
    """The object with what differs between two forms written into it, and what could not be read.

    base: the object that `shown` shows; {} when it is yet to be created. What cannot be read is left out of the object.
    """
    document = deepcopy(base)
    writer = _Writer(document, shown, wanted)
    writer.write(is_new=not base)
    return document, writer.errors


class _Writer:
    """Writes the fields of a form one group after the other; collects errors in the paths of the object."""

    def __init__(self, document: Document, shown: ServiceForm, wanted: ServiceForm) -> None:
        self.metadata: Document = document.setdefault("metadata", {})
        self.spec: Document = document.setdefault("spec", {})
        self.shown, self.wanted = shown, wanted
        self.errors: list[FieldError] = []

    def write(self, *, is_new: bool) -> None:
        if is_new:
            self.metadata.update(name=self.wanted.name, namespace=self.wanted.namespace)
        self.map("labels", self.metadata, "labels", "metadata.labels")
        self.map("annotations", self.metadata, "annotations", "metadata.annotations")
        self.text("type", "type")
        self.ports()
        self.map("selector", self.spec, "selector", "spec.selector")
        if self.wanted.is_alias:
            self.text("external_name", "externalName")
        else:
            if self.shown.is_alias:
                self.spec.pop("externalName", None)
            self.addresses(may_choose=is_new or self.shown.is_alias)
            self.traffic()
        self.affinity()
        self.texts("external_ips", "externalIPs")
        if self.changed("publish_not_ready"):
            self.put("publishNotReadyAddresses", self.wanted.publish_not_ready)
        if self.wanted.type == LOAD_BALANCER:
            self.texts("source_ranges", "loadBalancerSourceRanges")
            self.text("balancer_class", "loadBalancerClass")
            if self.changed("allocate_node_ports"):
                self.spec["allocateLoadBalancerNodePorts"] = self.wanted.allocate_node_ports

    def changed(self, *names: str) -> bool:
        return any(getattr(self.shown, name) != getattr(self.wanted, name) for name in names)

    def put(self, key: str, value: Any) -> None:
        """Set a field of the spec, or drop it when there is nothing in it."""
        if value:
            self.spec[key] = value
        else:
            self.spec.pop(key, None)

    def text(self, name: str, key: str) -> None:
        if self.changed(name):
            self.put(key, getattr(self.wanted, name))

    def texts(self, name: str, key: str) -> None:
        if self.changed(name):
            self.put(key, _words(getattr(self.wanted, name)))

    def number(self, text: str, path: str) -> int | None:
        if not text:
            return None
        if not _WHOLE_NUMBER.fullmatch(text):
            self.errors.append(invalid(path, text, _MUST_BE_NUMBER))
            return None
        return int(text)

    def map(self, name: str, parent: Document, key: str, path: str) -> None:
        if not self.changed(name):
            return
        rows: tuple[Pair, ...] = getattr(self.wanted, name)
        before = {row.key for row in getattr(self.shown, name)}
        # What the form did not show stays: long annotations.
        values = {k: v for k, v in (parent.get(key) or {}).items() if k not in before}
        for index, row in enumerate(rows):
            if row.key in {other.key for other in rows[:index]}:
                self.errors.append(duplicate(path, row.key))
            values[row.key] = row.value
        if values:
            parent[key] = values
        else:
            parent.pop(key, None)

    def ports(self) -> None:
        gives_up_node_ports = self.shown.has_node_ports and not self.wanted.has_node_ports
        if not self.changed("ports") and not gives_up_node_ports:
            return
        before: Sequence[Document] = self.spec.get("ports") or []
        rows = []
        for index, typed in enumerate(self.wanted.ports):
            known = typed.origin.isascii() and typed.origin.isdigit() and int(typed.origin) < len(before)
            row = dict(before[int(typed.origin)]) if known else {}
            rows.append(row)
            self.port(row, typed, f"spec.ports[{index}]")
        self.put("ports", rows)

    def port(self, row: Document, typed: PortInput, path: str) -> None:
        if not typed.port:
            self.errors.append(required(f"{path}.port"))
        target: int | str | None = typed.target
        if _WHOLE_NUMBER.fullmatch(typed.target):
            target = int(typed.target)
        node = self.number(typed.node, f"{path}.nodePort") if self.wanted.has_node_ports else None
        values = {
            "name": typed.name,
            "protocol": typed.protocol,
            "port": self.number(typed.port, f"{path}.port"),
            "targetPort": target,
            "nodePort": node,
            "appProtocol": typed.app,
        }
        for key, value in values.items():
            if value in (None, ""):
                row.pop(key, None)
            else:
                row[key] = value

    def addresses(self, *, may_choose: bool) -> None:
        if may_choose and self.wanted.ip_mode == HEADLESS:
            self.spec.update(clusterIP=NONE, clusterIPs=[NONE])
        elif may_choose and self.wanted.ip_mode == CHOSEN:
            addresses = _words(self.wanted.cluster_ip)
            if addresses:
                self.spec.update(clusterIP=addresses[0], clusterIPs=addresses)
            else:
                self.errors.append(required("spec.clusterIPs", "write an address, or let it be chosen"))
        self.text("family_policy", "ipFamilyPolicy")
        self.texts("families", "ipFamilies")

    def traffic(self) -> None:
        self.text("internal_policy", "internalTrafficPolicy")
        self.text("distribution", "trafficDistribution")
        if self.wanted.is_reached_from_outside:
            self.text("external_policy", "externalTrafficPolicy")

    def affinity(self) -> None:
        stays = "ClientIP"
        if not self.changed("affinity") and not (self.wanted.affinity == stays and self.changed("affinity_timeout")):
            return
        self.spec["sessionAffinity"] = self.wanted.affinity
        self.spec.pop("sessionAffinityConfig", None)
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        if self.wanted.affinity != stays:
            return
        if (timeout_s := self.number(self.wanted.affinity_timeout, path)) is not None:
            self.spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": timeout_s}}


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def without_echoes(judged: Iterable[FieldError], unread: Iterable[FieldError], form: ServiceForm) -> list[FieldError]:
    """The errors that say something new: not those that fields left out of the object, as unreadable, cause."""
    paths = {error.field for error in unread}
    for index, row in enumerate(form.ports):
        if f"spec.ports[{index}].port" in paths and not row.target:
            paths.add(f"spec.ports[{index}].targetPort")  # it would have been the port
    return [error for error in judged if error.field not in paths]


# Two people at once


def merge(shown: ServiceForm, mine: ServiceForm, theirs: ServiceForm) -> tuple[ServiceForm, list[str]]:
    """My changes on top of theirs, and the fields that both changed to different values; there mine are kept."""
    kept: dict[str, Any] = {}
    both = []
    for field in fields(ServiceForm):
        before, ours, other = (getattr(form, field.name) for form in (shown, mine, theirs))
        if ours == before:
            continue
        kept[field.name] = ours
        if other not in (before, ours):
            both.append(field.name)
    return replace(theirs, **kept), both


# Onto a page

# A path of the object -> the field of the form that stands for it.
_PLACES = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    "metadata.labels": "labels",
    "metadata.annotations": "annotations",
    "spec.type": "type",
    "spec.ports": "ports",
    "spec.selector": "selector",
    "spec.clusterIP": "cluster_ip",
    "spec.clusterIPs": "cluster_ip",
    "spec.ipFamilies": "families",
    "spec.ipFamilyPolicy": "family_policy",
    "spec.sessionAffinity": "affinity",
    "spec.sessionAffinityConfig": "affinity_timeout",
    "spec.internalTrafficPolicy": "internal_policy",
    "spec.externalTrafficPolicy": "external_policy",
    "spec.trafficDistribution": "distribution",
    "spec.publishNotReadyAddresses": "publish_not_ready",
    "spec.externalName": "external_name",
    "spec.externalIPs": "external_ips",
    "spec.LoadBalancerSourceRanges": "source_ranges",
    "spec.loadBalancerSourceRanges": "source_ranges",
    "spec.loadBalancerClass": "balancer_class",
    "spec.allocateLoadBalancerNodePorts": "allocate_node_ports",
}
_PORT_PLACES = {"targetPort": "target", "nodePort": "node", "appProtocol": "app"}
_PORT_PATH = re.compile(r"spec\.ports\[(\d+)\](?:\.(\w+))?")


def place_of(path: str) -> str:
    """The name of the form's field for a path of the object, empty when the form has none."""
    if found := _PORT_PATH.fullmatch(path):
        key = found[2] or "port"
        return f"ports-{found[1]}-{_PORT_PLACES.get(key, key)}"
    plain = re.sub(r"\[.*$", "", path)
    while plain and plain not in _PLACES:
        plain = plain.rpartition(".")[0]
    return _PLACES.get(plain, "")


@dataclass(frozen=True)
class Input:
    """One field on the page. name: also the element's id, with "f-" in front."""

    name: str
    value: Any
    errors: tuple[str, ...] = ()
    focus: bool = False  # where a person goes on after a row was added
    group: str = ""  # the id of the group of rows one of whose errors names this value

    @property
    def id(self) -> str:
        return f"f-{self.name}"


@dataclass(frozen=True)
class Problem:
    """One line of the list of errors. place: the id of the field it leads to, empty when there is none."""

    text: str
    place: str = ""

    @classmethod
    def told(cls, message: str) -> "Problem":
        """A message that may name a field by its path, and leads to it then."""
        path = re.search(r"\b(?:metadata|spec)\.[\w.\[\]]*\w", message)
        place = place_of(path[0]) if path else ""
        return cls(message, f"f-{place}" if place else "")


class FormView:
    """A form with its errors, for the templates."""

    def __init__(self, form: ServiceForm, errors: Iterable[FieldError] = (), *, focus: str = "") -> None:
        self.form = form
        self._focus = focus
        self._errors: dict[str, list[FieldError]] = {}
        self.problems: list[Problem] = []
        for error in _distinct(errors):
            place = place_of(error.field)
            self._errors.setdefault(place, []).append(error)
            self.problems.append(Problem(str(error), f"f-{place}" if place else ""))
        self.fields = {field.name: self._input(field.name, getattr(form, field.name)) for field in fields(ServiceForm)}
        blank_port = (PortInput(),) if not form.ports and not form.is_alias else ()
        self.ports = [
            {
                "index": index,
                "origin": row.origin,
                **{
                    f.name: self._input(f"ports-{index}-{f.name}", getattr(row, f.name)) for f in fields(PortInput)[:-1]
                },
            }
            for index, row in enumerate(form.ports or blank_port)
        ]
        self.selector = self._pairs("selector", form.selector)
        self.labels = self._pairs("labels", form.labels)
        self.annotations = self._pairs("annotations", form.annotations)

    @property
    def kept(self) -> list[tuple[str, str]]:
        """What an ExternalName Service has no use for, name -> value, kept in case the type changes back."""
        unused = (
            "ip_mode", "cluster_ip", "family_policy", "families", "external_ips", "source_ranges", "balancer_class",
            "affinity", "affinity_timeout", "internal_policy", "external_policy", "distribution",
        )  # fmt: skip
        ticked = [name for name in ("allocate_node_ports", "publish_not_ready") if getattr(self.form, name)]
        return [(name, getattr(self.form, name)) for name in unused] + [(name, "on") for name in ticked]

    def _input(self, name: str, value: Any) -> Input:
        errors = tuple(error.body() for error in self._errors.get(name, ()))
        return Input(name, value, errors, focus=name == self._focus)

    def _pairs(self, name: str, rows: Sequence[Pair]) -> list[dict[str, Any]]:
        named = {error.value for error in self._errors.get(name, ()) if isinstance(error.value, str)}

        def cell(index: int, part: str, value: str) -> Input:
            return replace(self._input(f"{name}-{index}-{part}", value), group=f"f-{name}" if value in named else "")

        return [
            {"index": index, "key": cell(index, "key", row.key), "value": cell(index, "value", row.value)}
            for index, row in enumerate(rows)
        ]


def _distinct(errors: Iterable[FieldError]) -> list[FieldError]:
    """Each error once: rules about metadata are told several times, as Kubernetes does."""
    return list({str(error): error for error in errors}.values())
