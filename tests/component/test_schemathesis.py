"""The published OpenAPI document against the running studio: no 5xx, no hang, whatever is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error

from qwenstack.studio.http.openapi import document
from tests.component.test_admin_api import admin_key
from tests.studio import running_studio

EXAMPLES = 12
_TIMEOUT_S = 10


class LiveStudio:
    """A studio on a thread of its own, so that synchronous clients can hammer it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.url = self.key = self.root = ""

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with running_studio(self._home) as studio:
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


RESULTS: list[Any] = list(schemathesis.openapi.from_dict(document()).get_all_operations())
OPERATIONS = [result.ok() for result in RESULTS]


def test_the_document_covers_the_api() -> None:
    assert len(OPERATIONS) > 25


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_nothing_sent_by_the_document_brings_a_server_error(
    operation: Any, live: LiveStudio
) -> None:
    secret = live.root if operation.path.startswith("/admin") else live.key

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def send(case: Case[Any]) -> None:
        response = case.call(
            base_url=live.url, headers={"Authorization": f"Bearer {secret}"}, timeout=_TIMEOUT_S
        )
        case.validate_response(response, checks=[not_a_server_error])

    send()


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
    secret = live.root if path.startswith("/admin") else live.key
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {secret}"

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(JSON)
    def send(body: Any) -> None:
        response = session.post(live.url + path, json=body, timeout=_TIMEOUT_S)
        assert response.status_code < 500, response.text[:300]

    send()
