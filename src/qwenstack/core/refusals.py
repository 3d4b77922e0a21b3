"""Why a request is not served: one vocabulary, which each API surface words as its vendor does."""

from __future__ import annotations

import enum


class RefusalKind(enum.Enum):
    """A cause for refusing or failing a request.

    The value is our own stable name: it stands in logs and metrics, never on the wire.
    """

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH = "context_length"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED = "unsupported"
    INVALID_KEY = "invalid_key"
    ACCESS_DENIED = "access_denied"
    MODEL_ACCESS_DENIED = "model_access_denied"
    RESIDENCY = "residency"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    OUT_OF_CREDIT = "out_of_credit"
    BUDGET_EXCEEDED = "budget_exceeded"
    FREE_QUOTA_ONLY = "free_quota_only"
    RATE_REQUESTS = "rate_requests"
    RATE_TOKENS = "rate_tokens"
    RATE_CONCURRENCY = "rate_concurrency"
    CONTENT_FILTERED = "content_filtered"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_TIMEOUT = "engine_timeout"
    ENGINE_FAILED = "engine_failed"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    INTERNAL = "internal"


class Refusal(Exception):
    """A request that will not be served (or not to its end), and what the caller can do about it.

    `message` is for the caller: it names the field, the value and the way out, and holds nothing
    of another tenant. `param` is the offending request field in the surface's own naming.
    `retry_after_s` is set where trying again later can help.
    """

    def __init__(
        self,
        kind: RefusalKind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


def invalid(message: str, param: str | None = None) -> Refusal:
    """A refusal for a request field that does not hold what it should."""
    return Refusal(RefusalKind.INVALID_REQUEST, message, param=param)
