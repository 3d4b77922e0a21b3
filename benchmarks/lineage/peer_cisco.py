"""Run cisco-ai-provenance-kit over the zoo; needs its own environment (Python 3.12 or newer).

    python3.12 -m venv CISCO && CISCO/bin/pip install cisco-ai-provenance-kit==1.0.0
    CISCO/bin/python benchmarks/lineage/peer_cisco.py ZOO [FAMILIES]

Its own scanner does the work: `ModelProvenanceScanner.compare`, as its command `compare` does;
what it extracts of a model is kept in memory, so that a model is read once and not once a pair.
Two figures are kept of each pair: its decision as shipped (`pipeline_score`, which metadata
alone can settle) in `cisco-decision.json`, and the score of its weight signals
(`identity_score`) in `cisco.json`. It reads folders of safetensors with a
`config.json`; GGUF files, packed int4 and adapters it cannot take. Standard library only, so
that it runs in that environment.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Score all pairs of models of one architecture in the zoo."""
    zoo = Path(sys.argv[1]).resolve()
    families = sys.argv[2].split(",") if len(sys.argv) > 2 else []
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from provenancekit.core.scanner import (  # type: ignore[import-not-found]
        ModelProvenanceScanner,
    )
    from provenancekit.services.cache import NullCache  # type: ignore[import-not-found]

    entries = json.loads((zoo / "manifest.json").read_text())["entries"]
    entries = [entry for entry in entries if not families or entry["family"] in families]
    usable = [entry for entry in entries if entry["format"] == "safetensors"]
    scanner = ModelProvenanceScanner(cache=NullCache())
    scanner._extract_model = functools.cache(scanner._extract_model)
    identity: dict[str, float | None] = {}
    decision: dict[str, float | None] = {}
    refused: dict[str, str] = {}
    words: dict[str, int] = {}
    begun = time.perf_counter()
    for place, first in enumerate(usable):
        for second in usable[place + 1 :]:
            if first["architecture"] != second["architecture"]:
                continue
            if {first["id"], second["id"]} & refused.keys():
                continue
            key = "|".join(sorted((first["id"], second["id"])))
            paths = [str(zoo / entry["path"]) for entry in (first, second)]
            try:
                said = scanner.compare(*paths).model_dump()
            except Exception as error:  # noqa: BLE001 - a peer's failure is a finding, not ours
                print(f"{key}: {error}", file=sys.stderr)
                refused[second["id"]] = str(error)[:200]
                continue
            scores = said["scores"]
            identity[key] = scores["identity_score"]
            decision[key] = scores["pipeline_score"]
            words[scores["provenance_decision"]] = words.get(scores["provenance_decision"], 0) + 1
        print(f"{place + 1} of {len(usable)} models, {len(identity)} pairs", file=sys.stderr)
    spent = time.perf_counter() - begun
    cannot = [entry["id"] for entry in entries if entry["format"] != "safetensors"]
    about = {"no_features": [*cannot, *refused], "seconds_scores": spent, "families": families}
    for name, scores in (("cisco", identity), ("cisco-decision", decision)):
        (zoo / "scores").mkdir(exist_ok=True)
        (zoo / "scores" / f"{name}.json").write_text(json.dumps({"scores": scores} | about))
    print(json.dumps({"decisions": words, "refused": refused}, indent=2))


if __name__ == "__main__":
    main()
