"""What a client accepts: an object, a table of it, or its metadata; never protobuf, from which clients fall back."""

from dataclasses import dataclass

from services_app.spec.errors import NotAcceptable

JSON, YAML = "application/json", "application/yaml"
META = "meta.k8s.io"


@dataclass(frozen=True)
class Accepted:
    """The form of an answer. as_kind: "" (the object), Table, PartialObjectMetadata, PartialObjectMetadataList."""

    media_type: str = JSON
    as_kind: str = ""
    version: str = "v1"


def _by_preference(header: str) -> list[tuple[str, dict[str, str]]]:
    """The forms of an Accept header with their parameters: by their q, and as they stand where that is equal."""
    forms = []
    for part in header.split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        forms.append((media, dict(p.partition("=")[::2] for p in parameters)))
    return sorted(forms, key=lambda form: -_quality(form[1].get("q", "1")))


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def accept(header: str, *, streamed: bool = False) -> Accepted:
    """The first form of an Accept header that can be given. streamed: as events of a watch. Raises NotAcceptable."""
    forms = (JSON,) if streamed else (JSON, YAML)
    if not header.strip():
        return Accepted()
    for media, options in _by_preference(header):
        if media == "*/*":  # Kubernetes does not understand application/*
            media = JSON
        if media not in forms:
            continue
        as_kind = options.get("as", "")
        if not as_kind:
            return Accepted(media)
        known = as_kind in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")
        if known and options.get("g") == META and options.get("v") in ("v1", "v1beta1"):
            return Accepted(media, as_kind, options["v"])
    raise NotAcceptable(f"only the following media types are accepted: {', '.join(forms)}", details={})
