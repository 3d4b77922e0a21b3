"""Real text that a machine already has, by domain, and byte-level BPE tokenizers over it.

The text is what packages ship: Python's library, C headers, manual pages, Perl's pods and
modules, Debian changelogs and copyright files. Another machine has other versions of it, so
the manifest records the digest; the seeds make the rest repeatable.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16]

BYTES_PER_DOMAIN = 3_000_000
BYTES_PER_FILE_MAX = 60_000
VOCABULARIES = (2048, 4096)


def _sources() -> dict[str, list[Path]]:
    man, doc = Path("/usr/share/man"), Path("/usr/share/doc")
    python = Path(sysconfig.get_path("stdlib"))
    return {
        "python": sorted(path for path in python.glob("*/*.py") if "site-pack" not in str(path)),
        "c": sorted(Path("/usr/include").rglob("*.h")),
        "manual": sorted(p for n in "12578" for p in (man / f"man{n}").glob("*.gz")),
        "library": sorted((man / "man3").glob("*.gz")),
        "perl": sorted(Path("/usr/share/perl").rglob("*.p[mo]*")),
        "changes": sorted(doc.glob("*/changelog*.gz")),
        "licence": sorted(doc.glob("*/copyright")),
        "german": sorted(man.glob("de/man*/*.gz")),
        "french": sorted(man.glob("fr/man*/*.gz")),
    }


def _text(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data[:BYTES_PER_FILE_MAX].decode("utf-8", "ignore")
    # Manual pages: drop the roff requests and font changes, keep the words.
    if "/man/" in str(path):
        text = re.sub(r"(?m)^['.]\\?\".*\n|^\.(?:TH|de|ie|el|if|nr|ds)\b.*\n", "", text)
        text = re.sub(r"\\f[A-Z(]|\\&|(?m:^\.[A-Za-z]{1,3} ?)", "", text).replace("\\-", "-")
    return text


def gather() -> dict[str, str]:
    """Text by domain, at most BYTES_PER_DOMAIN each, files in a fixed random order."""
    texts: dict[str, str] = {}
    for domain, paths in _sources().items():
        random.Random(0).shuffle(paths)
        parts: list[str] = []
        size = 0
        for path in paths:
            if size >= BYTES_PER_DOMAIN:
                break
            if path.is_file():
                parts.append(_text(path))
                size += len(parts[-1])
        if size < 200_000:
            raise SystemExit(
                f"domain {domain}: only {size} bytes of text on this machine; install the "
                "packages whose documentation it reads (see benchmarks/lineage/README.md)"
            )
        texts[domain] = "\n\n".join(parts)
    return texts


def prepare(folder: Path) -> str:
    """Write `tokenizer-<vocabulary>.json` and token arrays into `folder`; the text's digest."""
    from tokenizers import (  # type: ignore[import-not-found]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )

    done = folder / "sha256"
    if done.exists():
        return done.read_text()
    folder.mkdir(parents=True, exist_ok=True)
    texts = gather()
    for size in VOCABULARIES:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_lines(texts.values()), trainer)
        tokenizer.save(str(folder / f"tokenizer-{size}.json"))
        for domain, text in texts.items():
            ids = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
            np.save(folder / f"{domain}-{size}.npy", ids)
    digest = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in texts.items()).encode()).hexdigest()
    done.write_text(digest)
    return digest


def _lines(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for start in range(0, min(len(text), 600_000), 10_000):
            yield text[start : start + 10_000]


def tokens(folder: Path, domains: str, vocabulary: int) -> Tokens:
    """The tokens of `domains` (names joined by `+`) as one array."""
    arrays = [np.load(folder / f"{name}-{vocabulary}.npy") for name in domains.split("+")]
    return np.concatenate(arrays).astype(np.uint16)
