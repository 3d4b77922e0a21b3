"""The options of `qwenstack hub serve` for a hub that copies from another one when it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from qwenstack.cli.instants import parse_duration_s
from qwenstack.cli.sizes import parse_size
from qwenstack.hub.upstream import check_endpoint
from qwenstack.hub.upstream_settings import TOKEN_VARIABLE, UpstreamSettings

_F = TypeVar("_F", bound=Callable[..., Any])


def upstream_options(command: _F) -> _F:
    """`--upstream`, `--upstream-namespaces`, `--upstream-max-age`, `--upstream-max-bytes`."""
    options = (
        click.option(
            "--upstream",
            envvar="QWENSTACK_HUB_UPSTREAM",
            metavar="ENDPOINT",
            help="Copy repos that are not here from this hub when they are first asked for "
            "(QWENSTACK_HUB_UPSTREAM). Its token: QWENSTACK_HUB_UPSTREAM_TOKEN.",
        ),
        click.option(
            "--upstream-namespaces",
            envvar="QWENSTACK_HUB_UPSTREAM_NAMESPACES",
            metavar="A,B",
            help="Only repos of these namespaces. Default: of all that nobody holds here.",
        ),
        click.option(
            "--upstream-max-age",
            envvar="QWENSTACK_HUB_UPSTREAM_MAX_AGE",
            default="10m",
            show_default=True,
            help="Look at a copied branch again after so long (30s, 15m, 24h, 7d).",
        ),
        click.option(
            "--upstream-max-bytes",
            envvar="QWENSTACK_HUB_UPSTREAM_MAX_BYTES",
            default="4TiB",
            show_default=True,
            help="Start no copy that would make all copies larger than this (500GB, 4TiB, none).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def upstream_settings(
    endpoint: str | None, namespaces: str | None, max_age: str, max_bytes: str
) -> UpstreamSettings | None:
    """What the options say; None without an upstream. Raises BadRequest, a usage error."""
    if not endpoint:
        return None
    listed = tuple(each.strip() for each in (namespaces or "").split(",") if each.strip())
    return UpstreamSettings(
        endpoint=check_endpoint(endpoint),
        namespaces=listed or None,
        max_age_s=float(parse_duration_s(max_age)),
        all_bytes_max=parse_size(max_bytes),
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
