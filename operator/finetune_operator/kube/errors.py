"""What the API server answers when it does not do what was asked, in its own words."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refused or failed request. `message` is the API server's; `retry_after_s` is set where it asked to come back later."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class NotFound(ApiError):
    """404."""


class AlreadyExists(ApiError):
    """409 on a create."""


class Conflict(ApiError):
    """409: the object changed since it was read, is another one of the same name, or a field belongs to another manager."""


class Gone(ApiError):
    """410: a continue token or resourceVersion is too old."""


class Forbidden(ApiError):
    """403: RBAC, quota, Pod Security or another admission plugin; the message says which."""


class Invalid(ApiError):
    """400 and 422: the object itself is refused; sending it again changes nothing."""


class Retryable(ApiError):
    """401, 408, 429, 5xx with an answer of the API server: it may be right in a moment."""


class Unreachable(Retryable):
    """No answer at all: refused, reset or timed out. Whether the request was carried out is not known."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Retryable,
    403: Forbidden,
    404: NotFound,
    408: Retryable,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Retryable,
}


def error_of(status: int, body: Any, retry_after: str | None) -> ApiError:
    """The exception for an answer of `status`; `body` is a `v1.Status` or whatever else came."""
    details = body if isinstance(body, dict) else {}
    message = str(details.get("message") or body or f"the API server answered {status}")
    reason = str(details.get("reason") or "")
    if status == 409 and reason == "AlreadyExists":
        kind: type[ApiError] = AlreadyExists
    elif status >= 500:
        kind = Retryable
    else:
        kind = _BY_STATUS.get(status, ApiError)
    return kind(message, status=status, reason=reason, retry_after_s=_seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    try:
        return float(retry_after) if retry_after else None
    except ValueError:  # an HTTP date
        return None
