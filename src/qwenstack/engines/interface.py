"""The one interface to inference. No caller knows which engine it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step


class EngineIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What runs and where: goes on the ledger with each charge.

    `digest` is the SHA-256 of the weights (`sha256:…`) where the engine holds them itself, None
    where a remote server does and cannot prove it.
    """

    name: str
    version: str
    region: str
    digest: str | None = None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can do. `context_tokens` and `parallel` are None where it does not say."""

    context_tokens: int | None = None
    parallel: int | None = None
    generates: bool = True
    embeds: bool = False
    embedding_width: int | None = None
    tools: bool = False
    json_schema: bool = False
    logprobs: bool = False
    images: bool = False
    audio: bool = False
    thinks: bool = False
    running_usage: bool = False
    counts_prompts: bool = False


class EngineError(Exception):
    """An engine did not do its part. `retryable`: another replica may be asked (before byte 1)."""

    retryable = False


class EngineUnavailable(EngineError):
    """Nothing reached the model: connection refused, child dead, circuit open, overload."""

    retryable = True


class EngineTimeout(EngineError):
    """The engine fell silent past its time limit."""


class EngineProtocolError(EngineError):
    """The engine sent what is no valid answer, or ended without saying its usage."""


class EngineRejected(EngineError):
    """The engine refused this request as invalid; `message` is safe to show to the caller."""

    def __init__(self, message: str, *, context_length: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.context_length = context_length


class Engine(Protocol):
    """Inference over one model.

    Closing the generator that `generate` returned (`aclose`) cancels the generation in the engine.
    A consumer that does not ask for the next step slows the engine down: nothing is buffered
    without a bound. Any method may raise an `EngineError`.
    """

    @property
    def identity(self) -> EngineIdentity:
        """What runs, and where."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; holds once it is started."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run `request`; the last step has `final` and the exact usage."""
        ...

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed every input, in order."""
        ...

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """The engine's own count of the prompt's tokens, where `capabilities.counts_prompts`."""
        ...

    async def count_text(self, text: str) -> int:
        """The engine's own count of the tokens in generated `text` (same condition)."""
        ...

    async def healthy(self) -> bool:
        """Whether a request would be taken now. Never raises."""
        ...

    async def start(self) -> None:
        """Make ready; returns when requests can be served. Raises EngineUnavailable."""
        ...

    async def close(self) -> None:
        """Release everything; running generations end with EngineUnavailable."""
        ...
