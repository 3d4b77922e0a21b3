"""Hostile references: a message with the place, a partial answer, and never a crash."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.catalog.which import Answer, which
from qwenstack.catalog.which.folder import front_matter


def problems(answer: Answer) -> str:
    return " ".join(answer.problems)


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_an_answer(text: str) -> None:
    answer = which(text, files=False)
    assert answer.layer
    assert len(answer.reference) < 300


@given(st.binary(max_size=400), st.sampled_from(["a.gguf", "a.safetensors", "config.json", "x.py"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_in_a_file_get_an_answer(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("f") / name
    path.write_bytes((b"GGUF" if name == "a.gguf" else b"") + data)
    assert which(path).layer in ("unknown", "weights", "studio", "community", "research")


def test_reference_of_a_megabyte_is_read_in_part() -> None:
    answer = which("Qwen/Qwen3-8B " + "x" * 1_000_000)
    assert "1,000,014 characters" in problems(answer)
    assert len(answer.reference) < 300


@pytest.mark.parametrize("unit", ["a/", "(", "qwen", "qwen-", "{\n", "Qwen/Qwen3-8B:", "https://"])
def test_long_repetition_takes_no_exponential_time(unit: str) -> None:
    assert which(unit * (60_000 // len(unit)), files=False).layer


def test_sparse_config_of_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    answer = which(path)
    assert "config.json: 10,737,418,240 bytes" in problems(answer)


def test_sparse_safetensors_that_claims_a_huge_header_is_refused_with_the_place(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40))
        file.truncate(1 << 33)
    assert "byte 0: the header claims 1,099,511,627,776 bytes" in problems(which(path))


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "config.json: nested too deep" in problems(which(path))


def test_config_with_absurd_values_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": 7, "hidden_size": 1e308, "num_hidden_layers": -3}))
    assert which(path).layer == "unknown"


def test_yaml_bomb_in_a_card_costs_its_length_only() -> None:
    bomb = "a: &a [x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)},*{chr(97 + n)}]\n" for n in range(24)
    )
    fields = front_matter(bomb + "license: &l mit\nbase_model:\n  - *l\n  - Qwen/Qwen3-8B\n")
    assert fields["base_model"] == ["Qwen/Qwen3-8B"]
    assert fields["license"] == []


def test_device_and_pipe_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    assert which(pipe).layer == "unknown"


def test_directory_loop_is_no_loop(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert which(str(tmp_path / "a")).layer == "unknown"


def test_unreadable_file_is_said(tmp_path: Path) -> None:
    assert which(tmp_path / "nowhere" / "x.gguf").kind == "file-name"


@pytest.mark.parametrize("hidden", ["\u200b", "\u202e", "\x00", "\ufeff"])
def test_characters_that_do_not_show_are_named(hidden: str) -> None:
    answer = which(f"Qwen/Qwen3{hidden}-8B")
    assert "doesn't show" in problems(answer)
    # A program compares character by character: this is not the repo that it looks like.
    assert (answer.kind, answer.layer, answer.repo) == ("look-alike", "unknown", None)
    assert answer.suggestions == ("Qwen/Qwen3-8B",)
    assert hidden not in answer.reference
    if hidden == "\u202e":  # what follows is shown backwards
        backwards = which(f"{hidden}B8-3newQ/newQ")
        assert (backwards.layer, backwards.repo) == ("unknown", None)
        return
    # At an end it is left from copying, and said.
    ends = which(f"{hidden}Qwen/Qwen3-8B{hidden}")
    assert ends.repo == "Qwen/Qwen3-8B" and "it was left out" in problems(ends)


@pytest.mark.parametrize(
    "reference",
    [
        "Qw\u0435n/Qwen3-8B", "qw\u0435n-plus", "\uff31\uff57\uff45\uff4e/Qwen3-8B",
        "Qwen/Qwen3\u20138B",
        "https://huggingface.co/Qw\u0435n/Qwen3-8B", "vllm serve Qw\u0435n/Qwen3-8B",
        "ollama run qw\u0435n3:8b", "openrouter/qwen/qw\u0435n3-8b", "Qwen\u00ad/Qwen3-8B",
        "https://d\u0430shscope.aliyuncs.com/compatible-mode/v1",
    ],
)  # fmt: skip
def test_a_look_alike_is_never_the_real_one(reference: str) -> None:
    answer = which(reference)
    assert (answer.kind, answer.layer, answer.release) == ("look-alike", "unknown", None)
    assert answer.governing_document.kind.value == "unknown"
    assert answer.lookalikes[0].reference == answer.suggestions[0]


def test_a_look_alike_beside_an_operators_address_is_not_their_model() -> None:
    answer = which("model='qw\u0435n-plus'\nbase_url='https://openrouter.ai/api/v1'")
    assert (answer.layer, answer.operator) == ("unknown", "unknown")
    assert "looks like qwen-plus" in answer.conflicts[0]


def test_path_in_a_text_of_somebody_else_is_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "qwen3-8b.gguf"
    secret.write_bytes(b"GGUF")
    answer = which(str(secret), files=False)
    assert answer.kind == "file-name"


def test_a_home_that_nobody_has_is_no_crash() -> None:
    assert which("~nobody-of-this-name/Qwen3-8B").layer == "unknown"


@pytest.mark.parametrize("reference", ["./qwen3-8b", "../Qwen3-8B", "vllm serve ./Qwen3-8B"])
def test_a_path_where_nothing_lies_is_nobodys_repo(reference: str) -> None:
    answer = which(reference)
    assert (answer.layer, answer.release) == ("unknown", None)


def test_a_file_of_a_great_many_names_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"Qwen/Qwen3-8B-x{number}" for number in range(20_000)))
    # Comparing each with each took a minute; a pass takes under a second.
    assert len(which(path).parts) == 32


def test_an_address_with_a_query_is_still_an_address() -> None:
    plain = which("https://huggingface.co/Qwen/Qwen3-8B")
    asked = which("https://huggingface.co/Qwen/Qwen3-8B?library=transformers#x")
    assert asked.kind == plain.kind == "hub-url"
    assert asked.release == plain.release == "Qwen3-8B"


@pytest.mark.parametrize("server", ["https://api.openai.com/v1", "https://llm.corp.example/v1"])
def test_a_vendors_name_at_another_server_is_not_the_vendors_model(server: str) -> None:
    answer = which(f'OpenAI(base_url="{server}"); model="qwen-plus"', files=False)
    assert (answer.layer, answer.release, answer.operator) == ("unknown", None, "unknown")


def test_a_name_that_is_no_utf_8_gets_an_answer_that_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xffm")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 4096}')
    for reference in (str(folder), f"{folder}/nope.gguf", "\udcff/x", "Qwen/Qwen3-8B\udcff"):
        answer = which(reference)
        assert msgspec.json.decode(msgspec.json.encode(answer), type=Answer) == answer
        assert answer.governing_document.id == "unknown"
