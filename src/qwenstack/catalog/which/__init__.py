"""`which`: resolve what a person has in hand to its layer and to the document that governs it."""

from qwenstack.catalog.which.answer import (
    Answer,
    Duty,
    GoverningDocument,
    GoverningKind,
    Likeness,
    Line,
)
from qwenstack.catalog.which.decide import which
from qwenstack.catalog.which.reading import Kind, Setting

__all__ = [
    "Answer",
    "Duty",
    "GoverningDocument",
    "GoverningKind",
    "Kind",
    "Likeness",
    "Line",
    "Setting",
    "which",
]
