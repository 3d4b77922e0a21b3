"""How a standing is called and coloured, in every format alike."""

from __future__ import annotations

from typing import Final

from qwenstack.dossier.document import Standing

NAMES: Final[dict[Standing, str]] = {
    "shown": "shown",
    "partly": "partly",
    "gap": "gap",
    "none": "none",
    "conflict": "conflict",
    "organisational": "organisation",
    "open": "open",
}
NOTICE: Final = (
    "Made from recorded evidence alone. A gap is what no evidence shows. This is no legal advice."
)
