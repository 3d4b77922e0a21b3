"""Which other hub this one copies from when it is asked for what it has not."""

from __future__ import annotations

from typing import Final

import msgspec

DEFAULT_UPSTREAM: Final = "https://huggingface.co"
TOKEN_VARIABLE: Final = "QWENSTACK_HUB_UPSTREAM_TOKEN"  # noqa: S105 - a name


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A pull-through. `namespaces` None allows every namespace that nobody holds here."""

    endpoint: str
    namespaces: tuple[str, ...] | None = None
    # After so long a branch is looked at again.
    max_age_s: float = 600.0
    # For so long a first request waits for the copy; then it is told to come back.
    wait_s: float = 600.0
    # For so long a request waits for a newer copy before it gets the one that is here.
    stale_wait_s: float = 5.0
    # A copy that takes longer is given up; what it fetched is kept for the next one.
    copy_s: float = 12 * 3600.0
    # Of a look at the upstream: the first byte of its answer.
    look_s: float = 10.0
    copies_max: int = 2
    waiting_max: int = 64
    repo_bytes_max: int = 1024**4
    # Of all copies together: guests start them.
    all_bytes_max: int | None = 4 * 1024**4
    # What the upstream said is not there, or was away for, is not asked again for so long.
    absent_s: float = 60.0
    # The operator's token for gated and private repos of the upstream.
    token: str | None = None
