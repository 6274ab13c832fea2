"""`python -m app COMMAND`: dispatches to the command and owns Ctrl-C and the exit status.

Each command is imported only when it runs, so that `--help` costs no more than Python itself.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine
    from pathlib import Path

    from app.runtime.restart import Restart

_INTERRUPTED = {
    "copy": "Interrupted. The next run continues with the days that are not complete",
    "backfill": "Interrupted. What was read back is stored; the next start continues with the rest",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command of the command line and return the exit status."""
    from app.commands.command_line import FAILED, INTERRUPTED, OK, UNUSABLE, parse
    from app.runtime.errors import SettingsError, StorageError
    from app.runtime.restart import Restart

    parsed = parse(arguments)
    restart = Restart()
    try:
        if parsed.command == "home-assistant-app":
            status = _home_assistant_app(parsed.step, parsed.data, restart)
        else:
            status = _dispatch(parsed, restart)
        if restart.is_requested and status == OK:
            restart.replace_process()
    except (SettingsError, StorageError) as exc:
        sys.stderr.write(f"websocket-ingestion: {exc}\n")
        return UNUSABLE
    except OSError as exc:
        if not restart.is_requested:
            raise
        sys.stderr.write(f"websocket-ingestion: cannot start again ({exc.strerror})\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{_INTERRUPTED.get(parsed.command, 'Interrupted')}\n")
        return INTERRUPTED
    return status


def _dispatch(parsed: argparse.Namespace, restart: Restart) -> int:
    match parsed.command:
        case "run":
            from app.commands.run import run

            return _wait_for(run(restart))
        case "demo":
            sys.stdout.write("Starting the service and a simulated home; their data is in")
            sys.stdout.write(" data/demo ...\n")
            sys.stdout.flush()
            from app.commands.demo import demo

            return _wait_for(demo())
        case "doctor":
            # An unreachable name server would block the process for longer than all the checks.
            os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
            from app.commands.doctor.command import doctor

            return _wait_for(doctor(as_json=parsed.json))
        case "backfill":
            from app.commands.backfill import backfill

            return _wait_for(backfill(parsed))
        case "copy":
            from app.commands.copy.command import copy

            return _wait_for(copy(parsed))
        case _:
            from app.commands.dead_letters import dead_letters

            return _wait_for(dead_letters(parsed))


def _home_assistant_app(step: str, data: Path, restart: Restart) -> int:
    from app.commands import home_assistant_app
    from app.commands.command_line import OK

    if step == "run":
        home_assistant_app.prepare(data)
        from app.commands.run import run

        try:
            return _wait_for(run(restart))
        finally:
            home_assistant_app.set_aside(data)
    home_assistant_app.become_user()  # or the service could not remove what root has copied
    if step == "before-backup":
        home_assistant_app.store_copy(data)
    else:
        home_assistant_app.remove_copy(data)
    return OK


def _wait_for(command: Coroutine[Any, Any, int]) -> int:
    import asyncio

    gc.freeze()  # what was imported lives until the end, so no collection need visit it
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return asyncio.run(command)


def _end_at_once(*_: object) -> None:
    """End the process while it only imports: a KeyboardInterrupt there would be a traceback."""
    os.write(sys.stderr.fileno(), b"\nInterrupted before anything was started; no data changed\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end_at_once)
    gc.disable()  # imports leave no garbage; collecting is a fifth of their time
    status = main()
    # All is done and closed; only the interpreter remains to be ended.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)
