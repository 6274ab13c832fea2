"""The doctor's checks: what each reading means, without a server or a disk."""

from __future__ import annotations

import io
import json
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.commands.doctor import machine, report
from app.doctor import checks, database, home_assistant
from app.doctor.checks import CurrentUser, Disk, Port, Recent, RecorderInfo
from app.doctor.findings import Finding, Status, failed, not_tried, ok, warning, without_secrets
from app.doctor.probe import Probe, is_found, is_removed
from app.runtime.connection_errors import DATABASE, HOME_ASSISTANT
from app.runtime.errors import CommandFailed, SourceUnavailable
from app.sinks.influxdb.dialects import Target
from app.sinks.influxdb.http import Reply
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MEGABYTE = 1_000_000


def disk(*, free_mb: int = 9_000, journal_mb: int = 0, fsync_ms: float = 1.0) -> Disk:
    """Return a folder that can be written."""
    return Disk(
        folder="/data",
        is_there=True,
        free_bytes=free_mb * MEGABYTE,
        journal_bytes=journal_mb * MEGABYTE,
        fsync_ms=[90.0, fsync_ms, fsync_ms],
    )


@pytest.mark.parametrize(
    ("free_mb", "journal_mb", "status"),
    [
        (1_300, 0, "ok"),
        (1_200, 0, "warning"),  # 200 of them are never used
        (300, 1_000, "ok"),  # the journal has nearly all the room it may take
        (200, 0, "failed"),
        (0, 500, "failed"),
    ],
)
def test_too_little_room_for_the_journal_is_a_finding(
    free_mb: int, journal_mb: int, status: Status
) -> None:
    """What is free beyond JOURNAL_MIN_FREE_MB, and what it has already, make its bound or not."""
    finding = checks.disk_space(
        disk(free_mb=free_mb, journal_mb=journal_mb), max_mb=1_024, min_free_mb=200
    )

    assert finding.status == status
    assert finding.readings == {"free_mb": free_mb, "journal_mb": journal_mb}


@pytest.mark.parametrize(("fsync_ms", "status"), [(50.0, "ok"), (50.1, "warning")])
def test_a_disk_whose_median_fsync_is_slow_is_a_warning(fsync_ms: float, status: Status) -> None:
    """One slow write of several is not a finding."""
    finding = checks.fsync(disk(fsync_ms=fsync_ms))

    assert finding.status == status
    assert finding.readings == {"median_ms": fsync_ms}


def test_a_data_folder_that_does_not_exist_yet_is_ok() -> None:
    """The service makes it."""
    there = Disk(folder="/srv", is_there=False, fsync_ms=[1.0])

    assert checks.data_dir(there) == ok(
        "data_dir", "DATA_DIR does not exist yet, and can be created in /srv."
    )
    assert checks.data_dir(Disk(folder="/", is_there=True, problem="Read-only")).status == (
        "failed"
    )


@pytest.mark.parametrize(
    ("state", "status"),
    [("free", "ok"), ("ours", "ok"), ("foreign", "failed"), ("refused", "failed")],
)
def test_a_port_is_free_or_used_by_the_service_or_by_another_program(
    state: checks.PortState, status: Status
) -> None:
    """Our own service there is as it should be."""
    assert checks.port(Port(state=state, address="http://x:1", detail="y")).status == status


def _caused(cause: Exception) -> Exception:
    exc = SourceUnavailable("no")
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ssl.SSLCertVerificationError("expired"), "certificate is refused"),
        (ssl.SSLError("wrong version number"), "does not speak TLS"),
        (socket.gaierror(-2, "unknown"), "name of the host is not known"),
        (ConnectionRefusedError(), "nothing listens there"),
        (ConnectionResetError(), "cut at once"),
        (TimeoutError(), "no answer in time"),
        (OSError(113, "No route to host"), "No route to host"),
        (RuntimeError("HTTP 404"), "something else (HTTP 404)"),
    ],
)
def test_each_connection_error_has_a_sentence_that_names_the_variable(
    cause: Exception, words: str
) -> None:
    """Each kind of error has its own sentence, which names the variable to check."""
    for server in (HOME_ASSISTANT, DATABASE):
        finding = checks.not_reached("x", server, "ws://host", _caused(cause))

        assert words in finding.what
        assert finding.advice is not None
        assert server.variable in finding.advice or "certificate" in finding.advice


