"""A GGUF file from a hub that speaks the Hugging Face API: ours, or any at `HF_ENDPOINT`.

A reference is `namespace/name`, with `@revision` and `:file.gguf` where they matter. The file is
fetched by the client library (it resumes) and kept by the commit that it came from; its SHA-256 is
held against the one that the hub states.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_REFERENCE: Final = re.compile(
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,200}))?(?::(?P<file>.{1,300}))?"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SPLIT: Final = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
# In this order where a repo has several and none is named: small enough, and good enough.
_PREFERRED: Final = ("q4_k_m", "q4_0", "q5_k_m", "q8_0", "q6_k", "f16", "bf16")


class HubModelError(Exception):
    """The hub does not give a model that can be served; the message says why, and what would."""


class HubReference(msgspec.Struct, frozen=True):
    """What a reference names; `file` is empty where the choice is ours."""

    repo: str
    revision: str
    file: str


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """A fetched file, what the hub said of it, and from which commit it came."""

    path: Path
    repo: str
    commit: str
    endpoint: str
    sha256: str | None
    licence: str | None


def read_reference(text: str) -> HubReference | None:
    """`namespace/name[@revision][:file]`; None for anything else.

    >>> read_reference("acme/tuned@v1:q8.gguf")
    HubReference(repo='acme/tuned', revision='v1', file='q8.gguf')
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in text or text.startswith((".", "~", "/")):
        return None
    return HubReference(match["repo"], match["revision"] or "main", match["file"] or "")


def fetch_from_hub(
    reference: HubReference,
    cache: Path,
    progress: Callable[[int, int], None],
    *,
    patience_s: float = 30.0,
) -> HubFile:
    """Download the file into `cache`, resuming what was begun; raises HubModelError.

    `progress` is told the bytes that are there and all of them; the hub's first answer is waited
    for `patience_s`. Nothing is asked of the hub where `HF_HUB_OFFLINE` is set.
    """
    import httpx2
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        info = HfApi(endpoint=endpoint).model_info(
            reference.repo, revision=reference.revision, files_metadata=True, timeout=patience_s
        )
        name, size, sha256 = choose(reference, _ggufs(info))
        commit = _commit(info, endpoint)
        path = hf_hub_download(
            reference.repo,
            name,
            revision=commit,
            endpoint=endpoint,
            local_dir=cache / "hub" / reference.repo.replace("/", "--") / commit[:12],
            tqdm_class=_telling(progress, size),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else "no reason"
        raise HubModelError(f"{endpoint} does not give {reference.repo}: {reason}") from error
    except ValueError as error:  # a file name that leads out of the folder
        raise HubModelError(f"{endpoint} does not give {reference.repo}: {error}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise HubModelError(
            f"{endpoint} cannot be reached ({error}); set HF_ENDPOINT to a hub that can, or give "
            "the path of a GGUF file"
        ) from error
    return HubFile(
        path=Path(path),
        repo=reference.repo,
        commit=commit,
        endpoint=endpoint,
        sha256=sha256,
        licence=_licence(info),
    )


def choose(
    reference: HubReference, files: Mapping[str, tuple[int, str | None]]
) -> tuple[str, int, str | None]:
    """The file to fetch with its size and SHA-256; raises HubModelError where none is fit."""
    if reference.file:
        if reference.file not in files:
            there = ", ".join(sorted(files)[:10]) or "none"
            raise HubModelError(
                f"{reference.repo} has no GGUF file {reference.file!r}; it has: {there}"
            )
        return reference.file, *files[reference.file]
    whole = sorted(name for name in files if not _SPLIT.fullmatch(name))
    if not whole:
        what = "only files that are split in parts" if files else "no GGUF file"
        raise HubModelError(
            f"{reference.repo} has {what}; the embedded engine serves one GGUF file. Convert it "
            "with llama.cpp, or serve it with vLLM and deploy that as a remote engine"
        )
    for quantisation in _PREFERRED:
        for name in whole:
            if quantisation in re.split(r"[^a-z0-9_]+", name.lower()):
                return name, *files[name]
    if len(whole) > 1:
        raise HubModelError(
            f"{reference.repo} has several GGUF files: name one as {reference.repo}:{whole[0]}. "
            f"There are: {', '.join(whole[:10])}"
        )
    return whole[0], *files[whole[0]]


def _commit(info: ModelInfo, endpoint: str) -> str:
    """The commit's id, which names a folder here: a hub that sends something else is none."""
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise HubModelError(
            f"{endpoint} names the commit {info.sha!a:.80}, which is no commit's id"
        )
    return info.sha


def _ggufs(info: ModelInfo) -> dict[str, tuple[int, str | None]]:
    return {
        each.rfilename: (each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
        if each.rfilename.lower().endswith(".gguf")
    }


def _licence(info: ModelInfo) -> str | None:
    value = info.card_data.get("license") if info.card_data else None
    return value if isinstance(value, str) else None


def _telling(progress: Callable[[int, int], None], total: int) -> type[Any]:
    """A bar for the client library that shows nothing and tells `progress` instead."""
    from tqdm.auto import tqdm

    class Telling(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False
            kwargs["gui"] = True  # prints nothing of its own
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)

        def display(self, *_: Any, **__: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            result: bool | None = super().update(n)
            progress(int(self.n), total)
            return result

        def close(self) -> None:
            self.disable = True

    return Telling
