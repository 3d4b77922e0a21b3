"""Refusals in OpenAI's error shape, with Model Studio's compatible-mode codes where it has them.

Source: Model Studio, "Error messages" and OpenAI, "Error codes" (both read 2026-11). Three choices
of ours differ from Model Studio: a TPM limit has the code `rate_limit_exceeded` and not
`insufficient_quota`, which OpenAI's clients take for an empty account and stop at; spent money and
budgets keep `Arrearage` at 400 and 403, which no client repeats; and an overload is a 503 with
Retry-After.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.interface import Reply

_MESSAGE_CHARACTERS = 2000
_PARAM_CHARACTERS = 200
_RETRY_AFTER_S_MAX = 86_400.0
_RETRY_AFTER_S_UNSAID = 1.0


class Wording(NamedTuple):
    """How OpenAI's surface says a kind of refusal."""

    status: int
    type: str
    code: str


_INVALID = "invalid_request_error"
_WORDING: dict[RefusalKind, Wording] = {
    RefusalKind.INVALID_REQUEST: Wording(400, _INVALID, "invalid_parameter_error"),
    RefusalKind.CONTEXT_LENGTH: Wording(400, _INVALID, "context_length_exceeded"),
    RefusalKind.BODY_TOO_LARGE: Wording(413, _INVALID, "request_too_large"),
    RefusalKind.UNSUPPORTED: Wording(400, _INVALID, "unsupported_parameter"),
    RefusalKind.INVALID_KEY: Wording(401, _INVALID, "invalid_api_key"),
    RefusalKind.ACCESS_DENIED: Wording(403, "permission_error", "access_denied"),
    RefusalKind.MODEL_ACCESS_DENIED: Wording(403, "permission_error", "model_access_denied"),
    RefusalKind.RESIDENCY: Wording(403, "permission_error", "region_not_allowed"),
    RefusalKind.MODEL_NOT_FOUND: Wording(404, _INVALID, "model_not_found"),
    RefusalKind.NOT_FOUND: Wording(404, _INVALID, "not_found"),
    RefusalKind.METHOD_NOT_ALLOWED: Wording(405, _INVALID, "method_not_allowed"),
    RefusalKind.CONFLICT: Wording(409, _INVALID, "conflict"),
    RefusalKind.OUT_OF_CREDIT: Wording(400, "billing_error", "Arrearage"),
    RefusalKind.BUDGET_EXCEEDED: Wording(403, "billing_error", "budget_exceeded"),
    RefusalKind.FREE_QUOTA_ONLY: Wording(403, "billing_error", "AllocationQuota.FreeTierOnly"),
    RefusalKind.RATE_REQUESTS: Wording(429, "requests", "limit_requests"),
    RefusalKind.RATE_TOKENS: Wording(429, "tokens", "rate_limit_exceeded"),
    RefusalKind.RATE_CONCURRENCY: Wording(429, "requests", "limit_burst_rate"),
    RefusalKind.CONTENT_FILTERED: Wording(400, _INVALID, "data_inspection_failed"),
    RefusalKind.OVERLOADED: Wording(503, "server_error", "ModelUnavailable"),
    RefusalKind.DRAINING: Wording(503, "server_error", "ModelUnavailable"),
    RefusalKind.ENGINE_UNAVAILABLE: Wording(503, "server_error", "ModelUnavailable"),
    RefusalKind.ENGINE_TIMEOUT: Wording(503, "server_error", "RequestTimeOut"),
    RefusalKind.ENGINE_FAILED: Wording(500, "server_error", "ModelServingError"),
    RefusalKind.STORAGE_UNAVAILABLE: Wording(503, "server_error", "InternalError"),
    RefusalKind.INTERNAL: Wording(500, "server_error", "InternalError"),
}


class ErrorFields(msgspec.Struct, frozen=True):
    """The `error` object."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """A whole error answer, and the last event of a stream that broke."""

    error: ErrorFields
    request_id: str


def wording_of(kind: RefusalKind) -> Wording:
    """Status, type and code of a kind of refusal."""
    return _WORDING[kind]


def error_fields(refusal: Refusal) -> ErrorFields:
    """The `error` object of `refusal`, of bounded size whatever the refusal repeats."""
    words = _WORDING[refusal.kind]
    message, param = refusal.message, refusal.param
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + "…"
    if param is not None and len(param) > _PARAM_CHARACTERS:
        param = param[:_PARAM_CHARACTERS] + "…"
    return ErrorFields(message, words.type, param, words.code)


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """The JSON body, also what a broken stream's last event holds."""
    return msgspec.json.encode(ErrorBody(error_fields(refusal), request_id))


def error_event(refusal: Refusal, request_id: str) -> bytes:
    """The server-sent event that ends a broken stream; the official client raises APIError."""
    return b"data: " + error_body(refusal, request_id) + b"\n\n"


def statuses() -> list[int]:
    """Every HTTP status that a refusal can have, for the published document."""
    return sorted({each.status for each in _WORDING.values()})


def refuse(refusal: Refusal, request_id: str) -> Reply:
    """The whole answer to a refused request."""
    status = _WORDING[refusal.kind].status
    headers = retry_headers(refusal)
    if status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    return Reply(status, error_body(refusal, request_id), headers)


def retry_headers(refusal: Refusal) -> tuple[tuple[bytes, bytes], ...]:
    """`Retry-After` in whole seconds (RFC 9110) and OpenAI's `retry-after-ms`, where known.

    A token limit always says it: a caller who is not told when to come back stays away.
    """
    seconds = refusal.retry_after_s
    if seconds is None and refusal.kind is RefusalKind.RATE_TOKENS:
        seconds = _RETRY_AFTER_S_UNSAID
    if seconds is None or math.isnan(seconds):
        return ()
    seconds = min(max(seconds, 0.0), _RETRY_AFTER_S_MAX)
    return (
        (b"retry-after", b"%d" % max(1, math.ceil(seconds))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))),
    )
