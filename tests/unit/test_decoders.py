"""Whatever comes from outside, a decoder returns a value within bounds or raises its own error."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.model import http_date, is_representable, nanoseconds
from app.sink.replies import retry_after_s

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

http_dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "Xxx", ""]),
    st.integers(-1, 10**20) | st.integers(0, 32),
    st.sampled_from(["Jan", "Dec", "Xxx", "²"]),
    st.integers(0, 10_000) | st.sampled_from([10**20, 10**5000]).map(lambda _: "9" * 5000),
    st.integers(0, 99),
    st.integers(0, 61),
    st.integers(0, 61),
    st.sampled_from(["GMT", "+2359", "-2359", "+9999", "-0000", "+" + "9" * 20, "EST", "²²²²"]),
)


@given(st.text(max_size=200) | http_dates)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Mon, 01 Jan 2020 00:00:00 +99999999999999999999")
@example("Sun, 06 Nov 1994 08:49:37 GMT")
def test_a_date_of_a_header_is_a_time_a_point_can_have_or_none(text: str) -> None:
    """Arithmetic with it never leaves what a datetime can hold."""
    moment = http_date(text)

    assert moment is None or (is_representable(nanoseconds(moment)) and moment.tzinfo is UTC)


@given(st.text(max_size=200) | http_dates | st.integers().map(str) | st.floats().map(str))
@example("9" * 5000)
@example("1e400")
@example("-1")
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
def test_a_retry_after_is_a_number_of_seconds_or_none(text: str) -> None:
    """However absurd, it neither fails nor becomes infinite."""
    asked_s = retry_after_s(text, now=NOW)

    assert asked_s is None or 0.0 <= asked_s < 1e16


@pytest.mark.parametrize("year", ["1600", "2300", "9999"])
def test_a_year_outside_of_what_a_point_can_have_is_no_date(year: str) -> None:
    """Neither a handshake's Date nor a Retry-After of that year means anything."""
    assert http_date(f"Mon, 01 Jan {year} 00:00:00 GMT") is None
