"""Progress on a terminal as a bar with an estimate, elsewhere as a line for each tenth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from app.runtime.text import duration

_WIDTH = 30
_TENTHS = 10
_REDRAW_S = 0.2


class ProgressBar:
    """Shows how much of an amount is done."""

    def __init__(
        self,
        out: TextIO,
        what: str,
        *,
        total: int,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Assign the amount; `what` happens to it."""
        self._out = out
        self._what = what
        self._total = max(1, total)
        self._unit = unit
        self._clock = clock
        self._is_terminal = out.isatty()
        self._started_s = clock()
        self._shown_s = float("-inf")
        self._shown_tenth = -1
        self._is_drawn = False
        self.done = 0

    def advance(self, amount: int) -> None:
        """Count more as done."""
        self.done += amount
        now_s = self._clock()
        if self._is_terminal and now_s - self._shown_s >= _REDRAW_S:
            self._shown_s = now_s
            self._draw(now_s)
        elif not self._is_terminal and self._tenth() > self._shown_tenth:
            self._shown_tenth = self._tenth()
            self._out.write(f"{self._text(now_s)}\n")
            self._out.flush()

    def print(self, text: str) -> None:
        """Print a line; the bar continues below it."""
        self._out.write(f"\n{text}\n" if self._is_drawn else f"{text}\n")
        self._out.flush()
        self._is_drawn = False

    def finish(self) -> None:
        """End the line of the bar."""
        if self._is_terminal and self.done:
            self._draw(self._clock())
        if self._is_drawn:
            self._out.write("\n")
            self._out.flush()
            self._is_drawn = False

    def _draw(self, now_s: float) -> None:
        self._out.write(f"\r{self._text(now_s)}\x1b[K")
        self._out.flush()
        self._is_drawn = True

    def _part(self) -> float:
        # Totals are estimates of the database.
        return min(1.0, self.done / self._total)

    def _tenth(self) -> int:
        return int(self._part() * _TENTHS)

    def _text(self, now_s: float) -> str:
        part = self._part()
        passed_s = max(now_s - self._started_s, 1e-6)
        filled = "#" * int(part * _WIDTH)
        left = f", {duration(passed_s / part - passed_s)} left" if 0 < part < 1 else ""
        return (
            f"{self._what} [{filled:.<{_WIDTH}}] {part:4.0%}  {self.done:,} {self._unit},"
            f" {self.done / passed_s:,.0f}/s{left}"
        )
