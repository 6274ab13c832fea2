"""Addresses of clients: how they are grouped, and which client is behind a proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK: tuple[Network, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1"),
)

_UNIX_SOCKET = "a UNIX socket"
_PREFIX_V6 = 64
"""The smallest network that providers assign: all of it counts as one client."""


def parse_address(text: str) -> Address | None:
    """Return an IP address, an IPv4 address written as IPv6 as IPv4; None for other text."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_in(peer: str | None, networks: Iterable[Network]) -> bool:
    """Return whether an address lies in one of the networks."""
    address = parse_address(peer or "")
    return address is not None and any(address in network for network in networks)


def client_group(peer: str | None) -> str:
    """Return the key that limits are counted by: the IPv4 address, or the /64 of an IPv6 one."""
    address = parse_address(peer or "")
    if address is None:
        return peer or _UNIX_SOCKET
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), _PREFIX_V6), strict=False))


def client_behind(
    peer: str | None, forwarded_for: Sequence[str], trusted_proxies: Sequence[Network]
) -> str | None:
    """Return the address of the client that trusted proxies forward.

    That is the right-most address of `X-Forwarded-For` that is not a trusted proxy: anything left
    of it may be forged. Without a trusted proxy it is the peer.
    """
    if not is_in(peer, trusted_proxies):
        return peer
    client = peer
    for hop in reversed(",".join(forwarded_for).split(",")):
        address = parse_address(_without_port(hop.strip()))
        if address is None:
            return client
        client = str(address)
        if not is_in(client, trusted_proxies):
            return client
    return client


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
