"""Generation under a grammar on llama.cpp: tool calls that must come, and JSON answers.

llama.cpp's chat route does not enforce `tool_choice`, turns a schema into a grammar of its own that
can bring the process down, and takes a grammar that does not compile for none at all (all tried on
xllamacpp 2026.10.11549). So the prompt is rendered by the model's template, the grammar is
llguidance's, and each new grammar is tried on one token before anything is generated under it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Final

import msgspec

from qwenstack.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    ResponseFormat,
    Sampling,
    Step,
    ToolChoice,
)
from qwenstack.engines.constrained_output import ConstrainedChoice, output_grammar
from qwenstack.engines.interface import EngineError, EngineProtocolError, EngineRejected
from qwenstack.engines.llamacpp_server import LlamaCppServer
from qwenstack.engines.openai_http import OpenAIEngine

_GRAMMARS_KEPT: Final = 256
_REASON_WAIT_S: Final = 0.1
_WORD_WAIT_S: Final = 0.01
_TOO_LARGE: Final = (
    "it grows too large as it is followed; simplify its patterns, such as .*a.{20}b, and its unions"
)
_FORBIDDEN: Final = "!"  # no JSON text and no tool call begins with it
_REASON: Final = re.compile(r"llg error: (?:at [\d()]+: )?(.*)")


class GrammarTrials:
    """Finds out, once for each grammar, whether llama.cpp really holds to it.

    One that it cannot compile it ignores without a word in the answer. So the trial pushes the
    model with all its might to a token that the grammar forbids: where that comes, nothing held.
    """

    def __init__(self, server: LlamaCppServer) -> None:
        self._server = server
        self._verdicts: collections.OrderedDict[bytes, str | None] = collections.OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._running = 0
        self._begun = 0

    async def require(self, client: OpenAIEngine, grammar: str) -> None:
        """Raise EngineRejected for a grammar that does not hold, with llguidance's reason."""
        key = _key(grammar)
        if key not in self._verdicts:
            async with self._one_at_a_time:
                if key not in self._verdicts:
                    self._keep(key, await self._try(client, grammar))
        verdict = self._verdicts[key]
        if verdict is not None:
            raise EngineRejected(f"the engine cannot keep an answer to this schema: {verdict}")

    async def held(
        self, grammar: str, steps: AsyncGenerator[Step, None]
    ) -> AsyncGenerator[Step, None]:
        """`steps` of a generation under `grammar`; raises in place of the last if nothing held it.

        llguidance bounds what it spends on following a grammar (`.*a.{20}b` has millions of
        states), and past that llama.cpp writes on freely, with a line on standard error that does
        not say for whom. So every answer that was under way is broken off, and a grammar that was
        the only one is refused from then on.
        """
        before = self._server.grammars_given_up
        with self._counted() as alone:
            async with aclosing(steps):
                async for step in steps:
                    if step.final:
                        # The line was written before the last token; let it be read.
                        await asyncio.sleep(_WORD_WAIT_S)
                    if self._server.grammars_given_up != before:
                        if alone():
                            self._keep(_key(grammar), _TOO_LARGE)
                        raise EngineProtocolError(
                            f"the engine gave up keeping the answer to its schema: {_TOO_LARGE}"
                        )
                    yield step

    @contextlib.contextmanager
    def _counted(self) -> Iterator[Callable[[], bool]]:
        """Counts what runs under a grammar; gives whether nothing else has since it began."""
        alone = self._running == 0
        self._running += 1
        self._begun += 1
        begun = self._begun
        try:
            yield lambda: alone and self._begun == begun
        finally:
            self._running -= 1

    def _keep(self, key: bytes, verdict: str | None) -> None:
        self._verdicts[key] = verdict
        if len(self._verdicts) > _GRAMMARS_KEPT:
            self._verdicts.popitem(last=False)

    async def warm(self) -> None:
        """Try a plain grammar: the first one has llguidance read the model's whole vocabulary."""
        grammar = output_grammar((), ToolChoice(), ResponseFormat("json_object"))
        with contextlib.suppress(EngineError):  # then the first request pays
            await self.require(await self._server.client(), grammar or "")

    async def _try(self, client: OpenAIEngine, grammar: str) -> str | None:
        trial = GenerationRequest(
            model="", prompt=_FORBIDDEN, max_tokens=1, sampling=Sampling(temperature=0.0)
        )
        extra = {"grammar": grammar, "logit_bias": [[_FORBIDDEN, 100.0]], "cache_prompt": False}
        text = ""
        with self._counted():
            async with aclosing(client.generate(trial, extra)) as steps:
                async for step in steps:
                    text += "".join(delta.text for delta in step.deltas)
        if not text.startswith(_FORBIDDEN):
            return None
        await asyncio.sleep(_REASON_WAIT_S)  # the reason takes another pipe than the answer
        for words in reversed(self._server.child.words()):
            found = _REASON.search(words)
            if found:
                return found[1].removeprefix("failed to compile JSON schema: ")[:300]
        return "it uses what the engine's grammar does not have"


