"""The command line: every command, its options and its help page. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import TypedDict

from app import __version__

OK, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit status: done or stopped as asked; something failed; the settings or the folder cannot be
used; ended by Ctrl-C."""

_URL_HELP = "address of the running service, if the settings do not contain it"
_AGO = re.compile(r"(\d{1,6}) (minute|hour|day|week)s? ago")


class _Texts(TypedDict):
    """The texts of a parser."""

    help: str
    description: str
    epilog: str
    formatter_class: type[argparse.HelpFormatter]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line, by default that of this process."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Captures every state change of Home Assistant and writes it to InfluxDB.",
        epilog="""\
new here?
  python -m app demo       needs nothing: simulates a home and shows it in the dashboard
  cp .env.example .env     then set HOME_ASSISTANT_URL, HOME_ASSISTANT_TOKEN and INFLUXDB_*
  python -m app doctor     checks the settings
  python -m app run

Each command has its own page: python -m app COMMAND --help""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"websocket-ingestion {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", **_RUN)
    commands.add_parser("demo", **_DEMO)
    doctor = commands.add_parser("doctor", **_DOCTOR)
    doctor.add_argument(
        "--json", action="store_true", help="print JSON for programs (docs/DOCTOR.md)"
    )
    _add_backfill(commands.add_parser("backfill", **_BACKFILL))
    _add_copy(commands.add_parser("copy", **_COPY))
    _add_dead_letters(commands.add_parser("dead-letters", **_DEAD_LETTERS))
    app = commands.add_parser("home-assistant-app", **_HOME_ASSISTANT_APP)
    app.add_argument("--data", type=Path, default=Path("/data"), help="the app's folder (/data)")
    app.add_argument(
        "step",
        nargs="?",
        choices=("run", "before-backup", "after-backup"),
        default="run",
        help="run the service (default); copy its files for a backup; remove the copy",
    )
    return parser.parse_args(arguments)


def moment(text: str, *, now: datetime | None = None) -> datetime:
    """Return the time that `text` names, in UTC.

    It may be ISO 8601 (a date, or a date and a time; local time without an offset), `today` or
    `yesterday` (both at local midnight), or like `3 days ago`.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or a point cannot have that time.
    """
    from app.model import is_representable, nanoseconds  # noqa: PLC0415 - slow, see the module

    try:
        found = _named(text.strip().lower(), now or datetime.now().astimezone())
        found = (found or datetime.fromisoformat(text)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time. Use a date (2026-11-01), a date and time (2026-11-01T06:00),"
            " today, yesterday or '3 days ago'"
        ) from exc
    if not is_representable(nanoseconds(found)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time between 1678 and 2262")
    return found


def _named(words: str, now: datetime) -> datetime | None:
    if words in {"today", "yesterday"}:
        day = now.date() - timedelta(days=words == "yesterday")
        return datetime.combine(day, time()).astimezone()
    if match := _AGO.fullmatch(words):
        return now - timedelta(**{f"{match[2]}s": int(match[1])})
    return None


def _add_backfill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        type=moment,
        required=True,
        metavar="TIME",
        help="first moment: a date, a date and time, today, yesterday or '3 days ago'; local time"
        " unless it has an offset",
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="last moment (default: now)")
    parser.add_argument(
        "--entities", nargs="+", default=[], metavar="ENTITY_ID", help="only these entities"
    )
    parser.add_argument("--url", help=_URL_HELP)


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        help="address of the database to read, or `embedded` (default: COPY_FROM_URL)",
    )
    parser.add_argument(
        "--from-bucket",
        dest="bucket",
        metavar="NAME",
        help="its bucket or database (default: COPY_FROM_BUCKET)",
    )
    parser.add_argument(
        "--from-policy",
        dest="policy",
        metavar="NAME",
        help="its retention policy (InfluxDB 1; default: the database's default policy)",
    )
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="first moment, as of `backfill`"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="last moment (default: now)")
    parser.add_argument(
        "--to-schema",
        choices=["homeiq"],
        help="convert points of Home Assistant's own integration into points of this service",
    )
    parser.add_argument(
        "--points-per-second", type=_positive, metavar="N", help="how many to write at most"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be copied, and write nothing"
    )
    parser.add_argument(
        "--again", action="store_true", help="copy also what was copied and compared before"
    )


def _positive(text: str) -> float:
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _add_dead_letters(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--sink", help="only those of this sink, for example influxdb")
    shared.add_argument("--url", help=_URL_HELP)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=[shared], **_LIST)
    listing.add_argument("--limit", type=int, default=100, help="how many (default: %(default)s)")
    actions.add_parser("retry", parents=[shared], **_RETRY)
    export = actions.add_parser("export", parents=[shared], **_EXPORT)
    export.add_argument("--output", type=Path, help="a file (default: standard output)")
    delete = actions.add_parser("delete", parents=[shared], **_DELETE)
    delete.add_argument("--id", type=int, nargs="+", help="only these")
    delete.add_argument("--all", action="store_true", help="every dead letter")


def _texts(summary: str, *, does: str, needs: str, examples: str, statuses: str) -> _Texts:
    """Return the texts of a command: `summary` for the list of commands, the rest for its page."""
    sections = {"needs": needs, "examples": examples, "exit status": statuses}
    return _Texts(
        help=summary,
        description=does,
        epilog="\n\n".join(f"{name}:\n{_indented(text)}" for name, text in sections.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


_SERVICE_STATUSES = """\
0  stopped as asked
1  part of the service failed; the reason is the last log line
2  """

_RUN = _texts(
    "run the service with the settings from the environment, .env and DATA_DIR",
    does="""\
