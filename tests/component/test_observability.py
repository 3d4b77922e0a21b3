"""What operators see of a studio: metrics, log lines and spans that agree with its ledger."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
import sqlalchemy
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import IntegrityError

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.accounts import create_key
from qwenstack.studio.admission.queue import FairQueue, Priority
from qwenstack.studio.charge import Charge
from qwenstack.studio.deployments import Deployments
from qwenstack.studio.http.metrics import check_scraper
from qwenstack.studio.observability.logs import configure_logging, traceback_without_text
from qwenstack.studio.observability.metrics import Metrics
from qwenstack.studio.observability.watchers import Watchers
from qwenstack.studio.settings import (
    LogSettings,
    Settings,
    SettingsError,
    TelemetrySettings,
    load_settings,
)
from qwenstack.studio.tenancy import ApiKey, Tenancy, make_key
from tests import kill_harness
from tests.studio import RunningStudio, Upstream, running_studio

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
PROMPT = "the heron stands in the reeds"


@contextlib.asynccontextmanager
async def watched(
    home: Path,
    telemetry: TelemetrySettings | None = None,
    *,
    upstream: Upstream | None = None,
    **engine: str,
) -> AsyncIterator[RunningStudio]:
    telemetry = telemetry or TelemetrySettings()
    watchers = Watchers(telemetry)
    try:
        async with running_studio(
            home, upstream=upstream, observer=watchers, telemetry=telemetry, engine=dict(engine)
        ) as studio:
            yield studio
    finally:
        await asyncio.to_thread(watchers.close)


class Uncounted(Upstream):
    """Says no usage before the end, as OpenAI's own servers do."""

    def _chunk(self, delta: dict[str, str], tokens: int, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


class Echoing(Upstream):
    """Rejects every request and quotes it."""

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        error = {"type": "invalid_request_error", "message": await request.text()}
        return web.json_response({"error": error}, status=400)


async def ask(studio: RunningStudio, key: str, **fields: object) -> int:
    """Ask and read all that comes; the status."""
    messages = [{"role": "user", "content": PROMPT}]
    response = await studio.chat(key, messages=messages, **fields)
    with contextlib.suppress(Exception):
        await response.read()
    return response.status


async def some_of_everything(studio: RunningStudio) -> str:
    """Whole, streamed, broken-off, failed and refused requests; the key they came with."""
    key = await studio.tenant()
    for tokens in (1, 5, 9):
        studio.upstream.tokens = tokens
        assert await ask(studio, key) == 200
        assert await ask(studio, key, stream=True) == 200
    studio.upstream.break_after = 3
    await ask(studio, key, stream=True)
    studio.upstream.break_after = None
    await studio.installation.serving.drain(10)
    studio.upstream.status = 500
    assert await ask(studio, key) >= 500
    studio.upstream.status = 200
    assert await ask(studio, "sk-qs-wrong") == 401
    assert await ask(studio, key, model=PROMPT) == 404
    return key


async def scrape(studio: RunningStudio) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with studio.session.get(f"{studio.url}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"qwenstack_{name}", frozenset(labels.items())


async def test_metrics_agree_with_the_ledger(tmp_path: Path) -> None:
    async with watched(tmp_path) as studio:
        await some_of_everything(studio)
        charges: list[Charge] = await studio.charges()
        seen = await scrape(studio)

    outcomes = Counter[str](charge.outcome for charge in charges)
    assert outcomes == {"complete": 6, "interrupted": 1}
    outcomes["voided"] = 1
    for outcome, count in outcomes.items():
        name = sample("requests_total", surface="openai.chat", model="m", outcome=outcome)
        assert seen[name] == count
    tokens = Counter[str]()
    for charge in charges:
        for line in charge.lines:
            tokens[line.meter] += line.tokens
    assert tokens["output"] == 2 * (1 + 5 + 9) + 3
    for meter, count in tokens.items():
        assert seen[sample("tokens_total", model="m", meter=meter)] == count
    [currency] = {charge.currency for charge in charges}
    cost = seen[sample("cost_micro_total", model="m", currency=currency)]
    assert cost == sum(charge.amount_micro for charge in charges) > 0
    assert seen[sample("first_token_seconds_count", model="m")] == len(charges)
    assert seen[sample("request_seconds_count", model="m")] == len(charges)
    paced = sum(charge.usage.completion > 1 for charge in charges)
    assert seen[sample("output_token_seconds_count", model="m")] == paced
    refusals = {
        dict(labels)["kind"]: value
        for (name, labels), value in seen.items()
        if name == "qwenstack_refusals_total"
    }
    assert refusals["invalid_key"] == refusals["model_not_found"] == 1
    failures = [
        value for (name, _), value in seen.items() if name == "qwenstack_engine_failures_total"
    ]
    assert sum(failures) == 2


async def test_the_state_shown_is_that_of_the_moment_of_the_scrape(tmp_path: Path) -> None:
    async with watched(tmp_path) as studio:
        key = await studio.tenant()
        studio.upstream.gate = asyncio.Event()
        asking = asyncio.create_task(ask(studio, key, stream=True))
        while not studio.upstream.requests:
            await asyncio.sleep(0.005)
        during = await scrape(studio)
        studio.upstream.gate.set()
        assert await asking == 200
        after = await scrape(studio)
    assert during[sample("open_streams")] == 1
    assert after[sample("open_streams")] == 0
    assert after[sample("journal_healthy")] == 1
    assert after[sample("draining")] == 0


async def test_the_queue_of_an_engine_of_our_own_is_shown(tmp_path: Path) -> None:
    async with watched(tmp_path) as studio:
        queue = FairQueue(1)
        [remote] = studio.installation.deployments
        own = msgspec.structs.replace(remote, queue=queue)
        studio.installation.deployments = Deployments([own])
        async with queue.slot("ws"):
            waiting = asyncio.create_task(queue.wait("ws", Priority.BATCH))
            await asyncio.sleep(0)
            seen = await scrape(studio)
            waiting.cancel()
    assert seen[sample("slots", model="m")] == 1
    assert seen[sample("slots_running", model="m")] == 1
    assert seen[sample("queue_waiting", model="m", priority="batch")] == 1
    assert seen[sample("queue_waiting", model="m", priority="interactive")] == 0


async def test_a_stream_that_nobody_can_count_is_shown(tmp_path: Path) -> None:
    async with watched(tmp_path, upstream=Uncounted(), dialect="openai") as studio:
        key = await studio.tenant()
        studio.upstream.break_after = 2
        await ask(studio, key, stream=True)
        await studio.installation.serving.drain(10)
        charges = await studio.charges()
        seen = await scrape(studio)
    assert charges == []
    assert seen[sample("unmetered_streams_total", model="m")] == 1


async def test_a_scrape_through_a_proxy_needs_an_admin_key(tmp_path: Path) -> None:
    async with watched(tmp_path) as studio:
        tenant_key = await studio.tenant()
        _, admin = await studio.act(
            lambda connection: create_key(
                connection, actor="test", workspace_id=None, name="a", scopes=("admin",)
            )
        )
        statuses = {}
        for secret in ("", tenant_key, admin.secret):
            headers = {"X-Forwarded-For": "192.0.2.7", "Authorization": f"Bearer {secret}"}
            async with studio.session.get(f"{studio.url}/metrics", headers=headers) as response:
                statuses[secret] = response.status
    assert list(statuses.values()) == [403, 403, 200]


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_scrape_without_a_key(peer: str) -> None:
    check_scraper(peer, {}, None, Tenancy(version=1), now_us())


@pytest.mark.parametrize(
    "peer", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "2001:db8::1", "0.0.0.0", "", "x", None]
)
def test_a_foreign_peer_needs_an_admin_key(peer: str | None) -> None:
    admin, operator = make_key(), "op"
    keys = [
        ApiKey(
            id=operator,
            workspace_id=None,
            name="a",
            prefix=admin.prefix,
            digest=admin.digest,
            scopes=("admin",),
        )
    ]
    tenancy = Tenancy(version=1, keys=keys)
    for secret in (None, "", "sk-qs-wrong"):
        with pytest.raises(Refusal) as caught:
            check_scraper(peer, {}, secret, tenancy, now_us())
        assert caught.value.kind is RefusalKind.ACCESS_DENIED
    check_scraper(peer, {}, admin.secret, tenancy, now_us())


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("qwenstack")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("level", ["info", "debug"])
async def test_log_lines_are_json_and_hold_neither_prompt_nor_key(
    tmp_path: Path, level: str
) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(level=level, format="json"), stream)  # type: ignore[arg-type]
    async with watched(tmp_path) as studio:
        key = await some_of_everything(studio)
        charges = await studio.charges()
    text = stream.getvalue()
    assert PROMPT not in text
    assert key not in text
    assert key[12:] not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = {line["request_id"]: line for line in lines if line["message"] == "request"}
    assert len(requests) == len(charges) + 1
    for charge in charges:
        line = requests[charge.request_id]
        assert line["outcome"] == charge.outcome
        assert line["workspace"] == charge.workspace_id
        assert line["key"] == key[:12]
        assert line["surface"] == "openai.chat"
        assert line["model"] == "m"
        assert line["prompt_tokens"] == charge.usage.prompt
        assert line["completion_tokens"] == charge.usage.completion
        assert line["amount_micro"] == charge.amount_micro
        assert 0 <= line["first_token_ms"] <= line["duration_ms"]
    kinds = [line["kind"] for line in lines if line["message"] == "refused"]
    assert {"invalid_key", "model_not_found"} <= set(kinds)


