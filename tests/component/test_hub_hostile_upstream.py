"""What a hub that is broken or means harm can answer: an error that says so, and nothing kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qwenstack.hub.mirror import Limits, mirror
from qwenstack.hub.quotas import UPSTREAM, QuotaExceeded
from qwenstack.hub.registry.waiting import waiting_of
from qwenstack.hub.upstream import Upstream
from tests.component.test_hub_mirror import copy, here, opened, refused

REPO = "acme/model"
OID = "a" * 40
INFO: dict[str, object] = {"id": REPO, "sha": OID, "private": False, "gated": False}
BODY = b"words"
BLOB = hashlib.sha1(b"blob 5\0" + BODY).hexdigest()
FILE: dict[str, object] = {"type": "file", "path": "a.txt", "size": 5, "oid": BLOB}
LFS = {"oid": "b" * 64, "size": 5, "pointerSize": 120}


class _Answers(BaseHTTPRequestHandler):
    # The `Link` of a page of the list of files, by the page's number in its address.
    links: ClassVar[dict[str, str]] = {}
    # Where bytes are had from instead.
    moved: ClassVar[str] = ""
    asked: ClassVar[list[tuple[str, str | None]]] = []
    info: ClassVar[Any] = INFO
    tree: ClassVar[Any] = [FILE]
    body: ClassVar[bytes] = BODY
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.asked.append((self.path, self.headers.get("Authorization")))
        if self.moved and "/resolve/" in path:
            self.send_response(302)
            self.send_header("Location", self.moved + path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/resolve/" in path:
            answer = self.body
        else:
            found = self.tree if "/tree/" in path else self.info
            answer = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(answer)))
        page = query.rpartition("page=")[2] if "page=" in query else ""
        if "/tree/" in path and page in self.links:
            self.send_header("Link", f'<{self.links[page]}>; rel="next"')
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving() -> Iterator[type[_Answers]]:
    class Answers(_Answers):
        url: ClassVar[str] = ""
        links: ClassVar[dict[str, str]] = {}
        asked: ClassVar[list[tuple[str, str | None]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Answers.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Answers
    server.shutdown()
    server.server_close()


@pytest.fixture
def answers() -> Iterator[type[_Answers]]:
    """What the upstream answers, to be changed by a test; `url` is where it is."""
    with serving() as answers:
        yield answers


@pytest.fixture
def elsewhere() -> Iterator[type[_Answers]]:
    """Another host that the upstream names."""
    with serving() as answers:
        yield answers


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


@pytest.mark.parametrize("turns", [1, 7])
def test_pages_without_an_end_are_left(answers: Any, tmp_path: Path, turns: int) -> None:
    """Each page names a next one: the same again, or always another."""
    tree = f"{answers.url}/api/models/{REPO}/tree/{OID}?page="
    answers.tree = [{"type": "directory", "path": "d", "oid": "e" * 40}]
    answers.links = {"": f"{tree}0"}
    for page in range(turns):
        answers.links[str(page)] = f"{tree}{(page + 1) % turns}"
    assert "without an end" in refused(tmp_path, answers.url, REPO)
    assert here(opened(tmp_path), REPO) is None


def test_the_token_goes_to_the_upstream_alone(answers: Any, elsewhere: Any, tmp_path: Path) -> None:
    """Not to the host that a page names as the next one's, nor to where the bytes are had from."""
    answers.links = {"": f"{elsewhere.url}/api/models/{REPO}/tree/{OID}?page=2"}
    answers.moved = elsewhere.url
    elsewhere.tree = [FILE | {"path": "b.txt"}]
    assert copy(tmp_path, answers.url, REPO, token="hf_secret")["files"] == 2
    assert {token for _, token in answers.asked} == {"Bearer hf_secret"}
    assert {token for _, token in elsewhere.asked} == {None}
    fetched = {path.partition("?")[0].rpartition("/")[2] for path, _ in elsewhere.asked}
    assert fetched == {OID, "b.txt"}  # equal bytes are fetched once


def test_a_page_too_large_to_hold_is_left(
    answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenstack.hub.upstream._PAGE_BYTES_MAX", 1000)
    answers.tree = [FILE | {"path": f"{number}.txt"} for number in range(100)]
    assert "a page of more than 1000 bytes" in refused(tmp_path, answers.url, REPO)


def test_what_was_fetched_and_then_refused_counts_against_the_bound(
    answers: Any, tmp_path: Path
) -> None:
    """So that nobody fills the disk by asking for repos that are never published."""
    poison = b"\x80\x04cos\nsystem\n(S'true'\ntR." + bytes(2_000_000)
    blob = hashlib.sha1(b"blob %d\0" % len(poison) + poison).hexdigest()
    answers.body = poison
    answers.tree = [{"type": "file", "path": "a.bin", "size": len(poison), "oid": blob}]
    assert "does not publish" in refused(tmp_path, answers.url, REPO)
    hub = opened(tmp_path)
    with hub.database.begin() as connection:
        assert waiting_of(connection, UPSTREAM).bytes == len(poison)
    upstream = Upstream(answers.url)
    limits = Limits(all_bytes_max=3_000_000)
    with pytest.raises(QuotaExceeded, match="is not copied"):
        mirror(hub, upstream, "model", REPO, limits=limits)
    hub.close()
