"""One attempt to hand a message to a webhook."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from qwenstack.core.safe_text import printable
from qwenstack.studio.alerts.destination import (
    AddressRefused,
    GuardedResolver,
    Network,
    as_address,
    check_address,
    check_url,
)
from qwenstack.studio.alerts.signing import (
    KeyUnusable,
    digest_of,
    make_key,
    secret_of,
    signature,
)

TIMEOUT_S = 10.0
_GONE = 410
_OUTCOME_LENGTH_MAX = 200


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended, in words. `final`: the receiver wants no other."""

    delivered: bool
    words: str
    final: bool = False


class Sender:
    """Signs with the key file `key`; sends to the public internet and the `allowed` networks."""

    def __init__(self, key: Path, allowed: Sequence[Network]) -> None:
        self._key = key
        self._allowed = tuple(allowed)

    def check(self, url: str) -> str:
        """The URL in its normal form; raises Refusal for one that nothing is ever sent to."""
        return str(check_url(url, self._allowed))

    def new_secret(self, webhook_id: str) -> str:
        """The secret of a webhook that is being made."""
        make_key(self._key)
        return secret_of(self._key, webhook_id)

    async def send(
        self, *, webhook_id: str, url: str, secret_digest: str, message_id: str, body: bytes
    ) -> Outcome:
        """POST `body`; any status from 200 to 299 says that it was taken. Never raises for a peer.

        No redirect is followed and nothing of the answer but its status is read.
        """
        try:
            secret = secret_of(self._key, webhook_id)
        except (KeyUnusable, OSError) as error:
            return Outcome(delivered=False, words=_short(str(error)))
        if digest_of(secret) != secret_digest:
            words = f"{self._key} is not the key that this webhook was made with"
            return Outcome(delivered=False, words=_short(words))
        now_s = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "QwenStack",
            "webhook-id": message_id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(secret, message_id, now_s, body),
        }
        try:
            status = await self._post(URL(url), headers, body)
        except AddressRefused as error:
            return Outcome(delivered=False, words=_short(str(error)))
        except TimeoutError:
            return Outcome(delivered=False, words=f"no answer within {TIMEOUT_S:g} s")
        # A ValueError: a name that cannot be asked for at all.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(delivered=False, words=_short(f"no answer: {error}"))
        if 200 <= status < 300:
            return Outcome(delivered=True, words=f"HTTP {status}")
        redirect = " (no redirect is followed)" if 300 <= status < 400 else ""
        return Outcome(delivered=False, words=f"HTTP {status}{redirect}", final=status == _GONE)

    async def _post(self, url: URL, headers: dict[str, str], body: bytes) -> int:
        # aiohttp asks no resolver for a host that is an address already.
        if (literal := as_address(url.host or "")) is not None:
            check_address(literal, url.scheme, self._allowed)
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(url.scheme, self._allowed),
            use_dns_cache=False,
            force_close=True,
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status


def _short(words: str) -> str:
    return printable(words)[:_OUTCOME_LENGTH_MAX]
