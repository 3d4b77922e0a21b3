"""Command lines that run or fetch a model: vLLM, SGLang, llama.cpp, Ollama, Docker, hub clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import hub, image, ollama, release_name
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core.layers import Layer

_CHARACTERS_MAX: Final = 16_384
_MODEL_FLAGS: Final = (
    "--model", "--model-path", "--model_path", "--model-id", "--model_id", "--model_name_or_path",
    "--model-name-or-path", "--hf-repo", "-hf", "-hfr", "--repo-id", "--repo_id", "-m",
    "--pretrained_model_name_or_path", "--base-model",
)  # fmt: skip
_MODEL_VARIABLES: Final = re.compile(
    r"^(?:MODEL|MODEL_ID|MODEL_NAME|HF_MODEL_ID|VLLM_MODEL|LLAMA_ARG_HF_REPO|LLAMA_ARG_MODEL|"
    r"OLLAMA_MODEL|NIM_MODEL_NAME)=(.+)$"
)
_VERBS: Final = frozenset(
    {
        "serve",
        "run",
        "pull",
        "download",
        "chat",
        "push",
        "show",
        "launch",
        "cp",
        "get",
        "load",
        "clone",
    }
)
_PROGRAMS: Final = re.compile(
    r"^(?:.*/)?(?:git|vllm|sglang|llama-server|llama-cli|llama-run|llama|ollama|docker|podman|nerdctl|hf|"
    r"huggingface-cli|modelscope|lms|mlx_lm[.\w]*|trtllm-serve|text-generation-launcher|tgi|lmdeploy|"
    r"xinference|python3?(?:\.\d+)?|accelerate|torchrun|deepspeed|swift|llamafactory-cli|uvx?|"
    r"kubectl|helm|sudo|env|export|transformers|optimum-cli|aichat|llm|litellm|koboldcpp)$"
)
_WRAPPERS: Final = frozenset({"sudo", "env", "export", "uvx", "uv", "nohup", "time", "exec"})
_LOADERS: Final = {
    "ollama": "Ollama on this machine",
    "docker": "whoever runs the container",
    "podman": "whoever runs the container",
}


_HUB: Final = re.compile(
    r"(?:https?://|git@)?(?:hf\.co|huggingface\.co|(?:www\.)?modelscope\.cn)[/:][\w./:-]+"
)


class Parsed(NamedTuple):
    """The parts of a command that matter: its program, and the models that it names."""

    program: str
    models: tuple[str, ...]
    adapters: tuple[str, ...]


def is_command(text: str) -> bool:
    """Whether the first word is a program that we know to take models."""
    first = text.lstrip("$> ").split(maxsplit=1)
    return len(first) == 2 and bool(_PROGRAMS.match(first[0])) and "=" not in first[0]


def parse(text: str) -> Parsed | None:
    """Take a command apart; None where it is none. Unbalanced quotes are borne with."""
    text = text[:_CHARACTERS_MAX].lstrip("$> ").replace("\\\n", " ")
    import shlex

    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    while words and (words[0] in _WRAPPERS or re.match(r"^[A-Z_]+=", words[0])):
        if _MODEL_VARIABLES.match(words[0]):
            break
        words = words[1:]
    if not words:
        return None
    program = words[0].rpartition("/")[2]
    if program.startswith("python") and "-m" in words[:3] and words.index("-m") + 1 < len(words):
        program = words[words.index("-m") + 1].partition(".")[0]
        words = words[words.index("-m") + 1 :]
    models, adapters = _values(words, program)
    return Parsed(program, tuple(dict.fromkeys(models)), tuple(adapters))


def read(text: str, index: Index) -> Iterator[Reading]:
    """One reading for each model that the command names."""
    parsed = parse(text) if is_command(text) else None
    if parsed is None:
        return
    for model in parsed.models[:16]:
        inner = _inner(model, parsed.program, index)
        if inner is not None:
            yield _run_here(inner, parsed)


def _values(words: list[str], program: str) -> tuple[list[str], list[str]]:
    models: list[str] = []
    adapters: list[str] = []
    at = 1
    verb = ""
    while at < len(words):
        word = words[at]
        flag, equals, value = word.partition("=")
        if variable := _MODEL_VARIABLES.match(word):
            models.append(variable[1])
        elif flag in _MODEL_FLAGS:
            if not equals:
                at += 1
                value = words[at] if at < len(words) else ""
            # `-m` is the model for llama.cpp only; elsewhere it is a module or a message.
            if value and (flag != "-m" or program.startswith(("llama", "koboldcpp", "llm"))):
                models.append(value)
        elif flag in ("--lora-modules", "--lora", "--lora-paths", "--adapter", "--adapters"):
            at += 1
            adapters.append(value if equals else (words[at] if at < len(words) else ""))
        elif word in _VERBS:
            verb = word
        elif verb and not word.startswith("-") and _model_word(word, program):
            models.append(word)
            verb = verb if program in ("docker", "podman", "nerdctl") else ""
        elif program not in ("docker", "podman", "nerdctl") and "/" in word and _hub_like(word):
            models.append(word)
        at += 1
    return models, adapters


def _model_word(word: str, program: str) -> bool:
    if program in ("docker", "podman", "nerdctl"):
        return bool(
            image.DOCKER_MODEL.fullmatch(word) or image.NIM.fullmatch(word) or _HUB.fullmatch(word)
        )
    if program == "git":
        return bool(_HUB.fullmatch(word))
    return bool(re.fullmatch(r"[\w.@/:-]+", word)) and not word.startswith((".", "/"))


def _hub_like(word: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", word)) and "qw" in word.casefold()


def _inner(model: str, program: str, index: Index) -> Reading | None:
    repo = model.partition(":")[0] if model.count("/") == 1 else model
    readers: list[Iterator[Reading]] = [
        hub.read_url(model, index),
        image.read(model) if program in ("docker", "podman", "nerdctl") else iter(()),
        ollama.read(model, index, certain=True) if program == "ollama" else iter(()),
        release_name.read_negative(repo, index),
        hub.read_id(repo, index),
        ollama.read(model, index, certain=program == "ollama") if ":" in model else iter(()),
        release_name.read_file_name(model, index),
        release_name.read(model, index),
    ]
    return next((reading for each in readers for reading in each), None)


def _run_here(inner: Reading, parsed: Parsed) -> Reading:
    problems = inner.problems
    if parsed.adapters:
        problems = (
            *problems,
            f"adapters are loaded, too ({', '.join(parsed.adapters)[:200]}): each has its terms",
        )
    status = inner.status
    if parsed.program == "lms":
        status = Status.REPORTED
        problems = (
            *problems,
            "LM Studio's own catalogue resolves this name: what it loads are conversions by others",
        )
    operator = inner.operator
    if inner.layer is not Layer.STUDIO:
        operator = _LOADERS.get(
            parsed.program, f"whoever runs this command ({parsed.program[:40]})"
        )
    return msgspec.structs.replace(
        inner,
        kind=Kind.COMMAND,
        sure=max(inner.sure, Sureness.LISTED),
        why=f"named by a command of {parsed.program[:40]}; {inner.why}",
        operator=operator,
        status=status,
        problems=problems,
    )
