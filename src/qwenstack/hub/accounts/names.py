"""Which names an account may have: they are path segments of every URL, so they are narrow."""

from __future__ import annotations

import re

from qwenstack.hub.errors import BadRequest
from qwenstack.hub.registry.repos import RESERVED_NAMESPACES

NAME_CHARACTERS_MAX = 96
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
GHOST = "ghost"
"""Who said what a deleted account said; nobody is called so."""

# First segments of the hub's own paths, beside those that no repo may be under.
_RESERVED = RESERVED_NAMESPACES | {
    *(
        "access",
        "admin",
        "avatars",
        "family",
        "favicon.ico",
        "organisations",
        "robots.txt",
        "uploads",
    ),
    # And who is nobody in particular.
    *(GHOST, "system"),
}


def check_name(name: str) -> str:
    """The name; raises BadRequest with the rule that it breaks."""
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        raise BadRequest(
            f"name {name[:40]!r} must have 1 to {NAME_CHARACTERS_MAX} letters, digits, '-', '_' or "
            "'.', and begin and end with a letter or digit"
        )
    if "--" in name or ".." in name or name.lower().endswith((".git", ".ipynb")):
        raise BadRequest(f"name {name!r} must not hold '--' or '..', nor end in .git or .ipynb")
    if name.lower() in _RESERVED:
        raise BadRequest(f"name {name!r} is one of the hub's own paths; choose another")
    return name
