"""How to run a release: commands that a reader can paste, with this hub's address in them."""

from __future__ import annotations

import re
import shlex

import msgspec

from qwenstack.hub.registry.manifests import Manifest
from qwenstack.hub.registry.repos import Repo

_QUANTISATION = re.compile(
    r"(?i)(?:^|[-._])((?:I?Q\d+(?:_[A-Z0-9]+)*|F16|BF16|F32|TQ\d_\d|MXFP4))\.gguf$"
)


class Recipe(msgspec.Struct, frozen=True):
    """One way to use a release: for which tool, and what to type."""

    tool: str
    text: str


def recipes(repo: Repo, files: Manifest, endpoint: str, *, closed: bool) -> list[Recipe]:
    """The ways that these files allow. `closed`: reading needs a token."""
    paths = [entry.path for entry in files]
    set_up = f"export HF_ENDPOINT={endpoint}"
    if closed:
        set_up += "\nexport HF_TOKEN=hf_…"
    if repo.kind == "dataset":
        return [
            Recipe("datasets", f"{set_up}\n{_python(_load_dataset(repo.name))}"),
            Recipe("hf", f"{set_up}\nhf download --repo-type dataset {repo.name}"),
        ]
    found: list[Recipe] = []
    gguf = next((path for path in paths if path.endswith(".gguf")), None)
    if "adapter_config.json" in paths:
        found.append(Recipe("peft", f"{set_up}\n{_python(_load_adapter(repo.name))}"))
    elif "config.json" in paths and any(path.endswith(".safetensors") for path in paths):
        found.append(Recipe("transformers", f"{set_up}\n{_python(_load_model(repo.name))}"))
        found.append(Recipe("vLLM", f"{set_up}\nvllm serve {repo.name}"))
    if gguf is not None:
        found.append(Recipe("llama.cpp", f"{set_up}\nllama-cli -hf {repo.name}{_tag(gguf)}"))
        file = shlex.quote(gguf)
        pull = f"qwenstack hub pull {repo.name} ./model --include {file}"
        found.append(Recipe("qwenstack", f"{set_up}\n{pull}\nqwenstack up --model ./model/{file}"))
    found.append(Recipe("hf", f"{set_up}\nhf download {repo.name}"))
    return found


def _tag(path: str) -> str:
    """llama.cpp's name of a quantisation, where the file's name has one."""
    found = _QUANTISATION.search(path)
    return f":{found[1].upper()}" if found else ""


def _python(lines: list[str]) -> str:
    return "python - <<'END'\n" + "\n".join(lines) + "\nEND"


def _load_model(name: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'name = "{name}"',
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        "model = AutoModelForCausalLM.from_pretrained(name)",
        'batch = tokenizer("Hello", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**batch, max_new_tokens=32)[0]))",
    ]


def _load_adapter(name: str) -> list[str]:
    return [
        "from peft import AutoPeftModelForCausalLM",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
        "print(model)",
    ]


def _load_dataset(name: str) -> list[str]:
    return ["from datasets import load_dataset", f'print(load_dataset("{name}"))']
