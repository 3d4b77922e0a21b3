"""Finds references to models inside text: source, configuration, commands, notebooks, prose.

A word that only contains the family's name is no reference: `Qwen2ForCausalLM` is a class,
`qwen_vl_utils` a module. What counts is a form that some program would resolve to a model, and for
names without an organisation also what stands around them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from qwenstack.catalog.which import provider
from qwenstack.catalog.which.hub import FOLDERS
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Setting
from qwenstack.catalog.which.spelling import ODD, fold
from qwenstack.catalog.which.spelling import plain as in_latin


class Mention(msgspec.Struct, frozen=True):
    """A reference in a text: what is written, where it begins, and its setting."""

    text: str
    start: int
    setting: Setting


TOKEN_CHARACTERS_MAX: Final = 300
_SETTING_CHARACTERS: Final = 65_536
_LINE_CHARACTERS: Final = 500  # of a line, on each side: some files are one line
_HITS_MAX: Final = 50_000
_TOKEN: Final = re.compile(r"[\w@][\w.@:/+%-]*")
NEEDLES: Final = (
    "qwen", "qwq", "qvq", "tongyi", "aliyuncs", "dashscope", "skywork-or1", "kimi-dev", "marco-o1",
    "open-thoughts", "light-r1", "fin-r1", "open-reasoner", "s1-32b", "embeddings-v4",
    "text-embedding-v", "gte-rerank", "ui-tars", "nvlm-d", "cogito-v1", "smallthinker",
    "deepcoder-1", "deepscaler-1", "acereason-nemotron", "reasoning-nemotron", "embed-nemotron",
    "sa2va-4b", "internvl2_5-4b", "monkeyocr", "dolphin-v2", "hermes-4-14b", "sky-t1", "limo-v2",
    "eurus-2-7b", "polaris-4b", "polaris-7b", "mirothinker-v", "huatuogpt-o1", "swe-agent-lm",
    "openhands-lm", "jan-nano", "goedel-prover-v2", "jina-reranker-v3", "embeddings-v5",
    "mxbai-rerank", "inf-retriever", "harrier-oss", "pplx-embed", "octen-embedding", "zerank-2",
    "zembed-1", "kalm-embedding", "e5-omni", "deepseek-r1:1.5b", "deepseek-r1:7b",
    "deepseek-r1:14b", "deepseek-r1:32b", "kevin-32b",
)  # fmt: skip
"""A reference to a model of the family, or made from one, holds one of these in any case."""

_ESCAPES: Final = re.compile(r"\\[nrt\"'\\]")
_URL: Final = re.compile(r"(?:https?|wss?)://", re.IGNORECASE)

_SETTING_WORDS: Final = {
    Setting.API: ("dashscope", "model studio", "modelstudio", "bailian", "compatible-mode"),
    Setting.OLLAMA: ("ollama",),
    Setting.WEIGHTS: (
        "from_pretrained", "vllm", "sglang", "hf_hub_download", "snapshot_download", "hf download",
        "huggingface-cli", "llama-server", "model_path", "model-path", "model_id", "model-id",
        "tokenizer", "automodel", "pipeline(", "modelscope",
    ),
}  # fmt: skip
_SAYS_MODEL: Final = re.compile(
    r"model|checkpoint|base|engine|deployment|llm|embed|rerank|name|id|pull|run|serve|image|FROM",
    re.IGNORECASE,
)
_OUTPUT: Final = re.compile(r"(?:^|[_-])(?:outputs?|ckpts?|checkpoints?|models?|weights)$", re.I)
_DATASET: Final = re.compile(r"data_?set|load_dataset", re.IGNORECASE)
_COUNTED: Final = re.compile(r"\d{2,}k\b", re.IGNORECASE)  # `…-114k` counts a dataset's rows
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
    plain = _ESCAPES.sub("  ", text) if "\\" in text else text
    folded = _lower(plain)
    whole: Setting | None = None
    done = -1
    doubles = collections.deque(look_alikes(plain, index, prose=prose))
    for at in _hits(folded):
        if at < done:
            continue
        while doubles and doubles[0].start <= at:
            double = doubles.popleft()
            yield double
            done = double.start + len(double.text)
        if at < done:
            continue
        back = max(0, at - _LINE_CHARACTERS)
        line_start = max(plain.rfind("\n", back, at) + 1, back)
        start, token = _token(plain, at, max(line_start, done))
        done = max(start + len(token), at + 1)
        if not token or len(token) > TOKEN_CHARACTERS_MAX:
            continue
        line_end = plain.find("\n", at, at + _LINE_CHARACTERS)
        line = plain[line_start : line_end if line_end >= 0 else at + _LINE_CHARACTERS]
        setting = setting_of(line)
        if setting is Setting.ANY:
            whole = setting_of(folded[:_SETTING_CHARACTERS]) if whole is None else whole
            setting = whole
        if _refers(token, plain, start, line, setting, index, prose):
            yield Mention(token, start, setting)
    yield from doubles


def look_alikes(text: str, index: Index, *, prose: bool = False) -> Iterator[Mention]:
    """Words of `text` that only look like a reference: letters of other scripts, hidden ones."""
    if not odd(text):
        return
    done = -1
    for number, match in enumerate(ODD.finditer(text)):
        if number >= _HITS_MAX:
            return
        if match.start() < done:
            continue
        start = match.start()
        while start > max(done, 0) and match.start() - start < TOKEN_CHARACTERS_MAX:
            if not (_part(text[start - 1]) or ODD.match(text[start - 1])):
                break
            start -= 1
        end = match.end()
        while end < len(text) and end - start <= TOKEN_CHARACTERS_MAX:
            if not (_part(text[end]) or ODD.match(text[end])):
                break
            end += 1
        done = end
        token = text[start:end].rstrip(".:/-+%@")
        latin = in_latin(token)
        if latin == token or not latin.isascii() or not _interesting(latin):
            continue
        back = max(text.rfind("\n", max(0, start - _LINE_CHARACTERS), start) + 1, 0)
        line = text[max(back, start - _LINE_CHARACTERS) : start] + latin
        around = f"{text[start - 1] if start else ''}{latin}{text[end : end + 2]}"
        at = 1 if start else 0
        setting = setting_of(line)
        if _refers(latin, around, at, line, setting, index, prose):
            yield Mention(token, start, setting)


def odd(text: str) -> bool:
    """Whether `text` holds a character that can make a name look like another."""
    return ODD.search(text) is not None


def setting_of(text: str) -> Setting:
    """Who resolves names in `text`, where the words in it speak for one only."""
    folded = text.lower()
    found = [
        setting
        for setting, words in _SETTING_WORDS.items()
        if any(word in folded for word in words)
    ]
    return found[0] if len(found) == 1 else Setting.ANY


def _lower(text: str) -> str:
    """`text` in lower case and of the same length, so that places in one are places in both."""
    folded = text.lower()
    if len(folded) != len(text):
        folded = "".join(each.lower() if each.isascii() else each for each in text)
    return folded


def _hits(folded: str) -> list[int]:
    """Where a needle begins, in order."""
    hits: set[int] = set()
    for needle in NEEDLES:
        at = folded.find(needle)
        while at >= 0:
            hits.add(at)
            if len(hits) >= _HITS_MAX:
                return sorted(hits)
            at = folded.find(needle, at + 1)
    return sorted(hits)


def _interesting(text: str) -> bool:
    folded = text.lower()
    return any(needle in folded for needle in NEEDLES)


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
    if provider.is_own_form(token):
        return True
    if "/" in token:
        return _slashed(token, line, index)
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
    return _interesting(path) and not path.startswith(("blog", "docs", "papers", "datasets"))


def _slashed(token: str, line: str, index: Index) -> bool:
    parts = [part for part in token.split("/") if part]
    if len(parts) < 2:
        return False
    tail = "/".join(parts[-2:]).partition(":")[0]
    if index.catalogue.find_repo(tail) or index.catalogue.find_derivative(tail):
        return True
    if index.catalogue.find_negative(tail):
        return True
    if parts[0].casefold() in FOLDERS or _OUTPUT.search(parts[0]) or token[0] in "./~":
        return False
    if "@" in token[1:] or _DATASET.search(line) or _COUNTED.search(parts[-1]):
        return False
    # `Qwen3.5/Qwen3.6` in prose: either, and not one inside the other.
    first = fold(parts[0])
    if first not in index.makers and any(
        first in n for n in (index.generation_names, index.release_names, index.repo_names)
    ):
        return False
    if len(parts) > 2:
        return parts[0] in _SERVED
    name = parts[1].partition(":")[0]
    # A model's name has a size or a version in it; a folder's seldom has.
    return bool(_interesting(name) and re.search(r"\d", name) and re.search(r"[-.:]", parts[1]))


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