Connects to Home Assistant, stores every state change durably in DATA_DIR, writes it to InfluxDB
or the embedded store, and serves the dashboard, the API, /ws, /health and /metrics until SIGTERM
or Ctrl-C. Home Assistant and the database may be down at the start: it retries indefinitely.""",
    needs="""\
HOME_ASSISTANT_URL and HOME_ASSISTANT_TOKEN; INFLUXDB_URL and its credentials for a database. The
environment overrides .env; .env.example lists all settings. `python -m app doctor` checks them.
With nothing about Home Assistant set, it asks for all that in a browser; the log says where.""",
    examples="""\
python -m app run
HOME_ASSISTANT_URL=http://homeassistant.local:8123 HOME_ASSISTANT_TOKEN=… python -m app run""",
    statuses=f"{_SERVICE_STATUSES}the settings or DATA_DIR cannot be used; one line says why",
)

_DEMO = _texts(
    "run the service on a simulated home, with the embedded store",
    does="""\
Simulates a home behind Home Assistant's real protocol and runs the whole service on it. It prints
its addresses, keeps its data in data/demo, and continues there the next time.""",
    needs="""\
Nothing. It ignores .env and every setting of Home Assistant, InfluxDB and a data API. It listens
on WEBSOCKET_INGESTION_PORT, or on the first free port from 8001 on.""",
    examples="""\
python -m app demo
WEBSOCKET_INGESTION_PORT=9000 python -m app demo""",
    statuses=f"{_SERVICE_STATUSES}the port or the folder cannot be used",
)

_DOCTOR = _texts(
    "check the settings, Home Assistant, the database and the disk, and say what to fix",
    does="""\
Checks the settings, DATA_DIR (writable, free space, speed of fsync), the port, the entity filter
and the transforms; Home Assistant (address, TLS, token, version, clock, recorder, permissions);
the database (version, clock, a point written, read back and removed); and the data API, if one is
set. It prints one line per check (ok, warning, failed, not tried) with what to do. It may run
while the service runs, never shows a secret, and ends within half a minute.""",
    needs="""\
The settings of the service, from the environment and .env. A missing bucket or database is
created, as the service would do. The point goes into a measurement of its own,
websocket_ingestion_doctor; where points cannot be removed (InfluxDB 3, VictoriaMetrics) it
stays.""",
    examples="""\
python -m app doctor
python -m app doctor --json | jq '.checks[] | select(.status == "failed")'""",
    statuses="""\
0  everything is fine, or there are only warnings
1  a check failed
2  the settings cannot be used""",
)

