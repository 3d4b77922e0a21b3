"""The child process that holds OpenVINO GenAI: `python -m qwenstack.engines.openvino_child`.

`child.py` starts it and says how the two talk. It serves what of vLLM's HTTP API `openai_http`
uses, on a loopback port of the kernel's choice, to whoever has the key.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
from typing import Any, Final

import jsonschema
import msgspec
from aiohttp import web

from qwenstack.core.generation import Delta, FinishReason
from qwenstack.engines.child_side import (
    be_the_first_to_go,
    die_with_parent,
    report,
    take_standard_output,
)
from qwenstack.engines.constrained_output import ConstrainedChoice
from qwenstack.engines.free_output import FreeChoice, StopFinder
from qwenstack.engines.interface import EngineProtocolError, EngineRejected
from qwenstack.engines.openvino_body import Body, Spent, wire_choice
from qwenstack.engines.openvino_model import OpenVinoConfiguration, OpenVinoModel, too_long
from qwenstack.engines.openvino_pump import Generation, GenerationBroken, Pump, Tokens

_BODY_BYTES_MAX: Final = 64 * 1024 * 1024
_FAREWELL_S: Final = 0.2
_DONE: Final = b"data: [DONE]\n\n"


def main() -> None:
    """Serve until standard input ends."""
    reports = take_standard_output()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    die_with_parent()
    be_the_first_to_go()
    configuration = msgspec.json.decode(line, type=OpenVinoConfiguration)
    try:
        model = OpenVinoModel(configuration)
    except ImportError as error:
        report(reports, {"failed": f"OpenVINO GenAI cannot be imported: {error}"})
        os._exit(1)
    except RuntimeError as error:
        report(reports, {"failed": str(error).strip().splitlines()[-1][:500]})
        os._exit(1)
    asyncio.run(_serve(model, configuration, reports))
    os._exit(1)  # only a pipeline that failed ends the loop


async def _serve(model: OpenVinoModel, configuration: OpenVinoConfiguration, reports: int) -> None:
    pump = Pump(model.pipeline, lambda reason: print(reason, file=sys.stderr, flush=True))
    server = Server(model, pump, configuration)
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pumping = asyncio.create_task(pump.run())
    await server.warm_up()
    report(reports, {"ready": runner.addresses[0][1]})
    await pumping
    await asyncio.sleep(_FAREWELL_S)  # for the errors to reach their readers


class Server:
    """The routes over one model."""

    def __init__(
        self, model: OpenVinoModel, pump: Pump, configuration: OpenVinoConfiguration
    ) -> None:
        self._model = model
        self._pump = pump
        self._authorization = f"Bearer {configuration.api_key}"
        self._open_max = configuration.parallel + configuration.waiting_max

    def application(self) -> web.Application:
        """The routes as an aiohttp application."""
        application = web.Application(middlewares=[self._guard], client_max_size=_BODY_BYTES_MAX)
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/chat/completions", self._generate),
                web.post("/v1/completions", self._generate),
            ]
        )
        return application

    async def warm_up(self) -> None:
        """Generate one token: the first inference takes seconds, and belongs to the start."""
        body = Body(prompt="Hi", temperature=0.0)
        ids = self._model.encode("Hi", special=True)
        generation = self._pump.add(ids, self._model.settings(body, 1, 0, None), constrained=False)
        async for _ in generation.tokens():
            pass

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != self._authorization:
            return _error(401, "wrong key")
        try:
            response: web.StreamResponse = await handler(request)
        except EngineRejected as refusal:
            code = "context_length_exceeded" if refusal.context_length else "invalid_request"
            return _error(400, refusal.message, code)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _error(400, f"the request is not what was expected: {error}")
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": "openvino", "max_model_len": self._model.context_tokens}
        return _json({"data": [model]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=Body)
        return _json({"count": int(self._prompt(body)[0].shape[1])})

    def _prompt(self, body: Body) -> tuple[Any, str]:
        """The prompt as a tensor, and as text where it is a chat."""
        if body.messages is not None:
            text = self._model.render(body)
            return self._model.encode(text, special=False), text
        if isinstance(body.prompt, list):
            return self._model.tensor(body.prompt), ""
        return self._model.encode(body.prompt or "", special=body.add_special_tokens), ""

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=Body)
        if self._pump.open + body.n > self._open_max:
            return _error(429, f"{self._pump.open} generations run or wait already")
        chat = body.messages is not None
        structure = (
            self._model.structure(body.offered(), body.choice(), body.form()) if chat else None
        )
        ids, prompt = self._prompt(body)
        thinking = prompt.rstrip().endswith("<think>")
        if structure is not None and thinking:
            prompt += "\n</think>\n\n"
            ids = self._model.encode(prompt, special=False)
        used = int(ids.shape[1])
        room = self._model.context_tokens - used
        if room < 1 or used < 1:
            raise (
                too_long(used, self._model.context_tokens)
                if used
                else EngineRejected("the prompt is empty")
            )
        tokens_max = room if body.max_tokens is None else min(body.max_tokens, room)
        stream = _Stream(self._model, self._pump, body, chat, structure, thinking)
        try:
            for number in range(body.n):
                config = self._model.settings(body, tokens_max, number, structure)
                stream.add(ids, config, used)
        except GenerationBroken as broken:
            stream.close()
            raise EngineRejected(f"the engine refuses the settings: {broken}") from broken
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await stream.write_to(response)
        finally:
            stream.close()
        return response


class _Choice:
    """One choice: its generation and what takes its text apart."""

    def __init__(self, generation: Generation, spent: Spent, stops: StopFinder) -> None:
        self.generation = generation
        self.spent = spent
        self.stops = stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.answer: list[str] = []


class _Stream:
    """One request's answer while it is written."""

    def __init__(
        self,
        model: OpenVinoModel,
        pump: Pump,
        body: Body,
        chat: bool,
        structure: Any,
        thinking: bool,
    ) -> None:
        self._model = model
        self._pump = pump
        self._body = body
        self._chat = chat
        self._constrained = structure is not None
        self._thinking = thinking
        mode = body.choice().mode
        self._forced = bool(body.tools) and mode in ("required", "named")
        self._calls = bool(body.tools) and mode != "none"
        self._choices: list[_Choice] = []

    def add(self, ids: Any, config: Any, prompt_tokens: int) -> None:
        """Begin one more choice. Raises GenerationBroken."""
        generation = self._pump.add(ids, config, constrained=self._constrained)
        # A stop text may be a part of a call's arguments, of which it is no end.
        stops = StopFinder(() if self._forced else self._body.stop)
        self._choices.append(_Choice(generation, Spent(prompt_tokens), stops))

    def close(self) -> None:
        """Cancel what still runs."""
        for choice in self._choices:
            self._pump.cancel(choice.generation)

    async def write_to(self, response: web.StreamResponse) -> None:
        """Write all choices as they come, the whole usage and the end; or an error."""
        broken: ExceptionGroup[GenerationBroken | EngineProtocolError] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(self._choices)):
                    group.create_task(self._write_choice(index, response))
        except* (GenerationBroken, EngineProtocolError) as errors:
            broken = errors
        if broken is not None:
            first = broken.exceptions[0]
            rejected = isinstance(first, GenerationBroken) and first.rejected
            message = {"message": str(first), "code": 400 if rejected else 500}
            await response.write(_event({"error": message}))
            return
        total = Spent(self._choices[0].spent.prompt)
        for choice in self._choices:
            total.completion += choice.spent.completion
            total.reasoning += choice.spent.reasoning
        await response.write(_event({"choices": [], "usage": total.wire()}) + _DONE)

    async def _write_choice(self, index: int, response: web.StreamResponse) -> None:
        choice = self._choices[index]
        taker: ConstrainedChoice | FreeChoice
        if self._constrained:
            taker = ConstrainedChoice(index, calls=self._calls, answers=not self._forced)
        else:
            taker = FreeChoice(index, calls=self._calls, thinking=self._thinking and self._chat)
        wants_logprobs = self._body.logprobs is not None and self._body.logprobs is not False
        async for tokens in choice.generation.tokens():
            delta = self._take(choice, taker, tokens)
            if delta is None:
                continue
            logprobs: list[tuple[bytes, float]] = []
            if wants_logprobs and not self._forced:
                pieces = map(self._model.piece, tokens.ids)
                logprobs = [
                    (piece, value)
                    for piece, value in zip(pieces, tokens.logprobs, strict=False)
                    if piece
                ]
            event = {
                "choices": [wire_choice(delta, logprobs, chat=self._chat)],
                "usage": choice.spent.wire(),
            }
            await response.write(_event(event))
            if delta.finish is not None:
                return

    def _take(
        self, choice: _Choice, taker: ConstrainedChoice | FreeChoice, tokens: Tokens
    ) -> Delta | None:
        """What these tokens add; counts them."""
        deltas: list[Delta] = []
        for place, token in enumerate(tokens.ids or [-1]):
            ends = tokens.finish is not None and place >= len(tokens.ids) - 1
            text = choice.stops.feed(choice.decoder.decode(self._model.piece(token), ends))
            finish: FinishReason | None = None
            if choice.stops.stopped:
                finish = FinishReason.STOP
            elif ends:
                text += choice.stops.flush()
                finish = FinishReason.LENGTH if tokens.finish == "length" else FinishReason.STOP
            thought = isinstance(taker, FreeChoice) and taker.reasoning
            if isinstance(taker, FreeChoice) and not self._chat:
                delta = Delta(0, text, finish=finish) if text or finish else None
            else:
                delta = taker.feed(text, finish)
            if token >= 0:
                choice.spent.completion += 1
                thought = thought or (isinstance(taker, FreeChoice) and taker.reasoning)
                choice.spent.reasoning += thought
            if delta is not None:
                deltas.append(delta)
            if finish is not None:
                # The pipeline may have gone on past a stop text: what it made counts as made.
                choice.spent.completion += len(tokens.ids) - place - 1 if token >= 0 else 0
                break
        merged = _merged(deltas, self._choices.index(choice), choice.stops.stopped_by)
        self._check_answer(choice, merged)
        return merged

    def _check_answer(self, choice: _Choice, delta: Delta | None) -> None:
        """A whole answer satisfies the schema, or the stream ends with an error."""
        form = self._body.form()
        if delta is None or not self._constrained or self._forced or form.type != "json_schema":
            return
        choice.answer.append(delta.text)
        if delta.finish is not FinishReason.STOP or choice.stops.stopped:
            return
        schema = form.schema or {}
        answer = msgspec.json.decode("".join(choice.answer))
        if not jsonschema.Draft202012Validator(schema).is_valid(answer):
            raise EngineProtocolError("the engine's answer does not satisfy the schema")


def _merged(deltas: list[Delta], index: int, stopped_by: str | None) -> Delta | None:
    if not deltas:
        return None
    return Delta(
        index,
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(call for delta in deltas for call in delta.tool_calls),
        finish=deltas[-1].finish,
        stopped_by=stopped_by,
    )


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _error(status: int, message: str, code: str = "") -> web.Response:
    body = msgspec.json.encode({"error": {"message": message, "code": code or status}})
    return web.Response(status=status, body=body, content_type="application/json")


if __name__ == "__main__":
    main()
