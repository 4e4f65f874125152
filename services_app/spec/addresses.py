"""Rules about addresses that several kinds share.

Source: k8s v1.36 apimachinery/pkg/util/validation/ip.go, pkg/apis/core/validation, ValidateEndpointIP.
"""

from collections.abc import Collection
from ipaddress import IPv4Address

from services_app.spec import names
from services_app.spec.cluster import ClusterSettings
from services_app.spec.errors import FieldError, invalid


def validate_address(text: str, path: str, known: Collection[str] = ()) -> list[FieldError]:
    """An address in strict spelling. known: values that were stored before, whatever their spelling."""
    if text in known or names.parse_address(text) is not None:
        return []
    if names.parse_address_leniently(text) is None:
        return [invalid(path, text, names.IP_RULE)]
    detail = (
        "must not have leading 0s" if "." in text and ":" not in text else "must not be an IPv4-mapped IPv6 address"
    )
    return [invalid(path, text, detail)]


def validate_network(text: str, path: str, known: Collection[str] = ()) -> list[FieldError]:
    """A CIDR in strict spelling. known: as in validate_address."""
    if text in known or names.parse_network(text) is not None:
        return []
    if names.parse_network_leniently(text) is None:
        return [invalid(path, text, names.CIDR_RULE)]
    return [
        invalid(path, text, "must not have bits set beyond the prefix length, leading 0s or an IPv4-mapped address")
    ]


def validate_reachable(text: str, path: str) -> list[FieldError]:
    """An address packets can be sent to: not unspecified, loopback or link-local. Silent about what is no address."""
    address = names.parse_address_leniently(text)
    if address is None:
        return []
    errors = []
    if address.is_unspecified:
        errors.append(invalid(path, text, "may not be unspecified (0.0.0.0 or ::)"))
    if address.is_loopback:
        errors.append(invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
    if address.is_link_local:
        errors.append(invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
    if _is_link_local_multicast(address):
        errors.append(invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
    return errors


def validate_destination(text: str, path: str, cluster: ClusterSettings) -> list[FieldError]:
    """An address an endpoint may have: reachable, and no virtual one. Silent about what is no address.

    Nodes cannot send a packet through two virtual addresses; Kubernetes only documents that (decision 0030).
    """
    errors = validate_reachable(text, path)
    address = names.parse_address_leniently(text)
    for network in cluster.virtual_cidrs:
        if address is not None and address.version == network.version and address in network:
            detail = f"may not be in the range of cluster IPs ({network}): a virtual address is no valid destination"
            errors.append(invalid(path, text, detail))
    return errors


def _is_link_local_multicast(address: names.Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.packed[:3] == b"\xe0\x00\x00"
    return address.packed[0] == 0xFF and address.packed[1] & 0x0F == 0x02
