"""`python -m app doctor`: look at everything the service needs, and say what is wrong.

It reads, writes one point to the database and removes it, and does so beside a service that
runs: it takes no lock, and touches no file of it. `checks.py` decides what a reading means;
`machine.py`, `home_assistant.py` and `database.py` take the readings; `command.py` has the order.
"""

from __future__ import annotations

import argparse

from app.commands.help_text import described

HELP = described(
    "check settings, neighbors and disk, and say how to mend what is wrong",
    does="""\
Checks the settings, the folder DATA_DIR (writable, free space, speed of fsync), the port, the
entity filter and the transforms; Home Assistant (address, TLS, token, version, clock, recorder,
rights); the database (version, clock, a point written, read back and removed); and the data
API, if one is set. It says in one line each how it went (ok, warning, failed, not tried) and
what to do. It may run beside the service, never shows a secret, and ends within half a minute,
whatever hangs.""",
    needs="""\
The settings of the service, from the environment and .env. A bucket or database that is missing
is created, as the service would do. The point goes into a measurement of its own,
websocket_ingestion_doctor; where points cannot be removed (InfluxDB 3, VictoriaMetrics) it
stays.""",
    examples="""\
python -m app doctor
python -m app doctor --json | jq '.checks[] | select(.status == "failed")'""",
    statuses="""\
0  all is well, or there are warnings only
1  a check failed
2  the settings cannot be used""",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--json", action="store_true", help="JSON for programs, as described in docs/DOCTOR.md"
    )
