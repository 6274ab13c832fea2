"""Restart of the process in place, which applies new settings (docs/decisions/0035).

The process stops as after SIGTERM, then executes itself with the same arguments. Its id stays, and
so does the container or the unit around it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

_LISTENER = "INHERITED_LISTENER"
"""Variable that hands the listening socket over: its descriptor, and what it was bound for."""


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Restart:
    """Whether the process starts again when it has stopped."""

    def __init__(self) -> None:
        self.is_requested = False
        self.stop: Callable[[], None] = _terminate
        self.listen: socket.socket | None = None
        """Stays open, so that clients wait meanwhile and are not refused."""
        self.bound_for = ""
        """The address in the settings; with another one the socket is of no use."""
        self._is_ending = False

    def request(self) -> None:
        """Stop the process, to start again."""
        if self.is_requested or self._is_ending:
            return
        if self.listen is not None:
            self.listen = self.listen.dup()  # the server closes its own
        self.is_requested = True
        self.stop()

    def cancel(self) -> None:
        """Do not start again: the process was asked to end."""
        if self.is_requested and self.listen is not None:
            self.listen.close()
        self.is_requested, self._is_ending = False, True

    def replace_process(self) -> NoReturn:
        """Start this process again.

        Raises:
            OSError: the interpreter is no longer there.
        """
        environment = dict(os.environ)
        if self.listen is not None:
            self.listen.set_inheritable(True)
            environment[_LISTENER] = f"{self.listen.detach()} {self.bound_for}"
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - this program


def inherited_listener(*, bound_for: str) -> socket.socket | None:
    """Return the socket that was kept at a restart, unless it was bound for something else."""
    descriptor, _, was_bound_for = os.environ.pop(_LISTENER, "").partition(" ")
    if not descriptor:
        return None
    listen = socket.socket(fileno=int(descriptor))
    listen.set_inheritable(False)
    if was_bound_for == bound_for:
        return listen
    listen.close()
    return None
