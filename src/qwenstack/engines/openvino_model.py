"""One model in this process under OpenVINO GenAI: loading, the tokenizer, generation settings.

Only the child process imports this with a model: `openvino_genai` is an optional dependency.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any, Final

import msgspec

from qwenstack.core.generation import ResponseFormat, Tool, ToolChoice
from qwenstack.engines.interface import EngineRejected
from qwenstack.engines.openvino_body import Body, tool_descriptions, turns
from qwenstack.engines.openvino_schema import check_held

# What Qwen publishes with its instruct models (generation_config.json); a GGUF file has none.
_TEMPERATURE: Final = 0.7
_TOP_P: Final = 0.8
_TOP_K: Final = 20
_BLOCK_TOKENS: Final = 32
_BATCH_TOKENS: Final = 512
_SEEDS: Final = 2**31
_TOOLS_MAX: Final = 128
# Marks that a Qwen template writes as tokens of their own, and that are text to us.
_KEPT_MARKS: Final = frozenset(
    {
        b"<think>",
        b"</think>",
        b"<tool_call>",
        b"</tool_call>",
        b"<tool_response>",
        b"</tool_response>",
    }
)


class OpenVinoConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The child's line of input. `context_tokens` is for one sequence; `threads` 0: one a core."""

    model: str
    api_key: str
    parallel: int
    context_tokens: int
    threads: int = 0
    waiting_max: int = 256


