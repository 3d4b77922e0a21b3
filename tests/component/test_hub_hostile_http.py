"""Hostile and broken HTTP against a real hub: each case is refused in words, and the hub lives."""

from __future__ import annotations

import gzip
import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.hub import RunningHub, running_hub
from tests.hub_http import API, NEW, REPO, batch, call, commit, file, lfs_file, sha256, tip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(
        tmp_path_factory.mktemp("hub"),
        idle_s=1.0,
        part_bytes=64 * 1024,
        lfs_bytes_min=256 * 1024,
        commit_bytes_max=2 * 1024 * 1024,
    ) as running:
        assert call(running, "POST", "/api/repos/create", json_body=NEW)[0] == 200
        yield running
        assert "Traceback" not in running.log(), running.log()[-3000:]


def raw(hub: RunningHub, data: bytes, *, wait_s: float = 15.0) -> bytes:
    """Bytes as they are, and what comes back until the hub closes or answers."""
    parts = urlsplit(hub.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=wait_s) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
        except TimeoutError:
            answer = b"nothing came"
    return answer


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../up.txt",
        "a/../../up.txt",
        "a//b",
        "./a",
        "a/.",
        "a\\b",
        "a\0b",
        "a\nb",
        ".git/config",
        "x/.GIT/hooks/y",
        "git~1/config",
        "CON",
        "aux.txt",
        "x/COM1.log",
        "trailing.",
        "trailing ",
        "C:/windows",
        "a\u2215b",
        "a\uff0fb",
        "a\u202eb.txt",
        "a\u200bb",
        "\uff0e\uff0e/x",
        "x" * 256,
        "/".join(["d"] * 65),
        "",
    ],
)
def test_a_path_that_some_system_cannot_hold_is_refused_by_every_operation(
    hub: RunningHub, path: str
) -> None:
    before = tip(hub)
    copy = {"key": "copyFile", "value": {"path": path, "srcPath": ".gitattributes"}}
    for operation in (file(path), lfs_file(path, b"x"), copy):
        status, headers, answer = commit(hub, operation)
        assert status == 400, (operation, answer)
        assert answer["error"] and headers["x-error-message"]
    files = [{"path": path, "sample": "", "size": 1}]
    assert call(hub, "POST", f"{API}/preupload/main", json_body={"files": files})[0] == 400
    assert tip(hub) == before


