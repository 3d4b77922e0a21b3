"""A tree's references: every one found, nothing else looked at, and SARIF that the schema takes."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.catalog.policy import evaluate, parse_policy
from qwenstack.catalog.scan.find import Report, places_in, scan, search
from qwenstack.catalog.scan.ignore import IgnoreRules
from qwenstack.catalog.scan.prefilter import Candidate, Tally, candidates
from qwenstack.catalog.scan.sarif import sarif
from qwenstack.catalog.scan.walk import Trouble, WalkLimits, walk
from qwenstack.catalog.which.index import index
from qwenstack.catalog.which.mentions import NEEDLES, find
from qwenstack.catalog.which.reading import Setting

SCHEMA = Path(__file__).parent.parent / "data" / "sarif-2.1.0-rtm.5.json"

# Shapes of three public repositories (2026-11): an agent library over the vendor's API
# (QwenLM/Qwen-Agent), a training library with scripts for hundreds of models (modelscope/ms-swift),
# a model server's catalogue and charts (gpustack/gpustack). The files are ours.
TREES: dict[str, dict[str, str]] = {
    "agent": {
        "agent/llm/client.py": 'DEFAULT = "qwen-plus"\nURL = '
        '"https://dashscope.aliyuncs.com/compatible-mode/v1"\n',
        "examples/local.py": "cfg = {\n    'model': 'Qwen/Qwen2.5-7B-Instruct',\n    'server': "
        "'http://localhost:8000/v1',\n}\n",
        "tests/test_llm.py": "from agent.llm.qwen_dashscope import QwenChat\n\nLLM = {'model': "
        "'qwen-max-latest'}\n",
        "notebooks/demo.ipynb": json.dumps(
            {"cells": [{"source": ['llm = "Qwen/Qwen3-8B"\n', "print(llm)\n"]}]}, indent=1
        ),
        "README.md": "# Agent\n\nQwen2ForCausalLM and Qwen3 are words. Set `qwen3-max`, or see "
        "https://huggingface.co/Qwen/Qwen3-32B for weights.\n",
    },
    "training": {
        "examples/train/lora.sh": "CUDA_VISIBLE_DEVICES=0 \\\nswift sft --model "
        "Qwen/Qwen2.5-3B-Instruct \\\n  --dataset 'acme/qwen3-distill-110k' \\\n  --output_dir "
        "output/Qwen2.5-3B\n",
        "swift/model/register.py": 'Model("Qwen/Qwen2.5-Coder-3B", "Qwen/Qwen2.5-Coder-3B")\nfrom '
        "transformers import Qwen2VLForConditionalGeneration\n",
        "docs/models.md": "|[deepseek-ai/DeepSeek-R1-Distill-Qwen-7B](https://huggingface.co/"
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B)|qwen2|\n",
        "requirements.txt": "qwen_vl_utils>=0.0.14\ndashscope\n",
        "scripts/utils/qwen_path.py": "import os\npath = 'models/qwen2/modeling_qwen2.py'\n",
    },
    "server": {
        "charts/llm/values.yaml": "image: vllm/vllm-openai:v0.20.0\nargs:\n  - --model\n  - "
        "Qwen/Qwen2.5-72B-Instruct\n",
        "compose.yaml": "services:\n  ollama:\n    image: ollama/ollama\n    command: run "
        "qwen3:8b\n",
        "Dockerfile": "FROM python:3.12\nENV MODEL_ID=Qwen/Qwen3.8-Flash-Next\nRUN hf download "
        "Qwen/Qwen3.8-Flash-Next\n",
        "catalog.yaml": "- huggingface_repo_id: Qwen/Qwen3-0.6B\n- huggingface_repo_id: "
        "bartowski/Qwen2-VL-7B-Instruct-GGUF\n  huggingface_filename: "
        "Qwen2-VL-7B-Instruct-IQ2_M.gguf\n",
        ".github/workflows/ci.yml": "env:\n  MODEL: Qwen/Qwen3.8-35B-A3B\n",
    },
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def found(report: Report) -> set[tuple[str, int, str, str]]:
    return {
        (each.place.path, each.place.line, each.place.reference, each.answer.layer)
        for each in report.findings
    }


def test_agent_library_over_an_api(tmp_path: Path) -> None:
    assert found(scan(plant(tmp_path, TREES["agent"]))) == {
        ("agent/llm/client.py", 1, "qwen-plus", "studio"),
        ("agent/llm/client.py", 2, "https://dashscope.aliyuncs.com/compatible-mode/v1", "studio"),
        ("examples/local.py", 2, "Qwen/Qwen2.5-7B-Instruct", "weights"),
        ("tests/test_llm.py", 3, "qwen-max-latest", "studio"),
        ("notebooks/demo.ipynb", 5, "Qwen/Qwen3-8B", "weights"),
        ("README.md", 3, "qwen3-max", "studio"),
        ("README.md", 3, "https://huggingface.co/Qwen/Qwen3-32B", "weights"),
    }


def test_training_library(tmp_path: Path) -> None:
    assert found(scan(plant(tmp_path, TREES["training"]))) == {
        ("examples/train/lora.sh", 2, "Qwen/Qwen2.5-3B-Instruct", "weights"),
        ("swift/model/register.py", 1, "Qwen/Qwen2.5-Coder-3B", "weights"),
        ("docs/models.md", 1, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "community"),
        (
            "docs/models.md",
            1,
            "https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            "community",
        ),
    }


def test_model_server(tmp_path: Path) -> None:
    assert found(scan(plant(tmp_path, TREES["server"]))) == {
        ("charts/llm/values.yaml", 4, "Qwen/Qwen2.5-72B-Instruct", "weights"),
        ("compose.yaml", 4, "qwen3:8b", "weights"),
        ("Dockerfile", 2, "Qwen/Qwen3.8-Flash-Next", "weights"),
        ("Dockerfile", 3, "Qwen/Qwen3.8-Flash-Next", "weights"),
        ("catalog.yaml", 1, "Qwen/Qwen3-0.6B", "weights"),
        ("catalog.yaml", 2, "bartowski/Qwen2-VL-7B-Instruct-GGUF", "community"),
        ("catalog.yaml", 3, "Qwen2-VL-7B-Instruct-IQ2_M.gguf", "unknown"),
        (".github/workflows/ci.yml", 2, "Qwen/Qwen3.8-35B-A3B", "unknown"),
    }


def test_column_counts_characters_and_the_file_may_be_scanned_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('x = "ümläut"; model = "Qwen/Qwen3-8B"\n', encoding="utf-8")
    report = scan(path)
    assert [(each.place.line, each.place.column) for each in report.findings] == [(1, 24)]


def test_same_name_means_what_stands_around_it() -> None:
    def setting(text: str) -> Setting:
        places = list(places_in(Candidate("x.py", text.encode()), "", index()))
        assert len(places) == 1
        return places[0].setting

    assert setting('dashscope.call(model="qwen3-8b")') is Setting.API
    assert setting('AutoModel.from_pretrained("qwen3-8b")') is Setting.WEIGHTS
    assert setting("ollama run qwen3\n") is Setting.OLLAMA


def test_gitignore_hides_and_takes_back(tmp_path: Path) -> None:
    files = {
        ".gitignore": "build/\n*.log\n!keep.log\n/only_top.py\n",
        "build/x.py": '"Qwen/Qwen3-8B"',
        "a.log": '"Qwen/Qwen3-8B"',
        "keep.log": '"Qwen/Qwen3-4B"',
        "only_top.py": '"Qwen/Qwen3-8B"',
        "sub/only_top.py": '"Qwen/Qwen3-14B"',
        "sub/.gitignore": "hidden.py\n",
        "sub/hidden.py": '"Qwen/Qwen3-8B"',
        "hidden.py": '"Qwen/Qwen3-32B"',
    }
    plant(tmp_path, files)
    names = {each.place.reference for each in scan(tmp_path).findings}
    assert names == {"Qwen/Qwen3-4B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B"}
    everything = scan(tmp_path, limits=WalkLimits(heed_gitignore=False))
    assert "Qwen/Qwen3-8B" in {each.place.reference for each in everything.findings}


@pytest.mark.parametrize(
    ("pattern", "path", "folder", "ignored"),
    [
        ("*.pyc", "a/b.pyc", False, True),
        ("docs/*.md", "docs/a.md", False, True),
        ("docs/*.md", "docs/x/a.md", False, None),
        ("**/tmp", "a/b/tmp", True, True),
        ("a/**", "a/b/c", False, True),
        ("a/**/z", "a/z", False, True),
        ("build/", "build", False, None),
        ("[ab].py", "b.py", False, True),
        ("[!ab].py", "b.py", False, None),
        ("\\#x", "#x", False, True),
        ("# x", "# x", False, None),
        ("*a*a*a*a*a*a*a*a*a*b", "a" * 60, False, None),
    ],
)
def test_pattern_means_what_git_says(
    pattern: str, path: str, folder: bool, ignored: bool | None
) -> None:
    rules = IgnoreRules(pattern)
    assert rules.verdict(path, path.rpartition("/")[2], folder) is ignored


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_pattern_compiles_or_is_left_out(pattern: str) -> None:
    IgnoreRules(pattern).verdict("a/b.py", "b.py", False)


def test_links_are_not_followed_and_loops_end(tmp_path: Path) -> None:
    inside = plant(tmp_path / "tree", {"a/x.py": '"Qwen/Qwen3-8B"'})
    outside = plant(tmp_path / "outside", {"secret.py": '"Qwen/Qwen3-4B"'})
    (inside / "a" / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "out").symlink_to(outside, target_is_directory=True)
    (inside / "file.py").symlink_to(outside / "secret.py")
    assert {each.place.reference for each in scan(inside).findings} == {"Qwen/Qwen3-8B"}


def test_limits_are_kept_and_said(tmp_path: Path) -> None:
    plant(tmp_path, {f"d{n}/x{n}.py": '"Qwen/Qwen3-8B"' for n in range(10)})
    report = scan(tmp_path, limits=WalkLimits(files_max=4))
    assert report.files == 4
    assert any("stopped after 4 files" in each.reason for each in report.troubles)
    deep = tmp_path / "deep"
    plant(deep, {"a/b/c/d/x.py": '"Qwen/Qwen3-8B"'})
    shallow = scan(deep, limits=WalkLimits(depth_max=2))
    assert any("deeper than 2" in each.reason for each in shallow.troubles)
    assert not shallow.findings


def test_long_file_is_read_to_its_limit_and_binary_not_at_all(tmp_path: Path) -> None:
    filler = "x = 1\n" * 60_000
    plant(
        tmp_path, {"long.py": filler + 'm = "Qwen/Qwen3-8B"\n' + filler + 'n = "Qwen/Qwen3-4B"\n'}
    )
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100 + b"Qwen/Qwen3-8B")
    whole = scan(tmp_path)
    assert [each.place.reference for each in whole.findings] == ["Qwen/Qwen3-8B", "Qwen/Qwen3-4B"]
    assert whole.binary == 1
    part = scan(tmp_path, file_bytes_max=400_000)
    assert [each.place.reference for each in part.findings] == ["Qwen/Qwen3-8B"]
    assert any("first 400000 bytes" in each.reason for each in part.troubles)


def test_file_of_one_line_costs_no_square_of_its_length(tmp_path: Path) -> None:
    line = "qwen " * 400_000 + 'x = "Qwen/Qwen3-8B" ' * 3_000
    (tmp_path / "bundle.min.js").write_text(line)
    assert len(scan(tmp_path).findings) <= 2_000
    (tmp_path / "bundle.min.js").write_text('x = "Qwen/Qwen3-8B" ' * 100_000)
    report = scan(tmp_path)
    assert len(report.findings) == 2_000
    assert all(len(each.place.text) <= 160 for each in report.findings)


def test_file_that_vanishes_or_is_barred_is_a_trouble(tmp_path: Path) -> None:
    result = search([str(tmp_path / "gone.py")], str(tmp_path))
    assert result.troubles[0].reason == "No such file or directory"
    os.mkfifo(tmp_path / "pipe")
    assert not scan(tmp_path).troubles


@pytest.mark.parametrize("needle", NEEDLES)
def test_filter_finds_every_needle(tmp_path: Path, needle: str) -> None:
    path = tmp_path / "file.txt"
    path.write_text(f"model: {needle}\n")
    found = candidates([str(path)], Tally(), file_bytes_max=1 << 23)
    assert [each.path for each in found] == [str(path)]


def test_scan_finds_every_model_that_the_catalogue_lists() -> None:
    catalogue = index().catalogue
    names = [
        *(repo.id for each in catalogue.releases for repo in each.repos),
        *(
            each.id for each in catalogue.derivatives if each.id != "GAIR/LIMO"
        ),  # a word like others
        *(each.id for each in catalogue.ollama),
    ]
    text = "".join(f'model = "{each}"\n' for each in names)
    assert {each.text for each in find(text, index())} >= set(names)


@pytest.mark.parametrize(
    "name",
    [
        "arn:aws:bedrock:us-west-2::foundation-model/qwen.qwen3-32b-v1:0",
        "qwen.qwen3-32b-v1:0",
        "publishers/qwen/models/qwen3-235b-a22b-instruct-2507-maas",
        "bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
    ],
)
def test_scan_finds_the_forms_that_operators_and_programs_give_to_names(name: str) -> None:
    assert [each.text for each in find(f'MODEL = "{name}"\n', index())] == [name]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *NEEDLES,
                    *(each.upper() for each in NEEDLES),
                    *(each.replace("-", "\r") for each in NEEDLES),  # folded, it is the same byte
                    "Qw",
                    "hsc",
                    "-",
                    "q",
                    "jan-Nan",
                    "sky-t",
                ]
            ),
            st.integers(0, 70_000),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_filter_finds_exactly_the_files_that_hold_a_needle(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], per_file: int
) -> None:
    folder = tmp_path_factory.mktemp("f")
    paths: list[str] = []
    for at in range(0, len(pieces), per_file):
        text = "".join("y" * gap + " " + word + " " for word, gap in pieces[at : at + per_file])
        path = folder / f"{at}.txt"
        path.write_text(text)
        paths.append(str(path))
    wanted = {
        path for path in paths if any(each in Path(path).read_text().lower() for each in NEEDLES)
    }
    assert {each.path for each in candidates(paths, Tally(), file_bytes_max=1 << 23)} == wanted


def test_processes_find_what_one_process_finds(tmp_path: Path) -> None:
    files = {f"d{n // 50}/f{n}.py": f'model = "Qwen/Qwen3-{n % 40}B"\n' for n in range(2_400)}
    plant(tmp_path, files)
    one, two = scan(tmp_path, jobs=1), scan(tmp_path, jobs=2)
    assert found(one) == found(two)
    assert [each.place for each in one.findings] == [each.place for each in two.findings]
    assert len(one.findings) == 2_400


def test_walk_is_in_order(tmp_path: Path) -> None:
    plant(tmp_path, dict.fromkeys(("b/2", "b/1", "a/3", "z", "c"), ""))
    troubles: list[Trouble] = []
    names = [each for paths in walk(str(tmp_path), WalkLimits(), troubles) for each in paths]
    assert [Path(each).name for each in names] == ["c", "z", "3", "1", "2"]


@pytest.fixture
def validator() -> Iterator[jsonschema.Draft4Validator]:
    yield jsonschema.Draft4Validator(json.loads(SCHEMA.read_text()))


def test_sarif_validates_and_says_what_the_policy_refuses(
    tmp_path: Path, validator: jsonschema.Draft4Validator
) -> None:
    for files in TREES.values():
        plant(tmp_path, files)
    plant(tmp_path, {"odd name/ü [1].py": '"Qwen/Qwen2.5-3B"'})
    report = scan(tmp_path)
    policy = parse_policy('version = 1\n[licences]\ncategories = ["permissive"]\n')
    decisions = [evaluate(policy, each.answer, date(2026, 11, 24)) for each in report.findings]
    log = json.loads(json.dumps(sarif(report, "0.1.0", decisions)))
    validator.validate(log)
    validator.validate(json.loads(json.dumps(sarif(report, "0.1.0"))))
    results = log["runs"][0]["results"]
    assert len(results) == len(report.findings)
    refused = [each for each in results if each["level"] == "error"]
    assert any("Qwen/Qwen2.5-3B-Instruct" in each["message"]["text"] for each in refused)
    weights = [each for each in refused if each["ruleId"] == "qwenstack/weights"]
    assert weights
    assert all("non-commercial" in m or "conditional" in m for m in _messages(weights))
    uris = {each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for each in results}
    assert "odd%20name/%C3%BC%20%5B1%5D.py" in uris


def _messages(results: list[dict[str, dict[str, str]]]) -> list[str]:
    return [each["message"]["text"] for each in results]


def test_a_name_that_is_no_utf_8_is_written_down(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.py")).write_text('model = "Qwen/Qwen3-8B"\n')
    report = scan(tmp_path)
    assert [each.place.path for each in report.findings] == ["\\xff.py"]
    assert json.dumps(sarif(report, "1")).encode()


def test_a_pipe_is_no_gitignore_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".gitignore")
    (tmp_path / "a.py").write_text('model = "Qwen/Qwen3-8B"\n')
    assert len(scan(tmp_path).findings) == 1


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a*a*a*a*a*a*a*b", "a" * 250),
        ("**/a/**/a/**/a/**/b", "a/" * 200 + "c"),
        ("**/*a*a/**/*a*a/**/b", ("a" * 60 + "/") * 60 + "c"),
    ],
)
def test_a_pattern_made_to_be_slow_ends(pattern: str, path: str) -> None:
    name = path.rpartition("/")[2]
    assert IgnoreRules(pattern).verdict(path, name, False) is None


@given(
    st.lists(st.sampled_from(["**", "*", "a*", "*a", "a*b*a", "a", "b"]), min_size=2, max_size=4),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5),
)
@settings(max_examples=400, deadline=None)
def test_a_pattern_matches_as_one_that_tries_everything(
    pattern: list[str], path: list[str]
) -> None:
    def fits(rest: list[str], names: list[str]) -> bool:
        if not rest:
            return not names
        if rest[0] == "**":
            if len(rest) == 1:
                return bool(names)
            return any(fits(rest[1:], names[at:]) for at in range(len(names)))
        return bool(names) and fnmatch.fnmatchcase(names[0], rest[0]) and fits(rest[1:], names[1:])

    rules = IgnoreRules("/" + "/".join(pattern))
    assert (rules.verdict("/".join(path), path[-1], False) is True) == fits(pattern, path)


FULL_WIDTH = "".join(chr(ord(each) + 0xFEE0) for each in "qwen-plus")


def test_names_in_look_alike_letters_are_found_and_never_taken_for_the_real_one(
    tmp_path: Path,
) -> None:
    """Cyrillic, full-width and zero-width letters; a needle may be hidden by them altogether."""
    (tmp_path / "a.py").write_text('model = "Qw\u0435n/Qwen3-8B"\nother = "Qwen/Qwen3-8B"\n')
    (tmp_path / "b.py").write_text('client.chat(model="qw\u0435n-plus")\n')
    (tmp_path / "c.py").write_text('client.chat(model="qwen\u200b-plus")\n')
    (tmp_path / "d.py").write_text(f'client.chat(model="{FULL_WIDTH}")\n')
    (tmp_path / "e.sh").write_text("ollama run qw\u0435n3:8b\n")
    (tmp_path / "prose.md").write_text(
        "\u041c\u043e\u0434\u0435\u043b\u044c Qwen-\u0442\u043e; it\u2019s Qwen\u2014not more.\n"
    )
    report = scan(tmp_path)
    found = {
        (each.place.path, each.place.line): each.answer
        for each in report.findings
        if each.answer.kind == "look-alike"
    }
    assert set(found) == {("a.py", 1), ("b.py", 1), ("c.py", 1), ("d.py", 1), ("e.sh", 1)}
    for answer in found.values():
        assert (answer.layer, answer.governing_document.kind.value) == ("unknown", "unknown")
    assert found["b.py", 1].suggestions == ("qwen-plus",)
    assert "U+200B" in found["c.py", 1].conflicts[0]
    honest = [each for each in report.findings if each.answer.kind != "look-alike"]
    assert [(each.place.path, each.place.line) for each in honest] == [("a.py", 2)]
    log = sarif(report, "1")
    jsonschema.validate(log, json.loads(SCHEMA.read_text()))
    results = log["runs"][0]["results"]  # type: ignore[index]
    rules = [each["ruleId"] for each in results]
    assert rules.count("qwenstack/look-alike") == 5 and rules.count("qwenstack/weights") == 1
    warned = {each["level"] for each in results if each["ruleId"] == "qwenstack/look-alike"}
    assert warned == {"warning"}


@pytest.mark.parametrize("at", [100, 127 * 1024, 300 * 1024])
def test_a_look_alike_is_found_wherever_it_stands_in_a_file(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a.py"
    path.write_text("#" * at + '\nmodel = "qw\u0435n-plus"\n')
    (found,) = scan(tmp_path).findings
    assert (found.answer.kind, found.place.line, found.place.column) == ("look-alike", 2, 10)
