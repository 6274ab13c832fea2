"""The order in which parallel tests start."""

import pytest

from tests.conftest import dealt


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("longest", [0, 1, 5, 9])
@pytest.mark.parametrize("long", [0, 7])
@pytest.mark.parametrize("short", [0, 2, 90])
def test_each_worker_begins_with_its_part_of_the_longest_tests(
    longest: int, long: int, short: int, workers: int
) -> None:
    """Every test runs once; where there are enough short ones the shares are of equal size."""
    groups = [
        [f"{name} {number}" for number in range(count)]
        for name, count in (("longest", longest), ("long", long), ("short", short))
    ]

    order = dealt(*groups, workers=workers)

    assert sorted(order) == sorted(test for group in groups for test in group)
    if short > (longest + long) * workers:
        begins = [0]
        for others in range(workers, 1, -1):  # as pytest-xdist cuts the list
            begins.append(begins[-1] + (len(order) - begins[-1]) // others)
        first = [order[begin] for begin in begins]
        assert first[:longest] == groups[0][:workers]
