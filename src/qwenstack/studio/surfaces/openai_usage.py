"""The `usage` object of chat and legacy completions.

Cache figures follow Model Studio: `cached_tokens` counts hits of either kind, and
`cache_creation_input_tokens` with `cache_type: "ephemeral"` appear where the explicit cache worked.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from qwenstack.core.tokens import TokenUsage


class PromptDetails(msgspec.Struct, frozen=True):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    cache_creation_input_tokens: int | UnsetType = UNSET
    cache_type: Literal["ephemeral"] | UnsetType = UNSET


class CompletionDetails(msgspec.Struct, frozen=True):
    """Parts of the completion's tokens."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """OpenAI's CompletionUsage."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_of(usage: TokenUsage) -> Usage:
    """`usage` in OpenAI's shape."""
    cached = usage.cached + usage.cached_explicit
    if usage.cached_explicit or usage.cache_creation:
        prompt = PromptDetails(cached, usage.cache_creation, "ephemeral")
    else:
        prompt = PromptDetails(cached)
    return Usage(
        usage.prompt,
        usage.completion,
        usage.total,
        prompt,
        CompletionDetails(usage.reasoning),
    )
