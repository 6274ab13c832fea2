"""The mutants themselves; `make mutants-simulation` runs them."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.mutants import AIMS, KEPT, ROOT, Mutant, mutants

MUTANTS = {mutant.name: mutant for mutant in mutants()}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_still_changes_the_service(name: str) -> None:
    """A restructuring must not disarm one silently: its old text is there exactly once."""
    mutant = MUTANTS[name]

    changed = mutant.applied_to((ROOT / mutant.file).read_text())

    assert mutant.file.startswith("app/")
    compile(changed, mutant.file, "exec")


def test_mutants_are_many_and_have_names_of_their_own() -> None:
    """Fifty at least, or the share that is killed says little."""
    assert len(mutants()) >= 50
    assert Counter(mutant.name for mutant in mutants()).most_common(1)[0][1] == 1


def test_every_mutant_has_worlds_that_exist() -> None:
    """By the name of an aim, or of a kept plan."""
    for mutant in mutants():
        for world in mutant.worlds(seeds=1):
            assert world.rsplit(" ", 1)[0] in AIMS or (KEPT / f"{world}.json").exists(), world


def test_every_aim_names_faults_that_exist() -> None:
    """A world that fails for an unknown fault would kill every mutant."""
    for aim in AIMS.values():
        listed = {kind for _, kind, _ in aim.get("actions", ())}

        assert {*aim.get("kinds", ()), *listed} <= FAULTS.keys()


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    """And one whose text is there twice."""
    mutant = Mutant(name="x", file="app/main.py", old="once", new="twice")

    for text in ("", "once once"):
        with pytest.raises(ValueError, match="its old text occurs"):
            mutant.applied_to(text)


def test_every_survivor_is_explained_in_the_document() -> None:
    """Under the same name."""
    document = (ROOT / "docs" / "PROOF.md").read_text()

    assert [each.name for each in mutants() if each.survives and each.name not in document] == []
