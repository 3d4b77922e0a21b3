"""What a caller is told when an engine fails: enough to act on, nothing of our insides."""

from __future__ import annotations

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.engines.interface import (
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)


def refusal_of(error: EngineError) -> Refusal:
    """The refusal for an engine's failure; the error's own text stays in the log."""
    if isinstance(error, EngineRejected):
        kind = RefusalKind.CONTEXT_LENGTH if error.context_length else RefusalKind.INVALID_REQUEST
        return Refusal(kind, error.message, param="messages" if error.context_length else None)
    if isinstance(error, EngineTimeout):
        return Refusal(
            RefusalKind.ENGINE_TIMEOUT, "The model did not answer in time; send it again."
        )
    if isinstance(error, EngineUnavailable):
        return Refusal(
            RefusalKind.ENGINE_UNAVAILABLE,
            "The model is not available at the moment; send the request again.",
            retry_after_s=2.0,
        )
    return Refusal(
        RefusalKind.ENGINE_FAILED, "The model broke off with an invalid answer; send it again."
    )
