"""The first half of a request's path: may it run, within which limits, with which money held."""

from __future__ import annotations

from datetime import datetime

import msgspec

from qwenstack.core.generation import AudioPart, GenerationRequest, ImagePart, TextPart
from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import from_us, now_us
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.engines.interface import EngineError
from qwenstack.studio.admission.limits import (
    Admission,
    Limit,
    Limiter,
    LimiterUnavailableError,
    Refused,
    Scopes,
    Snapshot,
    refusal_for,
)
from qwenstack.studio.admission.raises import lifted_key, lifted_model, lifted_whole
from qwenstack.studio.deployments import Deployment, Deployments
from qwenstack.studio.engine_refusals import refusal_of
from qwenstack.studio.ledger.funds import Funds
from qwenstack.studio.ledger.holds import Hold, HoldRequest
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.price_book import PriceShelf
from qwenstack.studio.pricing import PriceRow, ceiling
from qwenstack.studio.prompt_bound import prompt_bound
from qwenstack.studio.tenancy import Budget, Caller, check_model_allowed, period_start_us
from qwenstack.studio.ticket import BatchLine, Request, Ticket

_RETRY_WHEN_STORAGE_IS_AWAY_S = 2.0
# Where the cheap bound on the prompt fails one of these, an exact count may still pass.
_EXACT_COUNT_MAY_PASS = frozenset(
    {
        RefusalKind.CONTEXT_LENGTH,
        RefusalKind.INVALID_REQUEST,
        RefusalKind.RATE_TOKENS,
        RefusalKind.RATE_CONCURRENCY,
        RefusalKind.OUT_OF_CREDIT,
        RefusalKind.BUDGET_EXCEEDED,
        RefusalKind.FREE_QUOTA_ONLY,
    }
)

_UNLIMITED = Limit()


class _Asking(msgspec.Struct, frozen=True, kw_only=True):
    """A request at the door."""

    request_id: str
    caller: Caller
    deployment: Deployment
    request: Request
    price: PriceRow
    line: BatchLine | None
    started_us: int


