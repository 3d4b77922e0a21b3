"""llama.cpp as an engine: the embedded default, in a child process.

Tokens, usage and constraints are llama.cpp's own, through its HTTP API; what its surfaces do not do
as an API should (forced tool calls, exact logprobs, count of reasoning) is done here.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec
import psutil

from qwenstack.core.generation import (
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    Step,
)
from qwenstack.engines.dying_child import once_more
from qwenstack.engines.gguf import GgufHeader, read_header
from qwenstack.engines.interface import (
    Capabilities,
    EngineIdentity,
    EngineRejected,
    EngineUnavailable,
)
from qwenstack.engines.llamacpp_child import LlamaCppConfiguration
from qwenstack.engines.llamacpp_constrained import (
    GrammarTrials,
    constrained_prompt,
    generate_constrained,
    grammar_of,
)
from qwenstack.engines.llamacpp_server import LlamaCppServer, ServerBounds
from qwenstack.engines.loose_tool_calls import read_loose_calls

_MIB: Final = 2**20
_PROMPT_CACHE_MIB: Final = 512
_WORKING_MIB: Final = 1536
_CONTEXT_FALLBACK: Final = 4096
_CONTEXT_MIN: Final = 1024
_EMBEDDING_CONTEXT_MAX: Final = 8192
_EMBEDDING_CONTEXT_MIN: Final = 512
# An embedding child computes the logits of every token of an input, and keeps them twice in F32
# (measured on xllamacpp 2026.10.11549: 1.2 MB a token with a vocabulary of 151 936).
_LOGITS_BYTES: Final = 8


class LlamaCppOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a model.

    `parallel` generations run at once, each with `context_tokens` of its own (0: as much as the
    model has and memory allows). `threads` 0 is one for each core. `memory_bytes_max` bounds each
    child's resident memory (0: what model, context and caches need, and half as much again).
    A child whose loop stands still for `silence_s_max` is replaced. `warms`: the first grammar,
    which costs a second or two of the child's loop, is paid for right after the start.
    """

    parallel: int = 4
    context_tokens: int = 0
    threads: int = 0
    memory_bytes_max: int = 0
    embeds: bool = True
    silence_s_max: float = 120.0
    warms: bool = False