@pytest.mark.parametrize(
    ("version", "state", "status"),
    [
        ("2025.4.4", "RUNNING", "ok"),
        ("2024.3.0", "RUNNING", "ok"),
        ("2026.12.0.dev20261124", "RUNNING", "ok"),
        ("2023.12.4", "RUNNING", "warning"),
        ("2025.4.4", "STARTING", "warning"),
        (None, "RUNNING", "warning"),
    ],
)
def test_a_home_assistant_that_is_starting_or_too_old_is_a_warning(
    version: str | None, state: str, status: Status
) -> None:
    """Neither is in the way of trying."""
    assert checks.version(version, state).status == status


def test_rights_of_a_token_are_judged_by_what_it_may_read() -> None:
    """An administrator's token is more than is needed, and not a problem."""
    refused = CommandFailed("subscribe_events", code="unauthorized", message="no")

    assert "safer" in checks.rights(CurrentUser(is_admin=True), refused=None).what
    assert "enough" in checks.rights(CurrentUser(), refused=None).what
    assert checks.rights(None, refused=None).status == "ok"
    assert checks.rights(CurrentUser(is_admin=True), refused=refused).status == "failed"


def test_history_is_searched_from_the_oldest_hour_to_the_newest() -> None:
    """Each hour is half as far back as the one before, down to the last hour."""
    found = checks.windows(NOON, 10.0)

    assert [age for age, _, _ in found] == [10.0, 5.0, 2.5, 1.25, 1.0]
    assert [NOON - timedelta(hours=10), NOON - timedelta(hours=5)] == [
        start for _, start, _ in found[:2]
    ]
    assert found[-1][2] > NOON
    assert [age for age, _, _ in checks.windows(NOON, 0.5)] == [0.5]


def test_history_is_requested_for_the_entities_that_changed_last() -> None:
    """At most fifty, so that the answer stays small."""
    states = [Recent(f"sensor.s{n}", NOON + timedelta(seconds=n), NOON) for n in range(60)]

    asked = checks.recently_changed(states)

    assert [f"sensor.s{n}" for n in range(59, 9, -1)] == asked


@pytest.mark.parametrize(
    ("info", "hours", "status", "words"),
    [
        (RecorderInfo(), 240.0, "ok", "10 days ago, which is as far as BACKFILL_MAX_HOURS"),
        (RecorderInfo(), 24.0, "ok", "between a day and 2 days"),
        (RecorderInfo(), 1.0, "ok", "between an hour and 2 hours"),
        (RecorderInfo(), 1.875, "ok", "between 1.9 hours and 3.8 hours"),
        (RecorderInfo(), None, "warning", "no history"),
        (RecorderInfo(recording=False), 240.0, "warning", "paused"),
    ],
)
def test_the_age_of_recorded_history_limits_which_gaps_can_be_filled(
    info: RecorderInfo, hours: float | None, status: Status, words: str
) -> None:
    """A young recorder is fine, a paused one is not."""
    finding = checks.recorder(info, found_hours=hours, max_hours=240.0)

    assert finding.status == status
    assert words in finding.what


@pytest.mark.parametrize(
    ("difference_s", "status", "words"),
    [
        (None, "ok", "does not report"),
        (0.4, "ok", "agree"),
        (-5.0, "ok", "agree"),
        (5.1, "warning", "5 s ahead of"),
        (-600.0, "warning", "10 minutes behind"),
        (7_200.0, "warning", "2 hours ahead of"),
    ],
)
def test_clocks_that_differ_by_a_few_seconds_are_ok(
    difference_s: float | None, status: Status, words: str
) -> None:
    """The header has whole seconds, and an answer takes its time."""
    finding = checks.clock("ha_clock", "It", difference_s, matters="So.")

    assert finding.status == status
    assert words in finding.what


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Held(reason="401", advice="Check INFLUXDB_TOKEN.", status=401), "(401)"),
        (Held(reason="odd", advice="Check INFLUXDB_URL."), "points: odd"),
        (Refused(reason="conflict"), "conflict"),
        (Busy(reason="limit"), "limit"),
        (TimedOut(reason="late"), "late"),
        (TooLarge(reason="413"), "413"),
        (Unavailable(reason="reset"), "reset"),
        (ServerFailed(reason="oh no"), "oh no"),
    ],
)
def test_a_point_that_is_not_accepted_is_a_failure_with_its_reason(
    answer: Outcome, words: str
) -> None:
    """Each answer of the sink's vocabulary has words and advice here."""
    finding = checks.written(answer, version="v2", bucket="b")

    assert finding.status == "failed"
    assert words in finding.what
    assert finding.advice


