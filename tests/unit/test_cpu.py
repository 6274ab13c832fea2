"""Processor time is that of the call, not of the garbage collector."""

from __future__ import annotations

import gc

from tests.fakes.cpu import cpu_s


def test_the_garbage_collector_does_not_run_in_a_measured_call() -> None:
    """A full collection of a process that has run many tests takes 0.2 s."""
    collections: list[str] = []

    def noticed(phase: str, _: dict[str, int]) -> None:
        collections.append(phase)

    kept: list[list[int]] = []

    def call() -> None:
        gc.callbacks.append(noticed)
        kept.extend([] for _ in range(10 * gc.get_threshold()[0]))
        gc.callbacks.remove(noticed)

    cpu_s(call)

    assert kept
    assert collections == []
    assert gc.isenabled()