def import_without_telemetry() -> Any:
    """`openvino_genai`, with its telemetry made impossible.

    Importing it imports openvino's converter, which at once starts a process that calls Google
    Analytics, asking nobody (seen on openvino 2026.4.1 with openvino-telemetry 2025.2.0). Where
    that package cannot be imported, openvino uses a stub that sends nothing.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino_genai

    return openvino_genai


class OpenVinoModel:
    """The pipeline with what surrounds it. Loading raises RuntimeError with OpenVINO's reason."""

    def __init__(self, configuration: OpenVinoConfiguration) -> None:
        self._genai = import_without_telemetry()
        self.context_tokens = configuration.context_tokens
        scheduler = self._genai.SchedulerConfig()
        blocks = -(-configuration.context_tokens // _BLOCK_TOKENS) + 1
        scheduler.num_kv_blocks = blocks * configuration.parallel
        scheduler.max_num_seqs = configuration.parallel
        scheduler.max_num_batched_tokens = _BATCH_TOKENS
        scheduler.enable_prefix_caching = True
        properties: dict[str, object] = {}
        if configuration.threads:
            properties["INFERENCE_NUM_THREADS"] = configuration.threads
        self.pipeline = self._genai.ContinuousBatchingPipeline(
            configuration.model, scheduler, "CPU", properties
        )
        self._tokenizer = self.pipeline.get_tokenizer()
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        self._pieces = [b""] * (max(vocabulary.values()) + 1)
        self._longest = max(map(len, vocabulary))
        for piece, token in vocabulary.items():
            self._pieces[token] = b"" if self._is_control(piece, token) else piece

    def _is_control(self, piece: bytes, token: int) -> bool:
        marked = piece.startswith(b"<") and piece.endswith(b">") and piece not in _KEPT_MARKS
        return marked and not self._tokenizer.decode([token], skip_special_tokens=True)

    def piece(self, token: int) -> bytes:
        """A token's bytes; none for one that only steers the model."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def render(self, body: Body) -> str:
        """The chat as the model's template writes it. Raises EngineRejected where it refuses."""
        offered = body.tools if body.tool_choice != "none" else []
        try:
            prompt: str = self._tokenizer.apply_chat_template(
                turns(body.messages or []),
                True,
                tools=tool_descriptions(offered) or None,
                extra_context=body.chat_template_kwargs or None,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1:] or ["no reason given"]
            raise EngineRejected(
                f"the model's chat template refuses the messages: {reason[0][:200]}"
            ) from error
        return prompt

    def encode(self, text: str, *, special: bool) -> Any:
        """The tokens of `text` as a tensor. A text that cannot fit the context is refused first."""
        if len(text) > self._longest * self.context_tokens:
            raise too_long(f"over {self.context_tokens}", self.context_tokens)
        return self._tokenizer.encode(text, add_special_tokens=special).input_ids

    def tensor(self, tokens: list[int]) -> Any:
        """Tokens given as such. Raises EngineRejected for one that the model does not have."""
        import numpy as np
        from openvino import Tensor

        strange = [token for token in tokens if not 0 <= token < len(self._pieces)]
        if strange or not tokens:
            raise EngineRejected(
                f"prompt: {strange[0]} is no token of this model" if strange else "prompt is empty"
            )
        return Tensor(np.array([tokens], dtype=np.int64))

    def settings(self, body: Body, max_tokens: int, number: int, structure: Any) -> Any:
        """The generation settings of choice `number` of a request."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.apply_chat_template = False
        config.eos_token_id = self._tokenizer.get_eos_token_id()
        config.stop_token_ids = {self._tokenizer.get_eos_token_id()}
        temperature = _TEMPERATURE if body.temperature is None else body.temperature
        if temperature > 0:
            config.do_sample = True
            config.temperature = temperature
            config.top_p = (_TOP_P if body.top_p is None else body.top_p) or 1e-6
            top_k = _TOP_K if body.top_k is None else body.top_k
            if top_k > 0:
                config.top_k = top_k
            if body.min_p:
                config.min_p = body.min_p
            seed = random.randrange(_SEEDS) if body.seed is None else body.seed + number  # noqa: S311
            config.rng_seed = seed % _SEEDS
        if body.presence_penalty:
            config.presence_penalty = body.presence_penalty
        if body.frequency_penalty:
            config.frequency_penalty = body.frequency_penalty
        if body.repetition_penalty:
            config.repetition_penalty = body.repetition_penalty
        if body.logprobs is not None and body.logprobs is not False:
            config.logprobs = 1
        if structure is not None:
            config.structured_output_config = structure
        return config

    def structure(self, tools: tuple[Tool, ...], choice: ToolChoice, form: ResponseFormat) -> Any:
        """What holds the output to a tool call or to JSON; None where it is free."""
        parts = output_parts(tools, choice, form)
        if not parts:
            return None
        config = self._genai.StructuredOutputConfig
        alternatives = [
            schema
            if begin is None
            else config.Concat(config.Concat(config.ConstString(begin), schema), end)
            for begin, schema, end in (
                (
                    begin,
                    config.JSONSchema(json.dumps(schema)),
                    config.ConstString(CALL_END),
                )
                for begin, schema in parts
            )
        ]
        whole = alternatives[0]
        for other in alternatives[1:]:
            whole = config.Union(whole, other)
        return config(structural_tags_config=whole)


CALL_END: Final = "}\n</tool_call>"


def output_parts(
    tools: tuple[Tool, ...], choice: ToolChoice, form: ResponseFormat
) -> list[tuple[str | None, dict[str, Any]]]:
    """What the output may be: a call's beginning with its arguments' schema, or (None) an answer.

    As `constrained_output.output_grammar` decides it, in the same words. Raises EngineRejected.
    """
    forced = bool(tools) and choice.mode in ("required", "named")
    answers = form.type != "text" and not forced
    parts: list[tuple[str | None, dict[str, Any]]] = []
    if forced or (answers and tools and choice.mode == "auto"):
        wanted = [tool for tool in tools if choice.mode != "named" or tool.name == choice.name]
        if not wanted:
            raise EngineRejected(f"tool_choice names {choice.name!r}, which is not among the tools")
        if len(wanted) > _TOOLS_MAX:
            raise EngineRejected(f"there are {len(wanted)} tools; at most {_TOOLS_MAX} are held to")
        for tool in wanted:
            parameters = {"type": "object", **tool.parameters}
            check_held(parameters, f"tools.{tool.name}.parameters")
            name = json.dumps(tool.name, ensure_ascii=False)
            parts.append((f'<tool_call>\n{{"name": {name}, "arguments": ', parameters))
    if answers:
        schema = form.schema if form.type == "json_schema" and form.schema else {"type": "object"}
        check_held(schema, "response_format")
        parts.append((None, schema))
    return parts


def too_long(tokens: object, limit: int) -> EngineRejected:
    """The refusal of a prompt that leaves no room for an answer."""
    return EngineRejected(
        f"the prompt has {tokens} tokens; the context length is {limit}, with the answer",
        context_length=True,
    )
