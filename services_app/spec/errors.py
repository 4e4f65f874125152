"""The answers of the API when something cannot be done: one exception per reason, each a Kubernetes Status.

Source: k8s v1.36 apimachinery/pkg/api/errors and apimachinery/pkg/util/validation/field.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services_app.spec.kinds import Kind

# FieldError type -> (reason of its cause, words before the value; "" where the value is left out)
_TYPES = {
    "Invalid": ("FieldValueInvalid", "Invalid value"),
    "Required": ("FieldValueRequired", "Required value"),
    "Duplicate": ("FieldValueDuplicate", "Duplicate value"),
    "NotSupported": ("FieldValueNotSupported", "Unsupported value"),
    "NotFound": ("FieldValueNotFound", "Not found"),
    "Forbidden": ("FieldValueForbidden", "Forbidden"),
    "TooLong": ("FieldValueTooLong", "Too long"),
    "TooMany": ("FieldValueTooMany", "Too many"),
    "TypeInvalid": ("FieldValueTypeInvalid", "Invalid value"),
    "InternalError": ("InternalError", "Internal error"),
}
_WITHOUT_VALUE = {"Required", "Forbidden", "TooLong", "TooMany", "InternalError"}


@dataclass(frozen=True)
class FieldError:
    """One thing wrong with one field. type: a key of _TYPES; field: path as in "spec.ports[0].nodePort"."""

    type: str
    field: str
    value: Any = None
    detail: str = ""

    @property
    def reason(self) -> str:
        return _TYPES[self.type][0]

    def body(self) -> str:
        """Kind, value and rule, without the path."""
        words = _TYPES[self.type][1]
        if self.type not in _WITHOUT_VALUE:
            words += ": " + _shown(self.value)
        return f"{words}: {self.detail}" if self.detail else words

    def cause(self) -> dict[str, str]:
        """An entry of a Status' details.causes."""
        return {"reason": self.reason, "message": self.body(), "field": self.field}

    def __str__(self) -> str:
        return f"{self.field}: {self.body()}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("Required", field, "", detail)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("Invalid", field, value, detail)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("Duplicate", field, value)


def forbidden(field: str, detail: str) -> FieldError:
    return FieldError("Forbidden", field, "", detail)


def too_long(field: str, limit: int) -> FieldError:
    return FieldError("TooLong", field, "", f"may not be more than {limit} bytes")


def too_many(field: str, actual: int, limit: int) -> FieldError:
    return FieldError("TooMany", field, actual, f"{actual}: must have at most {limit} items")


def not_supported(field: str, value: Any, supported: Iterable[str]) -> FieldError:
    words = ", ".join(f'"{word}"' for word in sorted(supported))
    return FieldError("NotSupported", field, value, f"supported values: {words}")


