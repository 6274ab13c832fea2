"""Restart of the process in place, which applies new settings (docs/decisions/0035).

The process stops as after SIGTERM, then executes itself with the same arguments: the process id,
and a container or a unit around it, stay.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import NoReturn

_LISTENER = "INHERITED_LISTENER"
"""Variable that hands the listening socket over: its descriptor and what it was bound for."""


class Restart:
    """Whether the process starts again when it has stopped."""

    def __init__(self) -> None:
        self.is_requested = False

    def request(self) -> None:
        """Stop the process, to start again."""
        self.is_requested = True
        os.kill(os.getpid(), signal.SIGTERM)


def replace_process(listen: socket.socket | None = None, *, bound_for: str = "") -> NoReturn:
    """Start this process again; `listen` stays open for `inherited_listener`.

    Raises:
        OSError: the interpreter is no longer there.
    """
    environment = dict(os.environ)
    if listen is not None:
        os.set_inheritable(listen.fileno(), True)
        environment[_LISTENER] = f"{listen.fileno()} {bound_for}"
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - itself


def inherited_listener(bound_for: str) -> socket.socket | None:
    """Return the socket that the process listened on before it restarted, if it is still right.

    Clients that connected meanwhile wait in its queue.
    """
    descriptor, _, was_bound_for = os.environ.pop(_LISTENER, "").partition(" ")
    if not descriptor:
        return None
    listen = socket.socket(fileno=int(descriptor))
    listen.set_inheritable(False)
    if was_bound_for == bound_for:
        return listen
    listen.close()
    return None
