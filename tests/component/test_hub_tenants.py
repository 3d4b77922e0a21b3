"""A tenant who means harm, over raw HTTP: other people's repos through every route there is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenstack.hub.accounts.identity import Scope
from qwenstack.hub.accounts.tokens import create_token
from qwenstack.hub.http.app import make_app
from qwenstack.hub.hub import open_hub
from tests.hub import RunningHub, running_hub
from tests.hub_http import call, sha256

MARK = b"the-secret-words"
HOLDERS = {
    "kind": "models",
    "rev": "main",
    "ref": "main",
    "number": "1",
    "event": "0" * 24,
    "outcome": "pending",
    "act": "closed",
    "hash": "0" * 64,
    "rest": "",
}
BODIES: dict[str, object] = {
    "/settings": {"private": False},
    "/branch/": {"startingPoint": "main"},
    "/tag/": {"tag": "v9"},
    "/preupload/": {"files": [{"path": "a", "size": 1, "sample": ""}]},
    "/paths-info/": {"paths": ["secret.txt"]},
    "/objects/batch": {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]},
    "/verify": {"oid": "0" * 64, "size": 1},
    "/duplicate": {"target": {"name": "bob/own"}, "files": [{"sha256": "0" * 64}]},
    "/lfs-files/batch": {"deletions": {"sha": []}},
    "/discussions": {"title": "a title", "description": "words"},
    "/comment": {"comment": "words"},
    "/title": {"title": "a title"},
    "/status": {"status": "closed"},
    "/edit": {"content": "words"},
    "/handle": {"user": "bob", "status": "accepted"},
    "/grant": {"user": "bob"},
}


def repo_routes() -> list[tuple[str, str]]:
    """Every route that names a repo: its method and its pattern."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        hub = open_hub(Path(folder))
        found = {
            (route.method, route.resource.canonical)
            for route in make_app(hub).router.routes()
            if route.resource is not None and "{namespace}/{name}" in route.resource.canonical
        }
        hub.close()
    return sorted(found)


def filled(pattern: str, repo: str, kind: str) -> str:
    path = pattern.replace("{namespace}/{name}", repo)
    if path.startswith("/{kind}"):  # a dataset's files and pages
        path = path.replace("{kind}", "datasets")
    holders = {**HOLDERS, "kind": kind, "path": "secret.txt"}
    path = re.sub(r"\{(\w+)\}", lambda match: holders[match[1]], path)
    return path.replace(f"/{repo}/info/lfs", f"/{repo}.git/info/lfs")


def asked(hub: RunningHub, method: str, path: str, token: str) -> tuple[int, dict[str, str], str]:
    body = next(
        (value for key, value in BODIES.items() if re.search(f"{re.escape(key)}[^/]*$", path)), {}
    )
    if "/commit/" in path:
        lines = [
            {"key": "header", "value": {"summary": "s"}},
            {"key": "file", "value": {"path": "a", "content": "x"}},
        ]
        sent = "\n".join(map(json.dumps, lines)).encode()
    else:
        sent = b"" if method in ("GET", "HEAD") else json.dumps(body).encode()
    status, headers, answer = call(hub, method, path, body=sent or None, token=token)
    text = answer.decode() if isinstance(answer, bytes) else json.dumps(answer)
    return status, headers, text


def publish(hub: RunningHub, name: str, kind: str, *, private: bool) -> None:
    body = {"name": name, "organization": "acme", "private": private, "type": kind}
    assert call(hub, "POST", "/api/repos/create", json_body=body)[0] == 200
    lines = [
        {"key": "header", "value": {"summary": MARK.decode()}},
        {"key": "file", "value": {"path": "secret.txt", "content": MARK.decode()}},
        {"key": "file", "value": {"path": "README.md", "content": f"# {MARK.decode()}\n"}},
    ]
    sent = "\n".join(map(json.dumps, lines)).encode()
    api = f"/api/{kind}s/acme/{name}"
    assert call(hub, "POST", f"{api}/commit/main", body=sent)[0] == 200
    opening = {"title": "a title", "description": MARK.decode()}
    assert call(hub, "POST", f"{api}/discussions", json_body=opening)[0] == 200


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    folder: Path = tmp_path_factory.mktemp("tenants")
    with running_hub(folder, lfs_bytes_min=1000) as hub:
        for kind in ("model", "dataset"):
            publish(hub, "hidden", kind, private=True)
            publish(hub, "gated", kind, private=False)
            settings = {"gated": "manual"}
            path = f"/api/{kind}s/acme/gated/settings"
            assert call(hub, "PUT", path, json_body=settings)[0] == 200
        own = {"name": "own", "type": "model"}
        assert call(hub, "POST", "/api/repos/create", json_body=own, token=hub.other)[0] == 200
        yield hub


