"""What a canned server answers, by model name: the same for every vendor's client."""

from __future__ import annotations

from qwenstack.core.generation import Delta, FinishReason, Step, TokenLogprob, ToolCallDelta
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from tests.component.canned_openai import Script

USAGE = TokenUsage(12, 6, cached=4, reasoning=2)
STOP = Step((Delta(finish=FinishReason.STOP),), USAGE, final=True)
SCRIPTS: dict[str, Script] = {
    "hello": [
        Step((Delta(reasoning="I greet."),)),
        Step((Delta(text="Hel"), Delta(text="lo"))),
        Step((Delta(text=" 世界"),)),
        STOP,
    ],
    "counting": [
        Step((Delta(text="a"),), TokenUsage(12, 1)),
        Step((Delta(text="b"),), TokenUsage(12, 2)),
        STOP,
    ],
    "tool": [
        Step((Delta(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""),)),)),
        Step((Delta(tool_calls=(ToolCallDelta(0, arguments='{"city":'),)),)),
        Step((Delta(tool_calls=(ToolCallDelta(0, arguments='"Paris"}'),)),)),
        Step((Delta(tool_calls=(ToolCallDelta(1, "call_2", "weather", '{"city":"Rome"}'),)),)),
        Step((Delta(finish=FinishReason.TOOL_CALLS),), USAGE, final=True),
    ],
    "json": [Step((Delta(text='{"name":"Paris","size":2}'),)), STOP],
    "cut": [
        Step((Delta(text="Once"),)),
        Step((Delta(finish=FinishReason.LENGTH),), USAGE, final=True),
    ],
    "two": [
        Step((Delta(0, "a"), Delta(1, "b"))),
        Step((Delta(0, finish=FinishReason.STOP),)),
        Step((Delta(1, "c", finish=FinishReason.STOP),)),
        Step((), USAGE, final=True),
    ],
    "likely": [
        Step((Delta(text="a", logprobs=(TokenLogprob("a", -0.1, top=(TokenLogprob("b", -3),)),)),)),
        STOP,
    ],
    "dying": [
        Step((Delta(text="Hel"),)),
        Refusal(RefusalKind.ENGINE_FAILED, "The engine stopped; send the request again."),
    ],
    **{
        kind.value: [Refusal(kind, f"This is {kind.value}.", retry_after_s=0.01)]
        for kind in RefusalKind
    },
}
