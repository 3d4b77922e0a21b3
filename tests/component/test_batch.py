"""Files and batches, with the official client, over a real upstream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from qwenstack.studio.installation import prepare
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.settings import Settings
from qwenstack.studio.usage import read_charges
from tests.kill_harness import Server, free_port, make_tenant, write_settings
from tests.studio import MODEL, PROMPT_TOKENS, RunningStudio, Upstream, running_studio

LINES = 30


def batch_input(count: int, **fields: object) -> bytes:
    lines = []
    for number in range(count):
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"line {number}"}],
            **fields,
        }
        lines.append(
            json.dumps(
                {
                    "custom_id": f"c{number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
            )
        )
    return "\n".join(lines).encode() + b"\n"


async def submit(client: openai.AsyncOpenAI, content: bytes) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


async def ended(client: openai.AsyncOpenAI, batch_id: str, timeout_s: float = 30) -> Batch:
    async with asyncio.timeout(timeout_s):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.05)


def client_of(studio: RunningStudio, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{studio.url}/v1", api_key=key, max_retries=0)


async def test_a_batch_runs_every_line_once_at_half_the_price(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.tokens = 90
    async with running_studio(tmp_path, upstream=upstream) as studio:
        client = client_of(studio, await studio.tenant())
        batch = await ended(client, (await submit(client, batch_input(LINES))).id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == LINES
        assert batch.output_file_id is not None
        content = (await client.files.content(batch.output_file_id)).text
        answers = [json.loads(line) for line in content.splitlines()]
        assert {answer["custom_id"] for answer in answers} == {f"c{n}" for n in range(LINES)}
        assert all(len(a["response"]["body"]["choices"]) == 1 for a in answers)
        charges = await studio.charges()
        assert len(charges) == LINES == len(upstream.requests)
        assert {charge.batch_id for charge in charges} == {batch.id}
        assert charges[0].amount_micro == round((PROMPT_TOKENS * 0.02 + 90 * 0.06) / 2)
        assert await studio.problems() == []


async def test_a_wrong_line_is_an_answer_and_costs_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        client = client_of(studio, await studio.tenant())
        content = batch_input(1) + batch_input(2, temperature=99).split(b"\n")[1] + b"\n"
        batch = await ended(client, (await submit(client, content)).id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        assert batch.error_file_id is not None
        error = json.loads((await client.files.content(batch.error_file_id)).text)
        assert error["response"]["status_code"] == 400
        assert "temperature" in error["response"]["body"]["error"]["message"]
        assert len(await studio.charges()) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"not json\n", "invalid_request"),
        (batch_input(1) + batch_input(1), "duplicate_custom_id"),
        (
            batch_input(2).replace(b'"model": "m"', b'"model": "other"', 1),
            "mismatched_model",
        ),
    ],
)
async def test_a_wrong_file_fails_with_the_reason(
    tmp_path: Path, content: bytes, code: str
) -> None:
    async with running_studio(tmp_path) as studio:
        client = client_of(studio, await studio.tenant())
        batch = await ended(client, (await submit(client, content)).id)
        assert batch.status == "failed"
        assert batch.errors is not None and batch.errors.data is not None
        assert batch.errors.data[0].code == code
        assert studio.upstream.requests == []


async def test_a_cancelled_batch_keeps_what_is_done_and_starts_no_more(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with running_studio(tmp_path, upstream=upstream) as studio:
        client = client_of(studio, await studio.tenant())
        batch = await submit(client, batch_input(LINES))
        while not upstream.running:
            await asyncio.sleep(0.01)
        await client.batches.cancel(batch.id)
        upstream.gate.set()
        batch = await ended(client, batch.id)
        assert batch.status == "cancelled"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == len(await studio.charges()) < LINES


async def test_a_batch_whose_file_was_lost_meanwhile_fails_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with running_studio(tmp_path, upstream=upstream) as studio:
        client = client_of(studio, await studio.tenant())
        batch = await submit(client, batch_input(LINES))
        while not upstream.running:
            await asyncio.sleep(0.01)
        await studio.studio.batches.background.stop()
        for each in (tmp_path / "files").iterdir():
            each.unlink()
        upstream.gate.set()
        studio.studio.batches.background.start()
        lost = await ended(client, batch.id)
        assert lost.status == "failed"
        assert lost.errors is not None and lost.errors.data is not None
        assert lost.errors.data[0].code == "missing_file"
        another = await ended(client, (await submit(client, batch_input(1))).id)
        assert another.status == "completed"


async def test_another_workspace_sees_neither_file_nor_batch(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        mine = client_of(studio, await studio.tenant("mine"))
        theirs = client_of(studio, await studio.tenant("theirs"))
        batch = await submit(mine, batch_input(1))
        with pytest.raises(openai.NotFoundError):
            await theirs.batches.retrieve(batch.id)
        with pytest.raises(openai.NotFoundError):
            await theirs.files.content(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await theirs.files.delete(batch.input_file_id)
        assert (await theirs.files.list()).data == []
        assert (await theirs.batches.list()).data == []


async def test_kill_in_the_middle_of_a_batch_bills_each_line_once(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.tokens, upstream.pause_s = 5, 0.02
    key = make_tenant(Settings(), tmp_path)
    async with upstream.serving():
        write_settings(tmp_path, upstream.url, "")
        server = Server(tmp_path, free_port())
        await server.start()
        client = openai.AsyncOpenAI(base_url=server.url, api_key=key, max_retries=0)
        batch = await submit(client, batch_input(60))
        while (counts := (await client.batches.retrieve(batch.id)).request_counts) is None or (
            counts.completed < 10
        ):
            await asyncio.sleep(0.02)
        server.kill()
        await server.start()
        batch = await ended(client, batch.id, 60)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 60
        await server.terminate()
    database = prepare(Settings(), tmp_path)
    with database.begin() as connection:
        charges = list(read_charges(connection, start_us=0, end_us=2**62))
        assert verify_ledger(connection) == []
    database.dispose()
    assert len(charges) == 60
    # Only the lines that were under way at the kill may have asked the engine twice.
    assert len(upstream.requests) <= 60 + 8
