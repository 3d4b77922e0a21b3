"""A dossier as one HTML file: printable, without scripts or anything from outside."""

from __future__ import annotations

import functools
from importlib import resources

import jinja2

from qwenstack.dossier.document import Document
from qwenstack.dossier.render.words import NAMES, NOTICE


def html(document: Document) -> str:
    """The whole document. Every text is escaped."""
    return _template().render(document=document, names=NAMES, notice=NOTICE)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("qwenstack.dossier.render") / "dossier.html.jinja"
    return environment.from_string(source.read_text(encoding="utf-8"))
