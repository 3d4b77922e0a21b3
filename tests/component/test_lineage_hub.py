"""The hub's lineage: indexed from its releases, asked for and audited from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from qwenstack.cli.lineage import lineage
from qwenstack.hub.accounts.directory import create_account
from qwenstack.hub.hub import Hub, open_hub
from qwenstack.hub.lineage.codes import CodeMatrix
from qwenstack.hub.lineage.fingerprint import fingerprint
from qwenstack.hub.lineage.model import open_path
from qwenstack.hub.registry.commits import Message, push, start
from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.operations import Add
from qwenstack.hub.registry.repos import create_repo
from qwenstack.hub.registry.revisions import HEADS, MAIN
from qwenstack.storage.hub_tables import fingerprints
from tests import lineage_models as models
from tests.migrated import lay_database

RESEARCH = "---\nlicense: other\nlicense_name: qwen-research\n---\n"


def publish(hub: Hub, name: str, folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    operations = []
    for path in sorted(folder.iterdir()):
        found = hub.store.put([path.read_bytes()])
        oids = (found.sha256, found.git_oid, True, found.xet_hash)
        operations.append(Add(Entry(path.name, found.size, *oids)))
    message = Message("version", "", "acme")
    with hub.database.begin() as connection:
        repo = create_repo(connection, "model", name, private=False, created_by="acme", at_us=1)
        start(connection, repo.id, HEADS + MAIN, (), message, at_us=1)
        push(connection, repo.id, HEADS + MAIN, operations, message, at_us=2)


def ask(home: Path, *arguments: str, exit_code: int = 0) -> Any:
    command = [*arguments, "--home", str(home), "--json"]
    result = CliRunner().invoke(lineage, command, catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, tmp_path: Path) -> Hub:
    """A research-licensed base, a child that says Apache-2.0 and names nobody, and a stranger."""
    lay_database(home / "hub" / "hub.db")
    hub = open_hub(home / "hub")
    with hub.database.begin() as connection:
        create_account(connection, name="acme", kind="organisation")
    base = models.make_model(1)
    for name, tensors, card in (
        ("base", base, RESEARCH),
        ("helper", models.train(base, 2), "---\nlicense: apache-2.0\n---\n"),
        ("stranger", models.make_model(9), "---\nlicense: apache-2.0\n---\n"),
    ):
        folder = models.write(tmp_path / name, tensors, dtype="BF16")
        publish(hub, f"acme/{name}", folder, card)
    return hub


def test_the_index_reads_each_release_once_and_answers_for_all(
    hub: Hub, home: Path, tmp_path: Path
) -> None:
    first = ask(home, "index")
    assert (first["releases"], first["fingerprinted"], first["traced"]) == (3, 3, 3)
    second = ask(home, "index")
    assert (second["fingerprinted"], second["traced"]) == (0, 0)
    answer = ask(home, "acme/helper")
    assert (answer["parent"], answer["relation"]) == ("acme/base", "fine-tune")
    quantised = models.write_gguf(
        tmp_path / "q.gguf", models.train(models.make_model(1), 2), "Q4_0"
    )
    answer = ask(home, str(quantised))
    assert (answer["parent"], answer["relation"]) == ("acme/helper", "quantization")


def test_a_parent_that_arrives_later_changes_its_childs_answer(
    hub: Hub, home: Path, tmp_path: Path
) -> None:
    helper = models.train(models.make_model(1), 2)
    child = models.write(tmp_path / "child", models.train(helper, 3), dtype="BF16")
    publish(hub, "acme/child", child, "---\nlicense: apache-2.0\nbase_model: acme/base\n---\n")
    ask(home, "index")
    done = ask(home, "index")
    assert done["traced"] == 0
    far = models.write(tmp_path / "far", models.make_model(33), dtype="BF16")
    publish(hub, "acme/far", far, "---\nlicense: apache-2.0\n---\n")
    assert ask(home, "index")["traced"] == 1
    kinds = {
        (finding["release"], finding["kind"])
        for finding in ask(home, "audit", exit_code=1)["findings"]
    }
    assert ("acme/child", "broken chain") in kinds


def test_the_audit_names_the_parent_that_a_card_omits_and_the_clause_that_binds(
    hub: Hub, home: Path
) -> None:
    assert ask(home, "audit")["not_indexed"] == ["acme/base", "acme/helper", "acme/stranger"]
    ask(home, "index")
    findings = ask(home, "audit", exit_code=1)["findings"]
    assert {finding["release"] for finding in findings} == {"acme/helper"}
    by_kind = {finding["kind"]: finding for finding in findings}
    assert by_kind["parent omitted"]["parent"] == "acme/base"
    conflict = by_kind["licence conflict"]
    assert conflict["clause"]
    assert "Apache-2.0" in conflict["licence"]
    assert by_kind["notice missing"]["clause"]


def test_the_answer_has_the_promised_shape(home: Path, tmp_path: Path) -> None:
    base = models.make_model(1)
    models.write(tmp_path / "bases" / "one", base)
    models.write(tmp_path / "bases" / "two", models.make_model(5))
    child = models.write(tmp_path / "child", models.train(base, 2))
    answer = ask(home, str(child), "--against", str(tmp_path / "bases"))
    assert {"parent", "relation", "confidence", "verdict", "evidence"} <= set(answer)
    assert (answer["parent"], answer["verdict"]) == ("one", "derived")
    layers = next(each["layers"] for each in answer["evidence"] if each["about"] == "layers")
    assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
    assert all(0.9 < cosine <= 1 for layer in layers for cosine in layer["cosine"].values())


def test_a_damaged_file_is_told_in_a_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    done = subprocess.run(
        [sys.executable, "-m", "qwenstack.cli.main", "lineage", str(tmp_path / "bad.gguf"),
         "--against", str(tmp_path), "--home", str(home)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("qwenstack: bad.gguf: the file is damaged")
    assert "Traceback" not in done.stderr


def test_an_index_that_is_killed_goes_on_where_it_was(hub: Hub, home: Path, tmp_path: Path) -> None:
    for number in range(6):
        folder = models.write(tmp_path / str(number), models.make_model(50 + number))
        publish(hub, f"acme/more-{number}", folder, "")
    command = [sys.executable, "-m", "qwenstack.cli.main", "lineage", "index", "--json"]
    process = subprocess.Popen(
        [*command, "--home", str(home)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while _count(hub) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = ask(home, "index")
    assert done["releases"] == 9
    assert _count(hub) == 9
    assert len(CodeMatrix(home / "hub" / "lineage")) == 9
    assert ask(home, "acme/helper")["parent"] == "acme/base"


def _count(hub: Hub) -> int:
    with hub.database.connect() as connection:
        return connection.scalar(select(func.count()).select_from(fingerprints)) or 0


def test_the_nearest_of_many_is_found_and_a_torn_row_is_cut_off(tmp_path: Path) -> None:
    base = models.make_model(1)
    stored = fingerprint(open_path(models.write(tmp_path / "base", base)))
    asked = fingerprint(open_path(models.write(tmp_path / "child", models.train(base, 2, 0.1))))
    matrix = CodeMatrix(tmp_path / "index")
    random = np.random.default_rng(0)
    codes = random.integers(-100, 101, (20_000, 768), dtype=np.int8)
    planes = random.integers(0, 2**63, (20_000, 4), dtype=np.uint64)
    matrix.extend(planes, codes, [random.bytes(32) for _ in range(20_000)])
    matrix.append([(b"b" * 32, stored)])
    with (tmp_path / "index" / "plane0.u64").open("ab") as file:
        file.write(b"torn")
    again = CodeMatrix(tmp_path / "index")
    assert len(again) == 20_001
    key, alike = again.nearest(asked, 5)[0]
    assert (key, alike > 0.7) == (b"b" * 32, True)
    again.append([(b"c" * 32, stored)])
    assert len(CodeMatrix(tmp_path / "index")) == 20_002
