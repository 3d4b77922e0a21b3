"""OpenVINO GenAI as an engine, in a child process: the faster one for many requests at once.

It reads GGUF files of few architectures and tensor types; a file with Q5_0 tensors (as the small
Q4_K_M ones have) is stored a second time, with the same weights, in a type that it reads.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import secrets
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
    TextPart,
)
from qwenstack.engines.child import Child, ChildSpec
from qwenstack.engines.dying_child import once_more
from qwenstack.engines.gguf import read_header, read_layout
from qwenstack.engines.gguf_recode import RECODED, needs_recoding, recode
from qwenstack.engines.interface import (
    Capabilities,
    EngineIdentity,
    EngineRejected,
    EngineUnavailable,
)
from qwenstack.engines.loose_tool_calls import read_loose_calls
from qwenstack.engines.openai_http import OpenAIEngine
from qwenstack.engines.openai_settings import OpenAIServer
from qwenstack.engines.openvino_model import OpenVinoConfiguration, output_parts

_MIB: Final = 2**20
_ARCHITECTURES: Final = frozenset({"qwen2", "qwen3"})
_READ: Final = frozenset({"F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"})
_CONTEXT_DEFAULT: Final = 8192
_WORKING_MIB: Final = 2560
_RESTART_WAIT_S: Final = 30.0


class OpenVinoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a model; the fields mean what `LlamaCppOptions`' mean."""

    parallel: int = 8
    context_tokens: int = 0
    threads: int = 0
    memory_bytes_max: int = 0
    silence_s_max: float = 300.0


