"""Renderers: each knows the document and nothing else."""

from __future__ import annotations

from qwenstack.dossier.document import Document


def render_all(document: Document) -> dict[str, bytes]:
    """The document in every format, by file name."""
    from qwenstack.dossier.render.cyclonedx import cyclonedx
    from qwenstack.dossier.render.html import html
    from qwenstack.dossier.render.markdown import markdown
    from qwenstack.dossier.render.pdf import pdf
    from qwenstack.dossier.render.spdx import spdx_json
    from qwenstack.dossier.seal import DOCUMENT_NAME, document_json

    return {
        DOCUMENT_NAME: document_json(document),
        "dossier.html": html(document).encode(),
        "dossier.md": markdown(document).encode(),
        "dossier.pdf": pdf(document),
        "dossier.cdx.json": cyclonedx(document),
        "dossier.spdx.json": spdx_json(document),
    }