@pytest.mark.usefixtures("logging_restored")
async def test_an_engine_that_quotes_the_prompt_cannot_put_it_into_log_or_metrics(
    tmp_path: Path,
) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(level="debug", format="text"), stream)
    async with watched(tmp_path, upstream=Echoing()) as studio:
        assert await ask(studio, await studio.tenant()) == 400
        async with studio.session.get(f"{studio.url}/metrics") as response:
            exposed = await response.text()
    assert "error=EngineRejected" in stream.getvalue()
    assert 'error="EngineRejected"' in exposed
    assert PROMPT not in stream.getvalue() + exposed


@pytest.mark.usefixtures("logging_restored")
def test_foreign_text_cannot_make_a_line_of_its_own_and_twice_configured_logs_once() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="json"), stream)
    configure_logging(LogSettings(format="text"), stream)
    log = logging.getLogger("qwenstack.test")
    log.info("hello\n%s", "forged", extra={"name_of": "a\nb\x1b[31m"})
    log.debug("not this")
    logging.getLogger("elsewhere").info("nor this")
    [line] = stream.getvalue().splitlines()
    assert "forged" in line
    assert "\x1b" not in line


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("shape", ["json", "text"])
async def test_a_defect_is_logged_and_counted_without_the_words_that_may_quote_a_request(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        try:
            raise ValueError(PROMPT)
        except ValueError as error:
            raise KeyError(PROMPT) from error

    stream = io.StringIO()
    configure_logging(LogSettings(format=shape), stream)  # type: ignore[arg-type]
    async with watched(tmp_path) as studio:
        key = await studio.tenant()
        monkeypatch.setattr(studio.installation.door, "admit", broken)
        response = await studio.chat(key)
        assert response.status == 500
        seen = await scrape(studio)
    text = stream.getvalue()
    assert PROMPT not in text
    assert response.headers["x-request-id"] in text
    assert "in broken" in text
    assert 0 < text.index("builtins.ValueError") < text.index("builtins.KeyError")
    assert seen[sample("refusals_total", surface="openai.chat", kind="internal")] == 1


def test_a_database_error_shows_its_driver_s_words_and_no_value(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'db'}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (a TEXT UNIQUE)"))
        connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), {"a": PROMPT})
    with pytest.raises(IntegrityError) as caught, engine.begin() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), {"a": PROMPT})
    assert PROMPT in str(caught.value)
    shown = traceback_without_text(caught.value)
    assert PROMPT not in shown
    assert "sqlalchemy.exc.IntegrityError: UNIQUE constraint failed: t.a" in shown


