"""The grammars of names, labels, ports and addresses. Each function gives what is wrong, as a list of rules broken.

Source: k8s v1.36 apimachinery/pkg/util/validation/validation.go.
"""

import ipaddress
import re

LABEL_LENGTH = 63
SUBDOMAIN_LENGTH = 253

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_RFC1123_LABEL = re.compile(_LABEL, re.ASCII)
_RFC1123_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_RFC1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", re.ASCII)
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", re.ASCII)
_PORT_NAME = re.compile(r"[-a-z0-9]+", re.ASCII)
_URL_PATH = re.compile(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", re.ASCII)

LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name', or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name', or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
QUALIFIED_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName', or 'my.name', or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue', or 'my_value', or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
WILDCARD_RULE = (
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower "
    "case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used "
    "for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
URL_PATH_RULE = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')"
IP_RULE = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
CIDR_RULE = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _too_long(limit: int) -> str:
    return f"must be no more than {limit} bytes"


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def label_problems(text: str) -> list[str]:
    """Of a DNS label that may start with a digit (RFC 1123)."""
    problems = [_too_long(LABEL_LENGTH)] if _size(text) > LABEL_LENGTH else []
    if not _RFC1123_LABEL.fullmatch(text):
        problems.append(SUBDOMAIN_RULE if _RFC1123_SUBDOMAIN.fullmatch(text) and "." not in text else LABEL_RULE)
    return problems


def label_1035_problems(text: str) -> list[str]:
    """Of a DNS label that starts with a letter (RFC 1035)."""
    problems = [_too_long(LABEL_LENGTH)] if _size(text) > LABEL_LENGTH else []
    if not _RFC1035_LABEL.fullmatch(text):
        problems.append(LABEL_1035_RULE)
    return problems


def subdomain_problems(text: str) -> list[str]:
    """Of a DNS name in lower case (RFC 1123)."""
    problems = [_too_long(SUBDOMAIN_LENGTH)] if _size(text) > SUBDOMAIN_LENGTH else []
    if not _RFC1123_SUBDOMAIN.fullmatch(text):
        problems.append(SUBDOMAIN_RULE)
    return problems


def qualified_name_problems(text: str) -> list[str]:
    """Of a label key, or anything else of the form [DNS subdomain/]name."""
    problems = []
    parts = text.split("/")
    if len(parts) > 2:
        return [
            QUALIFIED_RULE.replace("name part", "a qualified name")
            + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    if len(parts) == 2:
        if not parts[0]:
            problems.append("prefix part must be non-empty")
        else:
            problems += [f"prefix part {problem}" for problem in subdomain_problems(parts[0])]
    name = parts[-1]
    if not name:
        problems.append("name part must be non-empty")
    elif _size(name) > LABEL_LENGTH:
        problems.append("name part " + _too_long(LABEL_LENGTH))
    if not _QUALIFIED.fullmatch(name):
        problems.append(QUALIFIED_RULE)
    return problems


def label_value_problems(text: str) -> list[str]:
    problems = [_too_long(LABEL_LENGTH)] if _size(text) > LABEL_LENGTH else []
    if not _LABEL_VALUE.fullmatch(text):
        problems.append(LABEL_VALUE_RULE)
    return problems


def path_segment_problems(text: str) -> list[str]:
    """What is wrong with a name that becomes one segment of a path."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{character}'" for character in ("/", "%") if character in text]


def port_number_problems(number: int) -> list[str]:
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def port_name_problems(text: str) -> list[str]:
    """Of an IANA service name, as container ports and named target ports use."""
    problems = []
    if _size(text) > 15:
        problems.append("must be no more than 15 characters long")
    if not _PORT_NAME.fullmatch(text):
        problems.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", text):
        problems.append("must contain at least one letter (a-z)")
    if "--" in text:
        problems.append("must not contain consecutive hyphens")
    if text and (text[0] == "-" or text[-1] == "-"):
        problems.append("must not begin or end with a hyphen")
    return problems


def is_url_path(text: str) -> bool:
    """Whether text has only what may stand in the path of a URL (RFC 3986)."""
    return _URL_PATH.fullmatch(text) is not None


def parse_address(text: str) -> Address | None:
    """An address in strict spelling; None for what is none: leading zeros, scopes, IPv4 in IPv6 dress."""
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return None
    return address


def parse_address_leniently(text: str) -> Address | None:
    """An address as old API fields take it: leading zeros are read as decimal, mapped IPv4 counts as IPv4."""
    text = re.sub(r"(?<![0-9a-fA-F:])0+(?=[0-9])", "", text) if "." in text else text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return None
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


def parse_network(text: str) -> Network | None:
    """A CIDR in strict spelling: with a length, no host bits, no leading zeros, no IPv4 in IPv6 dress."""
    base, slash, length = text.partition("/")
    if not slash or not re.fullmatch(r"0|[1-9][0-9]*", length) or parse_address(base) is None:
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def parse_network_leniently(text: str) -> Network | None:
    """A CIDR as old API fields take it: host bits and leading zeros are allowed."""
    base, slash, length = text.partition("/")
    address = parse_address_leniently(base)
    if not slash or address is None or not re.fullmatch(r"[0-9]+", length):
        return None
    try:
        return ipaddress.ip_network(f"{address}/{int(length)}", strict=False)
    except ValueError:
        return None


def family_of(text: str) -> str:
    """ "IPv4", "IPv6", or "" for what is no address."""
    address = parse_address_leniently(text)
    if address is None:
        return ""
    return f"IPv{address.version}"
