"""Where a webhook may point: the public internet over https, and what the operator allows besides.

Whoever may set a webhook makes this server send requests. So an address inside the network that it
stands in (private, link-local, loopback, a cloud's metadata service) is refused unless a setting
allows it. The address itself is looked at, after the name was resolved and by the same lookup that
the connection is made from: a name that resolves differently a second time gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from qwenstack.core.refusals import invalid

URL_LENGTH_MAX = 2000
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
# Threads of their own: a name server that hangs must not hold up what else is looked up here, such
# as an engine's address.
_LOOKUPS = ThreadPoolExecutor(4, "alert-lookup")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """A webhook's host has an address that nothing is sent to; the message says which and why."""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks such as `10.0.0.0/8`; raises ValueError for what is none."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def check_url(text: str, allowed: Sequence[Network]) -> URL:
    """The URL of a webhook; raises Refusal for one that nothing could ever be sent to.

    A host's name is not resolved here: that is done each time something is sent.
    """
    if len(text) > URL_LENGTH_MAX or not text.isascii() or not text.isprintable():
        raise invalid(f"The URL must have at most {URL_LENGTH_MAX} plain characters.", "url")
    try:
        url = URL(text)
        host = url.raw_host
    except ValueError as error:
        raise invalid(f"{text[:80]!r} is no URL: {error}.", "url") from error
    if url.scheme not in ("http", "https") or not host:
        raise invalid(f"{text[:80]!r} must be a URL like https://hooks.example.com/budget.", "url")
    try:
        host.encode("idna")  # as whoever looks it up does
    except UnicodeError as error:
        raise invalid(
            f"{text[:80]!r} has a host with a part between its dots that is empty or too long.",
            "url",
        ) from error
    if url.user is not None or url.password is not None or url.fragment:
        raise invalid(
            "The URL must hold no user, password or fragment; what is sent is signed instead.",
            "url",
        )
    if url.scheme == "http" and not allowed:
        raise invalid(
            "The URL must begin with https://; http is for alerts.allow_networks alone.",
            "url",
        )
    if (literal := as_address(host)) is not None:
        try:
            check_address(literal, url.scheme, allowed)
        except AddressRefused as error:
            raise invalid(f"{error}.", "url") from error
    return url


def as_address(host: str) -> Address | None:
    """The address that `host` is, or None for a name."""
    try:
        return ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return None


def check_address(address: Address, scheme: str, allowed: Sequence[Network]) -> None:
    """Raise AddressRefused unless something may be sent to `address`."""
    behind = _behind(address)
    if any(behind in network or address in network for network in allowed):
        return
    if not _is_public(behind):
        raise AddressRefused(
            f"{address} is not a public address; the setting alerts.allow_networks can allow it"
        )
    if scheme != "https":
        raise AddressRefused(f"{address} is a public address and is reached over https only")


def _behind(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not address.is_multicast


class GuardedResolver(AbstractResolver):
    """Resolves names for one connection, and raises AddressRefused where nothing may be sent."""

    def __init__(self, scheme: str, allowed: Sequence[Network]) -> None:
        self._scheme = scheme
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`, each of which may be connected to."""
        found = await asyncio.get_running_loop().run_in_executor(
            _LOOKUPS,
            socket.getaddrinfo,
            *(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG),
        )
        for *_, place in found:
            address = ipaddress.ip_address(str(place[0]).split("%")[0])
            check_address(address, self._scheme, self._allowed)
        return [
            ResolveResult(
                hostname=host,
                host=str(place[0]),
                port=int(place[1]),
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, place in found
        ]

    async def close(self) -> None:
        """Nothing is held."""
