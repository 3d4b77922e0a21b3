"""The published OpenAPI document against the running studio.

It is complete, every answer is as it says, and nothing brings a 5xx or a hang, whatever is sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qwenstack.studio.http.admin import PREFIX as ADMIN_PREFIX
from qwenstack.studio.http.admin import ROUTES as ADMIN_ROUTES
from qwenstack.studio.http.openapi import document
from qwenstack.studio.observability.watchers import Watchers
from qwenstack.studio.settings import TelemetrySettings
from tests.component.test_admin_api import admin_key
from tests.studio import MODEL, RunningStudio, Upstream, running_studio

EXAMPLES = 8
_TIMEOUT_S = 10


class LiveStudio:
    """A studio on a thread of its own, so that synchronous clients can hammer it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.url = self.key = self.root = ""
        self.studio: RunningStudio

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def headers(self, path: str) -> dict[str, str]:
        """The key that a path takes."""
        secret = self.root if path.startswith(ADMIN_PREFIX) else self.key
        return {"Authorization": f"Bearer {secret}"}

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        upstream = Upstream()
        upstream.tokenizes = True
        embeds = {"embeds": True, "embedding_width": 2}
        watchers = Watchers(TelemetrySettings())
        async with running_studio(
            self._home, upstream=upstream, engine=embeds, observer=watchers
        ) as studio:
            self.studio = studio
            self.url = studio.url
            self.key = await studio.tenant()
            self.root = await admin_key(studio)
            self._ready.set()
            await self._stop.wait()
            assert await studio.problems() == []


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStudio]:
    studio = LiveStudio(tmp_path_factory.mktemp("live"))
    studio.start()
    yield studio
    studio.stop()


CONFORMANCE = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
RESULTS: list[Any] = list(schemathesis.openapi.from_dict(document()).get_all_operations())
OPERATIONS = {result.ok().label: result.ok() for result in RESULTS}
# The others are the same handlers under another vendor's prefix.
HERE = ("/v1/", "/api/v1/", "/admin/", "/healthz", "/readyz", "/metrics", "/openapi.json")
CANONICAL = {label: each for label, each in OPERATIONS.items() if each.path.startswith(HERE)}


def test_the_document_has_every_route_and_method_of_the_router(live: LiveStudio) -> None:
    app = live.studio.studio.app
    documented = {(each.method.upper(), each.path) for each in OPERATIONS.values()}
    assert set(app.paths) <= documented
    for method, prefix in app.prefixes:
        assert any(verb == method and path.startswith(prefix) for verb, path in documented)
    for route in ADMIN_ROUTES:
        assert (route.method, ADMIN_PREFIX + route.path) in documented


def test_the_router_serves_every_route_and_method_of_the_document(live: LiveStudio) -> None:
    for each in OPERATIONS.values():
        path = re.sub(r"\{\w+\}", "none", each.path)
        response = requests.request(each.method, live.url + path, timeout=_TIMEOUT_S)
        assert response.status_code != 405, each.label
        assert "Unknown request URL" not in response.text, each.label
        if each.path.startswith("/admin"):
            headers = {"Authorization": f"Bearer {live.root}"}
            response = requests.request(
                each.method, live.url + path, headers=headers, timeout=_TIMEOUT_S
            )
            assert response.status_code != 405, each.label
            assert "no such admin route" not in response.text, each.label


