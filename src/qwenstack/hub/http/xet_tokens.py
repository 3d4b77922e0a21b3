"""Short-lived tokens for the Xet routes, and signed addresses of parts of xorbs.

Both are statements that this hub signed and needs to keep nowhere: what they allow is in them. They
are signed with keys derived from the hub's secret, one for each purpose.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Literal

import msgspec

from qwenstack.hub.errors import Forbidden, Unauthorized

TOKEN_S = 15 * 60
URL_S = 3600
_TOKEN_CHARS_MAX = 1024
Right = Literal["read", "write"]


class XetClaims(msgspec.Struct, frozen=True):
    """What a token allows: to read the files of one manifest, or to upload to one repo."""

    repo_id: str
    right: Right
    manifest: str  # a digest; empty for a token to write
    expires_s: int
    # Who uploads, in whose namespace, and whether only to a pull request: for the quotas.
    account: str = ""
    namespace: str = ""
    guest: bool = True


class XetToken(msgspec.Struct, frozen=True):
    """A token and the claims in it."""

    text: str
    claims: XetClaims


def make_token(
    secret: bytes,
    repo_id: str,
    right: Right,
    manifest: str = "",
    *,
    account: str = "",
    namespace: str = "",
    guest: bool = True,
) -> XetToken:
    """A token that lives `TOKEN_S` seconds."""
    expires_s = int(time.time()) + TOKEN_S
    claims = XetClaims(repo_id, right, manifest, expires_s, account, namespace, guest)
    body = _encode(msgspec.json.encode(claims))
    return XetToken(f"xet_{body}.{_sign(secret, b'xet-token', body)}", claims)


def read_token(secret: bytes, text: str | None, right: Right) -> XetClaims:
    """What a token allows. Raises Unauthorized for none, a forged or an expired one, Forbidden for
    one of the other right.
    """
    text = text or ""
    body, dot, signature = text[:_TOKEN_CHARS_MAX].removeprefix("xet_").partition(".")
    if (
        not dot
        or not text.isascii()
        or not hmac.compare_digest(signature, _sign(secret, b"xet-token", body))
    ):
        raise Unauthorized("This is no Xet token of this hub: fetch one for the repo.")
    claims = msgspec.json.decode(_decode(body), type=XetClaims)
    if claims.expires_s < time.time():
        raise Unauthorized("The Xet token has expired: fetch another one.")
    if claims.right != right:
        raise Forbidden(f"The Xet token is one to {claims.right}, this needs one to {right}.")
    return claims


def sign_part(secret: bytes, xorb: str, first: int, end: int) -> str:
    """The query that allows to fetch chunks `first` to `end` of a xorb for `URL_S` seconds."""
    # Rounded, so that equal questions within a while get equal addresses.
    expires_s = (int(time.time()) // 60 + 1) * 60 + URL_S
    return f"expires={expires_s}&signature={_sign_part(secret, xorb, first, end, expires_s)}"


def check_part(
    secret: bytes, xorb: str, first: int, end: int, expires: str, signature: str
) -> None:
    """Raises Forbidden unless the address was signed here and still holds."""
    expires_s = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 16 else 0
    expected = _sign_part(secret, xorb, first, end, expires_s)
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        raise Forbidden("This address was not signed by this hub.")
    if expires_s < time.time():
        raise Forbidden("This address has expired: ask for the file's reconstruction again.")


def dedupe_key(secret: bytes) -> bytes:
    """The key that veils chunks' hashes in answers to deduplication queries."""
    return hmac.digest(secret, b"xet-dedupe", hashlib.sha256)


def hub_mark(secret: bytes) -> str:
    """What tells this hub's Xet service from any other that ever answered at its address.

    Clients remember by the service's address which chunks they uploaded to it: a hub made anew at
    an old one's address would be told that it has what only the old one had.
    """
    return hmac.digest(secret, b"xet-service", hashlib.sha256).hex()[:16]


def _sign_part(secret: bytes, xorb: str, first: int, end: int, expires_s: int) -> str:
    return _sign(secret, b"xet-part", f"{xorb}|{first}|{end}|{expires_s}")


def _sign(secret: bytes, purpose: bytes, text: str) -> str:
    key = hmac.digest(secret, purpose, hashlib.sha256)
    return _encode(hmac.digest(key, text.encode(), hashlib.sha256))


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
