"""llama.cpp in its child process, with the real default model."""

from __future__ import annotations

import msgspec
import pytest

from qwenstack.core.generation import (
    Completion,
    CompletionBuilder,
    FinishReason,
    GenerationRequest,
    Message,
    ResponseFormat,
    Sampling,
    TextPart,
)
from qwenstack.engines.llamacpp import LlamaCpp

pytestmark = pytest.mark.asyncio(loop_scope="session")

GREEDY = Sampling(temperature=0.0)


def ask(question: str, **fields: object) -> GenerationRequest:
    defaults: dict[str, object] = {"max_tokens": 40, "sampling": GREEDY}
    return GenerationRequest(
        model="m",
        messages=(Message(role="user", content=(TextPart(question),)),),
        **(defaults | fields),  # type: ignore[arg-type]
    )


async def complete(engine: LlamaCpp, request: GenerationRequest) -> Completion:
    builder = CompletionBuilder()
    finals = 0
    async for step in engine.generate(request):
        builder.add(step)
        finals += step.final
    assert finals == 1
    return builder.build()


async def test_the_capital_of_france(llamacpp_engine: LlamaCpp) -> None:
    request = ask("What is the capital of France?")
    answer = await complete(llamacpp_engine, request)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish is FinishReason.STOP
    assert answer.usage.prompt == await llamacpp_engine.count_prompt(request)
    # The end-of-turn token is generated, and counted, but is no text.
    assert answer.usage.completion == await llamacpp_engine.count_text(answer.choices[0].text) + 1


@pytest.mark.parametrize("form", [ResponseFormat(), ResponseFormat("json_object")])
async def test_it_says_which_stop_text_ended_the_answer_and_when_none_did(
    llamacpp_engine: LlamaCpp, form: ResponseFormat
) -> None:
    question = ask("Write the JSON object with the key a and the value 7.", response_format=form)
    stops = ("never", "7")
    stopped = await complete(llamacpp_engine, msgspec.structs.replace(question, stop=stops))
    assert stopped.choices[0].stopped_by == "7"
    whole = await complete(llamacpp_engine, msgspec.structs.replace(question, stop=("never",)))
    assert (whole.choices[0].finish, whole.choices[0].stopped_by) == (FinishReason.STOP, None)