@pytest.mark.usefixtures("logging_restored")
async def test_a_refused_client_s_request_id_finds_its_log_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="json"), stream)
    async with watched(tmp_path) as studio:
        response = await studio.chat("sk-qs-wrong")
    [line] = [json.loads(each) for each in stream.getvalue().splitlines()]
    assert line["request_id"] == response.headers["x-request-id"]
    assert line["message"] == "refused"
    assert line["kind"] == "invalid_key"


@contextlib.asynccontextmanager
async def otlp_receiver() -> AsyncIterator[tuple[str, list[Span]]]:
    """A collector on loopback: its base URL, and the spans that it got."""
    spans: list[Span] = []

    async def take(request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", spans
    finally:
        await runner.cleanup()


def attributes_of(span: Span) -> dict[str, object]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in span.attributes
    }


async def test_a_collector_gets_a_span_a_request_without_its_text(tmp_path: Path) -> None:
    async with otlp_receiver() as (url, spans):
        async with watched(tmp_path, TelemetrySettings(otlp_endpoint=url)) as studio:
            key = await some_of_everything(studio)
            charges = {charge.request_id: charge for charge in await studio.charges()}
        by_id = {str(attributes_of(span)["gen_ai.response.id"]): span for span in spans}
    assert len(spans) == len(by_id) == len(charges) + 1
    for request_id, charge in charges.items():
        span, attributes = by_id[request_id], attributes_of(by_id[request_id])
        assert span.name == "chat m"
        assert not span.parent_span_id
        assert span.end_time_unix_nano > span.start_time_unix_nano
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.provider.name"] == charge.engine
        assert attributes["gen_ai.request.model"] == "m"
        assert attributes["gen_ai.usage.input_tokens"] == charge.usage.prompt
        assert attributes["gen_ai.usage.output_tokens"] == charge.usage.completion
        assert attributes["qwenstack.amount_micro"] == charge.amount_micro
        assert ("error.type" in attributes) == (charge.outcome == "interrupted")
    [voided] = [span for request_id, span in by_id.items() if request_id not in charges]
    assert voided.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(voided)["error.type"] == "EngineUnavailable"
    for span in spans:
        assert PROMPT.encode() not in span.SerializeToString()
        assert key.encode() not in span.SerializeToString()


