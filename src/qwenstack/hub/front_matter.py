"""A card's front matter: the YAML between two lines of dashes at its top."""

from __future__ import annotations

import re

import yaml

FRONT_MATTER_CHARS_MAX = 256 * 1024
_FENCED = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_ALIAS = re.compile(r"(^|[\s\[,:-])[&*][^\s,\]}]+")


def check_front_matter(text: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of a card's metadata."""
    found = _FENCED.match(text[:FRONT_MATTER_CHARS_MAX])
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    body = found.group(1)
    if _ALIAS.search(body):
        # A few lines of aliases can stand for gigabytes.
        return ["YAML anchors and aliases ('&', '*') are not read in a card."], []
    try:
        metadata = yaml.load(body, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        return [f"The YAML does not parse: {' '.join(str(error).split())[:300]}"], []
    except RecursionError:
        return ["The YAML is nested too deeply."], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["The metadata is no mapping of names to values."], []
    return [], []
