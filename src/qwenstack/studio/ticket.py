"""A request that was admitted: everything the rest of its path needs to know."""

from __future__ import annotations

import msgspec

from qwenstack.core.generation import EmbeddingRequest, GenerationRequest
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.admission.limits import Admission
from qwenstack.studio.deployments import Deployment
from qwenstack.studio.ledger.holds import Hold
from qwenstack.studio.pricing import PriceRow
from qwenstack.studio.tenancy import Caller

Request = GenerationRequest | EmbeddingRequest


class BatchLine(msgspec.Struct, frozen=True):
    """Which line of which batch a request is."""

    batch_id: str
    line: int


class Ticket(msgspec.Struct, kw_only=True):
    """An admitted request whose money is held. It ends in exactly one settlement or void.

    `usage` is the engine's last count of what was delivered; `closed` is set once the request has
    ended. `stream` False: the client gets all or nothing, and pays so. `failure` is the class of
    the error with which its engine failed.
    """

    request_id: str
    caller: Caller
    deployment: Deployment
    request: Request
    surface: str
    stream: bool
    started_us: int
    price: PriceRow
    admission: Admission
    hold: Hold
    line: BatchLine | None = None
    first_token_us: int | None = None
    usage: TokenUsage | None = None
    closed: bool = False
    failure: str | None = None

    @property
    def thinking(self) -> bool:
        """Whether the request asked to think."""
        return isinstance(self.request, GenerationRequest) and bool(self.request.thinking)
