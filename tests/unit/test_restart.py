"""A restart in place: what is kept, and what ends it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from app.runtime.restart import Restart, inherited_listener


@pytest.fixture
def listen() -> Iterator[socket.socket]:
    """Return a socket that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def executed(restart: Restart, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment that the process would start again with."""
    given: dict[str, str] = {}

    def execve(_: str, __: list[str], environment: dict[str, str]) -> None:
        given.update(environment)

    monkeypatch.setattr(os, "execve", execve)
    restart.replace_process()
    return given


@pytest.mark.parametrize(("bound_for", "is_kept"), [("here 8001", True), ("here 9000", False)])
def test_the_listening_socket_is_kept_for_the_same_address(
    monkeypatch: pytest.MonkeyPatch, listen: socket.socket, bound_for: str, *, is_kept: bool
) -> None:
    """Clients wait in its queue, also after the server has closed its own; another port is new."""
    restart = Restart()
    restart.stop = listen.close
    address = listen.getsockname()
    restart.listen, restart.bound_for = listen, "here 8001"
    restart.request()
    with socket.create_connection(address):
        environment = executed(restart, monkeypatch)
        monkeypatch.setenv("INHERITED_LISTENER", environment["INHERITED_LISTENER"])

        inherited = inherited_listener(bound_for=bound_for)

        assert (inherited is not None) is is_kept
        if inherited is not None:
            with inherited:
                assert inherited.getsockname() == address
                inherited.settimeout(5)
                inherited.accept()[0].close()
    assert "INHERITED_LISTENER" not in os.environ


def test_nothing_is_inherited_at_a_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is bound then."""
    monkeypatch.delenv("INHERITED_LISTENER", raising=False)

    assert inherited_listener(bound_for="here 8001") is None


def test_a_signal_ends_a_restart_before_and_after_the_request(listen: socket.socket) -> None:
    """A process that was asked to end does not start again."""
    before, after = Restart(), Restart()
    before.stop = after.stop = lambda: None
    before.listen = after.listen = listen

    before.cancel()
    before.request()
    after.request()
    after.cancel()

    assert not before.is_requested
    assert not after.is_requested
    assert listen.fileno() >= 0