async def test_the_command_serves_metrics_and_writes_log_and_spans_until_its_end(
    tmp_path: Path,
) -> None:
    upstream = kill_harness.Upstream()
    await upstream.start()
    key = kill_harness.make_tenant(Settings(), tmp_path)
    server = kill_harness.Server(tmp_path, kill_harness.free_port())
    async with otlp_receiver() as (collector, spans), aiohttp.ClientSession() as session:
        kill_harness.write_settings(tmp_path, upstream.url, "")
        with (tmp_path / "qwenstack.toml").open("a") as file:
            file.write(f'[log]\nformat = "json"\n[telemetry]\notlp_endpoint = "{collector}"\n')
        await server.start()
        try:
            async with session.post(
                f"{server.url}/chat/completions",
                json={"model": "m", "messages": [{"role": "user", "content": PROMPT}]},
                headers={"Authorization": f"Bearer {key}"},
            ) as response:
                answer = await response.json()
                request_id = response.headers["x-request-id"]
            async with session.get(server.url.removesuffix("/v1") + "/metrics") as response:
                families = list(text_string_to_metric_families(await response.text()))
        finally:
            await server.terminate()
            await upstream.stop()
    completion = answer["usage"]["completion_tokens"]
    [tokens] = [family for family in families if family.name == "qwenstack_tokens"]
    assert {each.labels["meter"]: each.value for each in tokens.samples}["output"] == completion
    assert "process_resident_memory_bytes" in {family.name for family in families}
    text = (tmp_path / "server.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line["message"] == "request"]
    assert line["request_id"] == request_id
    assert line["completion_tokens"] == completion
    assert PROMPT not in text
    assert key[12:] not in text
    [span] = spans
    assert attributes_of(span)["gen_ai.response.id"] == request_id


@pytest.mark.usefixtures("logging_restored")
async def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with otlp_receiver() as (url, _):
        pass
    async with asyncio.timeout(20):
        async with watched(tmp_path, TelemetrySettings(otlp_endpoint=url)) as studio:
            key = await studio.tenant()
            assert await ask(studio, key) == 200
            assert len(await studio.charges()) == 1
    # The exporter's pauses are random: it gives up by itself, or is made to.
    assert "Failed to export spans" in caplog.text or "spans were dropped" in caplog.text


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}