class ApiError(Exception):
    """An answer other than success. reason "": the Status carries none; details None: likewise."""

    code = 500
    reason = ""

    def __init__(
        self, message: str, *, code: int | None = None, reason: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason
        self.details = details

    def status(self) -> dict[str, Any]:
        """The Kubernetes Status object to answer with."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


@dataclass(frozen=True)
class Resource:
    """A resource by name, served or not: for refusals, which come before it is looked for."""

    group: str
    plural: str


def _about(kind: Kind | Resource | None, name: str, **more: Any) -> dict[str, Any]:
    """Details that name an object by its resource; without a kind, nothing is named."""
    details: dict[str, Any] = {}
    if kind is not None:
        if name:
            details["name"] = name
        if kind.group:
            details["group"] = kind.group
        details["kind"] = kind.plural
    return details | more


def _resource(kind: Kind | Resource) -> str:
    """As messages spell it: "services", "endpointslices.discovery.k8s.io"."""
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


class BadRequest(ApiError):
    """The request cannot be understood."""

    code, reason = 400, "BadRequest"


class Unauthorized(ApiError):
    """No or no known credentials."""

    code, reason = 401, "Unauthorized"

    def __init__(self, message: str = "Unauthorized") -> None:
        super().__init__(message)


class Forbidden(ApiError):
    """Understood and refused, whoever asks."""

    code, reason = 403, "Forbidden"

    def __init__(self, kind: Kind | Resource | None, name: str, message: str) -> None:
        named = f'{_resource(kind)} "{name}" is' if kind and name else f"{_resource(kind)} is" if kind else ""
        super().__init__(f"{named} forbidden: {message}".lstrip(), details=_about(kind, name))


class NotFound(ApiError):
    """No such object; without a kind, no such path."""

    code, reason = 404, "NotFound"

    def __init__(self, kind: Kind | None = None, name: str = "") -> None:
        message = (
            f'{_resource(kind)} "{name}" not found' if kind else "the server could not find the requested resource"
        )
        super().__init__(message, details=_about(kind, name))


class MethodNotAllowed(ApiError):
    """The path knows no such verb."""

    code, reason = 405, "MethodNotAllowed"

    def __init__(self, message: str = "the server does not allow this method on the requested resource") -> None:
        super().__init__(message, details={})


class NotAcceptable(ApiError):
    """None of the accepted media types can be given."""

    code, reason = 406, "NotAcceptable"

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details=details)


class AlreadyExists(ApiError):
    """The name is taken."""

    code, reason = 409, "AlreadyExists"

    def __init__(self, kind: Kind, name: str) -> None:
        super().__init__(f'{_resource(kind)} "{name}" already exists', details=_about(kind, name))


class Conflict(ApiError):
    """The object is not as the request assumes. named: what the details call the resource, where not its plural."""

    code, reason = 409, "Conflict"

    def __init__(self, kind: Kind, name: str, message: str, *, named: str = "") -> None:
        named = named or kind.plural
        resource = f"{named}.{kind.group}" if kind.group else named
        details = _about(kind, name) | {"kind": named}
        super().__init__(f'Operation cannot be fulfilled on {resource} "{name}": {message}', details=details)


class Expired(ApiError):
    """The asked version or continue token is older than the log reaches. metadata: of the Status, for how to go on."""

    code, reason = 410, "Expired"

    def __init__(self, message: str, *, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.metadata = metadata or {}

    def status(self) -> dict[str, Any]:
        return super().status() | {"metadata": self.metadata}


class RequestTooLarge(ApiError):
    """The body is over the limit."""

    code, reason = 413, "RequestEntityTooLarge"

    def __init__(self, message: str = "Request entity too large: limit is 3145728") -> None:
        super().__init__(message)


class UnsupportedMediaType(ApiError):
    """The body is in a media type that cannot be read here."""

    code, reason = 415, "UnsupportedMediaType"

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details=details)


class Invalid(ApiError):
    """The object breaks rules; all of them are listed. kind None: the request, not an object, is at fault."""

    code, reason = 422, "Invalid"

    def __init__(self, kind: Kind | None, name: str, errors: list[FieldError], *, message: str = "") -> None:
        self.errors = errors
        details: dict[str, Any] = {}
        if kind is not None:
            details = _about(kind, name) | {"kind": kind.kind}
            texts = list(dict.fromkeys(str(error) for error in errors))
            text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
            typed = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
            message = message or (f'{typed} "{name}" is invalid: {text}' if texts else f'{typed} "{name}" is invalid')
        if errors:
            details["causes"] = [error.cause() for error in errors]
        super().__init__(message or "the server rejected our request due to an error in our request", details=details)


class ApplyConflict(ApiError):
    """Others own fields that an apply would change. conflicts: (manager as it is told, path of a field)."""

    code, reason = 409, "Conflict"

    def __init__(self, conflicts: list[tuple[str, str]]) -> None:
        self.conflicts = conflicts
        causes = [
            {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": path}
            for manager, path in conflicts
        ]
        if len(conflicts) == 1:
            ((manager, path),) = conflicts
            message = f"Apply failed with 1 conflict: conflict with {manager}: {path}"
        else:
            lines = []
            for manager in sorted({manager for manager, _ in conflicts}):
                lines += [f"conflicts with {manager}:", *(f"- {path}" for who, path in conflicts if who == manager)]
            message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
        super().__init__(message, details={"causes": causes})


class ServiceUnavailable(ApiError):
    """Something the control plane needs is away; to ask again soon may work. Whether a write was stored is not known."""

    code, reason = 503, "ServiceUnavailable"


class InternalError(ApiError):
    """Something that is no fault of the request, or that Kubernetes does not treat as one."""

    code, reason = 500, "InternalError"

    def __init__(self, message: str, *, reason: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, reason=reason, details=details)


class ServerTimeout(ApiError):
    """The answer would take too long; the client may try again."""

    code, reason = 504, "Timeout"

    def __init__(self, message: str, *, retry_after_s: int = 1, causes: list[dict[str, str]] | None = None) -> None:
        details: dict[str, Any] = {"causes": causes} if causes else {}
        super().__init__(message, details=details | {"retryAfterSeconds": retry_after_s})