def scoped(hub: RunningHub, account: str, *scopes: Scope) -> str:
    opened = hub.open()
    with opened.database.begin() as connection:
        made = create_token(
            connection, account=account, name="s", role="fineGrained", scopes=scopes
        )
    opened.close()
    return made.secret


@pytest.mark.parametrize("kind", ["models", "datasets"])
@pytest.mark.parametrize("who", ["stranger", "nobody", "narrow"])
def test_a_hidden_repo_answers_every_route_as_one_that_is_not_there(
    hub: RunningHub, kind: str, who: str
) -> None:
    """`narrow` is a token of the organisation's own admin, made for something else."""
    token = {
        "stranger": hub.other,
        "nobody": "",
        "narrow": scoped(hub, "alice", Scope(name="acme/other", right="admin")),
    }[who]
    reached = 0
    for method, pattern in repo_routes():
        answers = []
        for repo in ("acme/hidden", "acme/absent"):
            path = filled(pattern, repo, kind)
            status, headers, text = asked(hub, method, path, token)
            assert MARK.decode() not in text, (method, path)
            code = headers.get("x-error-code")
            answers.append((status, code, text.replace(repo, "REPO").replace("hidden", "absent")))
            reached += status == 404
        assert answers[0] == answers[1], (method, pattern)
        assert answers[0][0] >= 300, (method, pattern, answers[0])
    assert reached > 100  # it was the repo that was not found, not only a body that was refused


@pytest.mark.parametrize("kind", ["models", "datasets"])
@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_the_files_and_words_of_a_gated_repo_come_by_no_route(
    hub: RunningHub, kind: str, who: str
) -> None:
    token = hub.other if who == "stranger" else ""
    for method, pattern in repo_routes():
        if pattern.endswith(("/ask-access", "/like")):
            continue
        path = filled(pattern, "acme/gated", kind)
        status, _, text = asked(hub, method, path, token)
        # The card and the history are for all to see; files and discussions are not.
        inside = re.search("/(resolve|raw|resolve-cache|discussions|xet-read-token)", path)
        shown = method in ("GET", "HEAD") and not inside
        assert status >= 300 or shown, (method, path, status)
        assert MARK.decode() not in text or shown, (method, path)
    for path in ("/acme/gated", "/datasets/acme/gated"):
        assert call(hub, "GET", path, token=token)[0] == 200


def test_the_owner_reaches_what_the_others_do_not(hub: RunningHub) -> None:
    status, _, text = asked(hub, "GET", "/acme/hidden/resolve/main/secret.txt", hub.token)
    assert (status, text) == (200, MARK.decode())
    assert asked(hub, "GET", "/api/models/acme/hidden/discussions/1", hub.token)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/models",
        "/api/models?author=acme&full=1&expand=siblings",
        "/api/models?search=hidden",
        "/api/datasets?search=hid",
        "/api/models?filter=secret",
        "/api/users/alice/overview",
        "/api/users/alice/likes",
        "/api/organizations/acme/overview",
        "/tree",
        "/tree.json",
        "/tree.svg",
        "/",
        "/models?search=hidden",
        "/datasets",
        "/acme",
        "/alice",
    ],
)
def test_no_list_names_a_hidden_repo(hub: RunningHub, path: str) -> None:
    for token in (hub.other, ""):
        status, _, text = asked(hub, "GET", path, token)
        assert status == 200
        # The question itself is repeated on a page.
        assert "acme/hidden" not in text, path
        assert MARK.decode() not in text.replace("gated", ""), path
    counted = call(hub, "GET", "/api/organizations/acme/overview", token=hub.other)[2]
    assert (counted["numModels"], counted["numDatasets"]) == (1, 1)
    assert call(hub, "GET", "/api/users/alice/overview", token=hub.other)[2]["numDiscussions"] == 2


