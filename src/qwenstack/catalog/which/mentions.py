"""Finds references to models inside text: source, configuration, commands, notebooks, prose.

A word that only contains the family's name is no reference: `Qwen2ForCausalLM` is a class,
`qwen_vl_utils` a module. What counts is a form that some program would resolve to a model, and for
names without an organisation also what stands around them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.spelling import fold


class Setting(enum.Enum):
    """Who is going to resolve a name, by what stands around it."""

    ANY = "any"
    API = "api"
    """The vendor's API: a DashScope host, key or client."""
    OLLAMA = "ollama"
    WEIGHTS = "weights"
    """A program that loads weights: transformers, vLLM, llama.cpp, a hub client."""


class Mention(msgspec.Struct, frozen=True):
    """A reference in a text: what is written, where it begins, and its setting."""

    text: str
    start: int
    setting: Setting


TOKEN_CHARACTERS_MAX: Final = 300
_TOKEN: Final = re.compile(r"[\w@][\w.@:/+%-]*")
_INTERESTING: Final = re.compile(
    r"qwen|qwq|qvq|tongyi|aliyuncs|dashscope|skywork-or1|kimi-dev|marco-o1|open-?thought|openthinker"
    r"|light-r1|fin-r1|open-reasoner|s1-32b|embeddings-v4|text-embedding-v|gte-rerank|ui-tars|nvlm-d"
    r"|cogito-v1",
    re.IGNORECASE,
)
_ESCAPES: Final = re.compile(r"\\[nrt\"'\\]")
_URL: Final = re.compile(r"(?:https?|wss?)://", re.IGNORECASE)

_API_WORDS: Final = re.compile(r"dashscope|model-?studio|bailian|compatible-mode", re.IGNORECASE)
_OLLAMA_WORDS: Final = re.compile(r"ollama", re.IGNORECASE)
_WEIGHTS_WORDS: Final = re.compile(
    r"from_pretrained|\bvllm\b|sglang|hf_hub_download|snapshot_download|huggingface-cli|\bhf down"
    r"|llama-server|model[-_]path|model[-_]id|tokenizer|AutoModel|pipeline\(|modelscope",
    re.IGNORECASE,
)
_SAYS_MODEL: Final = re.compile(
    r"model|checkpoint|base|engine|deployment|llm|embed|rerank|name|id|pull|run|serve|image|FROM",
    re.IGNORECASE,
)
_FOLDERS: Final = frozenset(
    {
        "src", "lib", "docs", "doc", "test", "tests", "examples", "example", "scripts", "script",
        "config", "configs", "conf", "models", "model", "data", "dataset", "datasets", "assets",
        "tools", "recipes", "benchmarks", "output", "outputs", "checkpoints", "ckpt", "ckpts",
        "pretrained", "weights", "tmp", "var", "home", "root", "mnt", "opt", "usr", "app", "apps",
        "packages", "modules", "projects", "plugins", "templates", "train", "eval", "results",
        "logs", "cache", "images", "figures", "static", "resource", "resources", "hf", "components",
    }
)  # fmt: skip
_SERVED: Final = frozenset(
    {"openrouter", "accounts", "@cf", "hf.co", "together_ai", "deepinfra", "fireworks_ai",
     "huggingface", "ollama", "bedrock", "nvidia_nim", "registry.ollama.ai", "nvcr.io"}
)  # fmt: skip
_FILE: Final = re.compile(
    r"\.(?:py|pyi|ipynb|md|rst|txt|sh|bash|ya?ml|json|jsonl|toml|cfg|ini|c|cc|cpp|cu|cuh|h|hpp|rs|go|"
    r"java|kt|swift|js|jsx|ts|tsx|css|html?|png|jpe?g|gif|svg|pdf|csv|tsv|parquet|tar|gz|zip|whl|lock|"
    r"log|patch|diff|jinja2?|tiktoken|model|so|o|a|mp3|mp4|wav)$",
    re.IGNORECASE,
)
_WEIGHTS_FILE: Final = re.compile(r"\.(?:gguf|safetensors)$", re.IGNORECASE)
_DOCKER_TAIL: Final = re.compile(r"^[\w.-]+(?::\d+)?/")


