"""Which fields each type of the API has, as data: for decoding, patches and OpenAPI. No rules about values.

`schema.json` holds type -> field -> type name, written by tests/spec/make_schema.py. Type names: "string", "int32",
"int64", "bool", "float", "time", "microtime", "quantity", "intstr", "bytes" (base64 text), "any", "[]T" a list, "{}T" a
map from strings, otherwise the name of another type. What the tables behind that file do not tell stands here.
Source of the tables below: k8s v1.36 staging/src/k8s.io/api (core, discovery, events, coordination,
networking, authentication and authorization v1), apimachinery/pkg/apis/meta/v1.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from services_app.spec.kinds import Kind

SCALARS = frozenset(
    {"string", "int32", "int64", "bool", "float", "time", "microtime", "quantity", "intstr", "bytes", "any"}
)


# How server-side apply sees a field: owned as a whole (scalars and what is atomic), by field, by entry, by element.
Shape = Literal["leaf", "struct", "map", "keyed", "set"]


@dataclass(frozen=True)
class Field:
    """One field of a type.

    type: a type name as above. required: OpenAPI's list. is_pointer: zero values are kept. always: written even when
    empty, as its zero value. merge_keys: of a list that strategic merge patches merge, the keys that identify an
    element. merges: a list of plain values that is merged as a set. retains_keys: $retainKeys applies. shape: what of
    it one manager can own. list_keys: of a keyed list, the keys that tell its elements apart.
    """

    name: str
    type: str
    required: bool = False
    is_pointer: bool = False
    always: bool = False
    merge_keys: tuple[str, ...] = ()
    merges: bool = False
    retains_keys: bool = False
    shape: "Shape" = "leaf"
    list_keys: tuple[str, ...] = ()

    @property
    def is_list(self) -> bool:
        return self.type.startswith("[]")

    @property
    def is_map(self) -> bool:
        return self.type.startswith("{}")

    @property
    def element(self) -> str:
        """The type of a list's or map's elements, or of the field itself."""
        return self.type[2:] if self.is_list or self.is_map else self.type

    @property
    def innermost(self) -> str:
        """The type within all lists and maps."""
        return self.type.replace("[]", "").replace("{}", "")


# Fields whose zero value means something, so that it is kept.
_POINTERS = {
    "AppArmorProfile": "localhostProfile",
    "AzureDiskVolumeSource": "cachingMode fsType kind readOnly",
    "CSIVolumeSource": "fsType readOnly",
    "ClientIPConfig": "timeoutSeconds",
    "ConfigMap": "immutable",
    "ConfigMapEnvSource": "optional",
    "ConfigMapKeySelector": "optional",
    "ConfigMapProjection": "optional",
    "ConfigMapVolumeSource": "defaultMode optional",
    "Container": "restartPolicy",
    "ContainerStatus": "started",
    "DeleteOptions": "gracePeriodSeconds orphanDependents preconditions propagationPolicy",
    "DiscoveryEndpointPort": "appProtocol name port protocol",
    "DownwardAPIVolumeFile": "mode",
    "DownwardAPIVolumeSource": "defaultMode",
    "EmptyDirVolumeSource": "sizeLimit",
    "Endpoint": "hostname nodeName zone",
    "EndpointAddress": "nodeName",
    "EndpointConditions": "ready serving terminating",
    "EndpointPort": "appProtocol",
    "EphemeralContainer": "restartPolicy",
    "FCVolumeSource": "lun",
    "GRPCAction": "service",
    "HostPathVolumeSource": "type",
    "ISCSIVolumeSource": "initiatorName",
    "IngressClassParametersReference": "apiGroup namespace scope",
    "IngressPortStatus": "error",
    "IngressSpec": "ingressClassName",
    "KeyToPath": "mode",
    "LeaseSpec": (
        "acquireTime holderIdentity leaseDurationSeconds leaseTransitions preferredHolder renewTime strategy"
    ),
    "Lifecycle": "stopSignal",
    "LoadBalancerIngress": "ipMode",
    "NodeSwapStatus": "capacity",
    "ObjectMeta": "deletionGracePeriodSeconds",
    "OwnerReference": "blockOwnerDeletion controller",
    "PersistentVolumeClaimSpec": "storageClassName volumeAttributesClassName volumeMode",
    "PodDNSConfigOption": "value",
    "PodResourceClaim": "resourceClaimName resourceClaimTemplateName",
    "PodResourceClaimStatus": "resourceClaimName",
    "PodSecurityContext": (
        "fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy supplementalGroupsPolicy"
    ),
    "PodSpec": (
        "activeDeadlineSeconds automountServiceAccountToken enableServiceLinks hostUsers hostnameOverride "
        "preemptionPolicy priority runtimeClassName setHostnameAsFQDN shareProcessNamespace "
        "terminationGracePeriodSeconds"
    ),
    "PortStatus": "error",
    "Preconditions": "resourceVersion uid",
    "Probe": "terminationGracePeriodSeconds",
    "ProjectedVolumeSource": "defaultMode",
    "SeccompProfile": "localhostProfile",
    "Secret": "immutable",
    "SecretEnvSource": "optional",
    "SecretKeySelector": "optional",
    "SecretProjection": "optional",
    "SecretVolumeSource": "defaultMode optional",
    "SecurityContext": (
        "allowPrivilegeEscalation privileged procMount readOnlyRootFilesystem runAsGroup runAsNonRoot runAsUser"
    ),
    "ServiceAccountTokenProjection": "expirationSeconds",
    "ServicePort": "appProtocol",
    "ServiceSpec": (
        "allocateLoadBalancerNodePorts internalTrafficPolicy ipFamilyPolicy loadBalancerClass trafficDistribution"
    ),
    "Toleration": "tolerationSeconds",
    "TopologySpreadConstraint": "minDomains nodeAffinityPolicy nodeTaintsPolicy",
    "TypedLocalObjectReference": "apiGroup",
    "TypedObjectReference": "apiGroup namespace",
    "VolumeMount": "mountPropagation recursiveReadOnly",
    "VolumeMountStatus": "recursiveReadOnly",
    "WindowsSecurityContextOptions": "gmsaCredentialSpec gmsaCredentialSpecName hostProcess runAsUserName",
}

# Fields written even when empty, beyond those OpenAPI calls required.
_ALWAYS = {
    "Container": "resources",
    "Endpoint": "conditions",
    "EndpointSlice": "endpoints metadata ports",
    "Endpoints": "metadata",
    "EphemeralContainer": "resources",
    "Event": "eventTime firstTimestamp lastTimestamp reportingComponent reportingInstance source",
    "EventsEvent": "deprecatedFirstTimestamp deprecatedLastTimestamp deprecatedSource metadata regarding",
    "IPAddress": "metadata spec",
    "Ingress": "metadata spec status",
    "IngressServiceBackend": "port",
    "IngressStatus": "loadBalancer",
    "Lease": "metadata spec",
    "Namespace": "metadata spec status",
    "Node": "metadata spec status",
    "NodeCondition": "lastHeartbeatTime lastTransitionTime",
    "NodeDaemonEndpoints": "kubeletEndpoint",
    "NodeStatus": "daemonEndpoints nodeInfo",
    "Pod": "metadata spec status",
    "PodCondition": "lastProbeTime lastTransitionTime",
    "SelfSubjectReviewStatus": "userInfo",
    "Service": "metadata spec status",
    "ServiceCIDR": "metadata spec status",
    "ServicePort": "targetPort",
    "ServiceStatus": "loadBalancer",
    "TokenReviewStatus": "user",
}
# Required in OpenAPI, yet left out when empty.
_NOT_ALWAYS = {"IPAddressSpec", "NamespaceCondition", "ObjectReference", "ParentReference", "TokenReviewSpec"}

# Lists that strategic merge patches merge by key instead of replacing them.
# Service ports: Kubernetes merges by port alone and so loses one of 53/TCP and 53/UDP (kubernetes#39188).
_MERGE_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "Container": {
        "env": ("name",),
        "ports": ("containerPort",),
        "volumeDevices": ("devicePath",),
        "volumeMounts": ("mountPath",),
    },
    "EphemeralContainer": {
        "env": ("name",),
        "ports": ("containerPort",),
        "volumeDevices": ("devicePath",),
        "volumeMounts": ("mountPath",),
    },
    "NamespaceStatus": {"conditions": ("type",)},
    "NodeStatus": {"addresses": ("type",), "conditions": ("type",)},
    "ObjectMeta": {"ownerReferences": ("uid",)},
    "PodSpec": {
        "containers": ("name",),
        "ephemeralContainers": ("name",),
        "hostAliases": ("ip",),
        "imagePullSecrets": ("name",),
        "initContainers": ("name",),
        "resourceClaims": ("name",),
        "schedulingGates": ("name",),
        "topologySpreadConstraints": ("topologyKey",),
        "volumes": ("name",),
    },
    "PodStatus": {
        "conditions": ("type",),
        "hostIPs": ("ip",),
        "podIPs": ("ip",),
        "resourceClaimStatuses": ("name",),
    },
    "ServiceCIDRStatus": {"conditions": ("type",)},
    "ServiceSpec": {"ports": ("port", "protocol")},
    "ServiceStatus": {"conditions": ("type",)},
}
# What an element of a merged list means when it leaves a key out.
MERGE_KEY_DEFAULTS = {"protocol": "TCP"}
_MERGED_SETS = {"ObjectMeta": "finalizers", "NodeSpec": "podCIDRs"}
_RETAINS_KEYS = {"PodSpec": "resourceClaims volumes"}

# For server-side apply: x-kubernetes-list-type "map" with its keys and "set", x-kubernetes-map-type "atomic". All other
# lists are atomic, all other maps and structs granular.
_LIST_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "Container": {
        "env": ("name",),
        "ports": ("containerPort", "protocol"),
        "volumeDevices": ("devicePath",),
        "volumeMounts": ("mountPath",),
    },
    "ContainerStatus": {"allocatedResourcesStatus": ("name",), "volumeMounts": ("mountPath",)},
    "EphemeralContainer": {
        "env": ("name",),
        "ports": ("containerPort", "protocol"),
        "volumeDevices": ("devicePath",),
        "volumeMounts": ("mountPath",),
    },
    "NamespaceStatus": {"conditions": ("type",)},
    "NodeStatus": {"addresses": ("type",), "conditions": ("type",)},
    "ObjectMeta": {"ownerReferences": ("uid",)},
    "PodSpec": {
        "containers": ("name",),
        "ephemeralContainers": ("name",),
        "hostAliases": ("ip",),
        "imagePullSecrets": ("name",),
        "initContainers": ("name",),
        "resourceClaims": ("name",),
        "schedulingGates": ("name",),
        "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
        "volumes": ("name",),
    },
    "PodStatus": {"conditions": ("type",), "podIPs": ("ip",), "resourceClaimStatuses": ("name",)},
    "ResourceRequirements": {"claims": ("name",)},
    "ResourceStatus": {"resources": ("resourceID",)},
    "ServiceCIDRStatus": {"conditions": ("type",)},
    "ServiceSpec": {"ports": ("port", "protocol")},
    "ServiceStatus": {"conditions": ("type",)},
}
_SETS = {"Endpoint": "addresses", "NodeSpec": "podCIDRs", "ObjectMeta": "finalizers"}
_ATOMIC_MAPS = {"PodSpec": "nodeSelector", "ServiceSpec": "selector"}
_ATOMIC_STRUCTS = frozenset(
    {"ConfigMapKeySelector", "DiscoveryEndpointPort", "EndpointAddress", "EndpointPort", "FileKeySelector"}
    | {"LabelSelector", "LocalObjectReference", "NodeSelector", "NodeSelectorTerm", "ObjectFieldSelector"}
    | {"ObjectReference", "OwnerReference", "ResourceFieldSelector", "SecretKeySelector", "SecretReference"}
    | {"TypedLocalObjectReference"}
)


@cache
def _tables() -> dict[str, dict[str, str]]:
    tables: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "schema.json").read_text())
    # ignored on the wire by every kind served, but part of every object
    for table in tables.values():
        for key in ("apiVersion", "kind"):
            if key in table and "metadata" in table:
                del table[key]
    return tables


@cache
def fields(type_name: str) -> MappingProxyType[str, Field]:
    """The fields of a type by name, apart from a document's own kind and apiVersion. KeyError for an unknown type."""

    def has(table: dict[str, str], field: str) -> bool:
        return field in table.get(type_name, "").split()

    found = {}
    for name, spelled in _tables()[type_name].items():
        required = spelled.endswith("!")
        found[name] = Field(
            name=name,
            type=spelled.rstrip("!"),
            required=required,
            is_pointer=has(_POINTERS, name),
            always=has(_ALWAYS, name) or (required and type_name not in _NOT_ALWAYS),
            merge_keys=_MERGE_KEYS.get(type_name, {}).get(name, ()),
            merges=has(_MERGED_SETS, name),
            retains_keys=has(_RETAINS_KEYS, name),
            shape=_shape(type_name, name, spelled.rstrip("!")),
            list_keys=_LIST_KEYS.get(type_name, {}).get(name, ()),
        )
    return MappingProxyType(found)


def _shape(owner: str, name: str, type_name: str) -> Shape:
    if type_name.startswith("[]"):
        if name in _LIST_KEYS.get(owner, ()):
            return "keyed"
        return "set" if name in _SETS.get(owner, "").split() else "leaf"
    if type_name.startswith("{}"):
        return "leaf" if name in _ATOMIC_MAPS.get(owner, "").split() else "map"
    return "leaf" if type_name in SCALARS or is_atomic(type_name) else "struct"


def is_atomic(type_name: str) -> bool:
    """Whether a struct is owned as a whole wherever it stands."""
    return type_name in _ATOMIC_STRUCTS


def root(kind: Kind) -> str:
    """The type of a kind's documents."""
    return "EventsEvent" if (kind.group, kind.kind) == ("events.k8s.io", "Event") else kind.kind


def zero(type_name: str) -> Any:
    """What an empty field of a type is written as: None for lists, maps and times."""
    if type_name in ("string", "quantity", "bytes"):
        return ""
    if type_name in ("int32", "int64", "float", "intstr"):
        return 0
    if type_name == "bool":
        return False
    if type_name in SCALARS or type_name[:2] in ("[]", "{}"):
        return None
    return {field.name: zero(field.type) for field in fields(type_name).values() if field.always}
