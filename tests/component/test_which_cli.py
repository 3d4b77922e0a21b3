"""`qwenstack which`, `qwenstack policy` and the HTTP route, as shells and clients see them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer

from qwenstack.catalog.which.http import PATH, app, respond

POLICY = 'version = 1\n[licences]\ncategories = ["permissive"]\n'


def qwenstack(
    *arguments: str, at: Path | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwenstack.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=at,
        input=given,
        timeout=60,
        check=False,
    )


def test_json_of_one_reference_is_one_object() -> None:
    done = qwenstack("which", "Qwen/Qwen2.5-3B", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["governing_document"]["id"] == "LicenseRef-scancode-qwen-research-2024"
    assert answer["governing_document"]["kind"] == "licence"


def test_panel_shows_source_and_date_without_a_terminal() -> None:
    done = qwenstack("which", "Qwen/Qwen3-8B", "qwen3:8b")
    assert "\x1b[" not in done.stdout
    assert "Apache-2.0" in done.stdout
    assert "2026-" in done.stdout


def test_snippet_from_standard_input() -> None:
    done = qwenstack("which", "-", "--json", given='model: "Qwen/Qwen3-4B"\n')
    assert json.loads(done.stdout)["release"] == "Qwen3-4B"


def test_configuration_decides_who_resolves_a_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=https://openrouter.ai/api/v1\n")
    done = qwenstack("which", "qwen3-8b", "--against-config", str(tmp_path / ".env"), "--json")
    assert json.loads(done.stdout)["operator"] == "OpenRouter"


def test_scan_fails_on_policy_and_writes_sarif(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text('M = "Qwen/Qwen2.5-3B"\nN = "Qwen/Qwen3-8B"\n')
    (tmp_path / "policy.toml").write_text(POLICY)
    done = qwenstack(
        "which", "--scan", "tree", "--policy", "policy.toml", "--sarif", "out.sarif", at=tmp_path
    )
    assert done.returncode == 1
    assert "a.py:1:6: Qwen/Qwen2.5-3B" in done.stdout
    assert "is non-commercial, not permissive" in done.stdout
    log = json.loads((tmp_path / "out.sarif").read_text())
    assert [each["level"] for each in log["runs"][0]["results"]] == ["error", "note"]


def test_exit_codes_are_as_documented(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("version = 1\n[licenses]\n")

    def code(*arguments: str) -> int:
        return qwenstack("which", *arguments).returncode

    assert code("Qwen/Qwen3-8B", "--policy", str(policy)) == 0
    assert code("Qwen/Qwen2.5-3B", "--policy", str(policy)) == 1
    assert code("acme/Qwen3-8B", "--policy", str(policy)) == 0
    assert code("acme/Qwen3-8B", "--policy", str(policy), "--strict") == 1
    assert code("Qwen/Qwen3-8B", "--policy", str(wrong)) == 2
    assert code() == 2
    assert code("x", "--scan", str(tmp_path)) == 2
    assert qwenstack("policy", "check", str(policy)).returncode == 0
    assert qwenstack("policy", "check", str(wrong)).returncode == 2
    explained = qwenstack("policy", "explain", str(policy), "Qwen/Qwen2.5-3B")
    assert explained.returncode == 1
    assert "deny   licence:" in explained.stdout


def test_hook_and_action_run_what_the_program_has(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    hook = yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())[0]
    action = yaml.safe_load((root / "action.yml").read_text())
    script = action["runs"]["steps"][-1]["run"]
    assert '"${arguments[@]}"' in script
    (tmp_path / "qwenstack-policy.toml").write_text(POLICY)
    (tmp_path / "a.py").write_text('M = "Qwen/Qwen2.5-3B"\n')
    program, *arguments = hook["entry"].split()
    assert program == "qwenstack"
    done = qwenstack(*arguments, at=tmp_path)
    assert (done.returncode, "a.py:1:6" in done.stdout) == (1, True)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "qwenstack"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m qwenstack.cli.main "$@"\n')
    shim.chmod(0o755)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SCAN_PATH": ".",
            "POLICY": "qwenstack-policy.toml",
            "SARIF": "which.sarif",
            "STRICT": "false",
        },
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    assert json.loads((tmp_path / "which.sarif").read_text())["version"] == "2.1.0"


async def test_route_answers_lists_and_refuses() -> None:
    async with TestClient(TestServer(app())) as client:
        reply = await client.get(PATH, params={"ref": "Qwen/Qwen2.5-3B"})
        assert reply.status == 200
        assert (await reply.json())["layer"] == "weights"
        tag = reply.headers["ETag"]
        again = await client.get(PATH, params={"ref": "x"}, headers={"If-None-Match": tag})
        assert again.status == 304
        both = await client.get(PATH, params=[("ref", "qwen-plus"), ("ref", "qwen3:8b")])
        assert [each["layer"] for each in await both.json()] == ["studio", "weights"]
        none = await client.get(PATH)
        assert none.status == 400
        assert "?ref=" in (await none.json())["detail"]


def test_route_opens_no_file_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36}')
    answer = json.loads(respond([str(path)]).body)
    assert answer["kind"] != "model-folder"


@pytest.mark.parametrize(("references", "status"), [(["x" * 9_000], 414), (["x"] * 101, 400)])
def test_route_has_limits(references: list[str], status: int) -> None:
    assert respond(references).status == status


def test_catalog_serve_answers_on_loopback() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "qwenstack.cli.main", "catalog", "serve", "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        answer = _fetch(f"http://127.0.0.1:{port}{PATH}?ref=Qwen/Qwen2.5-72B")
        assert answer["governing_document"]["id"] == "LicenseRef-scancode-qwen-2024"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _fetch(url: str) -> dict[str, dict[str, str]]:
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                found: dict[str, dict[str, str]] = json.loads(reply.read())
                return found
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")
