"""A model is fetched from a hub as its clients fetch it, checked, and kept by its commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import HfApi

from qwenstack.engines.hub_models import (
    HubModelError,
    HubReference,
    choose,
    fetch_from_hub,
    read_reference,
)
from qwenstack.engines.models import ModelError, PinnedModel, Progress, obtain
from qwenstack.engines.package_parts import JoinedFile
from tests.hub import RunningHub, running_hub
from tests.unit.test_models import gguf

CARD = "---\nlicense: apache-2.0\n---\n# Tuned\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        api = HfApi(endpoint=running.url, token=running.token)
        api.create_repo("acme/tuned")
        for name, data in (
            ("README.md", CARD.encode()),
            ("tuned-q8_0.gguf", gguf()),
            ("tuned-q4_k_m.gguf", gguf()),
        ):
            api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="acme/tuned")
        api.create_tag("acme/tuned", tag="v1")
        api.create_repo("acme/empty")
        yield running


def test_a_repo_of_a_hub_is_a_model(
    hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    told: list[Progress] = []
    found = obtain("acme/tuned@v1:tuned-q8_0.gguf", tmp_path, told.append)
    assert found.path.read_bytes() == gguf()
    assert found.digest == f"sha256:{hashlib.sha256(gguf()).hexdigest()}"
    assert (found.name, found.licence) == ("tuned", "apache-2.0")
    assert hub.url in found.provenance
    assert obtain("acme/tuned", tmp_path).path.name == "tuned-q4_k_m.gguf"


def test_the_default_comes_from_its_publishers_repo_where_the_hub_has_it(
    hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    default = PinnedModel(
        name="tuned-model",
        repo="acme/tuned",
        file_name="tuned-q8_0.gguf",
        source=JoinedFile((), ""),
        provenance="the package index",
        licence="Apache-2.0",
    )
    found = obtain(None, tmp_path, default=default)
    assert (found.name, found.path.name) == ("tuned-model", "tuned-q8_0.gguf")
    assert hub.url in found.provenance
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert obtain(None, tmp_path, default=default) == found, "a second start asks no hub"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("acme/tuned:other.gguf", "has no GGUF file 'other.gguf'; it has: tuned-q4_k_m"),
        ("acme/empty", "has no GGUF file"),
        ("acme/nothing", "does not give acme/nothing"),
        ("acme/tuned@v9", "does not give acme/tuned"),
    ],
)
def test_what_a_hub_does_not_have_is_said(
    hub: RunningHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference: str,
    words: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(ModelError, match=words):
        obtain(reference, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/tuned", HubReference("acme/tuned", "main", "")),
        ("acme/tuned@a/b:sub/x.gguf", HubReference("acme/tuned", "a/b", "sub/x.gguf")),
        ("./acme/tuned", None),
        ("../tuned", None),
        ("tuned", None),
        ("a/b/c", None),
        ("acme/tuned:../x.gguf", None),
    ],
)
def test_a_reference_is_a_repo_or_none(text: str, expected: HubReference | None) -> None:
    assert read_reference(text) == expected


def test_the_choice_is_the_usual_quantisation_or_is_asked_for() -> None:
    named = HubReference("a/b", "main", "")
    files = dict.fromkeys(("m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"), (1, None))
    assert choose(named, files)[0] == "m-Q4_K_M.gguf"
    with pytest.raises(HubModelError, match="several"):
        choose(named, {"x.gguf": (1, None), "y.gguf": (1, None)})
    with pytest.raises(HubModelError, match="split in parts"):
        choose(named, {"m-00001-of-00002.gguf": (1, None)})


class _FalseHub(BaseHTTPRequestHandler):
    """A hub that names commits and files so that they lead out of the folder."""

    said: ClassVar[dict[str, object]] = {}

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"hello")

    def do_GET(self) -> None:
        about = self.path.startswith("/api/")
        body = json.dumps({"id": "acme/false", **self.said}).encode() if about else b"hello"
        self._answer(body)
        self.wfile.write(body)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"abcdef"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()


@pytest.mark.parametrize(
    ("commit", "file", "words"),
    [
        ("../../../../x", "model.gguf", "no commit's id"),
        ("a" * 40, "../../../up.gguf", "'..'"),
        ("a" * 40, "/tmp/up.gguf", "absolute"),
    ],
)
def test_a_false_hub_writes_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, file: str, words: str
) -> None:
    monkeypatch.setattr(
        _FalseHub, "said", {"sha": commit, "siblings": [{"rfilename": file, "size": 5}]}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), _FalseHub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    cache = tmp_path / "a" / "b" / "cache"
    try:
        with pytest.raises(HubModelError, match=words):
            fetch_from_hub(HubReference("acme/false", "main", ""), cache, lambda *_: None)
    finally:
        server.shutdown()
        server.server_close()
    assert not [each for each in tmp_path.rglob("*.gguf") if each.is_file()]
