"""Annotations that say how connections are spread over a Service's endpoints, beyond what Kubernetes' fields can say.

A Service chooses how its endpoints are drawn, a Pod how much of the traffic it takes. An EndpointSlice, or Endpoints
written by hand, carry weights by address: derived slices from their Pods, others as somebody writes them.
"""

import re
from collections.abc import Mapping
from typing import Any

from services_app.spec import names
from services_app.spec.errors import FieldError, invalid, not_supported

Document = dict[str, Any]

LOAD_BALANCING = "timonel.io/load-balancing"  # of a Service
RANDOM, SOURCE_HASH = "random", "source-hash"
WEIGHT = "timonel.io/weight"  # of a Pod
WEIGHTS = "timonel.io/weights"  # of an EndpointSlice or Endpoints: "192.0.2.1=50,192.0.2.2=0"
DEFAULT_WEIGHT = MAX_WEIGHT = 100

_WEIGHT = re.compile(r"0|[1-9][0-9]?|100", re.ASCII)
_RULE = "must be a whole number from 0 (no new connections) to 100 (the default)"


def is_by_source_hash(service: Document) -> bool:
    """Whether a client's address decides on the endpoint."""
    return _annotation(service, LOAD_BALANCING) == SOURCE_HASH


def weight_of(pod: Document) -> int:
    """A Pod's share, in relation to those of the others; what cannot be read counts for nothing."""
    text = _annotation(pod, WEIGHT)
    return int(text) if text is not None and _WEIGHT.fullmatch(text) else DEFAULT_WEIGHT


def weights_of(document: Document) -> dict[str, int]:
    """Address -> weight, of those an EndpointSlice or Endpoints name; of a text that cannot be read none."""
    text = _annotation(document, WEIGHTS)
    found = _parse(text) if text else {}
    return found if isinstance(found, dict) else {}


def weights_text(weights: Mapping[str, int]) -> str:
    """The annotation for address -> weight; "" when all have the default."""
    return ",".join(f"{address}={weight}" for address, weight in weights.items() if weight != DEFAULT_WEIGHT)


def validate_service(service: Document) -> list[FieldError]:
    chosen, path = _annotation(service, LOAD_BALANCING), f"metadata.annotations[{LOAD_BALANCING}]"
    if chosen is None:
        return []
    if chosen not in (RANDOM, SOURCE_HASH):
        return [not_supported(path, chosen, [RANDOM, SOURCE_HASH])]
    if chosen == SOURCE_HASH and service["spec"].get("sessionAffinity") == "ClientIP":
        return [invalid(path, chosen, "may not be used together with `sessionAffinity` ClientIP")]
    return []


def validate_pod(old: Document | None, pod: Document) -> list[FieldError]:
    text = _annotation(pod, WEIGHT)
    if text is None or text == _annotation(old, WEIGHT) or _WEIGHT.fullmatch(text):
        return []
    return [invalid(f"metadata.annotations[{WEIGHT}]", text, _RULE)]


def validate_weights(old: Document | None, document: Document) -> list[FieldError]:
    """Of an EndpointSlice or Endpoints. Addresses that are no endpoints' are allowed: they may come later."""
    text = _annotation(document, WEIGHTS)
    if not text or text == _annotation(old, WEIGHTS):
        return []
    problem = _parse(text)
    return [invalid(f"metadata.annotations[{WEIGHTS}]", text, problem)] if isinstance(problem, str) else []


def _annotation(document: Document | None, key: str) -> str | None:
    found: str | None = ((document or {}).get("metadata", {}).get("annotations") or {}).get(key)
    return found


def _parse(text: str) -> dict[str, int] | str:
    """Address -> weight, or what is wrong."""
    found: dict[str, int] = {}
    for part in text.split(","):
        address, _, weight = (word.strip() for word in part.rpartition("="))
        parsed = names.parse_address(address)
        if parsed is None:
            return f"must be ADDRESS=WEIGHT, separated by commas; {part.strip()!r} has no IP address"
        if not _WEIGHT.fullmatch(weight):
            return f"{address}: {_RULE}"
        if str(parsed) in found:
            return f"{address} stands here twice"
        found[str(parsed)] = int(weight)
    return found
