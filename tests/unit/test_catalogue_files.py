"""A catalogue that does not hold together is refused, with the place and the way out."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.catalog import cache
from qwenstack.catalog.compile import compile_folder
from qwenstack.catalog.load import DATA, Catalogue, load_folder
from qwenstack.catalog.model import Status
from qwenstack.catalog.read import (
    CatalogueError,
    Placed,
    Problem,
    quantisation_of,
    read_text,
    tuning_of,
)

TODAY = datetime.date(2026, 11, 24)
SOURCES = """
[[source]]
key = "blog"
title = "A blog"
kind = "vendor"
locator = "https://example.org/blog"
checked = 2026-11-24
"""
GENERATION = """
[[generation]]
id = "qwen3"
name = "Qwen3"
family = "qwen3"
source = "blog"
checked = 2026-11-24
status = "verified"
announced = 2025-04-29
open_weights = true
"""
RELEASE = """
[[release]]
id = "qwen3-8b"
name = "Qwen3-8B"
generation = "qwen3"
modality = ["text"]
source = "blog"
checked = 2026-11-24
status = "verified"
licence = "Apache-2.0"
parameters = 8190735360
repos = ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B-FP8"]
"""


def compiled(tmp_path: Path, text: str) -> Catalogue:
    (tmp_path / "facts.toml").write_text(text, encoding="utf-8")
    records = compile_folder(tmp_path, TODAY)
    return Catalogue(**{name: getattr(records, name) for name in records.__struct_fields__})


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(CatalogueError) as caught:
        compiled(tmp_path, text)
    return str(caught.value)


def test_a_record_gives_its_source_date_and_status_to_its_facts(tmp_path: Path) -> None:
    release = compiled(tmp_path, SOURCES + GENERATION + RELEASE).releases[0]
    assert (release.licence.source, release.licence.status) == ("blog", Status.VERIFIED)
    assert release.licence.checked == TODAY
    assert release.context.value is None
    assert release.context.status is Status.UNKNOWN
    assert [each.quantisation for each in release.repos] == ["", "fp8"]


def test_a_fact_says_its_own_source_and_who_contradicts(tmp_path: Path) -> None:
    text = RELEASE.replace(
        'licence = "Apache-2.0"',
        'licence = {value = "MIT", status = "reported", note = "hm", '
        'otherwise = [{value = "Apache-2.0", source = "blog"}]}',
    )
    fact = compiled(tmp_path, SOURCES + GENERATION + text).releases[0].licence
    assert (fact.value, fact.status, fact.note) == ("MIT", Status.REPORTED, "hm")
    assert fact.in_conflict
    assert fact.otherwise[0].checked == TODAY


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("licence =", "license =", "license: no such field; did you mean licence?"),
        ('source = "blog"', 'source = ""', "source: missing or empty"),
        ('source = "blog"', 'source = "blogg"', "source 'blogg' is not in the files"),
        ('licence = "Apache-2.0"', 'licence = "Apache-2"', "no licence 'Apache-2'"),
        ('generation = "qwen3"', 'generation = "qwen4"', "generation: 'qwen4' is not"),
        ("checked = 2026-11-24", "checked = 2027-11-24", "2027-11-24 is not between"),
        ("checked = 2026-11-24", 'checked = "soon"', "checked: "),
        ("parameters = 8190735360", 'parameters = "8B"', "parameters: Expected `int"),
        (
            "parameters = 8190735360",
            'parameters = {value = 1, statos = "verified"}',
            "parameters: statos is no part of a fact; did you mean status?",
        ),
        (
            "parameters = 8190735360",
            'parameters = {note = "none"}',
            'parameters: no value; write one, or status = "unknown"',
        ),
        (
            "parameters = 8190735360",
            'parameters = {value = 1, status = "unknown"}',
            'parameters: has a value and status "unknown"',
        ),
        (
            "parameters = 8190735360",
            'parameters = {value = 1, otherwise = [{value = 1, source = "blog"}]}',
            "otherwise repeats the value",
        ),
        (
            "parameters = 8190735360",
            'parameters = {value = 1, otherwise = [{value = 2, source = "no"}]}',
            "source 'no' is not in the files",
        ),
        ('status = "verified"', 'status = "sure"', "status: Invalid enum value"),
        ('status = "verified"', 'status = "unknown"', "a record is verified or reported"),
        ('modality = ["text"]', 'modality = ["prose"]', "modality: Invalid enum value"),
        ("repos = [", 'repos = ["Qwen/qwen3-8b", ', "stands already in"),
        (
            'repos = ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B-FP8"]',
            "repos = []",
            "has at least one repo",
        ),
        ("repos = [", "repos = [5, ", "repos: each is a hub id"),
        ("[[release]]", "[[relaese]]", "[[relaese]] is no kind of record; did you mean release?"),
        ("[[release]]", "[release]", "release must be written [[release]]"),
        ('name = "Qwen3-8B"', 'base = "none-such"\nname = "x"', "base: 'none-such' is not"),
        ('name = "Qwen3-8B"', 'architecture = "none"\nname = "x"', "architecture: 'none' is not"),
    ],
)
def test_what_is_wrong_is_told_with_file_field_value_and_way_out(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    message = refusal(tmp_path, SOURCES + GENERATION + RELEASE.replace(old, new, 1))
    assert told in message
    assert message.startswith("facts.toml")


def test_the_line_of_the_field_is_told(tmp_path: Path) -> None:
    text = SOURCES + GENERATION + RELEASE.replace("parameters = 8190735360", 'parameters = "8B"')
    line = text.splitlines().index('parameters = "8B"') + 1
    assert f"facts.toml:{line}: release 'qwen3-8b'" in refusal(tmp_path, text)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = RELEASE.replace("licence =", "license =") + RELEASE.replace("name =", "nome =")
    message = refusal(tmp_path, SOURCES + GENERATION + text)
    assert len(message.splitlines()) == 2


def test_an_id_stands_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, SOURCES + GENERATION + RELEASE + RELEASE)
    assert "id 'qwen3-8b' stands already in" in message


def test_a_shape_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    shape = """
[[architecture]]
id = "x"
source = "blog"
checked = 2026-11-24
status = "verified"
hidden = 10
layers = 1
heads = 1
kv_heads = 1
head_dim = 10
intermediate = 10
vocabulary = 10
tied = true
parameters = 831
"""
    # 100 embedding, 400 attention, 300 feed-forward, 20 and 10 for the norms.
    assert "831, but the configuration holds 830" in refusal(tmp_path, SOURCES + shape)
    assert compiled(tmp_path, SOURCES + shape.replace("831", "830")).architectures


def test_snapshots_and_tags_take_what_they_do_not_say_themselves(tmp_path: Path) -> None:
    hosted = """
