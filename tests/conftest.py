"""What every kind of test may need: the default model, obtained as a user's machine obtains it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.models import DEFAULT_MODEL, DEFAULT_MODEL_NAME, obtain


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file, downloaded once for all checkouts of this machine."""
    cache = os.environ.get("QWENSTACK_MODEL_CACHE") or "~/.cache/qwenstack/models"
    return obtain(DEFAULT_MODEL_NAME, Path(cache).expanduser()).path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llamacpp_engine(default_model_path: Path) -> AsyncIterator[LlamaCpp]:
    """The embedded engine with the default model, one for all tests that break nothing in it.

    It lives on the session's event loop: such a test is marked `asyncio(loop_scope="session")`.
    """
    engine = LlamaCpp(
        default_model_path,
        digest=f"sha256:{DEFAULT_MODEL.source.sha256}",
        region="test",
        settings=LlamaCppOptions(parallel=4, context_tokens=2048),
    )
    await engine.start()
    yield engine
    await engine.close()
