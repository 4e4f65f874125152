"""The kinds of objects the API serves, as rows of one table."""

from dataclasses import dataclass

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Subresource:
    """What is served below an object. kind: of its bodies, "" for the object's own."""

    verbs: tuple[str, ...]
    kind: str = ""


SUBRESOURCES = {
    "binding": Subresource(("create",), "Binding"),
    "finalize": Subresource(("update",)),
    "status": Subresource(("get", "patch", "update")),
}


@dataclass(frozen=True)
class Kind:
    """A kind of API object. group is "" for the core group.

    put_creates: a PUT to a name that is free creates. unconditional_update: a PUT may leave out the resourceVersion.
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
    put_creates: bool = False
    unconditional_update: bool = True

    @property
    def api_version(self) -> str:
        """As in an object's apiVersion: "v1", "discovery.k8s.io/v1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        return self.kind + "List"


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
    subresources=("status",),
    categories=("all",),
    put_creates=True,
)
ENDPOINTS = Kind(
    group="",
    version="v1",
    kind="Endpoints",
    plural="endpoints",
    singular="endpoints",
    short_names=("ep",),
    put_creates=True,
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
    subresources=("binding", "status"),
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
    subresources=("status",),
)
EVENT = Kind(
    group="", version="v1", kind="Event", plural="events", singular="event", short_names=("ev",), put_creates=True
)
# The body of pods/binding; not stored
BINDING = Kind(group="", version="v1", kind="Binding", plural="bindings", singular="binding", verbs=())

KINDS: tuple[Kind, ...] = (NAMESPACE, SERVICE, ENDPOINTS, ENDPOINT_SLICE, POD, NODE, EVENT)

_BY_RESOURCE = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_KIND = {(kind.api_version, kind.kind): kind for kind in KINDS}


def by_resource(group: str, version: str, plural: str) -> Kind | None:
    """The kind served at a path, None when there is none."""
    return _BY_RESOURCE.get((group, version, plural))


def by_kind(api_version: str, kind: str) -> Kind | None:
    """The kind an object names in apiVersion and kind, None when it is not served."""
    return _BY_KIND.get((api_version, kind))
