"""Log-probabilities in the shapes of chat, responses and legacy completions."""

from __future__ import annotations

import math

import msgspec

from qwenstack.core.generation import TokenLogprob

# What OpenAI writes for "not among the most likely": JSON has no minus infinity.
LOGPROB_FLOOR = -9999.0


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class ChosenLogprob(msgspec.Struct, frozen=True):
    """A chosen token and the most likely ones in its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a chat choice."""

    content: tuple[ChosenLogprob, ...]
    refusal: None = None


class LegacyLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a legacy completion's choice."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


def chosen_logprobs(logprobs: tuple[TokenLogprob, ...]) -> tuple[ChosenLogprob, ...]:
    """The tokens as chat and responses write them."""
    return tuple(
        [
            ChosenLogprob(
                token.token,
                _finite(token.logprob),
                _bytes(token),
                tuple(
                    [TopLogprob(top.token, _finite(top.logprob), _bytes(top)) for top in token.top]
                ),
            )
            for token in logprobs
        ]
    )


def legacy_logprobs(logprobs: tuple[TokenLogprob, ...], offset: int) -> LegacyLogprobs:
    """The tokens as legacy completions write them; `offset` characters of text came before."""
    offsets = []
    for token in logprobs:
        offsets.append(offset)
        offset += len(token.token)
    return LegacyLogprobs(
        tuple([token.token for token in logprobs]),
        tuple([_finite(token.logprob) for token in logprobs]),
        tuple(
            [{top.token: _finite(top.logprob) for top in (*token.top, token)} for token in logprobs]
        ),
        tuple(offsets),
    )


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOGPROB_FLOOR


def _bytes(token: TokenLogprob) -> tuple[int, ...] | None:
    if token.bytes:
        return token.bytes
    # A token that ends inside a character shows a replacement character: its bytes are unknown.
    return None if "\ufffd" in token.token else tuple(token.token.encode())
