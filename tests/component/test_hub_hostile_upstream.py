"""What a hub that is broken or means harm can answer: an error that says so, and nothing kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.component.test_hub_mirror import copy, here, opened, refused

REPO = "acme/model"
OID = "a" * 40
INFO: dict[str, object] = {"id": REPO, "sha": OID, "private": False, "gated": False}
BODY = b"words"
BLOB = hashlib.sha1(b"blob 5\0" + BODY).hexdigest()
FILE: dict[str, object] = {"type": "file", "path": "a.txt", "size": 5, "oid": BLOB}
LFS = {"oid": "b" * 64, "size": 5, "pointerSize": 120}


class _Answers(BaseHTTPRequestHandler):
    info: ClassVar[Any] = INFO
    tree: ClassVar[Any] = [FILE]
    body: ClassVar[bytes] = BODY
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            answer = self.body
        else:
            found = self.tree if "/tree/" in path else self.info
            answer = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def answers() -> Iterator[type[_Answers]]:
    """What the upstream answers, to be changed by a test; `url` is where it is."""

    class Answers(_Answers):
        url: ClassVar[str] = ""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Answers.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Answers
    server.shutdown()
    server.server_close()


def test_the_answers_as_they_are_make_a_copy(answers: Any, tmp_path: Path) -> None:
    assert copy(tmp_path, answers.url, REPO)["commit"] == OID


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("status", 500, "answered 500"),
        ("info", b"<html>", "does not answer as a hub"),
        ("info", [1, 2], "does not answer as a hub"),
        ("info", INFO | {"sha": "../../etc"}, "does not answer as a hub"),
        ("info", INFO | {"sha": None}, "does not answer as a hub"),
        ("tree", b"{", "does not answer as a hub"),
        ("tree", {"files": 1}, "does not answer as a hub"),
        ("tree", [FILE | {"size": -1}], "does not answer as a hub"),
        ("tree", [FILE | {"size": "5"}], "does not answer as a hub"),
        ("tree", [FILE | {"oid": "0"}], "does not answer as a hub"),
        ("tree", [FILE | {"lfs": LFS | {"oid": "B" * 64}}], "does not answer as a hub"),
        ("tree", [FILE | {"path": "../a.txt"}], "'..' as a part"),
        ("tree", [FILE | {"path": "/etc/passwd"}], "is absolute"),
        ("tree", [FILE | {"path": ".git/config"}], "'.git' as a part"),
        ("tree", [FILE, FILE | {"path": "A.txt"}], "differ only in case"),
        ("tree", [FILE, FILE], "names a path twice"),
        ("tree", [FILE | {"size": 2**62}], "takes files of at most"),
        ("tree", [FILE | {"lfs": LFS}], "other bytes of 'a.txt'"),
        ("body", b"sword", "other bytes of 'a.txt'"),
        ("body", b"words and more of them", "'a.txt'"),
        ("body", b"wo", "'a.txt'"),
    ],
)
def test_a_wrong_answer_is_named_and_nothing_is_kept(
    answers: Any, tmp_path: Path, field: str, value: object, words: str
) -> None:
    setattr(answers, field, value)
    assert words in refused(tmp_path, answers.url, REPO)
    assert here(opened(tmp_path), REPO) is None


def test_a_commit_that_shows_other_files_later_is_refused(answers: Any, tmp_path: Path) -> None:
    copy(tmp_path, answers.url, REPO)
    other = answers.tree = [FILE, FILE | {"path": "b.txt"}]
    answers.info = INFO | {"sha": "c" * 40}
    assert copy(tmp_path, answers.url, REPO)["files"] == len(other)
    # The first commit again, with what it did not have.
    answers.info = INFO
    assert "with other files" in refused(tmp_path, answers.url, REPO)
