"""Plain HTTP against a hub under test: one request at a time, and the lines of a commit."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import urllib3

from tests.hub import RunningHub

REPO = "acme/hostile"
API = f"/api/models/{REPO}"
NEW = {"name": "hostile", "organization": "acme"}


def call(
    hub: RunningHub,
    method: str,
    path: str,
    *,
    token: str | None = None,
    json_body: object = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], Any]:
    """One request with alice's token, or with another, or with none ("")."""
    token = hub.token if token is None else token
    sent = {"Authorization": f"Bearer {token}"} if token else {}
    if json_body is not None:
        body = json.dumps(json_body).encode()
        sent["Content-Type"] = "application/json"
    answer = urllib3.request(
        method,
        (hub.url if path.startswith("/") else "") + path,
        body=body,
        headers=sent | (headers or {}),
        retries=False,
        timeout=20,
    )
    fields = {key.lower(): value for key, value in answer.headers.items()}
    content: Any = answer.data
    if "json" in fields.get("content-type", ""):
        content = json.loads(answer.data) if answer.data else None
    return answer.status, fields, content


def commit(hub: RunningHub, *operations: object, ref: str = "main", **more: Any) -> Any:
    header = {"key": "header", "value": {"summary": "s", **more}}
    body = b"\n".join(json.dumps(each).encode() for each in (header, *operations))
    return call(hub, "POST", f"{API}/commit/{ref}", body=body)


def file(path: str, content: bytes = b"x") -> dict[str, object]:
    text = base64.b64encode(content).decode()
    return {"key": "file", "value": {"path": path, "content": text, "encoding": "base64"}}


def lfs_file(path: str, content: bytes) -> dict[str, object]:
    value = {"path": path, "algo": "sha256", "oid": sha256(content), "size": len(content)}
    return {"key": "lfsFile", "value": value}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tip(hub: RunningHub) -> str:
    return str(call(hub, "GET", API)[2]["sha"])


def batch(hub: RunningHub, oid: str, size: int, *, transfers: tuple[str, ...] = ("basic",)) -> Any:
    body = {
        "operation": "upload",
        "transfers": transfers,
        "objects": [{"oid": oid, "size": size}],
        "hash_algo": "sha256",
    }
    status, _, answer = call(hub, "POST", f"/{REPO}.git/info/lfs/objects/batch", json_body=body)
    assert status == 200, answer
    return answer["objects"][0]