def test_the_document_describes_every_answer_and_every_refusal() -> None:
    made = document()
    schemas = made["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(made))
    for reference in references:
        node = made
        for name in reference.split("/"):
            node = node[name]
    ids = []
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            ids.append(operation["operationId"])
            answer = operation["responses"]["200"]["content"]
            assert all(each["schema"] for each in answer.values()), (method, path)
            if not path.startswith(("/healthz", "/readyz", "/openapi.json")):
                assert "401" in operation["responses"] or path == "/metrics"
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("operation", CANONICAL.values(), ids=lambda each: each.label)
def test_whatever_is_sent_by_the_document_is_answered_as_it_says(
    operation: Any, live: LiveStudio
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def send(case: Case[Any]) -> None:
        response = case.call(
            base_url=live.url, headers=live.headers(operation.path), timeout=_TIMEOUT_S
        )
        case.validate_response(response, checks=CONFORMANCE)

    send()


USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": USER}
MESSAGE: dict[str, Any] = {**CHAT, "max_tokens": 9}
NATIVE: dict[str, Any] = {"model": MODEL, "input": {"messages": USER}}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
# Operation and body of requests that are answered with 200.
GOOD: list[tuple[str, dict[str, Any] | None]] = [
    ("GET /healthz", None),
    ("GET /readyz", None),
    ("GET /metrics", None),
    ("GET /openapi.json", None),
    ("POST /v1/chat/completions", CHAT),
    ("POST /v1/chat/completions", {**CHAT, "stream": True}),
    ("POST /v1/chat/completions", {**CHAT, "n": 1, "logprobs": True}),
    ("POST /v1/completions", {"model": MODEL, "prompt": "a"}),
    ("POST /v1/completions", {"model": MODEL, "prompt": "a", "stream": True}),
    ("POST /v1/responses", {"model": MODEL, "input": "a"}),
    ("POST /v1/responses", {"model": MODEL, "input": "a", "stream": True}),
    ("POST /v1/responses", {"model": MODEL, "input": "a", "metadata": {"a": "b"}, "user": "u"}),
    ("POST /v1/responses", {"model": MODEL, "input": "a", "tools": [TOOL], "top_logprobs": 2}),
    ("POST /v1/responses", {"model": MODEL, "input": "a", "text": {"format": SCHEMA}}),
    ("POST /v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
    ("POST /v1/embeddings", {"model": MODEL, "input": "a", "encoding_format": "base64"}),
    ("GET /v1/models", None),
    ("GET /v1/models/{model}", None),
    ("GET /v1/usage", None),
    ("POST /v1/messages", MESSAGE),
    ("POST /v1/messages", {**MESSAGE, "stream": True}),
    ("POST /v1/messages/count_tokens", CHAT),
    ("POST /api/v1/services/aigc/text-generation/generation", NATIVE),
    (
        "POST /api/v1/services/aigc/text-generation/generation",
        {**NATIVE, "parameters": {"result_format": "text"}},
    ),
    ("POST /api/v1/services/aigc/multimodal-generation/generation", NATIVE),
    (
        "POST /api/v1/services/embeddings/text-embedding/text-embedding",
        {"model": MODEL, "input": {"texts": ["a"]}},
    ),
    ("GET /v1/files", None),
    ("GET /v1/files/{file}", None),
    ("GET /v1/files/{file}/content", None),
    (
        "POST /v1/batches",
        {
            "input_file_id": "{file}",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"a": "b"},
        },
    ),
    ("GET /v1/batches", None),
    ("GET /v1/batches/{batch}", None),
    ("POST /v1/batches/{batch}/cancel", None),
    ("DELETE /v1/files/{file}", None),
    ("GET /admin/v1/workspaces", None),
    ("POST /admin/v1/workspaces", {"name": "another"}),
    ("GET /admin/v1/workspaces/{workspace}", None),
    ("PUT /admin/v1/workspaces/{workspace}/suspended", {"suspended": False}),
    ("POST /admin/v1/workspaces/{workspace}/money", {"amount": "1"}),
    (
        "POST /admin/v1/workspaces/{workspace}/free-quota",
        {"model": MODEL, "tokens": 9, "expires_in_s": 99},
    ),
    ("POST /admin/v1/workspaces/{workspace}/keys", {"name": "more"}),
    ("GET /admin/v1/workspaces/{workspace}/keys", None),
    ("POST /admin/v1/workspaces/{workspace}/budgets", {"limit": "5"}),
    ("GET /admin/v1/workspaces/{workspace}/budgets", None),
    ("GET /admin/v1/workspaces/{workspace}/invoice", None),
    ("GET /admin/v1/keys", None),
    ("POST /admin/v1/keys", {"name": "op"}),
    ("GET /admin/v1/plans", None),
    ("GET /admin/v1/deployments", None),
    ("GET /admin/v1/usage", None),
    ("GET /admin/v1/ledger", None),
    ("GET /admin/v1/audit", None),
    ("GET /admin/v1/audit/lines", None),
]


def test_good_requests_are_answered_as_the_document_says(live: LiveStudio) -> None:
    spare, file = upload(live), upload(live)
    known = {"model": MODEL, "file": file, "workspace": "acme"}
    for label, body in GOOD:
        if label.startswith("DELETE"):
            known["file"] = spare
        path = label.split(" ")[1].format(**known)
        if body is not None and "input_file_id" in body:
            body = {**body, "input_file_id": known["file"]}
        response = requests.request(
            CANONICAL[label].method,
            live.url + path,
            json=body,
            headers=live.headers(path),
            timeout=_TIMEOUT_S,
        )
        check(label, response)
        if label == "POST /v1/batches":
            known["batch"] = response.json()["id"]
    shown = {label for label, _ in GOOD} | {"POST /v1/files"}
    assert {label for label in CANONICAL if "/admin/" not in label} <= shown


def upload(live: LiveStudio) -> str:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    response = requests.post(
        f"{live.url}/v1/files",
        files={"file": ("lines.jsonl", json.dumps(line))},
        data={"purpose": "batch"},
        headers=live.headers("/v1"),
        timeout=_TIMEOUT_S,
    )
    check("POST /v1/files", response)
    file_id: str = response.json()["id"]
    return file_id


def check(label: str, response: requests.Response) -> None:
    assert response.status_code == 200, (label, response.text[:500])
    names = re.findall(r"\{(\w+)\}", label)
    case = CANONICAL[label].Case(path_parameters=dict.fromkeys(names, "a"))
    case.validate_response(response, checks=CONFORMANCE)


POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/batches",
    "/v1/files",
    "/api/v1/services/aigc/text-generation/generation",
    "/admin/v1/workspaces",
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "messages", "role", "content", "input", "stop", "tools", "n"])
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("path", POSTS)
def test_no_json_body_brings_a_server_error(live: LiveStudio, path: str) -> None:
    session = requests.Session()
    session.headers.update(live.headers(path))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(JSON)
    def send(body: Any) -> None:
        response = session.post(live.url + path, json=body, timeout=_TIMEOUT_S)
        assert response.status_code < 500, response.text[:300]

    send()
