"""The table of references through `which`, weight-audit and aisbom-cli, side by side.

    python -m venv /tmp/audit && /tmp/audit/bin/pip install weight-audit==0.1.3 aisbom-cli==1.7.0
    python benchmarks/which_side_by_side.py --tools /tmp/audit/bin [--json rows.json]

weight-audit gets each reference as a line of its manifest (and text of several lines as a .py
file), aisbom-cli a folder with all of them and the weights files of tests/unit/test_which_files.py.
Both run offline, as `which` does. Counted, for each reference, against the document that the
names:

right    the document that governs, or no licence where none does and unknown where it is unknown
unknown  no answer where there is one
wrong    another licence than the one that governs, or any licence for an API or for nothing
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
TABLE = ROOT / "tests" / "data" / "which_table.tsv"
# What the tools call a licence, as ids of ours; generous where a name covers several editions.
SAME = {
    "apache-2.0": {"Apache-2.0"},
    "mit": {"MIT"},
    "cc-by-nc-4.0": {"CC-BY-NC-4.0"},
    "qwen-license": {
        "LicenseRef-scancode-qwen-2024",
        "LicenseRef-scancode-tongyi-qianwen-2023",
    },
}
NOTHING = ("", "unknown", "none", "noassertion", "other")
# Outside the family the table expects nothing of anybody; who knows the licence is right, too.
OUTSIDE = {"llama-community-license"}


def judged(expected: str, said: str) -> str:
    """`right`, `unknown` or `wrong`, for a document expected and a licence said."""
    said = said.casefold()
    if said in OUTSIDE and expected == "unknown":
        return "right"
    if said in NOTHING:
        return "right" if expected in ("unknown", "api-terms") else "unknown"
    names = SAME.get(said, {said})
    return "right" if expected.casefold() in {each.casefold() for each in names} else "wrong"


def ours(reference: str | Path) -> str:
    from qwenstack.catalog.which import GoverningKind, which

    answer = which(reference, files=isinstance(reference, Path))
    found = answer.governing_document
    return found.id if found.kind is GoverningKind.LICENCE else "unknown"


def weight_audit(tool: Path, references: list[str]) -> list[str]:
    """What weight-audit says of each: the first licence that it names."""
    said = []
    for reference in references:
        with tempfile.TemporaryDirectory() as folder:
            line = " ".join(reference.split()).replace(",", " ")
            if "\n" in reference or "=" in reference:
                (Path(folder) / "snippet.py").write_text(reference)
            elif line:
                (Path(folder) / "weight-audit-models.txt").write_text(line + "\n")
            done = subprocess.run(
                [str(tool), "scan", "--json", folder], capture_output=True, text=True, check=False
            )
            found = json.loads(done.stdout) if done.stdout.strip() else []
            said.append(found[0]["license_id"] if found else "")
    return said


def aisbom(tool: Path, folder: Path) -> dict[str, str]:
    """The licence that aisbom-cli gives each file in `folder`."""
    environment = os.environ | {"AISBOM_OFFLINE": "1", "AISBOM_NO_TELEMETRY": "1"}
    output = folder.parent / "bom.json"
    subprocess.run(
        [str(tool), "scan", str(folder), "--output", str(output), "--no-fail-on-risk"],
        capture_output=True,
        check=False,
        env=environment,
        timeout=600,
    )
    components = json.loads(output.read_text()).get("components", []) if output.exists() else []
    licences: dict[str, str] = {}
    for each in components:
        choices = [c.get("license", {}) for c in each.get("licenses", [])]
        name = next((c.get("id") or c.get("name", "") for c in choices), "")
        licences[Path(each.get("name", "")).name] = name
    return licences


def files(folder: Path) -> dict[str, str]:
    """Weights files as the tests make them: name and the document that is right to name."""
    from tests.unit.test_which_files import gguf, safetensors, write_gguf

    base: dict[str, str | int] = {
        "general__base_model__count": 1,
        "general__base_model__0__repo_url": "https://huggingface.co/Qwen/Qwen2.5-3B",
    }
    gguf(folder / "makers.gguf", general__organization="Qwen", general__license="apache-2.0")
    gguf(folder / "conflict.gguf", general__license="apache-2.0", **base)
    gguf(folder / "silent.gguf")
    gguf(folder / "research.gguf", general__license="other",
         general__license__name="qwen-research", general__organization="Qwen")  # fmt: skip
    write_gguf(folder / "qwen3-8b.gguf", {"general.architecture": "llama"}, {"a.weight": [4, 2]})
    safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [8, 8]}, {})
    return {
        "makers.gguf": "Apache-2.0",
        "conflict.gguf": "Apache-2.0",  # as stated; the conflict is to be said beside it
        "silent.gguf": "unknown",
        "research.gguf": "LicenseRef-scancode-qwen-research-2024",
        "qwen3-8b.gguf": "unknown",
        "model.safetensors": "unknown",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tools", type=Path, required=True, help="folder of the two programs")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    arguments = parser.parse_args()
    lines = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
    table = [(json.loads(line[0]), line[3]) for line in lines]
    rows: list[dict[str, str]] = []
    audited = weight_audit(arguments.tools / "weight-audit", [each for each, _ in table])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        folder.mkdir()
        made = files(folder)
        for number, (reference, _) in enumerate(table):
            (folder / f"reference-{number}.py").write_text(f"model = {reference!r}\n")
        boms = aisbom(arguments.tools / "aisbom", folder)
        for number, (reference, expected) in enumerate(table):
            rows.append(
                {
                    "reference": reference,
                    "expected": expected,
                    "which": ours(reference),
                    "weight-audit": audited[number],
                    "aisbom": boms.get(f"reference-{number}.py", ""),
                }
            )
        for name, expected in made.items():
            rows.append(
                {
                    "reference": name,
                    "expected": expected,
                    "which": ours(folder / name),
                    "weight-audit": "",
                    "aisbom": boms.get(name, ""),
                }
            )
    for tool in ("which", "weight-audit", "aisbom"):
        counted = collections.Counter(judged(row["expected"], row[tool]) for row in rows)
        licensed = collections.Counter(
            judged(row["expected"], row[tool])
            for row in rows
            if row["expected"] not in ("unknown", "api-terms")
        )
        print(f"{tool}: all {dict(counted)}; where a licence governs {dict(licensed)}")
        for row in rows:
            if judged(row["expected"], row[tool]) == "wrong" and tool == "which":
                print("  wrong:", row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