@pytest.mark.parametrize(
    "pair",
    [
        ("case/A.txt", "case/a.txt"),
        ("Folder/x", "folder/y"),
        ("nfc-\u00e9", "nfc-e\u0301"),
        ("both", "both/file"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_two_names_that_some_disk_would_merge_are_not_one_tree(
    hub: RunningHub, pair: tuple[str, str]
) -> None:
    before = tip(hub)
    status, _, answer = commit(hub, file(pair[0]), file(pair[1]))
    assert status == 400, answer
    assert tip(hub) == before


@pytest.mark.parametrize(
    "tail",
    [
        "resolve/main/../../../../etc/passwd",
        "resolve/main/%2e%2e/%2e%2e/secret",
        "resolve/main/..%2f..%2fhub.db",
        "resolve/main/%00",
        "resolve/main/%ff%fe",
        "resolve/%2e%2e/x",
        "resolve/main/" + "a/" * 2000,
        "raw/main/%5c..%5cx",
    ],
)
def test_no_path_of_a_url_leads_out_of_the_repo(hub: RunningHub, tail: str) -> None:
    parts = urlsplit(hub.url)
    head = f"GET /{REPO}/{tail} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    status = raw(hub, head.encode()).split(b" ", 2)[1]
    assert status in (b"404", b"400", b"403")


def test_a_token_that_nobody_holds_or_of_another_scheme_is_401(hub: RunningHub) -> None:
    for token in ("hf_" + "x" * 34, "x", "x" * 600):
        status, headers, _ = call(hub, "GET", API, token=token)
        assert status == 401
        assert headers["x-error-message"] == "Invalid credentials in Authorization header"
    assert call(hub, "GET", API, token="", headers={"Authorization": "Basic YTpi"})[0] == 401


def test_a_token_without_the_right_changes_nothing(hub: RunningHub) -> None:
    before = tip(hub)
    body = b'{"key":"header","value":{"summary":"s"}}\n' + json.dumps(file("no.txt")).encode()
    doomed = {"name": "hostile", "organization": "acme"}
    move = {"fromRepo": REPO, "toRepo": "bob/stolen"}
    for token, status in ((hub.other, 403), (hub.reader, 403), ("", 401)):
        for method, path, content in (
            ("POST", f"{API}/commit/main", body),
            ("POST", f"{API}/branch/mine", b"{}"),
            ("POST", f"{API}/tag/main", b'{"tag":"mine"}'),
            ("PUT", f"{API}/settings", b'{"visibility":"private"}'),
            ("DELETE", "/api/repos/delete", json.dumps(doomed).encode()),
            ("POST", "/api/repos/move", json.dumps(move).encode()),
            ("POST", f"{API}/super-squash/main", b'{"message":"gone"}'),
        ):
            got, _, answer = call(hub, method, path, token=token, body=content)
            assert got == status, (method, path, answer)
    assert tip(hub) == before
    assert call(hub, "GET", API)[2]["private"] is False


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n\n",
        b"no json",
        b'{"key":"header"}',
        b'{"key":"header","value":{"summary":1}}',
        b'{"key":"header","value":' + b"[" * 100_000,
        b'{"key":"file","value":{"path":"a","content":"eA==","encoding":"base64"}}',
        b'{"key":"header","value":{"summary":"s"}}\n{"key":"rm -rf","value":{}}',
        b'{"key":"header","value":{"summary":"s"}}\n'
        b'{"key":"file","value":{"path":"a","content":"%%%","encoding":"base64"}}',
        b'{"key":"header","value":{"summary":"s"}}\n'
        b'{"key":"file","value":{"path":"a","content":"x","encoding":"rot13"}}',
        b'{"key":"header","value":{"summary":"s"}}\n'
        b'{"key":"lfsFile","value":{"path":"a","oid":"xyz","algo":"sha256"}}',
        b'{"key":"header","value":{"summary":"' + b"s" * 501 + b'"}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_commit_that_does_not_parse_is_400_and_moves_nothing(
    hub: RunningHub, body: bytes
) -> None:
    before = tip(hub)
    status, _, answer = call(hub, "POST", f"{API}/commit/main", body=body)
    assert status == 400, answer
    assert tip(hub) == before


def test_bombs_of_lines_operations_and_bytes_are_413(hub: RunningHub) -> None:
    head = b'{"key":"header","value":{"summary":"s"}}\n'
    deletions = b'{"key":"deletedFile","value":{"path":"a"}}\n' * 26_000
    one_line = json.dumps(file("a", b"x" * 600_000)).encode()
    for body in (deletions, one_line, b"\n" * 3_000_000):
        status, _, answer = call(hub, "POST", f"{API}/commit/main", body=head + body)
        assert status == 413, answer
    # A compressed body is not opened: it is no NDJSON.
    packed = gzip.compress(head + b"\n" * 10_000_000)
    status, _, _ = call(
        hub, "POST", f"{API}/commit/main", body=packed, headers={"Content-Encoding": "gzip"}
    )
    assert status in (400, 413, 415)


def test_a_body_that_announces_too_much_is_refused_before_it_comes(hub: RunningHub) -> None:
    host = urlsplit(hub.url).netloc
    for path in (f"{API}/commit/main", "/api/repos/create", f"{API}/paths-info/main"):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {hub.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
        )
        assert raw(hub, head.encode()).split(b" ", 2)[1] == b"413"


def test_a_body_that_stops_coming_is_given_up(hub: RunningHub) -> None:
    host = urlsplit(hub.url).netloc
    before = tip(hub)
    head = (
        f"POST {API}/commit/main HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {hub.token}\r\n"
        f'Content-Length: 5000\r\n\r\n{{"key":"header","value":{{"summary":"s"}}}}\n'
    )
    assert raw(hub, head.encode()).split(b" ", 2)[1] == b"408"
    assert tip(hub) == before


def test_an_upload_is_bound_to_its_hash_its_size_and_its_signature(hub: RunningHub) -> None:
    content = os.urandom(20_000)
    href = batch(hub, sha256(content), len(content))["actions"]["upload"]["href"]
    for wrong, status in ((content[:-1], 400), (content + b"x", 400), (os.urandom(20_000), 400)):
        assert call(hub, "PUT", href, token="", body=wrong)[0] == status
    forged = href[:-2] + ("AA" if href[-2:] != "AA" else "BB")
    assert call(hub, "PUT", forged, token="", body=content)[0] == 403
    assert call(hub, "PUT", href.replace("/objects/", "/parts/"), token="", body=content)[0] == 404
    # Nothing of it came in: the content is still asked for, and cannot be committed.
    assert "actions" in batch(hub, sha256(content), len(content))
    assert commit(hub, lfs_file("w.dat", content))[0] == 400
    assert call(hub, "PUT", href, token="", body=content)[0] == 200
    assert "actions" not in batch(hub, sha256(content), len(content))
    assert commit(hub, lfs_file("w.dat", content))[0] == 200
    assert call(hub, "GET", f"/{REPO}/resolve/main/w.dat")[2] == content


def test_knowing_a_hash_gives_no_right_to_the_content(hub: RunningHub) -> None:
    secret = os.urandom(30_000)
    private = {"name": "private", "organization": "acme", "visibility": "private"}
    assert call(hub, "POST", "/api/repos/create", json_body=private)[0] == 200
    body = {"operation": "upload", "objects": [{"oid": sha256(secret), "size": len(secret)}]}
    url = "/acme/private.git/info/lfs/objects/batch"
    action = call(hub, "POST", url, json_body=body)[2]["objects"][0]["actions"]["upload"]
    assert call(hub, "PUT", action["href"], token="", body=secret)[0] == 200
    # Another repo, that is to say another owner, knows the hash and not the bytes.
    assert (
        call(hub, "POST", "/api/repos/create", token=hub.other, json_body={"name": "x"})[0] == 200
    )
    answer = call(hub, "POST", "/bob/x.git/info/lfs/objects/batch", token=hub.other, json_body=body)
    assert "actions" in answer[2]["objects"][0], "that it exists elsewhere is not told"
    lines = [{"key": "header", "value": {"summary": "s"}}, lfs_file("stolen.dat", secret)]
    ndjson = b"\n".join(json.dumps(each).encode() for each in lines)
    url = "/api/models/bob/x/commit/main"
    status, _, refused = call(hub, "POST", url, token=hub.other, body=ndjson)
    assert status == 400
    assert "was not uploaded to this repo" in refused["error"]


def test_an_upload_in_parts_goes_on_after_an_interruption_and_checks_the_whole(
    hub: RunningHub,
) -> None:
    content = os.urandom(200_000)  # four parts of 64 KiB, the last one shorter
    asked = batch(hub, sha256(content), len(content), transfers=("basic", "multipart"))
    header = asked["actions"]["upload"]["header"]
    size = int(header["chunk_size"])
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    urls = [header[str(number)] for number in range(1, len(pieces) + 1)]
    assert len(pieces) == 4
    assert call(hub, "PUT", urls[0], token="", body=pieces[0][:-1])[0] == 400
    tags = [call(hub, "PUT", urls[0], token="", body=pieces[0])[1]["etag"]]
    assert call(hub, "PUT", urls[2], token="", body=b"\0" * len(pieces[2]))[0] == 200
    # The next try of the same file finds what came, and says so.
    again = batch(hub, sha256(content), len(content), transfers=("basic", "multipart"))
    assert again["actions"]["upload"]["header"]["present"] == "1,3"
    href = again["actions"]["upload"]["href"]
    assert call(hub, "GET", href, token="")[2]["parts"] == [1, 3]

    def complete(etags: list[str]) -> tuple[int, dict[str, str], Any]:
        parts = [{"partNumber": at + 1, "etag": tag} for at, tag in enumerate(etags)]
        body = {"oid": sha256(content), "parts": parts}
        return call(hub, "POST", href, token="", json_body=body)

    assert complete(tags)[0] == 400
    tags = [
        call(hub, "PUT", url, token="", body=each)[1]["etag"]
        for url, each in zip(urls, pieces, strict=True)
    ]
    # The third part was there already, with other bytes: the whole is wrong, and all begins anew.
    status, _, answer = complete(tags)
    assert (status, "not the bytes" in answer["error"]) == (400, True)
    tags = [
        call(hub, "PUT", url, token="", body=each)[1]["etag"]
        for url, each in zip(urls, pieces, strict=True)
    ]
    assert complete(tags)[0] == 200
    assert complete(tags)[0] == 200, "a completion that is asked twice is done once"
    assert commit(hub, lfs_file("parts.dat", content))[0] == 200
    assert call(hub, "GET", f"/{REPO}/resolve/main/parts.dat")[2] == content
    assert [each.name for each in (hub.home / "uploads").iterdir()] == []


def test_odd_batches_are_refused_one_by_one(hub: RunningHub) -> None:
    for oid, size in (("x", 1), ("A" * 64, 1), ("0" * 64, -1), ("0" * 64, 2**63 - 1)):
        assert batch(hub, oid, size)["error"]["code"] == 422
    url = f"/{REPO}.git/info/lfs/objects/batch"
    many = [{"oid": "0" * 64, "size": 1}] * 1001
    assert call(hub, "POST", url, json_body={"operation": "upload", "objects": many})[0] == 413
    assert call(hub, "POST", url, json_body={"operation": "melt", "objects": []})[0] == 400
    assert call(hub, "POST", url, body=b"[" * 1_000_000)[0] == 400


def test_odd_parameters_are_400_or_bounded(hub: RunningHub) -> None:
    assert call(hub, "GET", f"{API}/tree/main?cursor=%F0%9F")[0] == 400
    assert call(hub, "GET", f"{API}/tree/main?limit=99999999999999999999")[0] == 200
    assert call(hub, "GET", f"{API}/commits/main?p=-1")[0] == 200
    assert call(hub, "POST", f"{API}/paths-info/main", body=b"x")[0] == 400
    many = {"paths": [str(each) for each in range(1001)]}
    assert call(hub, "POST", f"{API}/paths-info/main", json_body=many)[0] == 413
    for name in ("..", "a b", "-x", "x.lock", "a" * 40, "refs/heads/x", "x" * 300, "a..b", "HEAD"):
        status, _, answer = call(hub, "POST", f"{API}/tag/main", json_body={"tag": name})
        assert status == 400, (name, answer)
    for name in ("a--b", "x.git", "..", "a/b", "-x", "x" * 97, "caf\u00e9", ""):
        body = {"name": name, "organization": "acme"}
        assert call(hub, "POST", "/api/repos/create", json_body=body)[0] == 400, name
    assert call(hub, "PATCH", API)[0] == 405
    assert call(hub, "GET", "/api/nothing/here")[0] == 404


def test_a_full_disk_in_the_middle_of_a_commit_is_507_and_keeps_nothing(tmp_path: Path) -> None:
    """A limit on files' sizes stands for the disk's: the write fails half-way."""
    with running_hub(tmp_path, lfs_bytes_min=8 * 1024 * 1024) as hub:
        assert call(hub, "POST", "/api/repos/create", json_body=NEW)[0] == 200
        before = tip(hub)
        assert hub.process is not None
        unlimited = resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE)
        large = os.urandom(3_000_000)
        href = batch(hub, sha256(large), len(large))["actions"]["upload"]["href"]
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
        status, headers, answer = commit(hub, file("big.txt", large))
        assert (status, "disk is full" in answer["error"]) == (507, True), answer
        assert "disk is full" in headers["x-error-message"]
        assert call(hub, "PUT", href, token="", body=large)[0] == 507
        assert tip(hub) == before
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert list((hub.home / "uploads").iterdir()) == []
        assert commit(hub, file("big.txt", large))[0] == 200
        opened = hub.open()
        assert list(opened.store.check()) == []
        opened.close()


def test_a_copy_under_a_new_name_is_looked_into_as_what_it_becomes(hub: RunningHub) -> None:
    escape = b"{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert commit(hub, file("chat_template.jinja", escape))[0] == 422
    assert commit(hub, file("notes.txt", escape))[0] == 200
    before = tip(hub)
    copy = {"path": "chat_template.jinja", "srcPath": "notes.txt"}
    for more in ({}, {"srcRevision": "main"}):
        status, _, body = commit(hub, {"key": "copyFile", "value": copy | more})
        assert status == 422 and "__subclasses__" in body["error"]
    status, _, _ = commit(
        hub, file("new.txt", escape), {"key": "copyFile", "value": copy | {"srcPath": "new.txt"}}
    )
    assert status == 422 and tip(hub) == before


def test_folders_copied_into_themselves_end_at_a_bound(hub: RunningHub) -> None:
    copies = [
        {"key": "copyFile", "value": {"path": f"d/{number}", "srcPath": "d"}}
        for number in range(40)
    ]
    status, _, body = commit(hub, file("d/f"), *copies)
    assert status == 413 and "100000" in body["error"]


def test_a_tag_takes_no_commit(hub: RunningHub) -> None:
    assert call(hub, "POST", f"{API}/tag/main", json_body={"tag": "fixed"})[0] == 200
    before = tip(hub)
    assert commit(hub, file("later.txt"), ref="refs/tags/fixed")[0] == 404
    squash = call(hub, "POST", f"{API}/super-squash/refs/tags/fixed", json_body={"message": "m"})
    assert squash[0] == 404
    refs = call(hub, "GET", f"{API}/refs")[2]
    assert before in {each["targetCommit"] for each in refs["tags"]}


def test_an_old_name_deletes_nothing(hub: RunningHub) -> None:
    for name in ("before", "elsewhere"):
        call(hub, "POST", "/api/repos/create", json_body={**NEW, "name": name})
    move = {"fromRepo": "acme/before", "toRepo": "acme/after"}
    assert call(hub, "POST", "/api/repos/move", json_body=move)[0] == 200
    old = call(hub, "DELETE", "/api/repos/delete", json_body={**NEW, "name": "before"})
    assert old[0] == 404 and "acme/after" in old[2]["error"]
    assert call(hub, "GET", "/api/models/acme/after")[0] == 200
    assert call(hub, "DELETE", "/api/repos/delete", json_body={**NEW, "name": "After"})[0] == 200


def test_an_upload_to_a_repo_that_is_gone_is_404(hub: RunningHub) -> None:
    assert call(hub, "POST", "/api/repos/create", json_body={**NEW, "name": "brief"})[0] == 200
    wanted = {"operation": "upload", "objects": [{"oid": sha256(b"gone"), "size": 4}]}
    answer = call(hub, "POST", "/acme/brief.git/info/lfs/objects/batch", json_body=wanted)[2]
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert call(hub, "DELETE", "/api/repos/delete", json_body={**NEW, "name": "brief"})[0] == 200
    assert call(hub, "PUT", href, token="", body=b"gone")[0] == 404


def test_a_hidden_repo_and_one_that_is_not_there_refuse_a_copy_alike(hub: RunningHub) -> None:
    hidden = {**NEW, "name": "hidden", "private": True}
    assert call(hub, "POST", "/api/repos/create", json_body=hidden)[0] == 200
    answers = [
        call(
            hub,
            "POST",
            f"{API}/lfs-files/duplicate",
            token=hub.other,
            json_body={"target": {"name": name}, "files": []},
        )
        for name in ("acme/hidden", "acme/none")
    ]
    assert answers[0][0] == answers[1][0] == 404
    assert answers[0][2] == answers[1][2]


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/xet/v1/reconstructions/" + "0" * 64, b"Authorization: Bearer xet_a.\xc3\xa9"),
        ("/xet/v1/reconstructions/" + "0" * 64, b"Authorization: Bearer xet_a.\xff"),
        ("/", b"Cookie: hub_session=tok.9.\xc3\xa9"),
        ("/", b"Cookie: hub_session=tok\xff.9.a"),
    ],
)
def test_letters_that_no_signature_has_are_a_bad_signature(
    hub: RunningHub, path: str, header: bytes
) -> None:
    answer = raw(hub, f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + header + b"\r\n\r\n")
    assert answer.split(b" ")[1] in (b"200", b"401")


def test_a_branch_set_back_is_listed_as_what_it_is_again(hub: RunningHub) -> None:
    for licence in ("apache-2.0", "mit"):
        card = f"---\nlicense: {licence}\n---\n".encode()
        assert commit(hub, file("README.md", card))[0] == 200
        if licence == "apache-2.0":
            first = tip(hub)
    back = {"startingPoint": first, "overwrite": True}
    assert call(hub, "POST", f"{API}/branch/main", json_body=back)[0] == 200
    found = call(hub, "GET", "/api/models?filter=license:apache-2.0")[2]
    assert REPO in {each["id"] for each in found}


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Amzn-Trace-Id"])
def test_a_request_is_called_what_the_client_calls_it_unless_that_is_no_name(
    hub: RunningHub, name: str
) -> None:
    for sent, taken in (("0cff2880-c37f-42c2", True), ("a b", False), ("a" * 65, False)):
        _, headers, _ = call(hub, "GET", "/api/models/acme/none", headers={name: sent})
        assert (headers["x-request-id"] == sent) is taken
