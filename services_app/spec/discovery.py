"""What the API says about itself: groups, versions and resources, in the old and the aggregated form.

Source: k8s v1.36 apimachinery/pkg/apis/meta/v1 (APIGroupList, APIResourceList), api/apidiscovery/v2.
"""

from typing import Any

from services_app.spec.kinds import KINDS, SUBRESOURCES, Kind

Document = dict[str, Any]

AGGREGATED_GROUP = "apidiscovery.k8s.io"


def groups() -> list[str]:
    """The named groups, without the core group."""
    return list(dict.fromkeys(kind.group for kind in KINDS if kind.group))


def versions(group: str) -> list[str]:
    """The versions served of a group, preferred first."""
    return list(dict.fromkeys(kind.version for kind in KINDS if kind.group == group))


def core_versions(address: str) -> Document:
    """What /api answers. address: where clients of this request find the server."""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": versions(""), "serverAddressByClientCIDRs": addresses}


def group_list() -> Document:
    """What /apis answers."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in groups()]}


def group(name: str) -> Document | None:
    """What /apis/<group> answers; None when there is no such group."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name)} if name in groups() else None


def _group(name: str) -> Document:
    known = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions(name)]
    return {"name": name, "versions": known, "preferredVersion": known[0]}


def resource_list(group: str, version: str) -> Document | None:
    """What /api/v1 and /apis/<group>/<version> answer; None when nothing is served there."""
    kinds = _kinds(group, version)
    if not kinds:
        return None
    resources: list[Document] = []
    for kind in kinds:
        resources.append(_resource(kind))
        for name in sorted(kind.subresources):
            below = SUBRESOURCES[name]
            resources.append(
                {
                    "name": f"{kind.plural}/{name}",
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    **({"group": below.group, "version": below.version} if below.group else {}),
                    "kind": kind.kind_below(name),
                    "verbs": list(below.verbs),
                }
            )
    named = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": named, "resources": resources}


def _resource(kind: Kind) -> Document:
    made: Document = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        made["shortNames"] = list(kind.short_names)
    if kind.categories:
        made["categories"] = list(kind.categories)
    return made


def _kinds(group: str, version: str) -> list[Kind]:
    found = [kind for kind in KINDS if (kind.group, kind.version) == (group, version)]
    return sorted(found, key=lambda kind: kind.plural)


def aggregated(*, core: bool, version: str = "v2") -> Document:
    """Everything below /api (core) or /apis in one document."""
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"{AGGREGATED_GROUP}/{version}",
        "metadata": {},
        "items": [_aggregated_group(name) for name in ([""] if core else groups())],
    }


def _aggregated_group(name: str) -> Document:
    return {
        "metadata": {"name": name} if name else {},
        "versions": [
            {
                "version": version,
                "resources": [_aggregated_resource(kind) for kind in _kinds(name, version)],
                "freshness": "Current",
            }
            for version in versions(name)
        ],
    }


def _aggregated_resource(kind: Kind) -> Document:
    made: Document = {
        "resource": kind.plural,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        made["shortNames"] = list(kind.short_names)
    if kind.categories:
        made["categories"] = list(kind.categories)
    if kind.subresources:
        made["subresources"] = [
            {
                "subresource": name,
                "responseKind": {
                    "group": SUBRESOURCES[name].group,
                    "version": SUBRESOURCES[name].version,
                    "kind": kind.kind_below(name),
                },
                "verbs": list(SUBRESOURCES[name].verbs),
            }
            for name in sorted(kind.subresources)
        ]
    return made
