"""What the client's test modules expect of a conftest.py: the sources on PyPI come without theirs.

`hub_client_suite.py` lays this file beside the modules. Each test gets caches of its own, and its
markers mean what the client's pyproject.toml says of them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoUrl, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _detect_agent

from .testing_constants import (  # type: ignore[import-not-found]
    ENDPOINT_PRODUCTION,
    ENDPOINT_STAGING,
    TOKEN,
    USER,
)
from .testing_utils import repo_name  # type: ignore[import-not-found]

RepoFactory = Callable[..., RepoUrl]

_CACHES = {
    "HF_HOME": "",
    "HF_HUB_CACHE": "hub",
    "HUGGINGFACE_HUB_CACHE": "hub",
    "HF_XET_CACHE": "xet",
    "HF_ASSETS_CACHE": "assets",
    "HF_TOKEN_PATH": "token",
    "HF_STORED_TOKENS_PATH": "stored_tokens",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what reads or writes the hub on the Internet."""
    away = pytest.mark.skip(reason="needs the production hub")
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if item.get_closest_marker("production") or "api_prod" in fixtures:
            item.add_marker(away)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches, tokens and settings that no other test has touched."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, part in _CACHES.items():
            monkeypatch.setattr(constants, name, str(Path(folder, part)))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_EXPERIMENTAL_WARNING", True)
        monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(autouse=True)
def plain_output() -> None:
    """The command line's output in its first mode."""
    from huggingface_hub.cli._output import out

    out.set_mode()
    out.set_no_truncate(False)


@pytest.fixture(autouse=True)
def forgotten_refresh() -> None:
    """The client keeps its decision about a token in the process."""
    from huggingface_hub.utils import _auth

    _auth._OAUTH_REFRESH_CACHE = None
    _auth._OAUTH_REFRESH_WARNED = False


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Markers `xet`, `no_xet`, `git_lfs` and `deprecated`."""
    if request.node.get_closest_marker("no_xet"):
        pytest.skip("for clients without hf-xet")
    if request.node.get_closest_marker("git_lfs"):
        pytest.skip("needs Git over HTTP")
    if request.node.get_closest_marker("xet"):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    names = [name for mark in request.node.iter_markers("deprecated") for name in mark.args]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(pytest.warns(FutureWarning, match=f"'{name}'"))
        yield


@pytest.fixture(scope="session")
def api() -> HfApi:
    """The user that most tests act as."""
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture(scope="session")
def api_prod() -> HfApi:
    """Nobody at the production hub; what asks for it is skipped."""
    return HfApi(endpoint=ENDPOINT_PRODUCTION)


@pytest.fixture
def repo_factory(api: HfApi) -> Iterator[RepoFactory]:
    """Make a repo that is gone after the test."""
    made: list[tuple[str, str, str | None]] = []

    def make(repo_type: str = "model", **options: Any) -> RepoUrl:
        if repo_type == "space":
            options.setdefault("space_sdk", "gradio")
        options.setdefault("repo_id", repo_name(prefix=repo_type))
        url = api.create_repo(repo_type=repo_type, **options)
        token = options.get("token")
        made.append((url.repo_id, repo_type, token if isinstance(token, str) else None))
        return url

    yield make
    for repo_id, repo_type, token in made:
        with contextlib.suppress(HfHubHTTPError):
            api.delete_repo(repo_id, repo_type=repo_type, token=token)


@pytest.fixture
def new_repo_id(api: HfApi) -> Iterator[str]:
    """A name for a repo that the test makes; the repo is gone after it."""
    repo_id = f"{USER}/{repo_name()}"
    yield repo_id
    api.delete_repo(repo_id, missing_ok=True)
