"""OpenAI-shaped errors: every refusal has one, of bounded size, that says when to come back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.openai_errors import error_event, refuse, wording_of
from tests.openai_schema import check, read_sse


def body(reply: Reply) -> Any:
    return json.loads(reply.body)


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_refusal_has_a_published_shape(kind: RefusalKind) -> None:
    reply = refuse(Refusal(kind, "Say what to do.", param="model"), "req_1")
    assert 400 <= reply.status < 600
    check(body(reply), "ErrorResponse")
    assert body(reply)["error"]["message"] == "Say what to do."
    assert body(reply)["error"]["param"] == "model"
    assert body(reply)["request_id"] == "req_1"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (RefusalKind.INVALID_KEY, 401, "invalid_api_key"),
        (RefusalKind.MODEL_NOT_FOUND, 404, "model_not_found"),
        (RefusalKind.ACCESS_DENIED, 403, "access_denied"),
        (RefusalKind.OUT_OF_CREDIT, 400, "Arrearage"),
        (RefusalKind.FREE_QUOTA_ONLY, 403, "AllocationQuota.FreeTierOnly"),
        (RefusalKind.RATE_REQUESTS, 429, "limit_requests"),
        (RefusalKind.CONTENT_FILTERED, 400, "data_inspection_failed"),
        (RefusalKind.CONTEXT_LENGTH, 400, "context_length_exceeded"),
        (RefusalKind.BODY_TOO_LARGE, 413, "request_too_large"),
        (RefusalKind.INVALID_REQUEST, 400, "invalid_parameter_error"),
    ],
)
def test_codes_are_the_vendors(kind: RefusalKind, status: int, code: str) -> None:
    assert (wording_of(kind).status, wording_of(kind).code) == (status, code)


def test_no_refusal_is_worded_as_an_empty_account_that_is_none() -> None:
    assert all(wording_of(kind).code != "insufficient_quota" for kind in RefusalKind)


def test_what_waiting_cannot_cure_is_no_429() -> None:
    money = (RefusalKind.OUT_OF_CREDIT, RefusalKind.BUDGET_EXCEEDED, RefusalKind.FREE_QUOTA_ONLY)
    assert all(wording_of(kind).status < 429 for kind in money)


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [(0.0, b"1", b"1"), (-3.0, b"1", b"1"), (0.2, b"1", b"200"), (2.001, b"3", b"2001")],
)
def test_retry_after_is_rounded_up(wait_s: float, seconds: bytes, milliseconds: bytes) -> None:
    refusal = Refusal(RefusalKind.RATE_REQUESTS, "Wait.", retry_after_s=wait_s)
    headers = dict(refuse(refusal, "r").headers)
    assert headers == {b"retry-after": seconds, b"retry-after-ms": milliseconds}


def test_retry_after_is_bounded_and_never_nonsense() -> None:
    endless = Refusal(RefusalKind.OVERLOADED, "Wait.", retry_after_s=math.inf)
    assert dict(refuse(endless, "r").headers)[b"retry-after"] == b"86400"
    unknown = Refusal(RefusalKind.OVERLOADED, "Wait.", retry_after_s=math.nan)
    assert refuse(unknown, "r").headers == ()


def test_a_token_limit_always_says_when_to_come_back() -> None:
    headers = dict(refuse(Refusal(RefusalKind.RATE_TOKENS, "Wait."), "r").headers)
    assert headers[b"retry-after"] == b"1"


def test_messages_are_bounded() -> None:
    refusal = Refusal(RefusalKind.INTERNAL, "x" * 1_000_000, param="y" * 1_000_000)
    assert len(refuse(refusal, "r").body) < 3000


def test_a_broken_stream_ends_with_an_error_and_no_done() -> None:
    [(name, event)] = read_sse(error_event(Refusal(RefusalKind.ENGINE_FAILED, "It died."), "req_9"))
    assert name is None
    assert event["error"]["message"] == "It died."
    assert event["request_id"] == "req_9"
