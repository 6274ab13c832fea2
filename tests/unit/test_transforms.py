"""Transforms: the user's functions, and what happens when they fail."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from app.model import Change
from app.normalize.transforms import Transform, Transforms, load_transforms
from app.runtime.errors import SettingsError
from tests.fakes.points import new_telemetry
from tests.fakes.snapshots import change


def applied(transform: object, *changes: Change) -> tuple[list[Change], Counter[str]]:
    """Return the transformed changes, and how often the transform `mine:f` failed."""
    telemetry = new_telemetry()
    named: tuple[str, Transform] = ("mine:f", transform)  # type: ignore[assignment] # also wrong ones
    transformed = Transforms([named], telemetry=telemetry).apply(changes)
    return transformed, telemetry.transform_failures


def renamed(before: Change) -> Change:
    """Give it another name."""
    return msgspec.structs.replace(before, friendly_name="Other")


def without_lights(before: Change) -> Change | None:
    """Leave lights out."""
    return None if before.domain == "light" else before


def test_a_transform_may_replace_a_change() -> None:
    """Or stays, or is left out; the order remains."""
    light, sensor = change("light.a"), change("sensor.a")

    assert applied(renamed, light)[0][0].friendly_name == "Other"
    assert applied(without_lights, light, sensor) == ([sensor], Counter())


def test_transforms_run_one_after_the_other() -> None:
    """Each sees what the one before made; what is left out reaches none."""
    seen = []

    def looking(before: Change) -> Change:
        seen.append((before.entity_id, before.friendly_name))
        return before

    transforms = Transforms(
        [("a:a", without_lights), ("a:b", renamed), ("a:c", looking)], telemetry=new_telemetry()
    )
    transforms.apply([change("light.a"), change("sensor.a")])

    assert seen == [("sensor.a", "Other")]


@pytest.mark.parametrize(
    ("transform", "error"),
    [
        (lambda _: 1 / 0, "division by zero"),
        (lambda _: "a text", "it returned str"),
        (lambda c: msgspec.structs.replace(c, entity_id="sensor.other"), "it changed entity_id"),
        (lambda c: msgspec.structs.replace(c, time_ns=1), "it changed entity_id or time_ns"),
        (lambda c: msgspec.structs.replace(c, state=5), "Expected `str | null`"),
        (lambda c: msgspec.structs.replace(c, attributes=b"{"), "truncated"),
        (lambda c: msgspec.structs.replace(c, attributes=b"[]"), "Expected `object`"),
    ],
)
def test_a_change_that_a_transform_fails_on_passes_unchanged(
    transform: Transform, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is counted, and logged with its cause."""
    before = change()

    changes, failures = applied(transform, before)

    assert changes == [before]
    assert failures == {"mine:f": 1}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message.startswith("The transform mine:f failed, its event passes unchanged: ")
    assert error in record.message


def test_failures_of_a_transform_are_all_counted_and_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A transform that fails for every event must not fill the log."""
    changes, failures = applied(lambda _: 1 / 0, *[change()] * 3)

    assert (len(changes), failures) == (3, {"mine:f": 3})
    assert len(caplog.records) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder of the user's with a module, and forget both afterwards."""
    (tmp_path / "users_module.py").write_text(
        "def same(change):\n    return change\nasync def slow(change):\n    return change\nx = 5\n"
    )
    (tmp_path / "broken_module.py").write_text("import no_such_module_anywhere\n")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("users_module", "broken_module"):
        sys.modules.pop(name, None)


def test_transforms_are_imported_from_the_shared_folder(folder: Path) -> None:
    """By module and name, in the order given."""
    ((name, same),) = load_transforms(["users_module:same"], shared_path=folder)

    before = change()
    assert name == "users_module:same"
    assert same(before) is before
    assert sys.path[-1] == str(folder.resolve())


def test_without_transforms_changes_pass_unchanged() -> None:
    """Nothing is imported."""
    path = list(sys.path)

    assert load_transforms([], shared_path=None) == []
    assert path == sys.path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("users_module", "is not of the form module:function"),
        (":same", "is not of the form module:function"),
        ("missing_module:f", "No module named 'missing_module'"),
        ("broken_module:f", "No module named 'no_such_module_anywhere'"),
        ("users_module:other", "AttributeError"),
        ("users_module:x", "is not a function"),
        ("users_module:slow", "is async"),
    ],
)
def test_a_transform_that_cannot_be_used_stops_the_start(
    folder: Path, name: str, told: str
) -> None:
    """The line names the transform and the reason."""
    with pytest.raises(SettingsError) as caught:
        load_transforms([name], shared_path=folder)

    assert str(caught.value).startswith(f"INGEST_TRANSFORMS: {name!r}: ")
    assert told in str(caught.value)


def test_a_shared_path_must_be_a_folder(tmp_path: Path) -> None:
    """A misspelt one is not found out at the first event."""
    with pytest.raises(SettingsError, match="HOMEIQ_SHARED_PATH: "):
        load_transforms(["a:b"], shared_path=tmp_path / "none")


def test_the_documented_example_of_a_transform_works(tmp_path: Path) -> None:
    """docs/TRANSFORMS.md is what people copy."""
    document = (Path(__file__).parents[2] / "docs" / "TRANSFORMS.md").read_text()
    (tmp_path / "documented_rules.py").write_text(document.split("```python")[1].split("```")[0])
    path = list(sys.path)
    try:
        found = load_transforms(["documented_rules:fahrenheit_to_celsius"], shared_path=tmp_path)
    finally:
        sys.path[:] = path
        sys.modules.pop("documented_rules", None)
    warm = msgspec.structs.replace(change(state="68"), unit_of_measurement="°F")
    telemetry = new_telemetry()

    made = Transforms(found, telemetry=telemetry).apply(
        [warm, change("sensor.test_a"), change(state=None)]
    )

    assert [(after.state, after.unit_of_measurement) for after in made] == [
        ("20.00", "°C"),
        (None, "°C"),
    ]
    assert not telemetry.transform_failures
