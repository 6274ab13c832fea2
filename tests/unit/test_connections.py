"""Limits on client connections: who is let in, who makes room, who is too slow."""

from __future__ import annotations

import ipaddress
import logging

import pytest

from app.api.clients import client_behind, client_group
from app.api.connections import ConnectionLimits, Connections

PROXIES = (ipaddress.ip_network("10.0.0.0/24"),)


class FakeConnection:
    """A connection whose state a test sets."""

    def __init__(self, peer: str | None, *, waiting_since: float | None = 0.0) -> None:
        self.peer = peer
        self.group = client_group(peer)
        self.waits_since = waiting_since
        self.overdue_at = float("inf")
        self.aborted = False
        self.unread = 0

    def unread_bytes(self) -> int:
        """Return what the test said."""
        return self.unread

    def waiting_since(self) -> float | None:
        """Return what the test said."""
        return self.waits_since

    def is_overdue(self, now_s: float) -> bool:
        """Return whether the test's moment has come."""
        return now_s >= self.overdue_at

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


def _opened(connections: Connections, *opened: FakeConnection) -> list[bool]:
    return [connections.admit(connection, connection) for connection in opened]


def test_the_connection_that_has_waited_longest_makes_room() -> None:
    """Of the address itself, when that is at its limit."""
    connections = Connections(ConnectionLimits(total=8))
    other = FakeConnection("192.168.1.8", waiting_since=0.0)
    first = FakeConnection("192.168.1.7", waiting_since=2.0)
    second = FakeConnection("192.168.1.7", waiting_since=1.0)
    third = FakeConnection("192.168.1.7", waiting_since=3.0)

    assert _opened(connections, other, first, second, third) == [True] * 4
    assert [each.aborted for each in (other, first, second, third)] == [False, False, True, False]
    assert (len(connections), connections.displaced, connections.refused) == (3, 1, 0)


def test_a_connection_with_a_request_in_progress_is_not_closed() -> None:
    """The new one is refused instead, and there is room again when one closes."""
    connections = Connections(ConnectionLimits(total=4))
    busy = FakeConnection("192.168.1.7", waiting_since=None)
    late = FakeConnection("192.168.1.7")
    refused = _opened(connections, busy, late)
    connections.closed(busy)
    connections.closed(busy)

    assert refused == [True, False]
    assert _opened(connections, late) == [True]
    assert (busy.aborted, connections.refused) == (False, 1)


def test_idle_connections_of_one_address_make_room_for_another() -> None:
    """At the total the address with the most gives one up, though others have waited longer."""
    connections = Connections(ConnectionLimits(total=8))
    old = FakeConnection("192.168.1.8", waiting_since=0.0)
    many = [FakeConnection("127.0.0.1", waiting_since=float(number)) for number in range(1, 8)]
    _opened(connections, old, *many)
    probe = FakeConnection("192.168.1.9")

    assert _opened(connections, probe) == [True]
    assert [each.aborted for each in (old, *many)] == [False, True, *[False] * 6]


@pytest.mark.parametrize(
    ("peer", "most"),
    [
        ("192.168.1.7", 128),
        ("2001:db8::1", 128),
        (None, 128),
        ("127.0.0.1", 448),
        ("::1", 448),
        ("::ffff:127.0.0.1", 448),
        ("10.0.0.9", 448),
    ],
)
def test_a_shared_address_may_have_more_connections(peer: str | None, most: int) -> None:
    """This machine and trusted proxies; even they leave some to the others."""
    limits = ConnectionLimits.within(20_000, trusted_proxies=PROXIES)

    assert (limits.total, limits.of(peer)) == (512, most)


@pytest.mark.parametrize(
    ("descriptors", "total", "at_once"),
    [(65_536, 512, 128), (1_024, 512, 64), (512, 256, 32), (256, 64, 16), (32, 16, 8)],
)
def test_the_connection_limit_leaves_descriptors_to_the_service(
    descriptors: int, total: int, at_once: int
) -> None:
    """For databases, Home Assistant, and connections that are accepted and not counted yet."""
    limits = ConnectionLimits.within(descriptors)

    assert (limits.total, limits.at_once) == (total, at_once)


def test_overdue_client_connections_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    """The others stay."""
    now_s = 0.0
    connections = Connections(clock=lambda: now_s)
    slow, fine = FakeConnection("192.168.1.7"), FakeConnection("192.168.1.7")
    slow.overdue_at = 10.0
    _opened(connections, slow, fine)
    connections.close_overdue()
    before = slow.aborted
    now_s = 10.0
    with caplog.at_level(logging.INFO):
        connections.close_overdue()

    assert (before, slow.aborted, fine.aborted) == (False, True, False)
    assert (len(connections), connections.timed_out) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Closed a connection from 192.168.1.7: the client was silent or too slow"
    ]


def test_the_total_of_unread_responses_is_bounded() -> None:
    """The clients that leave the most unread are hung up on."""
    connections = Connections(ConnectionLimits(unread_bytes=100))
    opened = [FakeConnection("192.168.1.7") for _ in range(4)]
    for connection, unread in zip(opened, (30, 60, 10, 90), strict=True):
        connection.unread = unread
    _opened(connections, *opened)
    connections.close_overdue()

    assert [each.aborted for each in opened] == [False, False, False, True]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.168.1.7", ["1.2.3.4"], "192.168.1.7"),
        ("10.0.0.9", [], "10.0.0.9"),
        ("10.0.0.9", ["1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.9", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.9", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.9", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.9", ["1.2.3.4, 10.0.0.8"], "1.2.3.4"),
        ("10.0.0.9", ["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        ("10.0.0.9", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.9", ["[2001:db8::1]:5678"], "2001:db8::1"),
        ("10.0.0.9", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.9", ["unknown, 10.0.0.8"], "10.0.0.8"),
        ("10.0.0.9", [""], "10.0.0.9"),
        (None, ["1.2.3.4"], None),
    ],
)
def test_a_trusted_proxy_names_the_client_it_forwards(
    peer: str | None, forwarded_for: list[str], client: str | None
) -> None:
    """The right-most address that is no trusted proxy: the client wrote what is left of it."""
    assert client_behind(peer, forwarded_for, PROXIES) == client
