"""What this installation serves: public model names, each on an engine, in a region."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.engines.interface import Engine
from qwenstack.studio.admission.queue import FairQueue

_NAMED_IN_ERRORS_MAX = 8


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A release run by an engine under a public model name.

    `max_output_tokens` bounds one choice and is the default where a request names none.
    `price_scope` selects the price row. `queue` bounds what runs at once on an engine of our own;
    a remote engine has its own. `provenance` says in a sentence what the weights are and where they
    came from; `licence` is the SPDX id that governs them, None where it is unknown.
    """

    name: str
    engine: Engine
    aliases: tuple[str, ...] = ()
    max_output_tokens: int = 8192
    price_scope: str = "*"
    queue: FairQueue | None = None
    provenance: str = ""
    licence: str | None = None
    created: int = 0


class Deployments:
    """The deployments by each of their names."""

    def __init__(self, deployments: Iterable[Deployment]) -> None:
        self._by_name: dict[str, Deployment] = {}
        self._all = tuple(deployments)
        for deployment in self._all:
            for name in (deployment.name, *deployment.aliases):
                if name in self._by_name:
                    raise ValueError(f"two deployments are named {name!r}; rename one")
                self._by_name[name] = deployment

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self._all)

    def get(self, name: str) -> Deployment:
        """The deployment with this name or alias; raises Refusal for none."""
        deployment = self._by_name.get(name)
        if deployment is None:
            names = [deployment.name for deployment in self._all[:_NAMED_IN_ERRORS_MAX]]
            raise Refusal(
                RefusalKind.MODEL_NOT_FOUND,
                f"The model {name[:80]!r} does not exist here; available: {', '.join(names)}.",
                param="model",
            )
        return deployment