def find(text: str, index: Index, *, prose: bool = False) -> Iterator[Mention]:
    """The references in `text`, in order. In `prose` a bare name must stand in code quotes."""
    # Escapes in JSON and source would stick to the word behind them; the length must not change.
    plain = _ESCAPES.sub("  ", text)
    whole = setting_of(plain)
    done = -1
    for hit in _INTERESTING.finditer(plain):
        if hit.start() < done:
            continue
        line_start = plain.rfind("\n", 0, hit.start()) + 1
        start, token = _token(plain, hit.start(), max(line_start, done))
        done = max(start + len(token), hit.end())
        if not token or len(token) > TOKEN_CHARACTERS_MAX:
            continue
        line_end = plain.find("\n", hit.end())
        line = plain[line_start : line_end if line_end >= 0 else len(plain)][:1000]
        near = setting_of(line)
        setting = near if near is not Setting.ANY else whole
        if _refers(token, plain, start, line, setting, index, prose):
            yield Mention(token, start, setting)


def setting_of(text: str) -> Setting:
    """Who resolves names in `text`, where the words in it speak for one only."""
    found = [
        setting
        for setting, words in (
            (Setting.API, _API_WORDS),
            (Setting.OLLAMA, _OLLAMA_WORDS),
            (Setting.WEIGHTS, _WEIGHTS_WORDS),
        )
        if words.search(text)
    ]
    return found[0] if len(found) == 1 else Setting.ANY


def _token(text: str, at: int, floor: int) -> tuple[int, str]:
    """The run of reference characters around `at`, without what only ends a sentence."""
    start = at
    while start > floor and at - start < TOKEN_CHARACTERS_MAX and _part(text[start - 1]):
        start -= 1
    match = _TOKEN.match(text, start) or _TOKEN.match(text, at)
    if match is None:
        return at, ""
    return match.start(), match[0].rstrip(".:/-+%@")


def _part(letter: str) -> bool:
    return letter.isalnum() or letter in "_.@:/+%-"


def _refers(
    token: str, text: str, start: int, line: str, setting: Setting, index: Index, prose: bool
) -> bool:
    if _URL.match(token):
        return _url(token, index)
    if _WEIGHTS_FILE.search(token):
        return True
    if _FILE.search(token) and not token.endswith(".model"):
        return False
    if "/" in token:
        return _slashed(token, index)
    if "." in token and index.catalogue.find_host(token) is not None:
        return True
    quoted = _quoted(text, start, start + len(token))
    if index.catalogue.find_hosted(token) is not None and token == token.lower():
        return quoted or (not prose and bool(_SAYS_MODEL.search(line)))
    if ":" in token:
        name = token.partition(":")[0].casefold()
        return name in index.ollama_families and not token.endswith(":latest:")
    if fold(token) in index.repo_names or fold(token) in index.release_names:
        return quoted or (not prose and bool(_SAYS_MODEL.search(line)))
    return setting is Setting.OLLAMA and token in index.ollama_families and _after_run(line, token)


def _url(token: str, index: Index) -> bool:
    host, _, path = token.partition("://")[2].partition("/")
    record = index.catalogue.find_host(host.partition(":")[0])
    if record is None:
        return False
    if record.kind == "api":
        return True
    return bool(_INTERESTING.search(path)) and not path.startswith(
        ("blog", "docs", "papers", "datasets")
    )


def _slashed(token: str, index: Index) -> bool:
    parts = [part for part in token.split("/") if part]
    if len(parts) < 2:
        return False
    tail = "/".join(parts[-2:]).partition(":")[0]
    if index.catalogue.find_repo(tail) or index.catalogue.find_derivative(tail):
        return True
    if index.catalogue.find_negative(tail):
        return True
    if parts[0].casefold() in _FOLDERS or token[0] in "./~" or "@" in token[1:]:
        return False
    if len(parts) > 2:
        return parts[0] in _SERVED
    name = parts[1].partition(":")[0]
    # A model's name has a size or a version in it; a folder's seldom has.
    return bool(
        _INTERESTING.search(name) and re.search(r"\d", name) and re.search(r"[-.:]", parts[1])
    )


def _quoted(text: str, start: int, end: int) -> bool:
    before = text[start - 1] if start else ""
    after = text[end] if end < len(text) else ""
    if before in "\"'`" and after in "\"'`":
        return True
    # An escaped quote was blanked: two spaces on each side, inside a line of a notebook.
    return text[max(0, start - 2) : start] == "  " and text[end : end + 2] == "  "


def _after_run(line: str, token: str) -> bool:
    return bool(
        re.search(rf"(?:run|pull|create|model[\"']?\s*[=:])\s*[\"']?{re.escape(token)}\b", line)
    )
