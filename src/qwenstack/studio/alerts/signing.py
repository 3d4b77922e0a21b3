"""The secrets that sign webhooks, made from one key and kept nowhere.

Who signs needs the secret itself, so a digest of it would not do. Instead of storing it, even
encrypted, each webhook's secret is derived from its id and a key that lies in a file beside the
database (mode 0600): a copy of the database holds nothing to sign with. What cannot be had is
protection from who can read that file too, such as the server itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from qwenstack.core.durable import sync_folder

KEY_NAME = "alerts.key"
SECRET_PREFIX = "whsec_"  # noqa: S105  # how every such secret begins
_KEY_BYTES = 32


class KeyUnusable(Exception):
    """The key file is missing or holds no key; the message says which and what to do."""


def make_key(path: Path) -> None:
    """Make the key file where there is none. Of two processes that do so at once, one wins."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES).hex().encode())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()
    sync_folder(path.parent)


def secret_of(path: Path, webhook_id: str) -> str:
    """The secret of a webhook, as its receiver is given it. Raises KeyUnusable."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise KeyUnusable(
            f"{path} is missing: copy it from where the webhook was set, or set it again"
        ) from error
    except ValueError as error:
        raise KeyUnusable(f"{path} holds no key of {_KEY_BYTES} bytes in hexadecimal") from error
    if len(key) != _KEY_BYTES:
        raise KeyUnusable(f"{path} holds no key of {_KEY_BYTES} bytes in hexadecimal")
    derived = hmac.digest(key, b"qwenstack webhook 1 " + webhook_id.encode(), "sha256")
    return SECRET_PREFIX + base64.b64encode(derived).decode()


def digest_of(secret: str) -> str:
    """What is stored: it tells whether a derived secret is still the one that was shown."""
    return hashlib.sha256(secret.encode()).hexdigest()


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over id, timestamp and body.

    As https://www.standardwebhooks.com specifies it, so that receivers find a library to verify.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
