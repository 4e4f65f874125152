"""The kinds of objects the API serves, as rows of one table."""

from dataclasses import dataclass

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Subresource:
    """What is served below an object. kind: of its bodies, "" for the object's own; %s stands for that.

    group, version: of that kind where they are not the object's.
    """

    verbs: tuple[str, ...]
    kind: str = ""
    group: str = ""
    version: str = ""


_CHANGING = ("get", "patch", "update")
SUBRESOURCES = {
    "attach": Subresource(("create", "get"), "PodAttachOptions"),
    "binding": Subresource(("create",), "Binding"),
    "ephemeralcontainers": Subresource(_CHANGING),
    "eviction": Subresource(("create",), "Eviction", "policy", "v1"),
    "exec": Subresource(("create", "get"), "PodExecOptions"),
    "finalize": Subresource(("update",)),
    "log": Subresource(("get",)),
    "portforward": Subresource(("create", "get"), "PodPortForwardOptions"),
    "proxy": Subresource(("create", "delete", "get", "patch", "update"), "%sProxyOptions"),
    "resize": Subresource(_CHANGING),
    "status": Subresource(_CHANGING),
}


@dataclass(frozen=True)
class Kind:
    """A kind of API object. group is "" for the core group.

    unconditional_update: a PUT may leave out the resourceVersion.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS
    is_made_by_put: bool = False  # an update of what is not there creates it
    unconditional_update: bool = True

    @property
    def api_version(self) -> str:
        """As in an object's apiVersion: "v1", "discovery.k8s.io/v1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        return self.kind + "List"

    def kind_below(self, subresource: str) -> str:
        """The kind of the bodies of a subresource."""
        return SUBRESOURCES[subresource].kind.replace("%s", self.kind) or self.kind


NAMESPACE = Kind(
    group="",
    version="v1",
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    short_names=("ns",),
    namespaced=False,
    subresources=("finalize", "status"),
    verbs=tuple(verb for verb in VERBS if verb != "deletecollection"),
)
SERVICE = Kind(
    group="",
    version="v1",
    kind="Service",
    plural="services",
    singular="service",
    short_names=("svc",),
    subresources=("proxy", "status"),
    categories=("all",),
    is_made_by_put=True,
)
ENDPOINTS = Kind(
    group="",
    version="v1",
    kind="Endpoints",
    plural="endpoints",
    singular="endpoints",
    short_names=("ep",),
    is_made_by_put=True,
)
ENDPOINT_SLICE = Kind(
    group="discovery.k8s.io", version="v1", kind="EndpointSlice", plural="endpointslices", singular="endpointslice"
)
POD = Kind(
    group="",
    version="v1",
    kind="Pod",
    plural="pods",
    singular="pod",
    short_names=("po",),
    subresources=(
        "attach",
        "binding",
        "ephemeralcontainers",
        "eviction",
        "exec",
        "log",
        "portforward",
        "proxy",
        "resize",
        "status",
    ),
    categories=("all",),
)
NODE = Kind(
    group="",
    version="v1",
    kind="Node",
    plural="nodes",
    singular="node",
    short_names=("no",),
    namespaced=False,
    subresources=("proxy", "status"),
)
EVENT = Kind(
    group="",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    short_names=("ev",),
    is_made_by_put=True,
)
# The same objects as EVENT, in the form of the newer group
EVENTS_EVENT = Kind(
    group="events.k8s.io",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    short_names=("ev",),
    is_made_by_put=True,
)
CONFIG_MAP = Kind(
    group="", version="v1", kind="ConfigMap", plural="configmaps", singular="configmap", short_names=("cm",)
)
SECRET = Kind(group="", version="v1", kind="Secret", plural="secrets", singular="secret")
LEASE = Kind(
    group="coordination.k8s.io",
    version="v1",
    kind="Lease",
    plural="leases",
    singular="lease",
    is_made_by_put=True,
    unconditional_update=False,
)
INGRESS = Kind(
    group="networking.k8s.io",
    version="v1",
    kind="Ingress",
    plural="ingresses",
    singular="ingress",
    short_names=("ing",),
    subresources=("status",),
)
INGRESS_CLASS = Kind(
    group="networking.k8s.io",
    version="v1",
    kind="IngressClass",
    plural="ingressclasses",
    singular="ingressclass",
    namespaced=False,
)
IP_ADDRESS = Kind(
    group="networking.k8s.io",
    version="v1",
    kind="IPAddress",
    plural="ipaddresses",
    singular="ipaddress",
    short_names=("ip",),
    namespaced=False,
)
SERVICE_CIDR = Kind(
    group="networking.k8s.io",
    version="v1",
    kind="ServiceCIDR",
    plural="servicecidrs",
    singular="servicecidr",
    namespaced=False,
    subresources=("status",),
)


def _review(group: str, kind: str, *, namespaced: bool = False) -> Kind:
    """A question about somebody: answered, not stored."""
    name = kind.lower()
    return Kind(group, "v1", kind, f"{name}s", name, namespaced=namespaced, verbs=("create",))


SELF_SUBJECT_REVIEW = _review("authentication.k8s.io", "SelfSubjectReview")
SELF_SUBJECT_ACCESS_REVIEW = _review("authorization.k8s.io", "SelfSubjectAccessReview")
SELF_SUBJECT_RULES_REVIEW = _review("authorization.k8s.io", "SelfSubjectRulesReview")
SELF_REVIEWS = (SELF_SUBJECT_REVIEW, SELF_SUBJECT_ACCESS_REVIEW, SELF_SUBJECT_RULES_REVIEW)
# About others
TOKEN_REVIEW = _review("authentication.k8s.io", "TokenReview")
SUBJECT_ACCESS_REVIEW = _review("authorization.k8s.io", "SubjectAccessReview")
LOCAL_SUBJECT_ACCESS_REVIEW = _review("authorization.k8s.io", "LocalSubjectAccessReview", namespaced=True)
REVIEWS = (*SELF_REVIEWS, TOKEN_REVIEW, SUBJECT_ACCESS_REVIEW, LOCAL_SUBJECT_ACCESS_REVIEW)

# The body of pods/binding; not stored
BINDING = Kind(group="", version="v1", kind="Binding", plural="bindings", singular="binding", verbs=())

STORED: tuple[Kind, ...] = (
    NAMESPACE,
    SERVICE,
    ENDPOINTS,
    ENDPOINT_SLICE,
    POD,
    NODE,
    EVENT,
    EVENTS_EVENT,
    CONFIG_MAP,
    SECRET,
    LEASE,
    INGRESS,
    INGRESS_CLASS,
    IP_ADDRESS,
    SERVICE_CIDR,
)
KINDS: tuple[Kind, ...] = (*STORED, *REVIEWS)

_BY_RESOURCE = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_KIND = {(kind.api_version, kind.kind): kind for kind in KINDS}


def by_resource(group: str, version: str, plural: str) -> Kind | None:
    """The kind served at a path, None when there is none."""
    return _BY_RESOURCE.get((group, version, plural))


def by_group_resource(group: str, plural: str) -> Kind | None:
    """The kind of a resource in whichever version, None when there is none."""
    return next((kind for kind in KINDS if (kind.group, kind.plural) == (group, plural)), None)


def by_kind(api_version: str, kind: str) -> Kind | None:
    """The kind an object names in apiVersion and kind, None when it is not served."""
    return _BY_KIND.get((api_version, kind))