class Door:
    """Admits requests. Closed while the ledger cannot be written to, and while draining."""

    def __init__(
        self,
        *,
        deployments: Deployments,
        prices: PriceShelf,
        limiter: Limiter,
        funds: Funds,
        journal: Journal,
    ) -> None:
        self.deployments = deployments
        self.draining = False
        self._prices = prices
        self._limiter = limiter
        self._funds = funds
        self._journal = journal

    async def admit(
        self,
        caller: Caller,
        request: Request,
        *,
        surface: str,
        stream: bool,
        line: BatchLine | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Check a request, count it against its limits and hold its money; raises Refusal.

        Limits and money are reserved for the most that the request can use. A prompt is bounded
        by its bytes; only where that does not pass is the engine asked to count it.
        """
        self.check_open()
        deployment = self.deployments.get(request.model)
        check_model_allowed(caller, deployment.name)
        _check_residency(caller, deployment)
        _check_capabilities(request, deployment)
        asking = _Asking(
            request_id=request_id or new_id("req"),
            caller=caller,
            deployment=deployment,
            request=request,
            price=self._price(caller, deployment),
            line=line,
            started_us=now_us(),
        )
        counts = deployment.engine.capabilities.counts_prompts
        try:
            granted = await self._reserve(asking, prompt_bound(request), exact=not counts)
        except Refusal as refusal:
            if not counts or refusal.kind not in _EXACT_COUNT_MAY_PASS:
                raise
            granted = await self._reserve(asking, await _counted(asking, refusal), exact=True)
        admission, hold, request = granted
        return Ticket(
            request_id=asking.request_id,
            caller=caller,
            deployment=deployment,
            request=request,
            surface=surface,
            stream=stream,
            started_us=asking.started_us,
            price=asking.price,
            admission=admission,
            hold=hold,
            line=line,
        )

    async def count_prompt(
        self, caller: Caller, request: GenerationRequest
    ) -> tuple[int, Snapshot]:
        """The engine's own count of a prompt, and how its limits stand; raises Refusal.

        It counts as one request of no tokens, and nothing is billed.
        """
        self.check_open()
        deployment = self.deployments.get(request.model)
        check_model_allowed(caller, deployment.name)
        _check_residency(caller, deployment)
        _check_capabilities(request, deployment)
        if not deployment.engine.capabilities.counts_prompts:
            raise _cannot(deployment, "count tokens without running them", "model")
        admission = await self._count(caller, deployment, 0, batch=False)
        try:
            return await deployment.engine.count_prompt(request), admission.snapshot
        except EngineError as error:
            raise refusal_of(error) from error
        finally:
            await self._limiter.settle(admission, 0)

    def check_open(self) -> None:
        """Raise Refusal while nothing can be served."""
        if self.draining:
            raise Refusal(
                RefusalKind.DRAINING,
                "This server is shutting down; send the request again.",
                retry_after_s=1.0,
            )
        if not self._journal.healthy:
            raise Refusal(
                RefusalKind.STORAGE_UNAVAILABLE,
                "The ledger cannot be written to at the moment, so nothing is served; try again.",
                retry_after_s=_RETRY_WHEN_STORAGE_IS_AWAY_S,
            )

    def _price(self, caller: Caller, deployment: Deployment) -> PriceRow:
        row = self._prices.row(
            caller.plan.price_books, deployment.name, deployment.price_scope, from_us(now_us())
        )
        if row is None or row.currency != caller.workspace.currency:
            raise Refusal(
                RefusalKind.MODEL_ACCESS_DENIED,
                f"The model {deployment.name!r} has no price in {caller.workspace.currency} under "
                "this workspace's plan; ask its operator.",
                param="model",
            )
        return row

    async def _reserve(
        self, asking: _Asking, prompt: int, *, exact: bool
    ) -> tuple[Admission, Hold, Request]:
        """Count and hold for a prompt of at most `prompt` tokens; all or nothing."""
        request, completion = asking.request, 0
        if isinstance(request, GenerationRequest):
            request = bounded(request, asking.deployment, prompt, exact=exact)
            completion = (request.max_tokens or 0) * request.n
        admission = await self._count(
            asking.caller, asking.deployment, prompt + completion, batch=asking.line is not None
        )
        try:
            hold = await self._funds.place(_hold_request(asking, prompt, completion))
        except BaseException:
            await self._limiter.settle(admission, 0)
            raise
        return admission, hold, request

    async def _count(
        self, caller: Caller, deployment: Deployment, tokens: int, *, batch: bool
    ) -> Admission:
        scopes = limit_scopes(caller, deployment.name, now_us(), batch=batch)
        try:
            verdict = await self._limiter.reserve(caller.workspace.id, scopes, tokens)
        except LimiterUnavailableError as error:
            raise Refusal(
                RefusalKind.STORAGE_UNAVAILABLE,
                "The rate limits cannot be checked at the moment, so nothing is served; try again.",
                retry_after_s=_RETRY_WHEN_STORAGE_IS_AWAY_S,
            ) from error
        if isinstance(verdict, Refused):
            raise refusal_for(verdict)
        return verdict


def limit_scopes(caller: Caller, model: str, now_us: int, *, batch: bool) -> Scopes:
    """Every limit that a request counts against. Batch lines are exempt, as with the vendor."""
    if batch:
        return ()
    plan, raises, key = caller.plan, caller.raises, caller.key.id
    of_model, of_all, of_key = plan.models.get(model, plan.per_model), plan.whole, plan.per_key
    if raises:
        of_model = lifted_model(of_model, model, raises, now_us)
        of_all = lifted_whole(of_all, raises, now_us)
        of_key = lifted_key(of_key, key, raises, now_us)
    candidates = ((f"model:{model}", of_model), ("all", of_all), (f"key:{key}", of_key))
    return tuple((scope, limit) for scope, limit in candidates if limit != _UNLIMITED)


def bounded(
    request: GenerationRequest, deployment: Deployment, prompt: int, *, exact: bool
) -> GenerationRequest:
    """The request with an explicit `max_tokens` that fits; raises Refusal where none can.

    `prompt` is the exact count of prompt tokens, or (`exact` False) an upper bound that a count
    will replace. A prompt that a remote engine alone can count is left to that engine to refuse.
    """
    limit = deployment.max_output_tokens
    if request.max_tokens is not None and request.max_tokens > limit:
        raise invalid(
            f"max_tokens is {request.max_tokens}; for {deployment.name} it must lie between 1 and "
            f"{limit}.",
            "max_tokens",
        )
    context = deployment.engine.capabilities.context_tokens
    room = limit if context is None else context - prompt
    asked = request.max_tokens or min(limit, max(room, 1))
    if asked > room and (deployment.engine.capabilities.counts_prompts or not exact):
        raise Refusal(
            RefusalKind.CONTEXT_LENGTH,
            f"This model's maximum context length is {context} tokens; the prompt has {prompt} and "
            f"max_tokens asks for {asked}. Shorten the prompt or lower max_tokens.",
            param="messages" if room < 1 else "max_tokens",
        )
    return msgspec.structs.replace(request, max_tokens=asked)


async def _counted(asking: _Asking, refusal: Refusal) -> int:
    """The engine's count of the prompt; where it gives none, the bound's refusal stands."""
    try:
        return await asking.deployment.engine.count_prompt(asking.request)
    except EngineError as error:
        raise refusal from error


def _hold_request(asking: _Asking, prompt: int, completion: int) -> HoldRequest:
    request, workspace = asking.request, asking.caller.workspace
    at = from_us(asking.started_us)
    may_think = isinstance(request, GenerationRequest) and (
        asking.deployment.engine.capabilities.thinks
        if request.thinking is None
        else request.thinking
    )
    batch = asking.line is not None
    return HoldRequest(
        request_id=asking.request_id,
        workspace_id=workspace.id,
        key_id=asking.caller.key.id,
        model=asking.deployment.name,
        billing=workspace.billing,
        currency=workspace.currency,
        credit_limit_micro=workspace.credit_limit_micro,
        free_quota_only=workspace.free_quota_only,
        ceiling_micro=ceiling(
            asking.price,
            prompt,
            completion,
            at=at,
            thinking=may_think,
            batch=batch,
            explicit_cache=_caches(request),
        ),
        tokens_max=prompt + completion,
        uses_free_quota=not batch,
        budgets=_budget_periods(asking.caller, at),
        at_us=asking.started_us,
    )


def _caches(request: Request) -> bool:
    """Whether the request asks for an explicit cache, which costs more to create."""
    return isinstance(request, GenerationRequest) and any(
        isinstance(part, TextPart) and part.cache_marker
        for message in request.messages
        for part in message.content
    )


def _budget_periods(caller: Caller, at: datetime) -> tuple[tuple[Budget, int], ...]:
    return tuple((budget, period_start_us(budget.period, at)) for budget in caller.budgets)


def _check_residency(caller: Caller, deployment: Deployment) -> None:
    pinned, region = caller.workspace.region, deployment.engine.identity.region
    if pinned is not None and pinned != region:
        raise Refusal(
            RefusalKind.RESIDENCY,
            f"This workspace is pinned to the region {pinned!r} and {deployment.name!r} runs in "
            f"{region!r}. Nothing was sent there. Use a model deployed in {pinned!r}.",
            param="model",
        )


def _check_capabilities(request: Request, deployment: Deployment) -> None:
    able = deployment.engine.capabilities
    if not isinstance(request, GenerationRequest):
        if not able.embeds:
            raise _cannot(deployment, "make embeddings", "model")
        if request.dimensions is not None and request.dimensions != able.embedding_width:
            raise _cannot(deployment, f"make embeddings of {request.dimensions} dimensions", None)
        return
    if not able.generates:
        raise _cannot(deployment, "generate text", "model")
    if request.tools and not able.tools:
        raise _cannot(deployment, "call tools", "tools")
    if request.response_format.type != "text" and not able.json_schema:
        raise _cannot(deployment, "be held to a JSON format", "response_format")
    if request.logprobs is not None and not able.logprobs:
        raise _cannot(deployment, "give log probabilities", "logprobs")
    for message in request.messages:
        for part in message.content:
            if isinstance(part, ImagePart) and not able.images:
                raise _cannot(deployment, "read images", "messages")
            if isinstance(part, AudioPart) and not able.audio:
                raise _cannot(deployment, "hear audio", "messages")


def _cannot(deployment: Deployment, what: str, param: str | None) -> Refusal:
    return Refusal(
        RefusalKind.UNSUPPORTED,
        f"The model {deployment.name!r} cannot {what} here.",
        param=param,
    )