_BACKFILL = _texts(
    "read history back from Home Assistant's recorder",
    does="""\
Reads changes from before the service captured anything, or of any span of time, from Home
Assistant's recorder, and writes them as points marked `backfilled`. What was captured or read back
before is not read again. It shows its progress; interrupted, it continues at the next start.""",
    needs="""\
The settings of the service. While a service uses DATA_DIR, that service does it (API_KEY is sent,
if set); otherwise this command connects to Home Assistant and the database itself.""",
    examples="""\
python -m app backfill --since yesterday
python -m app backfill --since 2026-11-14
python -m app backfill --since 2026-11-14T06:00+01:00 --until 2026-11-15 --entities sensor.power""",
    statuses="""\
0  everything was read back, or there was nothing to read
1  some of it is unavailable, or nothing of it was recorded; the last lines say why
2  the command line or the settings cannot be used, an entity is unknown, or the service that
   uses DATA_DIR does not answer""",
)

_COPY = _texts(
    "copy the history of another database into the service's database",
    does="""\
Reads an InfluxDB 1 or 2, a VictoriaMetrics or the embedded store, and writes every point unchanged
to the database of the settings INFLUXDB_*. Interrupted, it continues where it was. At the end both
sides are compared: counts and checksums of each measurement and day, and differences are listed.
With --to-schema homeiq, points of Home Assistant's own integration become points of this service.
Points that the target refuses go to a file with the reason. The service may run meanwhile.""",
    needs="""\
The settings of the service, and COPY_FROM_TOKEN (InfluxDB 2), or COPY_FROM_USERNAME and
COPY_FROM_PASSWORD, if the database to read requires them. See docs/COPY.md.""",
    examples="""\
python -m app copy --from http://influxdb:8086 --from-bucket home_assistant --dry-run
python -m app copy --from http://influxdb:8086 --from-bucket home_assistant
python -m app copy --from http://influxdb:8086 --from-bucket home_assistant --to-schema homeiq
python -m app copy --from embedded --since 2026-11-01""",
    statuses="""\
0  everything is copied, and both sides are equal
1  the target lacks values, points were refused, or a database does not respond or refuses
   requests; the last lines say why
2  the command line or the settings cannot be used""",
)

_dead_letters = partial(
    _texts,
    needs="""\
The settings of the service. While a service uses DATA_DIR, that service does it (API_KEY is sent,
if set); otherwise this command uses the files in DATA_DIR.""",
    statuses="""\
0  done, also when there was none
2  the command line or the settings cannot be used, or the service that uses DATA_DIR does not
   answer""",
)

_DEAD_LETTERS = _dead_letters(
    "list, retry, export or delete the points that a database rejected",
    does="""\
A point that a database rejects permanently becomes a dead letter: it is stored with the reason,
and the rest of its batch is written. Each action has its own page: dead-letters ACTION --help.""",
    examples="""\
python -m app dead-letters list
python -m app dead-letters retry --sink influxdb""",
)

_LIST = _dead_letters(
    "list dead letters, newest first",
    does="Lists dead letters, newest first: number, time, sink and reason, then the point.",
    examples="python -m app dead-letters list --limit 20",
)

_RETRY = _dead_letters(
    "put dead letters back into the journal",
    does="""\
Puts dead letters back into the journal, to be sent again once the reason for the rejection is
fixed. What is rejected again becomes a dead letter again.""",
    examples="python -m app dead-letters retry --sink influxdb",
)

_EXPORT = _dead_letters(
    "write dead letters as line protocol",
    does="Writes dead letters as line protocol, oldest first, and does not delete them.",
    examples="python -m app dead-letters export --output rejected.lp",
)

_DELETE = _dead_letters(
    "delete dead letters permanently",
    does="Deletes dead letters permanently; `export` makes a copy.",
    examples="""\
python -m app dead-letters delete --id 17 18
python -m app dead-letters delete --all""",
)

_HOME_ASSISTANT_APP = _texts(
    "run the service as a Home Assistant app, under its Supervisor",
    does="""\
Runs the service with the app's options, connected to Home Assistant through the Supervisor, and
answers the pages that Home Assistant shows (ingress). As root it gives the folder to user 10001
and becomes that user. Its image runs it; nothing else should.""",
    needs="""\
SUPERVISOR_TOKEN, and the options in options.json in the app's folder; the Supervisor supplies
both.""",
    examples="""\
python -m app home-assistant-app
python -m app home-assistant-app before-backup""",
    statuses=f"{_SERVICE_STATUSES}the options or the folder cannot be used; one line says why",
)
