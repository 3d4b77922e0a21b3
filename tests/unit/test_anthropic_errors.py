"""Anthropic-shaped errors: every refusal has one, of bounded size."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from anthropic.types.shared.error_type import ErrorType

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.anthropic_errors import error_event, refuse, wording_of


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_refusal_has_a_published_type(kind: RefusalKind) -> None:
    reply = refuse(Refusal(kind, "Say what to do."), "req_1")
    assert 400 <= reply.status < 600
    body = json.loads(reply.body)
    assert body == {
        "type": "error",
        "error": {"type": wording_of(kind).type, "message": "Say what to do."},
        "request_id": "req_1",
    }
    # The client's list has no name for 413; the documentation does.
    assert wording_of(kind).type in (*get_args(ErrorType), "request_too_large")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (RefusalKind.INVALID_KEY, 401),
        (RefusalKind.OUT_OF_CREDIT, 402),
        (RefusalKind.ACCESS_DENIED, 403),
        (RefusalKind.MODEL_NOT_FOUND, 404),
        (RefusalKind.BODY_TOO_LARGE, 413),
        (RefusalKind.RATE_TOKENS, 429),
        (RefusalKind.INTERNAL, 500),
        (RefusalKind.OVERLOADED, 529),
    ],
)
def test_statuses_are_the_vendors(kind: RefusalKind, status: int) -> None:
    assert wording_of(kind).status == status


def test_what_waiting_cannot_cure_is_not_repeated() -> None:
    money = (RefusalKind.OUT_OF_CREDIT, RefusalKind.BUDGET_EXCEEDED, RefusalKind.FREE_QUOTA_ONLY)
    assert all(wording_of(kind).status not in (408, 409, 429) for kind in money)
    assert all(wording_of(kind).status < 500 for kind in money)


def test_a_rate_limit_says_when_to_come_back() -> None:
    headers = dict(
        refuse(Refusal(RefusalKind.RATE_REQUESTS, "Wait.", retry_after_s=2.2), "r").headers
    )
    assert headers[b"retry-after"] == b"3"


def test_messages_are_bounded() -> None:
    assert len(refuse(Refusal(RefusalKind.INTERNAL, "x" * 1_000_000), "r").body) < 3000


def test_a_broken_stream_ends_with_an_error_event() -> None:
    event = error_event(Refusal(RefusalKind.ENGINE_FAILED, "It died."), "req_9").decode()
    name, data, *rest = event.split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "It died."
