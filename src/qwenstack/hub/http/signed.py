"""URLs that carry their own right: what they are for, until when, and the hub's signature."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TypeVar

import msgspec

from qwenstack.core.instants import now_us
from qwenstack.hub.errors import Forbidden

_MAC_BYTES = 32
_CHARS_MAX = 2000

T = TypeVar("T")


def sign(secret: bytes, purpose: str, content: msgspec.Struct, *, expires_us: int) -> str:
    """A token for a URL that holds `content`, good for one purpose until an instant."""
    body = msgspec.msgpack.encode((expires_us, content))
    mac = hmac.digest(secret, purpose.encode() + b"\0" + body, hashlib.sha256)
    return base64.urlsafe_b64encode(mac + body).rstrip(b"=").decode()


def read_signed(secret: bytes, purpose: str, token: str, kind: type[T]) -> T:
    """What a token of `sign` holds. Raises Forbidden for a forged, foreign or expired one."""
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise Forbidden("The URL is not one that this hub gave.") from error
    mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
    expected = hmac.digest(secret, purpose.encode() + b"\0" + body, hashlib.sha256)
    if len(token) > _CHARS_MAX or not hmac.compare_digest(mac, expected):
        raise Forbidden("The URL is not one that this hub gave.")
    expires_us, content = msgspec.msgpack.decode(body, type=tuple[int, kind])  # type: ignore[valid-type]
    if expires_us < now_us():
        raise Forbidden("The URL has expired; ask for a new one.")
    return content
