"""DashScope's native surface: what is read of a request, and how answers are written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.generation import (
    AudioPart,
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    Step,
    TextPart,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.dashscope import DashScopeEmbeddings, DashScopeGeneration
from qwenstack.studio.surfaces.dashscope_errors import code_of, refuse
from qwenstack.studio.surfaces.dashscope_request import DashScopeRequest, Parameters
from qwenstack.studio.surfaces.interface import Call
from tests.generated_json import json_values
from tests.generated_steps import fold, generations

TEXT = DashScopeGeneration(multimodal=False)
MULTIMODAL = DashScopeGeneration(multimodal=True)
EMBEDDINGS = DashScopeEmbeddings()
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SSE = {b"x-dashscope-sse": b"enable"}


def body(parameters: dict[str, Any] | None = None, **fields: Any) -> bytes:
    return json.dumps(
        {"model": "m", "input": {"messages": [USER]}, "parameters": parameters or {}, **fields}
    ).encode()


def read(**parameters: Any) -> GenerationRequest:
    return TEXT.parse(body(parameters), {}).request


def refused(parse: Any, data: bytes, headers: dict[bytes, bytes] | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(data, headers or {})
    return caught.value


def test_one_tool_call_comes_at_most_unless_several_are_asked_for() -> None:
    assert read().parallel_tool_calls is False
    assert read(parallel_tool_calls=True).parallel_tool_calls is True


def test_the_smallest_request() -> None:
    call = TEXT.parse(b'{"model":"m","input":{"prompt":"Hi"}}', {})
    assert call.stream is False
    assert call.request == GenerationRequest(
        model="m",
        messages=(Message(role="user", content=(TextPart("Hi"),)),),
        parallel_tool_calls=False,
    )


@pytest.mark.parametrize(
    ("headers", "streams"),
    [
        ({}, False),
        (SSE, True),
        ({b"accept": b"text/event-stream"}, True),
        ({b"accept": b"application/json"}, False),
    ],
)
def test_a_header_asks_for_the_stream(headers: dict[bytes, bytes], streams: bool) -> None:
    assert TEXT.parse(body(), headers).stream is streams


def test_parameters_are_read() -> None:
    request = read(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        seed=3,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        stop=["END"],
        enable_thinking=True,
        thinking_budget=50,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_object"},
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
    )
    sampling = request.sampling
    assert (request.max_tokens, sampling.temperature, sampling.top_k) == (7, 0.5, 20)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, 0.2)
    assert (request.thinking, request.thinking_budget, request.logprobs) == (True, 50, 2)
    assert (request.stop, request.response_format.type) == (("END",), "json_object")
    assert request.parallel_tool_calls is False
    assert read(max_length=3).max_tokens == 3


@pytest.mark.parametrize(
    ("choice", "ours"),
    [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("named", "f")),
    ],
)
def test_tool_choices(choice: Any, ours: ToolChoice) -> None:
    assert read(tools=[TOOL], tool_choice=choice).tool_choice == ours


def test_multimodal_contents() -> None:
    content = [
        {"text": "What is it?", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "And this?"},
        {"image": "data:image/png;base64,aGk="},
        {"audio": "data:audio/mp3;base64,aGk="},
    ]
    call = MULTIMODAL.parse(body(input={"messages": [{"role": "user", "content": content}]}), {})
    assert call.request.messages[0].content == (
        TextPart("What is it?", True),
        TextPart("And this?"),
        ImagePart("data:image/png;base64,aGk="),
        AudioPart("aGk=", "mp3"),
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"max_tokens": 0}, "'parameters.max_tokens': 0"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "say different things"),
        ({"n": 0}, "parameters.n"),
        ({"n": 2, "result_format": "text"}, "'parameters.n' needs the result_format 'message'"),
        ({"tools": [TOOL], "result_format": "text"}, "'parameters.tools' needs the result_format"),
        ({"logprobs": True, "result_format": "text"}, "'parameters.logprobs' needs"),
        ({"model": "another"}, "'parameters.model' is \"another\""),
        ({"stop": ["x" * 2000]}, "'parameters.stop'"),
        ({"vl_high_resolution_images": True}, "'parameters.vl_high_resolution_images'"),
        ({"temperature": 3}, "'parameters.temperature': 3"),
        ({"top_logprobs": 9}, "between 0 and 5"),
        ({"top_logprobs": 2}, "needs 'logprobs'"),
        ({"enable_search": True}, "'parameters.enable_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, '"g"'),
        ({"tool_choice": "required"}, "needs 'tools'"),
        ({"tools": [{"type": "web_search"}]}, "parameters.tools[0]"),
        ({"modalities": ["audio"]}, "only ['text']"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"unheard_of": 1}, "parameters.unheard_of"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any], words: str) -> None:
    assert words in refused(TEXT.parse, body(parameters)).message


@pytest.mark.parametrize(
    ("given_input", "words"),
    [
        ({}, "needs 'messages'"),
        ({"messages": []}, "1 to"),
        ({"messages": [USER], "prompt": "a"}, "both 'messages' and 'prompt'"),
        ({"history": [{"user": "a"}]}, "input.history"),
        ({"messages": [{"role": "user", "content": [{"video": "x"}]}]}, "Video"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "exactly one of the keys"),
        ({"messages": [{"role": "user", "content": [{"text": "a", "image": "b"}]}]}, "exactly one"),
        (
            {"messages": [{"role": "user", "content": [{"image": "oss://x"}]}]},
            "'input.messages[0].content[0].image': \"oss://x\". Give an https: URL",
        ),
        (
            {"messages": [{"role": "user", "content": [{"audio": "https://x"}]}]},
            "'input.messages[0].content[0].audio'",
        ),
        (
            {"messages": [{"role": "system", "content": [{"image": "https://x"}]}]},
            "'input.messages[0].content[0]'. Only user messages",
        ),
        ({"messages": [{**USER, "role": "assistant", "partial": True}]}, "can't be continued"),
    ],
)
def test_a_bad_input_is_named(given_input: dict[str, Any], words: str) -> None:
    assert words in refused(TEXT.parse, body(input=given_input)).message


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"x-dashscope-async", b"enable"),
        (b"x-dashscope-datainspection", b'{"input":"cip"}'),
        (b"x-dashscope-plugin", b"calculator"),
    ],
)
def test_what_a_header_asks_for_in_vain_is_refused(header: bytes, value: bytes) -> None:
    refusal = refused(TEXT.parse, body(), {header: value})
    assert refusal.kind is RefusalKind.UNSUPPORTED
    assert header.decode() in refusal.message


def test_embeddings_are_read_and_written() -> None:
    call = EMBEDDINGS.parse(
        b'{"model":"e","input":{"texts":["a","b"]},'
        b'"parameters":{"text_type":"query","dimension":2,"output_type":"dense"}}',
        {},
    )
    assert call.request == EmbeddingRequest(model="e", inputs=("a", "b"), dimensions=2)
    result = EmbeddingResult(((0.5, 0.0), (0.5, 1.0)), TokenUsage(prompt=3))
    assert json.loads(EMBEDDINGS.encode(call, result, "req_1", 0)) == {
        "output": {
            "embeddings": [
                {"text_index": 0, "embedding": [0.5, 0.0]},
                {"text_index": 1, "embedding": [0.5, 1.0]},
            ]
        },
        "usage": {"total_tokens": 3},
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": {"texts": []}}, "1 to 25"),
        ({"input": {"texts": ["a"] * 26}}, "26 texts"),
        ({"input": {"texts": [""]}}, "empty text"),
        ({"input": {"url": "https://x"}}, "input.url"),
        ({"parameters": {"output_type": "sparse"}}, "dense"),
        ({"parameters": {"instruct": "Find."}}, "instruct"),
        ({"parameters": {"dimension": 0}}, "parameters.dimension"),
    ],
)
def test_a_bad_embedding_field_is_named(fields: dict[str, Any], words: str) -> None:
    data = json.dumps({"model": "e", "input": {"texts": ["a"]}, **fields}).encode()
    assert words in refused(EMBEDDINGS.parse, data).message


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_refusal_has_the_flat_shape(kind: RefusalKind) -> None:
    reply = refuse(Refusal(kind, "x" * 1_000_000), "req_1")
    status, code = code_of(kind)
    answer = json.loads(reply.body)
    assert reply.status == status >= 400
    assert (answer["code"], answer["request_id"]) == (code, "req_1")
    assert set(answer) == {"code", "message", "request_id"}
    assert len(reply.body) < 3000


def events(call: Call, surface: DashScopeGeneration, steps: list[Step]) -> list[Any]:
    encoder = surface.encoder(call, "req_1", 0)
    data = encoder.start() + b"".join(
        encoder.finish(step) if step.final else encoder.step(step) for step in steps
    )
    told = []
    for number, block in enumerate(data.split(b"\n\n")[:-1], 1):
        id_, event, status, line = block.split(b"\n")
        assert (id_, event, status) == (b"id:%d" % number, b"event:result", b":HTTP_STATUS/200")
        told.append(json.loads(line.removeprefix(b"data:")))
    return told


def content_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@settings(max_examples=100, deadline=None)
@given(generations(choices=2), st.booleans(), st.booleans())
def test_a_stream_tells_what_the_whole_answer_tells(
    steps: list[Step], incremental: bool, multimodal: bool
) -> None:
    surface = MULTIMODAL if multimodal else TEXT
    call = surface.parse(body({"n": 2, "incremental_output": incremental}), SSE)
    told = events(call, surface, steps)
    assert all(
        choice["finish_reason"] == "null"
        for event in told[:-1]
        for choice in event["output"]["choices"]
    )
    whole = json.loads(surface.encode(call, fold(steps), "req_1", 0))
    assert told[-1]["usage"] == whole["usage"]
    if not incremental:
        assert told[-1] == whole
        return
    for index, choice in enumerate(whole["output"]["choices"]):
        pieces = [event["output"]["choices"][index] for event in told]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        messages = [piece["message"] for piece in pieces]
        assert "".join(map(content_of, messages)) == content_of(choice["message"])
        thoughts = "".join(message.get("reasoning_content", "") for message in messages)
        assert thoughts == choice["message"].get("reasoning_content", "")
        arguments: dict[str, str] = {}
        for message in messages:
            for piece in message.get("tool_calls", []):
                number = piece["index"]
                arguments[number] = arguments.get(number, "") + piece["function"]["arguments"]
        calls = sorted(arguments.items())
        assert [text for _, text in calls] == [
            each["function"]["arguments"] for each in choice["message"].get("tool_calls", [])
        ]


def test_the_text_format_is_flat_in_a_stream_too() -> None:
    call = TEXT.parse(body({"result_format": "text", "incremental_output": True}), SSE)
    steps = [
        Step((Delta(text="a"),), TokenUsage(5, 1)),
        Step((Delta(finish=FinishReason.STOP),)),
        Step((), TokenUsage(5, 1), final=True),
    ]
    outputs = [event["output"] for event in events(call, TEXT, steps)]
    assert outputs[0] == {"text": "a", "finish_reason": "null"}
    assert outputs[-1] == {"text": "", "finish_reason": "stop"}


def test_a_broken_stream_ends_with_an_error_event() -> None:
    encoder = TEXT.encoder(TEXT.parse(body(), SSE), "req_1", 0)
    encoder.step(Step((Delta(text="a"),)))
    data = encoder.fail(Refusal(RefusalKind.ENGINE_FAILED, "It died.")).decode()
    assert data.startswith("id:2\nevent:error\n:HTTP_STATUS/500\nstatus:500\ndata:{")


WORDS = [
    "user", "assistant", "tool", "system", "text", "message", "function", "json_object",
    "json_schema", "auto", "required", "none", "object", "query", "dense", "ephemeral",
    "https://x", "data:image/png;base64,aGk=", "aGk=", "a", "", "\u0000",
]  # fmt: skip
KEYS = [
    "messages", "prompt", "role", "content", "text", "image", "audio", "type", "function", "name",
    "parameters", "properties", "tool_calls", "tool_call_id", "id", "arguments", "schema",
    "json_schema", "texts", "cache_control", "n", "stop",
]  # fmt: skip
JSON = json_values(WORDS, KEYS)
PARAMETERS = st.sampled_from([*Parameters.__struct_fields__, "unheard_of"])


def call_or_refusal(data: bytes) -> None:
    for parse in (TEXT.parse, MULTIMODAL.parse, EMBEDDINGS.parse):
        try:
            parse(data, SSE)
        except Refusal as refusal:
            assert refusal.message
            assert len(refusal.message) < 600
            assert refuse(refusal, "r").status == 400


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(PARAMETERS, JSON, max_size=4))
def test_any_parameters_give_a_call_or_a_refusal(parameters: dict[str, Any]) -> None:
    call_or_refusal(body(parameters))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*DashScopeRequest.__struct_fields__, "unheard_of"]), JSON, max_size=3
    )
)
def test_any_fields_give_a_call_or_a_refusal(fields: dict[str, Any]) -> None:
    call_or_refusal(body(**fields))


ITEM = st.dictionaries(st.sampled_from(["text", "image", "audio", "video", "type"]), JSON)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(WORDS[:4])},
    optional={
        "content": st.none() | st.text(max_size=3) | st.lists(ITEM, max_size=2),
        "tool_call_id": st.sampled_from(["a", "b"]),
        "tool_calls": JSON,
        "partial": st.booleans(),
        "reasoning_content": st.none() | st.text(max_size=2),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGE, max_size=4))
def test_any_conversation_gives_a_call_or_a_refusal(messages: list[Any]) -> None:
    call_or_refusal(body(input={"messages": messages}))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_call_or_a_refusal(data: bytes) -> None:
    call_or_refusal(data)
