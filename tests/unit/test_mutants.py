"""The list of planted faults is as new as the code that they are planted into."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, planted_text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_a_fault_can_be_planted_and_is_still_python(mutant: Mutant) -> None:
    planted = planted_text(mutant, (ROOT / "operator" / "finetune_operator" / mutant.file).read_text())
    compile(planted, mutant.file, "exec")


def test_there_are_thirty() -> None:
    assert len({mutant.breaks for mutant in MUTANTS}) == len(MUTANTS) == 30