def _key(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode()).digest()


async def generate_constrained(
    client: OpenAIEngine, trials: GrammarTrials, request: GenerationRequest, grammar: str
) -> AsyncGenerator[Step, None]:
    """Run a chat `request` whose output `grammar` (from `output_grammar`) holds."""
    await trials.require(client, grammar)
    prompt = await constrained_prompt(client, request)
    forced = request.tool_choice.mode in ("required", "named") and bool(request.tools)
    calls = forced or (request.tool_choice.mode == "auto" and bool(request.tools))
    raw = msgspec.structs.replace(
        request,
        prompt=prompt,
        messages=(),
        tools=(),
        tool_choice=ToolChoice(),
        response_format=ResponseFormat(),
        thinking=None,
        thinking_budget=None,
        # A stop text may be a part of the arguments, of which it is no end.
        stop=() if forced else request.stop,
        logprobs=None if forced else request.logprobs,
    )
    choices = [
        ConstrainedChoice(index, calls=calls, answers=not forced) for index in range(request.n)
    ]
    generation = client.generate(raw, {"grammar": grammar})
    async with aclosing(trials.held(grammar, generation)) as steps:
        async for step in steps:
            deltas = tuple(
                taken
                for delta in step.deltas
                if (taken := _taken(choices[delta.index], delta)) is not None
            )
            if deltas or step.final or step.usage is not None:
                yield Step(deltas, step.usage, step.final)


def _taken(choice: ConstrainedChoice, delta: Delta) -> Delta | None:
    if delta.stopped_by is not None:
        # It ends an answer where it stands, whole or not, as the limit of tokens does.
        taken = choice.feed(delta.text, FinishReason.LENGTH)
    else:
        taken = choice.feed(delta.text, delta.finish)
    if taken is None:
        return None
    return msgspec.structs.replace(
        taken,
        logprobs=() if taken.tool_calls else delta.logprobs,
        finish=delta.finish if delta.stopped_by else taken.finish,
        stopped_by=delta.stopped_by,
    )


async def constrained_prompt(client: OpenAIEngine, request: GenerationRequest) -> str:
    """The chat as the template writes it, with thinking closed: a grammar leaves no room for it.

    The vendor has no thinking in its JSON mode either.
    """
    prompt = await client.render_prompt(msgspec.structs.replace(request, thinking=False))
    return prompt + "\n</think>\n\n" if prompt.rstrip().endswith("<think>") else prompt


def grammar_of(request: GenerationRequest) -> str | None:
    """The grammar of a chat request; None where its output is free. Raises EngineRejected."""
    if request.prompt is not None:
        return None
    grammar = output_grammar(request.tools, request.tool_choice, request.response_format)
    if grammar is not None and request.thinking:
        raise EngineRejected(
            "thinking cannot be combined with a JSON response_format or a forced tool call; "
            "turn one of them off"
        )
    return grammar
