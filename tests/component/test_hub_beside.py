"""The hub that `qwenstack up` runs: it comes back, goes with its parent, and has the model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf
import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from qwenstack.cli.hub_beside import HubBeside, hub_beside
from qwenstack.cli.up import up
from qwenstack.engines.models import ModelError, obtain

PATIENCE_S = 60.0
RELEASE = "maker/Tiny-GGUF"


def eventually(question: Callable[[], bool]) -> None:
    """Waits until the answer is yes."""
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def answers(endpoint: str) -> bool:
    """Whether a hub takes requests there."""
    try:
        return httpx.get(f"{endpoint}/healthz", timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((64, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def published(hub: HubBeside, token: str, repo: str) -> dict[str, str | None]:
    """The files of a repo with the SHA-256 of the large ones; empty where there is no repo."""
    api = HfApi(endpoint=hub.endpoint, token=token)
    if not api.repo_exists(repo):
        return {}
    files = api.model_info(repo, files_metadata=True).siblings or []
    return {each.rfilename: each.lfs.sha256 if each.lfs else None for each in files}


def test_the_default_model_is_published_once_and_whole(tmp_path: Path, weights: Path) -> None:
    model = obtain(str(weights), tmp_path / "cache")
    with hub_beside(tmp_path / "home", "127.0.0.1", 0) as hub:
        assert hub.token is not None
        token = hub.token
        repo = hub.publish(model, RELEASE)
        eventually(lambda: f"sha256:{published(hub, token, repo).get('tiny.gguf')}" == model.digest)
        api = HfApi(endpoint=hub.endpoint, token=token)
        assert len(api.list_repo_commits(repo)) <= 2
    with hub_beside(tmp_path / "home", "127.0.0.1", 0) as again:
        assert again.token is None, "the operator's token is shown once"
        before = HfApi(endpoint=again.endpoint, token=token).list_repo_commits(repo)
        assert again.publish(model, RELEASE) == repo
        assert HfApi(endpoint=again.endpoint, token=token).list_repo_commits(repo) == before


@pytest.mark.parametrize("token", ["hf_of_the_operator", None])
def test_the_token_of_a_first_start_that_fails_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    @contextlib.contextmanager
    def started(*_: object) -> Iterator[object]:
        yield SimpleNamespace(endpoint="http://127.0.0.1:1", token=token)

    monkeypatch.setattr("qwenstack.cli.up.hub_beside", started)
    monkeypatch.setattr("qwenstack.cli.running.configure_logging", lambda _: None)
    missing = str(tmp_path / "missing.gguf")
    result = CliRunner().invoke(up, ["--home", str(tmp_path), "--port", "0", "--model", missing])
    assert isinstance(result.exception, ModelError)
    assert ("hf_of_the_operator" in result.stderr) == (token is not None)


def test_a_hub_that_dies_comes_back_at_its_address(tmp_path: Path) -> None:
    with hub_beside(tmp_path / "home", "127.0.0.1", 0) as hub:
        os.kill(hub._process.pid, signal.SIGKILL)
        eventually(lambda: not answers(hub.endpoint))
        eventually(lambda: answers(hub.endpoint))
        last = hub.endpoint
    assert not answers(last)


def test_a_hub_whose_parent_was_killed_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path;"
        "from qwenstack.cli.hub_beside import HubBeside;"
        "hub = HubBeside(Path(sys.argv[1]), '127.0.0.1', 0);"
        "print(hub.endpoint, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "home")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    endpoint = parent.stdout.readline().strip()
    assert answers(endpoint)
    parent.kill()
    parent.wait()
    eventually(lambda: not answers(endpoint))
