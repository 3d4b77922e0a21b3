"""API base URLs and hosts: the same model name means another operator at another host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core.layers import Layer

_URL: Final = re.compile(
    r"(?:(?P<scheme>https?|wss?)://)?(?:[^/@\s]{1,200}@)?(?P<host>\[[0-9a-f:]+\]|[\w.-]{1,253})"
    r"(?::(?P<port>\d{1,5}))?(?P<path>/[^\s]*)?",
    re.IGNORECASE,
)
_LOCAL: Final = re.compile(
    r"localhost|127(?:\.\d{1,3}){3}|0\.0\.0\.0|\[::1\]|host\.docker\.internal"
    r"|10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}",
    re.IGNORECASE,
)
_HUB_KINDS: Final = frozenset({"hub", "registry"})


def read(text: str, index: Index) -> Iterator[Reading]:
    """A URL with a scheme, or a bare host name that the catalogue lists."""
    match = _URL.fullmatch(text)
    if match is None:
        return
    host = match["host"].casefold()
    record = index.catalogue.find_host(host)
    if record is not None and record.kind in _HUB_KINDS:
        return
    if record is not None and record.kind != "local":
        owner = index.catalogue.find_organisation(record.operator)
        name = owner.name if owner else record.operator
        site = record.kind == "site"
        yield Reading(
            kind=Kind.SITE if site else Kind.API_URL,
            sure=Sureness.EXACT if match["scheme"] or match["path"] else Sureness.LISTED,
            why=f"a site of {name}"
            if site
            else f"a host of {name}; which model runs is said by the request",
            subject=host,
            # A chat for everyone is a service under terms, whoever's name is on it.
            layer=owner.layer if site and owner and not host.startswith("chat.") else Layer.STUDIO,
            host=record,
            region=record.region_in(host),
        )
    elif _LOCAL.fullmatch(host) and (match["scheme"] or match["port"]):
        yield Reading(
            kind=Kind.API_URL,
            sure=Sureness.SHAPED,
            why="an address of this machine or network: whoever runs the server operates it; what "
            "it serves is not to be seen from the address",
            subject=host,
            operator="whoever runs this server",
        )
    elif match["scheme"]:
        yield Reading(
            kind=Kind.API_URL,
            sure=Sureness.SHAPED,
            why="a host that the catalogue does not list: its operator and terms are not known",
            subject=host,
        )
