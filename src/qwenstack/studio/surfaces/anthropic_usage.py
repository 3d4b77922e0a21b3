"""The `usage` object of Anthropic's answers: input tokens that came from no cache, and the rest."""

from __future__ import annotations

import msgspec

from qwenstack.core.tokens import TokenUsage


class OutputDetails(msgspec.Struct, frozen=True):
    """Parts of the output's tokens."""

    thinking_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """All input is `input_tokens` plus both cache figures; all output is `output_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails


def usage_of(usage: TokenUsage) -> Usage:
    """`usage` in Anthropic's shape. Hits of the implicit cache count as read from cache."""
    read = usage.cached + usage.cached_explicit
    return Usage(
        usage.prompt - read - usage.cache_creation,
        usage.cache_creation,
        read,
        usage.completion,
        OutputDetails(usage.reasoning),
    )
