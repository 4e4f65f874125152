"""From a URL path to what it names."""

import re
from dataclasses import dataclass

from services_app.spec import kinds
from services_app.spec.kinds import Kind

_ROOT = re.compile(r"/(?:api/(?P<core>[^/]+)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?P<rest>/.*)?$")
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OF_COLLECTIONS = {"get": "list", "delete": "deletecollection"}


@dataclass(frozen=True)
class Asked:
    """What a path names, served or not: rights are asked for before it is looked whether there is such a thing.

    namespace "": of all namespaces, or a cluster-wide kind; of a Namespace and what is below it, that Namespace.
    rest: what follows the subresource.
    Source: k8s v1.36 apiserver/pkg/endpoints/request/requestinfo.go.
    """

    group: str
    version: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    watch: bool = False  # the old form of a path: /api/v1/watch/…
    in_namespace: bool = False  # the path goes through namespaces/<name>/ to something else

    def verb(self, method: str, *, watches: bool = False) -> str:
        """What a request by this method wants to do. watches: it asks for a watch by an option."""
        verb = _VERBS.get(method, "")
        if verb == "get" and (self.watch or (watches and not self.name)):
            return "watch"
        return verb if self.name else _OF_COLLECTIONS.get(verb, verb)


@dataclass(frozen=True)
class Target:
    """An object or a collection. namespace None: of all namespaces, or a cluster-wide kind.

    rest: what follows the subresource in the path, for those that lead on: "" or beginning with a slash.
    """

    kind: Kind
    namespace: str | None = None
    name: str = ""
    subresource: str = ""
    watch: bool = False  # the old form of a path: /api/v1/watch/…
    rest: str = ""


def read(path: str) -> Asked | None:
    """What a path asks for; None when it names no resource."""
    found = _ROOT.fullmatch(path.rstrip("/") or "/")
    if found is None:
        return None
    group, version = ("", found["core"]) if found["core"] else (found["group"], found["version"])
    parts = [part for part in (found["rest"] or "").split("/") if part]
    watch = parts[:1] == ["watch"]
    parts = parts[1:] if watch else parts
    namespace, in_namespace = "", False
    if parts[:1] == ["namespaces"] and len(parts) > 1:
        namespace = parts[1]
        in_namespace = len(parts) > 2 and (bool(group) or parts[2] not in kinds.NAMESPACE.subresources)
        parts = parts[2:] if in_namespace else parts
    if not parts:
        return None
    resource, name, subresource = (*parts, "", "")[:3]
    rest = "".join(f"/{part}" for part in parts[3:])
    return Asked(group, version, resource, namespace, name, subresource, rest, watch, in_namespace)


def parse(path: str) -> Target | None:
    """What a path names; None when nothing is served there."""
    asked = read(path)
    return target_of(asked) if asked is not None else None


def target_of(asked: Asked) -> Target | None:
    """The object or collection that is asked for; None when nothing is served there."""
    kind = kinds.by_resource(asked.group, asked.version, asked.resource)
    if kind is None or (asked.in_namespace and not kind.namespaced):
        return None
    if asked.name and kind.namespaced and not asked.in_namespace:
        return None
    if asked.subresource and asked.subresource not in kind.subresources:
        return None
    if asked.rest and asked.subresource != "proxy":
        return None
    namespace = asked.namespace if asked.in_namespace else None
    return Target(kind, namespace, asked.name, asked.subresource, asked.watch, asked.rest)