async def traced(studio: RunningStudio, key: str, headers: dict[str, str]) -> str:
    """Ask with these headers; the id that the answer has."""
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    async with studio.session.post(
        f"{studio.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}", **headers},
    ) as response:
        assert response.status == 200
        return response.headers["x-request-id"]


async def test_a_clients_trace_goes_on_through_our_span_to_the_remote_engine(
    tmp_path: Path,
) -> None:
    async with otlp_receiver() as (url, spans):
        telemetry = TelemetrySettings(otlp_endpoint=url)
        async with watched(tmp_path, telemetry) as studio:
            await traced(studio, await studio.tenant(), CALLER)
            [told] = studio.upstream.headers
    [span] = spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert span.trace_state == "vendor=1"
    assert told["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert told["tracestate"] == "vendor=1"


@pytest.mark.parametrize("sent", ["", "00-1-2-3", f"00-{'0' * 32}-{SPAN}-01", "x" * 4000])
async def test_a_hostile_trace_is_ignored_and_a_new_one_begun(tmp_path: Path, sent: str) -> None:
    headers = {"traceparent": sent, "tracestate": "vendor=1"}
    async with otlp_receiver() as (url, spans):
        telemetry = TelemetrySettings(otlp_endpoint=url)
        async with watched(tmp_path, telemetry) as studio:
            await traced(studio, await studio.tenant(), headers)
            [told] = studio.upstream.headers
    [span] = spans
    assert not span.parent_span_id
    assert not span.trace_state
    assert told["traceparent"] == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
    assert "tracestate" not in told


async def test_without_a_collector_a_valid_trace_is_passed_on_as_it_came(tmp_path: Path) -> None:
    async with watched(tmp_path) as studio:
        key = await studio.tenant()
        await traced(studio, key, CALLER)
        await traced(studio, key, {"traceparent": "00-1-2-3"})
        first, second = studio.upstream.headers
    assert {name: first[name] for name in CALLER} == CALLER
    assert not {"traceparent", "tracestate"} & set(second)


async def test_a_request_id_that_the_client_sends_is_not_believed(tmp_path: Path) -> None:
    sent = {"x-request-id": "req_mine", "request-id": "req_mine", "x-client-request-id": "req_mine"}
    async with watched(tmp_path) as studio:
        key = await studio.tenant()
        ids = [await traced(studio, key, sent) for _ in range(2)]
        assert len({*ids, "req_mine"}) == 3


async def test_a_ratio_of_zero_sends_nothing(tmp_path: Path) -> None:
    async with otlp_receiver() as (url, spans):
        telemetry = TelemetrySettings(otlp_endpoint=url, sample_ratio=0.0)
        async with watched(tmp_path, telemetry) as studio:
            assert await ask(studio, await studio.tenant()) == 200
    assert spans == []


def test_opentelemetry_is_loaded_only_where_traces_go_somewhere() -> None:
    program = (
        "import sys, qwenstack.cli.running as running; from qwenstack.studio import settings\n"
        "running.Watchers(settings.TelemetrySettings())\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('otlp_endpoint = "127.0.0.1:4318"', "telemetry.otlp_endpoint is '127.0.0.1:4318'"),
        ("sample_ratio = 1.5", "telemetry.sample_ratio is 1.5"),
    ],
)
def test_a_telemetry_setting_that_cannot_be_is_named(
    tmp_path: Path, setting: str, said: str
) -> None:
    path = tmp_path / "qwenstack.toml"
    path.write_text(f"[telemetry]\n{setting}\n")
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(path)


async def test_the_document_names_each_metric_and_no_other(tmp_path: Path) -> None:
    async with running_studio(tmp_path, upstream=Upstream()) as studio:
        metrics = Metrics()
        metrics.watch(studio.installation)
        known = set()
        for family in metrics.registry.collect():
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            known.add(family.name + suffix)
    written = set(re.findall(r"^\| `(qwenstack_\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    assert written == {name for name in known if name.startswith("qwenstack_")}