def test_nobody_but_operators_reads_what_the_hub_keeps(hub: RunningHub) -> None:
    for path in ("audit", "accounts", "tokens", "quotas/acme", "quotas/*"):
        assert call(hub, "GET", f"/api/admin/{path}")[0] == 403
        assert call(hub, "GET", f"/api/admin/{path}", token="")[0] == 401


def test_a_narrow_token_changes_nothing_outside_its_scope(hub: RunningHub) -> None:
    narrow = scoped(hub, "bob", Scope(name="bob/own", right="admin"))
    for method, path in (
        ("POST", "/api/models/acme/gated/like"),
        ("POST", "/api/models/acme/gated/ask-access"),
        ("POST", "/api/models/acme/gated/discussions"),
        ("GET", "/api/models/acme/gated/xet-write-token/main"),
        ("PUT", "/api/organizations/acme/members/bob"),
    ):
        assert asked(hub, method, path, narrow)[0] == 403, path
    made = call(hub, "POST", "/api/repos/create", json_body={"name": "more"}, token=narrow)
    assert made[0] == 403


def xet(hub: RunningHub, repo: str, token: str, right: str = "read") -> dict[str, Any]:
    status, _, answer = call(hub, "GET", f"/api/models/{repo}/xet-{right}-token/main", token=token)
    assert status == 200, answer
    return dict(answer)


def test_the_chunks_of_a_hidden_file_come_by_no_token_of_another_repo(hub: RunningHub) -> None:
    content = os.urandom(300_000)
    wish = {"operation": "upload", "objects": [{"oid": sha256(content), "size": len(content)}]}
    path = "/acme/hidden.git/info/lfs/objects/batch"
    action = call(hub, "POST", path, json_body=wish)[2]["objects"][0]["actions"]["upload"]
    assert call(hub, "PUT", action["href"], body=content, token="")[0] == 200
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": sha256(content)}},
    ]
    sent = "\n".join(map(json.dumps, lines)).encode()
    assert call(hub, "POST", "/api/models/acme/hidden/commit/main", body=sent)[0] == 200
    head = call(hub, "HEAD", "/acme/hidden/resolve/main/w.bin")[1]
    file = head["x-xet-hash"]
    owner = xet(hub, "acme/hidden", hub.token)["accessToken"]
    known = call(hub, "GET", f"/xet/v1/reconstructions/{file}", token=owner)[2]
    (xorb, parts), *_ = known["fetch_info"].items()
    url = parts[0]["url"]
    # By the file's name, with a token of a repo of one's own, for both rights.
    for right in ("read", "write"):
        mine = xet(hub, "bob/own", hub.other, right)["accessToken"]
        for version in ("v1", "v2"):
            status, _, answer = call(
                hub, "GET", f"/xet/{version}/reconstructions/{file}", token=mine
            )
            assert status in (403, 404), answer
    # By the parts' addresses, changed: other chunks, another end, no signature.
    place = url.removeprefix(hub.url)
    for other in (
        place.partition("?")[0],
        re.sub(r"/(\d+)-(\d+)\?", r"/\1-1\?" if "-1?" not in place else r"/\1-2?", place),
        place.replace("signature=", "signature=x"),
        place.replace("expires=", "expires=9"),
    ):
        assert call(hub, "GET", other, token=hub.other)[0] in (403, 404), other
    # By a shard that claims the xorb without its chunks: there is no proof of them.
    mine = xet(hub, "bob/own", hub.other, "write")["accessToken"]
    assert call(hub, "GET", f"/xet/v1/chunks/default-merkledb/{xorb}", token=mine)[0] == 404
    # By its SHA-256: neither LFS nor a commit takes the name for the bytes.
    wish = {"operation": "upload", "objects": [{"oid": sha256(content), "size": len(content)}]}
    answer = call(
        hub, "POST", "/bob/own.git/info/lfs/objects/batch", json_body=wish, token=hub.other
    )[2]
    assert "actions" in answer["objects"][0]
    commit = call(hub, "POST", "/api/models/bob/own/commit/main", body=sent, token=hub.other)
    assert commit[0] == 400
    body = {"target": {"name": "bob/own"}, "files": [{"sha256": sha256(content)}]}
    copied = call(
        hub, "POST", "/api/models/acme/hidden/lfs-files/duplicate", json_body=body, token=hub.other
    )
    assert copied[0] == 404
