"""`/metrics`: for this machine's own scraper, or with an operator's key."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.installation import Installation
from qwenstack.studio.observability.metrics import Metrics
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.tenancy import Tenancy

_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class MetricsRoute:
    """Answers scrapes."""

    def __init__(self, installation: Installation, metrics: Metrics) -> None:
        self._installation = installation
        self._metrics = metrics

    async def __call__(self, exchange: Exchange) -> None:
        """The exposition in the format asked for; raises Refusal (403) for strangers."""
        check_scraper(
            exchange.peer,
            exchange.headers,
            exchange.secret,
            self._installation.tenants.current,
            now_us(),
        )
        accept = exchange.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = self._metrics.exposition(accept)
        await exchange.reply(Reply(200, body, content_type=content_type.encode()))


def check_scraper(
    peer: str | None,
    headers: Mapping[bytes, bytes],
    secret: str | None,
    tenancy: Tenancy,
    now_us: int,
) -> None:
    """Raise Refusal (ACCESS_DENIED) unless `peer` is this machine or `secret` an admin key's.

    A request that a proxy on this machine passed on comes from loopback but is not ours: it says so
    in its headers, and needs a key.
    """
    if _is_loopback(peer) and not any(name in headers for name in _FORWARDED):
        return
    try:
        tenancy.administrator(secret, now_us)
    except Refusal as refusal:
        raise Refusal(
            RefusalKind.ACCESS_DENIED,
            "Metrics are for this machine itself, or for an admin key in the header "
            "Authorization: Bearer <key>.",
        ) from refusal


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