class LlamaCpp:
    """One GGUF model under llama.cpp. Constructing it reads the file's header (GgufError)."""

    def __init__(
        self,
        model_path: Path,
        *,
        digest: str,
        region: str,
        settings: LlamaCppOptions | None = None,
        on_loading: Callable[[float], None] = lambda _: None,
    ) -> None:
        settings = settings or LlamaCppOptions()
        self._header = read_header(model_path)
        context_tokens = _context_tokens(self._header, settings)
        self._identity = EngineIdentity(
            name="llama.cpp",
            version=importlib.metadata.version("xllamacpp"),
            region=region,
            digest=digest,
        )
        template = self._header.chat_template or ""
        self._capabilities = Capabilities(
            context_tokens=context_tokens,
            parallel=settings.parallel,
            generates=not self._header.embeds,
            embeds=settings.embeds or self._header.embeds,
            embedding_width=self._header.embedding_width,
            tools="tools" in template,
            json_schema=True,
            logprobs=True,
            thinks="<think>" in template or "enable_thinking" in template,
            running_usage=True,
            counts_prompts=True,
        )
        configuration = LlamaCppConfiguration(
            model=str(model_path),
            api_key="",
            parallel=settings.parallel,
            context_tokens=context_tokens,
            threads=settings.threads,
            prompt_cache_mib=_PROMPT_CACHE_MIB,
        )
        bounds = ServerBounds(
            memory_bytes_max=settings.memory_bytes_max
            or _memory_bytes_max(self._header, settings.parallel * context_tokens),
            silence_s_max=settings.silence_s_max,
            model_bytes=self._header.file_bytes,
        )
        self._server = LlamaCppServer(
            configuration, bounds, self._identity, self._capabilities, on_loading
        )
        self._trials = GrammarTrials(self._server)
        self._embedding_tokens = _embedding_tokens(
            self._header, settings, context_tokens, psutil.virtual_memory().total
        )
        self._embedder = LlamaCppServer(
            msgspec.structs.replace(
                configuration,
                embedding=True,
                parallel=1,
                context_tokens=self._embedding_tokens,
                prompt_cache_mib=0,
                # A model made for embeddings says in its file how it pools.
                pooling="" if self._header.embeds else "mean",
            ),
            msgspec.structs.replace(
                bounds,
                memory_bytes_max=settings.memory_bytes_max
                or _memory_bytes_max(self._header, self._embedding_tokens)
                + self._embedding_tokens * self._header.vocabulary * _LOGITS_BYTES,
            ),
            self._identity,
            self._capabilities,
        )
        self._embedder_starts = asyncio.Lock()
        self._warms = settings.warms and self._capabilities.generates
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def identity(self) -> EngineIdentity:
        """llama.cpp, its release, and the digest of the weights."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What this model can do here; `context_tokens` is what one request may use."""
        return self._capabilities

    async def start(self) -> None:
        """Load the model; raises EngineUnavailable with the reason."""
        self._closed = False
        await self._server.start()
        if self._warms:
            self._warming = asyncio.create_task(self._trials.warm())

    async def close(self) -> None:
        """End the children; what runs in them ends with EngineUnavailable."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait([self._warming])
        await self._server.close()
        await self._embedder.close()

    async def healthy(self) -> bool:
        """Whether the child runs and answers."""
        return self._server.child.ready and await (await self._server.client()).healthy()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run `request`. Closing the generator frees its slot."""
        parallel = self._capabilities.parallel or 1
        if request.n > parallel:
            raise EngineRejected(
                f"n is {request.n}; this engine writes at most {parallel} choices of one request"
            )
        grammar = grammar_of(request)
        async with aclosing(once_more(lambda: self._steps(request, grammar))) as steps:
            async for step in steps:
                yield step

    async def _steps(
        self, request: GenerationRequest, grammar: str | None
    ) -> AsyncGenerator[Step, None]:
        client = await self._server.client()
        if grammar is not None:
            steps = generate_constrained(client, self._trials, request, grammar)
        else:
            steps = read_loose_calls(client.generate(request), request)
        async with aclosing(steps):
            async for step in steps:
                # The server sends 20 alternatives where none were asked for (tried 2026-11).
                yield step if request.logprobs != 0 else _without_alternatives(step)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed each input: its tokens' vectors pooled and made unit length."""
        if not self._capabilities.embeds:
            raise EngineRejected("this model is not served for embeddings")
        async with self._embedder_starts:
            if self._closed:
                raise EngineUnavailable("the engine is closed")
            await self._embedder.start()  # the first time; then it does nothing
        try:
            return await (await self._embedder.client()).embed(request)
        except EngineRejected as error:
            if not error.context_length:
                raise
            raise EngineRejected(
                f"an input is longer than {self._embedding_tokens} tokens, the most that is "
                "embedded at once here; cut it into pieces",
                context_length=True,
            ) from error

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """Tokens of the prompt, as the model's template and vocabulary make them."""
        client = await self._server.client()
        if isinstance(request, GenerationRequest) and grammar_of(request) is not None:
            prompt = await constrained_prompt(client, request)
            request = msgspec.structs.replace(request, prompt=prompt, messages=(), tools=())
        return await client.count_prompt(request)

    async def count_text(self, text: str) -> int:
        """Tokens of generated text."""
        return await (await self._server.client()).count_text(text)


def _without_alternatives(step: Step) -> Step:
    deltas = tuple(
        msgspec.structs.replace(
            delta,
            logprobs=tuple(msgspec.structs.replace(each, top=()) for each in delta.logprobs),
        )
        if delta.logprobs
        else delta
        for delta in step.deltas
    )
    return msgspec.structs.replace(step, deltas=deltas)


def _context_tokens(header: GgufHeader, settings: LlamaCppOptions) -> int:
    """The context of one slot: what is asked for, else a power of two that memory has room for."""
    trained = header.context_tokens or _CONTEXT_FALLBACK
    if settings.context_tokens:
        return min(settings.context_tokens, trained)
    budget = psutil.virtual_memory().total // 16
    tokens = budget // (settings.parallel * max(header.cache_bytes_per_token, 1))
    if tokens >= trained:
        return trained
    return min(trained, max(_CONTEXT_MIN, 1 << tokens.bit_length() - 1))


def _embedding_tokens(
    header: GgufHeader, settings: LlamaCppOptions, context_tokens: int, machine_bytes: int
) -> int:
    """The longest input to embed that memory has room for: a power of two, or the context."""
    budget = machine_bytes // 8
    if settings.memory_bytes_max:
        rest = settings.memory_bytes_max - _memory_bytes_max(header, 0)
        budget = max(0, min(budget, rest))
    per_token = header.vocabulary * _LOGITS_BYTES + header.cache_bytes_per_token
    tokens = budget // max(per_token, 1)
    fitting = max(_EMBEDDING_CONTEXT_MIN, (1 << tokens.bit_length()) >> 1)
    return min(context_tokens, _EMBEDDING_CONTEXT_MAX, fitting)


def _memory_bytes_max(header: GgufHeader, cached_tokens: int) -> int:
    """Room for what an honest load takes: the file and its repacked copy, context and caches."""
    fixed = 2 * header.file_bytes + cached_tokens * header.cache_bytes_per_token
    return fixed + (_PROMPT_CACHE_MIB + _WORKING_MIB) * _MIB