[[organisation]]
id = "cloud"
name = "Cloud"
layer = "studio"
source = "blog"
checked = 2026-11-24
status = "verified"

[[hosted]]
id = "qwen-x"
kind = "main"
operator = "cloud"
source = "blog"
checked = 2026-11-24
status = "verified"
context = 4096
available = 2025-01-01
snapshots = ["qwen-x-latest", {id = "qwen-x-2025-01-01", context = 8192}]
"""
    found = compiled(tmp_path, SOURCES + hosted)
    kinds = [(each.id, each.kind.value, each.main, each.context.value) for each in found.hosted]
    assert kinds == [
        ("qwen-x", "main", "", 4096),
        ("qwen-x-latest", "alias", "qwen-x", 4096),
        ("qwen-x-2025-01-01", "snapshot", "qwen-x", 8192),
    ]
    assert found.hosted[1].available.value is None, "a snapshot's own date is not its line's"
    tags = """
[[ollama]]
id = "qwen3:8b"
source = "blog"
checked = 2026-11-24
status = "reported"
release = "qwen3-8b"
default = true
tags = ["8b-q4_K_M", "8b-fp16"]
"""
    found = compiled(tmp_path, SOURCES + GENERATION + RELEASE + tags)
    assert [(each.id, each.default, each.quantisation) for each in found.ollama] == [
        ("qwen3:8b", True, ""),
        ("qwen3:8b-q4_K_M", False, "q4_k_m"),
        ("qwen3:8b-fp16", False, "fp16"),
    ]


@pytest.mark.parametrize(
    ("repo", "tuning", "quantisation"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "instruct", "gptq-int4"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "thinking", "fp8"),
        ("Qwen/Qwen-7B-Chat-Int8", "chat", "int8"),
        ("Qwen/Qwen3-8B-MLX-bf16", "", "mlx-bf16"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", "instruct", ""),
        ("Qwen/Qwen3-8B-Base", "base", ""),
        ("Qwen/Qwen2-VL-72B", "", ""),
    ],
)
def test_tuning_and_precision_are_read_off_the_name(
    repo: str, tuning: str, quantisation: str
) -> None:
    assert (tuning_of(repo), quantisation_of(repo)) == (tuning, quantisation)


def test_no_data_files_and_files_that_are_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"no \*\.toml files"):
        compile_folder(tmp_path)
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.toml").write_text("x = [", encoding="utf-8")
    with pytest.raises(CatalogueError) as caught:
        compile_folder(tmp_path)
    assert "a.toml: not UTF-8 text" in str(caught.value)
    assert "b.toml: not valid TOML" in str(caught.value)


@given(st.text(alphabet=st.sampled_from('[]{}="#.,\n ab01-releasourcid'), max_size=200))
def test_no_text_crashes_the_reader(text: str) -> None:
    placed: list[Placed] = []
    problems: list[Problem] = []
    read_text(text, "x.toml", placed, problems)
    assert all(str(each).startswith("x.toml") for each in problems)


# --- the compiled copy ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "facts.toml").write_text(SOURCES + GENERATION + RELEASE, encoding="utf-8")
    return data


def test_the_copy_is_used_while_the_files_are_the_same(folder: Path) -> None:
    first = load_folder(folder)
    path = cache.cache_path(folder)
    assert path.stat().st_mode & 0o077 == 0
    assert cache.read(path, cache.key_of(folder), Catalogue) == first
    assert load_folder(folder) == first == load_folder(folder, use_cache=False)


def test_a_changed_file_is_read_again(folder: Path) -> None:
    load_folder(folder)
    text = (folder / "facts.toml").read_text(encoding="utf-8")
    (folder / "facts.toml").write_text(text.replace('"Qwen3-8B"', '"Qwen3-8C"'), encoding="utf-8")
    os.utime(folder / "facts.toml", ns=(1, 1))
    assert load_folder(folder).releases[0].name == "Qwen3-8C"


def test_a_new_or_removed_file_is_noticed(folder: Path) -> None:
    load_folder(folder)
    (folder / "more.toml").write_text(
        RELEASE.replace("qwen3-8b", "another").replace("Qwen/Qwen3-8B", "Qwen/Other"),
        encoding="utf-8",
    )
    assert len(load_folder(folder).releases) == 2
    (folder / "more.toml").unlink()
    assert len(load_folder(folder).releases) == 1


@pytest.mark.parametrize("at", [3, 30, 60, 100, -1])
def test_a_damaged_copy_is_not_used(folder: Path, at: int) -> None:
    whole = load_folder(folder)
    path = cache.cache_path(folder)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 0xFF
    path.write_bytes(damaged)
    assert cache.read(path, cache.key_of(folder), Catalogue) is None
    assert load_folder(folder) == whole


@pytest.mark.parametrize("content", [b"", b"qwenstack-catalogue-1\n", b"\x80" * 200])
def test_a_copy_that_is_no_copy_is_not_used(folder: Path, content: bytes) -> None:
    load_folder(folder)
    cache.cache_path(folder).write_bytes(content)
    assert load_folder(folder).releases


def test_a_copy_that_others_may_write_is_not_used(folder: Path) -> None:
    load_folder(folder)
    path = cache.cache_path(folder)
    path.chmod(0o666)
    assert cache.read(path, cache.key_of(folder), Catalogue) is None


def test_a_folder_that_cannot_be_written_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = folder.parent / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert load_folder(folder).releases


def test_no_half_written_copy_stays_behind(folder: Path) -> None:
    load_folder(folder)
    assert [each.name for each in cache.cache_path(folder).parent.iterdir()] == [
        cache.cache_path(folder).name
    ]


def test_the_packages_own_data_compiles_anywhere(tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "data")
    assert compile_folder(tmp_path / "data").digest == compile_folder(DATA).digest
