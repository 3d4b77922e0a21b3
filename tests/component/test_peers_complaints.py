"""What users of other gateways complain of, each as a test that it does not happen here.

The issue numbers are of the peers' trackers, gathered in 2026-11.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qwenstack.studio.accounts import create_budget, find_workspace, put_plan
from qwenstack.studio.admission.limits import Limit
from qwenstack.studio.alerts import watch
from qwenstack.studio.tenancy import Plan
from tests.studio import PROMPT_TOKENS, Upstream, running_studio

# The example price of the local book: 0.02 and 0.06 USD per million tokens, in micro-USD a token.
INPUT_RATE, OUTPUT_RATE = 0.02, 0.06


def cost_micro(prompt: int, completion: int) -> int:
    return round(prompt * INPUT_RATE + completion * OUTPUT_RATE)


async def test_concurrent_requests_cannot_overrun_a_balance(tmp_path: Path) -> None:
    """litellm 34732, 40095; new-api 5690, 6609; one-api 2440."""
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with running_studio(tmp_path, upstream=upstream) as studio:
        # Each request may cost up to 9 micro-USD (its prompt is bounded by its bytes).
        key = await studio.tenant(money="0.000030")
        asking = [asyncio.create_task(studio.chat(key, max_tokens=100)) for _ in range(40)]
        await asyncio.sleep(0.5)
        upstream.gate.set()
        statuses = [(await each).status for each in asking]
        assert 1 <= statuses.count(200) <= 3
        assert set(statuses) == {200, 429}
        assert await studio.balance_micro() >= 0
        assert await studio.problems() == []


async def test_concurrent_requests_cannot_overrun_a_budget(tmp_path: Path) -> None:
    """litellm 34732: the check passed for all before the first was counted."""
    upstream = Upstream()
    upstream.tokens = 100
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        limit_micro = 3 * cost_micro(PROMPT_TOKENS, 100) + 4
        await studio.act(
            lambda connection: create_budget(
                connection,
                actor="t",
                workspace_id=find_workspace(connection, "acme").id,
                key_id=None,
                period="day",
                limit_micro=limit_micro,
            )
        )
        answers = await asyncio.gather(*(studio.chat(key, max_tokens=100) for _ in range(30)))
        spent = sum(charge.amount_micro for charge in await studio.charges())
        assert spent <= limit_micro
        assert 1 <= sum(answer.status == 200 for answer in answers) <= 3
        # Once it is spent the answer is final, and says so.
        for _ in range(4):
            last = await studio.chat(key, max_tokens=100)
        assert last.status == 403
        assert (await last.json())["error"]["code"] == "budget_exceeded"


async def test_no_phantom_budget_exceeded_while_money_is_only_held(tmp_path: Path) -> None:
    """litellm 36926: refused for good although the budget was not spent."""
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant(money="0.000012")
        first = asyncio.create_task(studio.chat(key, max_tokens=100))
        while not upstream.running:
            await asyncio.sleep(0.01)
        second = await studio.chat(key, max_tokens=100)
        assert second.status == 429
        assert int(second.headers["retry-after"]) >= 1
        upstream.gate.set()
        assert (await first).status == 200
        assert (await studio.chat(key, max_tokens=100)).status == 200


async def test_a_disconnected_stream_is_billed_for_what_was_delivered(tmp_path: Path) -> None:
    """new-api 5235, 7062: billed 0 after delivery; 4168, 5289: billed for nothing."""
    upstream = Upstream()
    upstream.tokens, upstream.pause_s = 90, 0.01
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        answer = await studio.chat(key, stream=True)
        got = 0
        while got < 5:
            line = await answer.content.readline()
            got += line.count(b'"content":"x"')
        answer.close()
        charges = []
        for _ in range(100):
            if charges := await studio.charges():
                break
            await asyncio.sleep(0.02)
        (charge,) = charges
        assert charge.outcome == "interrupted"
        assert 5 <= charge.usage.completion < 60
        assert charge.usage.prompt == PROMPT_TOKENS
        assert charge.amount_micro == cost_micro(PROMPT_TOKENS, charge.usage.completion)
        for _ in range(100):
            if upstream.cancelled:
                break
            await asyncio.sleep(0.02)
        assert upstream.cancelled == 1, "the engine goes on generating for nobody"


async def test_a_client_that_leaves_before_its_answer_pays_nothing(tmp_path: Path) -> None:
    """new-api 4168: billed although nothing arrived."""
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        asking = asyncio.create_task(studio.chat(key))
        while not upstream.running:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        for _ in range(100):
            if upstream.cancelled:
                break
            await asyncio.sleep(0.02)
        assert upstream.cancelled == 1
        assert await studio.charges() == []
        assert await studio.balance_micro() == 100_000_000
        upstream.gate.set()
        assert (await studio.chat(key)).status == 200, "the hold was not given back"


async def test_an_engine_that_breaks_mid_stream_is_billed_for_what_came(tmp_path: Path) -> None:
    """new-api 5235."""
    upstream = Upstream()
    upstream.break_after = 3
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        answer = await studio.chat(key, stream=True)
        text = await answer.text()
        assert '"error"' in text
        assert "[DONE]" not in text
        for _ in range(100):
            if charges := await studio.charges():
                break
            await asyncio.sleep(0.02)
        (charge,) = charges
        assert charge.outcome == "interrupted"
        assert charge.usage.completion == text.count('"content":"x"')


async def test_an_engine_that_breaks_a_whole_answer_is_not_billed(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.break_after = 3
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        answer = await studio.chat(key)
        assert answer.status in (500, 503)
        assert await studio.charges() == []


async def test_every_generating_route_is_billed(tmp_path: Path) -> None:
    """litellm 38176, bifrost 2873: routes that bypass budgets."""
    async with running_studio(tmp_path) as studio:
        key = await studio.tenant(money=None)
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
        refused = 0
        for method, path in studio.studio.app.paths:
            if method != "POST" or "batches" in path or "files" in path:
                continue
            answer = await studio.session.post(studio.url + path, json=body, headers=headers)
            assert answer.status >= 400, f"{path} served a workspace without money"
            refused += 1
        assert refused >= 9
        assert studio.upstream.requests == []


async def test_a_check_that_cannot_be_made_refuses(tmp_path: Path, own_valkey: object) -> None:
    """litellm 33323: the budget check failed open."""
    url: str = own_valkey.url  # type: ignore[attr-defined]
    async with running_studio(tmp_path, valkey_url=url) as studio:
        key = await studio.tenant()
        plan = Plan(id="default", per_model=Limit(requests_per_minute=100))
        await studio.act(lambda connection: put_plan(connection, actor="t", plan=plan))
        assert (await studio.chat(key)).status == 200
        own_valkey.kill()  # type: ignore[attr-defined]
        refused = await studio.chat(key)
        assert refused.status == 503
        assert len(studio.upstream.requests) == 1


async def test_cache_hits_have_their_own_price(tmp_path: Path) -> None:
    """litellm 40090: implicit and explicit cache prices merged."""
    upstream = Upstream()
    upstream.usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 600},
    }
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        assert (await studio.chat(key)).status == 200
        upstream.usage["prompt_tokens_details"]["cache_type"] = "ephemeral"
        assert (await studio.chat(key)).status == 200
        implicit, explicit = await studio.charges()
        # 400 at 0.02, then 600 at a fifth and at a tenth of it.
        assert implicit.amount_micro == round(400 * 0.02 + 600 * 0.004)
        assert explicit.amount_micro == round(400 * 0.02 + 600 * 0.002)


async def test_a_budget_alerts_once_when_its_line_is_crossed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_EVERY_S", 0.05)
    upstream = Upstream()
    upstream.tokens = 100
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        await studio.act(
            lambda connection: create_budget(
                connection,
                actor="t",
                workspace_id=find_workspace(connection, "acme").id,
                key_id=None,
                period="month",
                limit_micro=100,
                alert_percent=10,
            )
        )
        for _ in range(3):
            assert (await studio.chat(key)).status == 200
            await asyncio.sleep(0.2)
    alerts = [each for each in caplog.records if getattr(each, "event", "") == "budget_alert"]
    assert len(alerts) == 1
    assert "acme" in alerts[0].getMessage()
