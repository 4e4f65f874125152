"""From a URL path to what it names."""

import re
from dataclasses import dataclass

from services_app.spec import kinds
from services_app.spec.kinds import Kind

_ROOT = re.compile(r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?P<rest>/.*)?$")


@dataclass(frozen=True)
class Target:
    """An object or a collection. namespace None: of all namespaces, or a cluster-wide kind."""

    kind: Kind
    namespace: str | None = None
    name: str = ""
    subresource: str = ""
    watch: bool = False  # the old form of a path: /api/v1/watch/…


def parse(path: str) -> Target | None:
    """What a path names; None when nothing is served there."""
    found = _ROOT.fullmatch(path.rstrip("/") or "/")
    if found is None:
        return None
    group, version = ("", "v1") if found["core"] else (found["group"], found["version"])
    parts = [part for part in (found["rest"] or "").split("/") if part]
    watch = parts[:1] == ["watch"]
    parts = parts[1:] if watch else parts
    namespace: str | None = None
    if len(parts) >= 3 and parts[0] == "namespaces" and (group or parts[2] not in kinds.NAMESPACE.subresources):
        namespace, parts = parts[1], parts[2:]
    if not 1 <= len(parts) <= 3:
        return None
    kind = kinds.by_resource(group, version, parts[0])
    if kind is None or (namespace is not None and not kind.namespaced):
        return None
    name, subresource = (*parts[1:], "", "")[:2]
    if name and kind.namespaced and namespace is None:
        return None
    if subresource and subresource not in kind.subresources:
        return None
    return Target(kind, namespace, name, subresource, watch)
