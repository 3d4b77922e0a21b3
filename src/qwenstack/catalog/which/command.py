"""Command lines that run or fetch a model: vLLM, SGLang, llama.cpp, Ollama, Docker, hub clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import hub, image, ollama, provider, release_name
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core.layers import Layer

_CHARACTERS_MAX: Final = 16_384
_MODEL_FLAGS: Final = (
    "--model", "--model-path", "--model_path", "--model-id", "--model_id", "--model_name_or_path",
    "--model-name-or-path", "--hf-repo", "-hf", "-hfr", "--repo-id", "--repo_id", "-m",
    "--pretrained_model_name_or_path", "--base-model", "--base_model",
)  # fmt: skip
_BESIDE: Final = re.compile(
    r"--?(?:lora(?:[-_]modules|[-_]paths)?|adapters?|(?:spec\w*[-_])?draft[-_\w]*|speculative[-_\w]*|"
    r"model[-_]draft|md|hfd|hfrd|hf[-_]repo[-_]draft|mmproj[-_\w]*)"
)
"""Flags for what is loaded beside the model: adapters, draft models, projectors."""
_LABELS: Final = re.compile(
    r"--?(?:served[-_]model[-_]name|alias|a|[-_\w]*tokenizer[-_\w]*|"
    r"(?:[-_\w]*[-_])?(?:output|save|log|cache|local|download|target|dataset|project|template)[-_\w]*|"
    r"(?:hub|run|job|container)?[-_]?(?:model[-_]id[-_]out|name)|hub[-_]model[-_]id|push[-_\w]*|"
    r"revision|code[-_]revision|api[-_]key|e|v|env|volume)"
)
"""Flags whose values only name or place something: they say nothing about which model is loaded."""
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
    r"xinference|aider|python3?(?:\.\d+)?|accelerate|torchrun|deepspeed|swift|llamafactory-cli|uvx?|"
    r"kubectl|helm|sudo|env|export|transformers|optimum-cli|aichat|llm|litellm|koboldcpp|ramalama)$"
)
_BY_PROVIDER: Final = frozenset({"litellm", "aider", "aichat", "llm"})
"""Programs that call APIs: the part of a name before its first slash says whose."""
_ASSIGNMENTS: Final = re.compile(r"(?:[A-Z_][A-Z0-9_]*=\S*\s+)+")
_HUB_CLIENTS: Final = frozenset({"hf", "huggingface-cli", "modelscope"})
_UPLOADS: Final = frozenset({"upload", "upload-large-folder"})
_CONTAINERS: Final = frozenset({"docker", "podman", "nerdctl"})
_SERVERS: Final = frozenset({"vllm", "sglang", "lmdeploy", "trtllm-serve", "transformers", "swift"})
_PATH: Final = re.compile(r"(?:\.{1,2}|~|\$\w+|\$\{\w+\})?/|[\w./-]+/$")
_WRAPPERS: Final = frozenset({"sudo", "env", "export", "uvx", "uv", "nohup", "time", "exec"})
_LOADERS: Final = {
    "ollama": "Ollama on this machine",
    "docker": "whoever runs the container",
    "podman": "whoever runs the container",
}


_HUB: Final = re.compile(
    r"(?:https?://|git@)?(?:hf\.co|huggingface\.co|(?:www\.)?modelscope\.cn|github\.com)[/:][\w./:-]+"
)


class Parsed(NamedTuple):
    """The parts of a command that matter: its program, and the models that it names.

    `beside` is loaded with the model: adapters and draft models. `local` is the path from which the
    model itself is loaded, `target` the repo that files are sent to.
    """

    program: str
    models: tuple[str, ...]
    beside: tuple[str, ...]
    local: str
    target: str = ""


def is_command(text: str) -> bool:
    """Whether the first word is a program that we know to take models."""
    text = text.lstrip("$> ")
    leading = _ASSIGNMENTS.match(text)
    if leading and not any(_MODEL_VARIABLES.match(each) for each in leading[0].split()):
        text = text[leading.end() :]
    first = text.split(maxsplit=1)
    return len(first) == 2 and bool(_PROGRAMS.match(first[0])) and "=" not in first[0]


def parse(text: str) -> Parsed | None:
    """Take a command apart; None where it is none. Unbalanced quotes are borne with."""
    text = text[:_CHARACTERS_MAX].lstrip("$> ").replace("\\\n", " ")
    import shlex

    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    while words and (words[0] in _WRAPPERS or _ASSIGNMENTS.match(words[0] + " ")):
        if _MODEL_VARIABLES.match(words[0]):
            break
        words = words[1:]
    if not words:
        return None
    program = words[0].rpartition("/")[2]
    if program.startswith("python") and "-m" in words[:3] and words.index("-m") + 1 < len(words):
        program = words[words.index("-m") + 1].partition(".")[0]
        words = words[words.index("-m") + 1 :]
    return _values(words, program)


def read(text: str, index: Index) -> Iterator[Reading]:
    """One reading for each model that the command names."""
    parsed = parse(text) if is_command(text) else None
    if parsed is None:
        return
    found = 0
    for model in parsed.models[:16]:
        inner = _inner(model, parsed.program, index)
        if inner is not None:
            found += 1
            # The first model is what the command is about, however little is known of it.
            yield _run_here(inner, parsed, Sureness.EXACT if found == 1 else Sureness.LISTED)
    if parsed.target:
        yield _unread(
            f"it sends files to {parsed.target[:120]!r}: the name says where they go, and not "
            "what they are",
            parsed.target,
            parsed,
        )
    elif not found and parsed.local:
        yield _unread(
            f"it loads {parsed.local[:120]!r}, whose files were not read; the name that it is "
            "served by, or a tokenizer beside it, does not say what it is",
            parsed.local,
            parsed,
        )


def _unread(why: str, subject: str, parsed: Parsed) -> Reading:
    reading = Reading(
        kind=Kind.COMMAND,
        sure=Sureness.EXACT,
        why=why,
        subject=subject,
        status=Status.UNKNOWN,
    )
    return _run_here(reading, parsed, Sureness.EXACT)


def _values(words: list[str], program: str) -> Parsed:
    """Sort the words: a flag that says what its value is wins over a word that could be a model."""
    models: list[str] = []
    beside: list[str] = []
    after_flags: list[str] = []
    local = verb = before = ""
    if program in _HUB_CLIENTS and len(words) > 2 and words[1] in _UPLOADS:
        return Parsed(program, (), (), "", words[2])
    at = 0
    while (at := at + 1) < len(words):
        word, before = words[at], words[at - 1]
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
                local = local or (value if _PATH.match(value) else "")
        elif _BESIDE.fullmatch(flag):
            at = at if equals else at + 1
            beside.append(value if equals else (words[at] if at < len(words) else ""))
        elif _LABELS.fullmatch(flag):
            while not equals and at + 1 < len(words) and not words[at + 1].startswith("-"):
                at += 1
                if flag in ("-e", "--env") and (variable := _MODEL_VARIABLES.match(words[at])):
                    models.append(variable[1])
                if flag != "--served-model-name":
                    break
        elif word in _VERBS:
            verb = word
        elif _is_model(word, program, verb):
            # After a flag that we don't know it may be that flag's value.
            (after_flags if before.startswith("-") and "=" not in before else models).append(word)
            verb = verb if program in _CONTAINERS else ""
        elif verb and program in _SERVERS and _PATH.match(word) and not before.startswith("-"):
            local, verb = local or word, ""
    if not models and not local:
        models = after_flags
    return Parsed(program, tuple(dict.fromkeys(models)), tuple(beside), local)


def _is_model(word: str, program: str, verb: str) -> bool:
    if word.startswith("-"):
        return False
    if verb and _model_word(word, program):
        return True
    return program not in (*_CONTAINERS, "ollama") and "/" in word and _hub_like(word)


def _model_word(word: str, program: str) -> bool:
    if program in _CONTAINERS:
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
        provider.read(model, index) if program in _BY_PROVIDER else iter(()),
        image.read(model) if program in _CONTAINERS else iter(()),
        ollama.read(model, index, certain=True) if program == "ollama" else iter(()),
        release_name.read_negative(repo, index),
        hub.read_id(repo, index),
        ollama.read(model, index, certain=program == "ollama") if ":" in model else iter(()),
        release_name.read_file_name(model, index),
        release_name.read(model, index),
    ]
    return next((reading for each in readers for reading in each), None)


def _run_here(inner: Reading, parsed: Parsed, sure: Sureness) -> Reading:
    problems = inner.problems
    if parsed.beside:
        problems = (
            *problems,
            f"adapters or other models are loaded, too ({', '.join(parsed.beside)[:200]}): each "
            "has its terms",
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
        sure=sure,
        why=f"named by a command of {parsed.program[:40]}; {inner.why}",
        operator=operator,
        status=status,
        problems=problems,
    )