def test_only_an_accepted_point_counts_as_written() -> None:
    """The finding names the API version that was used."""
    finding = checks.written(Accepted(), version="v2", bucket="b")

    assert (finding.status, finding.readings) == ("ok", {"api": "v2"})


@pytest.mark.parametrize(
    ("found", "status_code", "status", "words"),
    [
        (True, 200, "ok", "was read back"),
        (False, 200, "warning", "a query does not find it"),
        (None, 403, "warning", "may only write"),
        (None, 500, "warning", "that is an error"),
    ],
)
def test_a_point_that_cannot_be_read_back_is_only_a_warning(
    *, found: bool | None, status_code: int, status: Status, words: str
) -> None:
    """A token that may only write is enough for the service."""
    finding = checks.read_back(found=found, status=status_code, removed=False, measurement="m")

    assert finding.status == status
    assert words in finding.what
    assert "It remains in the measurement m" in finding.what


def test_listening_for_other_machines_without_a_key_is_a_warning() -> None:
    """They would all be refused."""
    assert checks.listening("127.0.0.1", has_key=False) is None
    assert checks.listening("0.0.0.0", has_key=True) is None
    for host in ("0.0.0.0", "::"):
        finding = checks.listening(host, has_key=False)
        assert finding is not None
        assert "API_KEY" in finding.what


@pytest.mark.parametrize(
    ("host", "api_key", "status", "words"),
    [
        ("127.0.0.1", None, "ok", "`ssh -L`"),
        ("0.0.0.0", None, "warning", "API_KEY is unset"),
        ("0.0.0.0", "k" * 15, "warning", "15 characters"),
        ("127.0.0.1", "k" * 15, "warning", "15 characters"),
    ],
)
def test_without_a_key_the_doctor_reports_who_is_answered(
    host: str, api_key: str | None, status: Status, words: str
) -> None:
    """What cannot be recognized without a key, and a key that can be guessed."""
    finding = checks.access(host, api_key=api_key)

    assert finding is not None
    assert (finding.name, finding.status) == ("access", status)
    assert words in finding.what


def test_a_long_api_key_gives_no_finding() -> None:
    """Only its holders are answered."""
    assert checks.access("0.0.0.0", api_key="k" * 16) is None


@pytest.mark.parametrize(
    ("body", "status", "found"),
    [
        (b'{"results":[{"series":[{"name":"websocket_ingestion_doctor"}]}]}', 200, True),
        (b'{"results":[{"series":[{"name":"databases"}]}]}', 200, False),
        (b'{"results":[{"statement_id":0}]}', 200, False),
        (b'{"results":[{"error":"not allowed"}]}', 200, None),
        (b'[{"probe":1.0}]', 200, True),
        (b"[]", 200, False),
        (b",result,table,_measurement\r\n,,0,websocket_ingestion_doctor\r\n", 200, True),
        (b"\r\n", 200, False),
        (b'{"code":"not found"}', 404, None),
    ],
)
def test_the_probe_is_found_only_in_an_answer_that_contains_it(
    body: bytes, status: int, *, found: bool | None
) -> None:
    """In the three forms in which the three versions answer; a refusal is neither."""
    assert is_found(Reply(status=status, headers={}, body=body)) is found


def test_the_probe_is_removed_only_if_the_answer_confirms_it() -> None:
    """InfluxDB 1 answers 200 to a statement that failed, too."""
    assert is_removed(Reply(status=204, headers={}))
    assert is_removed(Reply(status=200, headers={}, body=b'{"results":[{"statement_id":0}]}'))
    assert not is_removed(Reply(status=200, headers={}, body=b'{"results":[{"error":"no"}]}'))
    assert not is_removed(Reply(status=403, headers={}))


