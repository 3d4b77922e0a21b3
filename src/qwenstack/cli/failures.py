"""Failures that a user can do something about: told in a line, never as a traceback."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from qwenstack.catalog.read import CatalogueError
from qwenstack.catalog.watch.hub_api import HubUnreadable
from qwenstack.catalog.watch.snapshot import SnapshotError
from qwenstack.core.refusals import Refusal
from qwenstack.dossier.gather.decisions import DecisionsError
from qwenstack.dossier.gather.evaluation import EvaluationError
from qwenstack.dossier.gather.studio import StudioError
from qwenstack.dossier.seal import DossierError
from qwenstack.engines.gguf import GgufError
from qwenstack.engines.interface import EngineError
from qwenstack.engines.models import ModelError
from qwenstack.hub.errors import HubError
from qwenstack.hub.lineage.tensors import UnreadableModel
from qwenstack.hub.safety.policy import PolicyError
from qwenstack.hub.signing import SigningError
from qwenstack.hub.store.kinds import StoreError
from qwenstack.storage.database import DatabaseUnavailable
from qwenstack.studio.alerts.signing import KeyUnusable
from qwenstack.studio.installation import AlreadyRunning
from qwenstack.studio.invoice import InvoiceError
from qwenstack.studio.price_book import PriceBookError, PriceNotFound
from qwenstack.studio.settings import SettingsError

EXPECTED = (
    AlreadyRunning,
    CatalogueError,
    DBAPIError,
    DatabaseUnavailable,
    DecisionsError,
    DossierError,
    EngineError,
    EvaluationError,
    GgufError,
    HubError,
    HubUnreadable,
    ModelError,
    InvoiceError,
    KeyUnusable,
    OSError,
    PolicyError,
    PriceBookError,
    PriceNotFound,
    Refusal,
    SettingsError,
    SigningError,
    SnapshotError,
    StoreError,
    StudioError,
    UnreadableModel,
)


def describe(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, DBAPIError):
        return f"the database failed: {error.orig}"
    return str(error)
