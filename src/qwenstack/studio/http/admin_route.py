"""What an admin route is: typed, so that the OpenAPI document is made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from qwenstack.studio.alerts.sending import Sender
from qwenstack.studio.deployments import Deployments


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body: unknown fields are refused."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler gets: who acts, path and query, the decoded body; what serves and alerts."""

    actor: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    deployments: Deployments
    sender: Sender


Handler = Callable[[Connection, Request], object]


class AdminRoute(msgspec.Struct, frozen=True):
    """One route. `path` has `{names}`; `body` is the struct of its JSON, None for none."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    handler: Handler
    answer: Any
    body: Any = None
    query: tuple[str, ...] = ()
