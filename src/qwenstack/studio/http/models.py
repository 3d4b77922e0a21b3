"""`/v1/models`: what the caller may use, with the layer and terms of each."""

from __future__ import annotations

from urllib.parse import unquote

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.studio.deployments import Deployment, Deployments
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.openai_models import ModelCard, encode_model, encode_models
from qwenstack.studio.tenancy import Caller, check_model_allowed
from qwenstack.studio.tenants import Tenants


class ModelRoutes:
    """Lists and shows models."""

    def __init__(self, tenants: Tenants, deployments: Deployments) -> None:
        self._tenants = tenants
        self._deployments = deployments

    async def index(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        await exchange.reply(Reply(200, encode_models(self._cards(exchange))))

    async def by_name(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}."""
        cards = self._cards(exchange)
        name = unquote(exchange.path.partition("/models/")[2])
        await exchange.reply(Reply(200, encode_model(cards, name)))

    def _cards(self, exchange: Exchange) -> list[ModelCard]:
        caller = self._tenants.caller(exchange.secret, "inference", now_us())
        return [_card(each) for each in self._deployments if _allowed(caller, each)]


def _allowed(caller: Caller, deployment: Deployment) -> bool:
    pinned = caller.workspace.region
    if pinned is not None and pinned != deployment.engine.identity.region:
        return False
    try:
        check_model_allowed(caller, deployment.name)
    except Refusal:
        return False
    return True


def _card(deployment: Deployment) -> ModelCard:
    return ModelCard(
        id=deployment.name,
        created=deployment.created,
        owned_by="qwenstack",
        layer="studio",
        licence=deployment.licence,
        provenance=deployment.provenance or None,
    )
