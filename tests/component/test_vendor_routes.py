"""DashScope's and Anthropic's routes on a whole studio: errors in their shape, one ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenstack.studio.accounts import put_plan
from qwenstack.studio.admission.limits import Limit
from qwenstack.studio.tenancy import Plan
from tests.studio import MODEL, PROMPT_TOKENS, RunningStudio, Upstream, running_studio

USER = [{"role": "user", "content": "hi"}]
MESSAGE: dict[str, Any] = {"model": MODEL, "messages": USER, "max_tokens": 50}
NATIVE: dict[str, Any] = {"model": MODEL, "input": {"messages": USER}}
GENERATION = "/api/v1/services/aigc/text-generation/generation"
MULTIMODAL = "/api/v1/services/aigc/multimodal-generation/generation"
COUNTS = ("/v1/messages/count_tokens", "/apps/anthropic/v1/messages/count_tokens")


async def post(
    studio: RunningStudio, path: str, body: dict[str, Any], **headers: str
) -> tuple[int, Any]:
    answer = await studio.session.post(studio.url + path, json=body, headers=headers)
    return answer.status, await answer.json()


async def test_every_route_bills_once_under_its_own_surface(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        key = await studio.tenant()
        bearer = {"authorization": f"Bearer {key}"}
        for path, body in (
            ("/v1/messages", MESSAGE),
            ("/apps/anthropic/v1/messages", MESSAGE),
            (GENERATION, NATIVE),
            (MULTIMODAL, NATIVE),
        ):
            status, answer = await post(studio, path, body, **bearer)
            assert status == 200
            usage = answer["usage"]
            assert (usage["input_tokens"], usage["output_tokens"]) == (PROMPT_TOKENS, 5)
        charges = await studio.charges()
        assert sorted(charge.surface for charge in charges) == [
            "anthropic.messages",
            "anthropic.messages",
            "dashscope.multimodal",
            "dashscope.text",
        ]
        assert await studio.problems() == []


async def test_anthropics_key_header_is_taken(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        key = await studio.tenant()
        answer = await studio.session.post(
            f"{studio.url}/v1/messages", json=MESSAGE, headers={"x-api-key": key}
        )
        assert answer.status == 200
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert (await answer.json())["id"] == f"msg_{answer.headers['request-id']}"


async def test_counting_is_authenticated_and_bills_nothing(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.tokenizes = True
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        body = {"model": MODEL, "messages": USER}
        for path in COUNTS:
            status, answer = await post(studio, path, body, authorization=f"Bearer {key}")
            assert (status, answer) == (200, {"input_tokens": PROMPT_TOKENS})
            status, answer = await post(studio, path, body, authorization="Bearer sk-wrong")
            assert (status, answer["error"]["type"]) == (401, "authentication_error")
        unknown = {**body, "model": "nobody"}
        status, answer = await post(studio, COUNTS[0], unknown, authorization=f"Bearer {key}")
        assert (status, answer["error"]["type"]) == (404, "not_found_error")
        assert await studio.charges() == []
        assert upstream.requests == []


async def test_counting_counts_against_the_limit_of_requests(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.tokenizes = True
    async with running_studio(tmp_path, upstream=upstream) as studio:
        plan = Plan(id="small", per_model=Limit(requests_per_minute=2, tokens_per_minute=1))
        await studio.act(lambda connection: put_plan(connection, actor="t", plan=plan))
        key = await studio.tenant(plan="small")
        statuses = []
        for _ in range(3):
            status, answer = await post(
                studio, COUNTS[0], {"model": MODEL, "messages": USER}, authorization=f"Bearer {key}"
            )
            statuses.append(status)
        assert statuses == [200, 200, 429]
        assert answer["error"]["type"] == "rate_limit_error"


async def test_a_model_that_cannot_count_says_so(tmp_path: Path) -> None:
    async with running_studio(tmp_path, engine={"dialect": "generic"}) as studio:
        key = await studio.tenant()
        status, answer = await post(
            studio, COUNTS[0], {"model": MODEL, "messages": USER}, authorization=f"Bearer {key}"
        )
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "count tokens" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/messages/batches", 404),
        ("/apps/anthropic/v2", 404),
        ("/apps/anthropic/v1/messages", 405),
    ],
)
async def test_unknown_paths_are_refused_in_anthropics_shape(
    tmp_path: Path, path: str, status: int
) -> None:
    async with running_studio(tmp_path) as studio:
        answer = await studio.session.get(studio.url + path)
        assert answer.status == status
        told = await answer.json()
        assert (told["type"], set(told["error"])) == ("error", {"type", "message"})
        assert told["request_id"] == answer.headers["request-id"]


async def test_unknown_paths_are_refused_in_dashscopes_shape(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        for path in ("/api/v1/services/aigc/text2image/image-synthesis", "/api/v1/files"):
            status, told = await post(studio, path, NATIVE)
            assert (status, told["code"]) == (404, "InvalidURL")
            assert set(told) == {"code", "message", "request_id"}


async def test_an_engine_that_dies_within_a_stream_ends_it_in_the_vendors_shape(
    tmp_path: Path,
) -> None:
    upstream = Upstream()
    upstream.break_after = 2
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        bearer = {"authorization": f"Bearer {key}"}
        for path, body, headers, words in (
            ("/v1/messages", {**MESSAGE, "stream": True}, {}, b"event: error\n"),
            (GENERATION, NATIVE, {"x-dashscope-sse": "enable"}, b"event:error\n"),
        ):
            answer = await studio.session.post(
                studio.url + path, json=body, headers={**bearer, **headers}
            )
            data = await answer.read()
            assert answer.status == 200
            assert words in data
            assert b"message_stop" not in data
        charges = await studio.charges()
        assert [charge.outcome for charge in charges] == ["interrupted", "interrupted"]
        assert await studio.problems() == []