def test_removing_the_probe_touches_only_the_doctors_measurement() -> None:
    """In no dialect anything else is named; version 3 has no removal."""
    probe, target = Probe(1_764_000_000_000_000_000), Target(bucket="b", org="o")
    first, second = probe.removal("v1", target), probe.removal("v2", target)

    assert first is not None
    assert first.query == {"db": "b", "q": 'DELETE FROM "websocket_ingestion_doctor"'}
    assert second is not None
    assert second.body == {
        "start": "1970-01-01T00:00:00Z",
        "stop": "2025-11-24T16:01:00Z",
        "predicate": '_measurement="websocket_ingestion_doctor"',
    }
    assert probe.removal("v3", target) is None


FINE, ODD, BAD = ok("a_b", "Fine."), warning("b", "Odd.", "Look."), failed("c", "Bad.", "Fix it.")


def test_a_finding_is_printed_on_one_line() -> None:
    """The status comes first, in a word: nothing depends on a color."""
    out = io.StringIO()

    assert report.line(FINE, out) == "ok         a b                   Fine."
    assert report.line(BAD, out) == "failed     c                     Bad. Fix it."
    assert report.line(not_tried("d", "c failed"), out) == (
        "not tried  d                     Not tried, because c failed."
    )


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "expected"),
    [
        (True, "", "\x1b[32mok       \x1b[0m  a b                   Fine."),
        (True, "1", "ok         a b                   Fine."),
        (False, "", "ok         a b                   Fine."),
    ],
)
def test_the_status_has_a_color_on_a_terminal_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, no_color: str, expected: str
) -> None:
    """Files, pipes and NO_COLOR get plain text."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)

    assert report.line(FINE, out) == expected


def test_many_wrong_settings_take_at_most_ten_lines() -> None:
    """Four in full, the others by name."""
    problems = [failed("settings", f"NAME_{number}: is odd.", "Fix it.") for number in range(9)]

    shown = report.unusable(problems, io.StringIO()).splitlines()

    assert len(shown) <= 10
    assert "And 5 more: NAME_4, NAME_5, NAME_6, NAME_7, NAME_8." in shown[3]


@pytest.mark.parametrize(
    ("found", "verdict", "summary"),
    [
        ([FINE], "ok", "All is well."),
        ([FINE, ODD], "warning", "1 warning."),
        ([FINE, ODD, BAD, not_tried("d", "x")], "failed", "1 check failed, 1 warning."),
        ([BAD, BAD], "failed", "2 checks failed."),
        ([failed("settings", "x", "y")], "unusable", "1 check failed."),
        ([warning("settings", "x", "y")], "warning", "1 warning."),
    ],
)
def test_the_worst_finding_is_the_verdict(
    found: list[Finding], verdict: report.Verdict, summary: str
) -> None:
    """Settings that cannot be used are worse than a check that failed."""
    assert report.verdict(found) == verdict
    assert report.summary(found).startswith(summary)


def test_the_json_of_the_doctor_has_every_finding() -> None:
    """Its shape is a promise: docs/DOCTOR.md describes it."""
    document = json.loads(report.document([FINE, ODD], version="1.2"))

    assert document == {
        "verdict": "warning",
        "version": "1.2",
        "checks": [
            {"name": "a_b", "status": "ok", "what": "Fine.", "advice": None, "readings": {}},
            {"name": "b", "status": "warning", "what": "Odd.", "advice": "Look.", "readings": {}},
        ],
    }


def test_every_check_is_documented_in_doctor_md() -> None:
    """A program finds there what it may meet."""
    text = (Path(__file__).parents[2] / "docs" / "DOCTOR.md").read_text()
    groups = (machine.DISK, machine.PORT, machine.FILES, home_assistant.NAMES, database.NAMES)
    names = {name for group in groups for name in group}

    assert {"settings", "access", "data_api", *names} == set(
        re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    )


def test_secrets_are_hidden_in_every_text_of_a_finding() -> None:
    """Also in what was measured."""
    finding = warning("x", "my secret.", "No secret.", version="secret", size=1)

    hidden = without_secrets(finding, lambda text: text.replace("secret", "***"))

    assert hidden == warning("x", "my ***.", "No ***.", version="***", size=1)
