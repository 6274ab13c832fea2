"""The parts of `python -m app run` that need no running service."""

from __future__ import annotations

import pytest

from app.commands.run import bound, remaining
from app.health import SinkStatus


def test_two_services_that_start_at_once_never_share_a_port() -> None:
    """A socket that is bound and does not listen yet would let another program bind the port."""
    with bound("127.0.0.1", [0]) as first:
        port = first.getsockname()[1]
        with bound("127.0.0.1", [port, 0]) as second:
            assert second.getsockname()[1] != port


@pytest.mark.parametrize(
    ("held", "is_durable", "expected"),
    [
        ((0, 0), True, "every point is delivered"),
        ((3, 0), True, "3 points for a are in the journal; the next start sends them"),
        ((3, 1_000), True, "3 points for a and 1,000 points for b are in the journal"),
        ((3, 0), False, "3 points for a are lost, because JOURNAL=memory keeps nothing"),
    ],
)
def test_the_last_log_line_says_where_undelivered_points_are(
    held: tuple[int, int], *, is_durable: bool, expected: str
) -> None:
    """An operator who stops a service wants to know what it still has."""
    sinks = [SinkStatus(name=name, held=points) for name, points in zip("ab", held, strict=True)]

    assert remaining(sinks, is_durable=is_durable).startswith(expected)
