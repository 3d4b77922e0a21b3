"""What a release's JSON files make a loader do: fetch code, or import a package that they name.

transformers imports what `auto_map` and `custom_pipelines` name (with trust_remote_code), and runs
a kernel from a repo that `_attn_implementation` names; PEFT imports `parent_library`;
sentence-transformers imports each `type` in modules.json.
"""

from __future__ import annotations

import json
from typing import Final

from qwenstack.hub.safety.findings import Findings
from qwenstack.hub.safety.templates import check_templates

_TEMPLATE_HOLDERS: Final = frozenset(
    {"tokenizer_config.json", "processor_config.json", "chat_template.json"}
)
_CONFIGS: Final = frozenset(
    {
        "config.json", "generation_config.json", "preprocessor_config.json", "model_index.json",
        "video_preprocessor_config.json", "adapter_config.json", "modules.json",
    }
)  # fmt: skip
_CODE_KEYS: Final = ("auto_map", "custom_pipelines", "custom_generate")
_ATTENTION_KEYS: Final = ("_attn_implementation", "attn_implementation", "experts_implementation")
_KNOWN_LIBRARIES: Final = ("transformers", "sentence_transformers", "diffusers", "timm")


def config_kind(name: str) -> str | None:
    """How the file of this name is scanned, if it is one that loaders take orders from."""
    last = name.rpartition("/")[2]
    if last in _TEMPLATE_HOLDERS:
        return "config-template"
    return f"config-{last.partition('.')[0]}"[:40] if last in _CONFIGS else None


def check_config(path: str, document: bytes | None, found: Findings) -> None:
    """Note what the JSON `document` makes loaders import, and check the templates that it holds."""
    if document is None:
        return
    try:
        config = json.loads(document, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        found.add("config-unreadable", f"it is no plain JSON: {error}")
        return
    if path.lower().endswith("modules.json"):
        _check_modules(config, found)
    if not isinstance(config, dict):
        return
    for key in _CODE_KEYS:
        if config.get(key):
            found.add("custom-code", f"{key} names code to load: {json.dumps(config[key])[:200]}")
    for key in _ATTENTION_KEYS:
        if isinstance(value := config.get(key), str) and "/" in value:
            found.add("custom-code", f"{key} names a kernel to fetch and run: {value}")
    _check_mapping(config.get("auto_mapping"), found)
    if path.lower().rpartition("/")[2] in _TEMPLATE_HOLDERS:
        check_templates(templates_in(config), found)


def templates_in(config: dict[str, object]) -> dict[str, str]:
    """The chat templates of a tokenizer's configuration, by a name for messages."""
    value = config.get("chat_template")
    if isinstance(value, str):
        return {"chat_template": value}
    templates: dict[str, str] = {}
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    if isinstance(value, list):
        for number, item in enumerate(value[:64]):
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[f"chat_template {number} {item.get('name')}"] = item["template"]
    return templates


def _check_mapping(mapping: object, found: Findings) -> None:
    if not isinstance(mapping, dict):
        return
    library = mapping.get("parent_library")
    if isinstance(library, str) and library.partition(".")[0] not in _KNOWN_LIBRARIES:
        found.add("custom-code", f"parent_library names a package to import: {library}")


def _check_modules(modules: object, found: Findings) -> None:
    for module in modules if isinstance(modules, list) else ():
        kind = module.get("type") if isinstance(module, dict) else None
        if isinstance(kind, str) and not kind.startswith("sentence_transformers."):
            found.add("custom-code", f"modules.json names a class to import: {kind}")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {key[:100]!r} comes twice")
        members[key] = value
    return members