class OpenVino:
    """One GGUF model under OpenVINO GenAI.

    Constructing it reads the file's header (GgufError) and raises EngineUnavailable for what cannot
    be served, with the way out. A recoded file is kept in `recoded`, by the model's digest.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        digest: str,
        region: str,
        recoded: Path,
        settings: OpenVinoOptions | None = None,
        on_loading: Callable[[float], None] = lambda _: None,
    ) -> None:
        settings = settings or OpenVinoOptions()
        if importlib.util.find_spec("openvino_genai") is None:
            raise EngineUnavailable(
                "OpenVINO GenAI is not installed, as on every machine that is not Linux on x86-64; "
                "use llama.cpp"
            )
        self._path = model_path
        self._header = read_header(model_path)
        self._recoded = self._readable_file(recoded, digest)
        context = settings.context_tokens or _CONTEXT_DEFAULT
        context = min(context, self._header.context_tokens or context)
        self._identity = EngineIdentity(
            name="openvino-genai",
            version=importlib.metadata.version("openvino-genai"),
            region=region,
            digest=digest,
        )
        template = self._header.chat_template or ""
        self._capabilities = Capabilities(
            context_tokens=context,
            parallel=settings.parallel,
            tools="tools" in template,
            json_schema=True,
            logprobs=True,
            thinks="<think>" in template or "enable_thinking" in template,
            running_usage=True,
            counts_prompts=True,
        )
        self._configuration = OpenVinoConfiguration(
            model=str(self._recoded or model_path),
            api_key=secrets.token_urlsafe(32),
            parallel=settings.parallel,
            context_tokens=context,
            threads=settings.threads or psutil.cpu_count(logical=False) or 0,
        )
        self._client: OpenAIEngine | None = None
        cache_bytes = settings.parallel * context * self._header.cache_bytes_per_token
        self._child = Child(
            ChildSpec(
                name="OpenVINO",
                module="qwenstack.engines.openvino_child",
                configuration=msgspec.json.encode(self._configuration),
                memory_bytes_max=settings.memory_bytes_max
                or 4 * self._header.file_bytes + cache_bytes + _WORKING_MIB * _MIB,
                loaded_bytes=2 * self._header.file_bytes,
                probe_timeout_s=settings.silence_s_max,
                probe_every_s=min(5.0, settings.silence_s_max),
            ),
            on_ready=self._connect,
            on_down=self._disconnect,
            on_loading=on_loading,
            probe=self._probe,
        )

    def _readable_file(self, folder: Path, digest: str) -> Path | None:
        """Where the model is to be stored a second time; None where it is read as it is."""
        architecture = self._header.architecture
        if architecture not in _ARCHITECTURES:
            raise EngineUnavailable(
                f"OpenVINO does not serve the architecture {architecture!r} here, only "
                f"{' and '.join(sorted(_ARCHITECTURES))}; use llama.cpp"
            )
        with self._path.open("rb") as file:
            layout = read_layout(file, self._header.file_bytes)
        unknown = {tensor.type_name for tensor in layout.tensors} - _READ - RECODED
        if unknown:
            raise EngineUnavailable(
                f"OpenVINO reads no {', '.join(sorted(unknown))} tensors, which this file has; "
                "use a Q8_0, Q4_0 or Q4_K_M file of the model, or llama.cpp"
            )
        name = digest.removeprefix("sha256:")[:32]
        return folder / f"{name}.q8.gguf" if needs_recoding(layout) else None

    @property
    def identity(self) -> EngineIdentity:
        """OpenVINO GenAI, its release, and the digest of the weights as they were given."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What this model can do here; `context_tokens` is what one request may use."""
        return self._capabilities

    @property
    def child(self) -> Child:
        """The process that runs now."""
        return self._child

    async def start(self) -> None:
        """Store the model readably where it has to be, and load it; raises EngineUnavailable."""
        recoded = self._recoded
        if recoded is not None and not recoded.exists():
            try:
                await asyncio.to_thread(recode, self._path, recoded)
            except OSError as error:
                raise EngineUnavailable(f"{recoded} cannot be written: {error}") from error
        await self._child.start()

    async def close(self) -> None:
        """End the child; what runs in it ends with EngineUnavailable."""
        await self._child.close()
        await self._disconnect()

    async def healthy(self) -> bool:
        """Whether the child runs and answers."""
        client = self._client
        return self._child.ready and client is not None and await client.healthy()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run `request`. Closing the generator frees its place in the batch."""
        asked = _answerable(request)
        async with aclosing(once_more(lambda: self._steps(asked))) as steps:
            async for step in steps:
                yield step

    async def _steps(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        client = await self._running()
        async with aclosing(read_loose_calls(client.generate(request), request)) as steps:
            async for step in steps:
                yield step

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Refused: OpenVINO embeds only with models that were converted for it."""
        raise EngineRejected("the OpenVINO engine makes no embeddings; deploy llama.cpp for them")

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """Tokens of the prompt, as the model's template and vocabulary make them."""
        client = await self._running()
        asked = _answerable(request) if isinstance(request, GenerationRequest) else request
        return await client.count_prompt(asked)

    async def count_text(self, text: str) -> int:
        """Tokens of generated text."""
        return await (await self._running()).count_text(text)

    async def _running(self) -> OpenAIEngine:
        await self._child.wait_ready(_RESTART_WAIT_S)
        if self._client is None:
            raise EngineUnavailable("the engine is closed")
        return self._client

    async def _probe(self) -> None:
        """Returns once the child answers; the supervisor's limit is what ends the waiting."""
        while self._client is not None and not await self._client.healthy():  # noqa: ASYNC110
            await asyncio.sleep(1.0)

    async def _connect(self, port: int) -> None:
        client = OpenAIEngine(
            OpenAIServer(
                base_url=f"http://127.0.0.1:{port}/v1",
                name=self._identity.name,
                region=self._identity.region,
                version=self._identity.version,
                dialect="vllm",
                upstream_model="openvino",
                api_key=self._configuration.api_key,
                capabilities=self._capabilities,
                # An idle connection to a child that died would be taken for a live one.
                keepalive_s=None,
                first_byte_s=900.0,
                idle_s=180.0,
                # A step holds the child's loop, the longest for a long prompt.
                probe_s=30.0,
            )
        )
        await client.start()
        self._client = client

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _answerable(request: GenerationRequest) -> GenerationRequest:
    """The request as it can be run; EngineRejected for what would silently not be done."""
    if request.sampling.logit_bias:
        raise EngineRejected("logit_bias is not had by the OpenVINO engine; leave it out")
    if request.logprobs:
        raise EngineRejected(
            f"{request.logprobs} alternatives of each token were asked for; the OpenVINO engine "
            "gives the chosen token's logprob only (top_logprobs 0)"
        )
    if request.thinking_budget is not None:
        raise EngineRejected("thinking_budget is not had by the OpenVINO engine; leave it out")
    for message in request.messages:
        if not all(isinstance(part, TextPart) for part in message.content):
            raise EngineRejected("images and audio are not taken by the OpenVINO engine")
    if request.prompt is not None:
        return request
    if output_parts(request.tools, request.tool_choice, request.response_format):
        if request.thinking:
            raise EngineRejected(
                "thinking cannot be combined with a JSON response_format or a forced tool call; "
                "turn one of them off"
            )
        return msgspec.structs.replace(request, thinking=False)
    return request
