"""What the documentation shows of the code: written between markers, drawn from imports."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api.outcome import Reason

from hack import docs


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    docs.write_between_markers(page, "table", "new\n")
    docs.write_between_markers(page, "table", "new\n")
    assert page.read_text() == "before\n<!-- table -->\nnew\n<!-- /table -->\nafter\n"


@pytest.mark.parametrize("text", ["nothing", "<!-- table -->\nnever closed"])
def test_a_page_without_its_markers_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        docs.write_between_markers(page, "table", "new\n")
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("module", "box"),
    [
        ("finetune_api.sections.model", "finetune_api"),
        ("finetune_operator.engine.store", "finetune_operator.engine"),
        ("finetune_trainer.train.methods.sft", "finetune_trainer.train"),
        ("finetune_trainer.storage", "finetune_trainer.ground"),
    ],
)
def test_modules_are_drawn_by_folder_and_the_trainers_ground_as_one(module: str, box: str) -> None:
    assert docs.box_of(module) == box


def test_what_follows_from_other_arrows_is_not_drawn() -> None:
    drawn = docs.imports()
    assert ("finetune_trainer.package", "finetune_trainer.llama") in drawn
    assert ("finetune_trainer.package", "finetune_api") not in drawn, "package reaches it through llama"


def test_every_reason_is_on_the_page_once_with_its_exit_code() -> None:
    ends, others = docs.reasons_table(of_stages=True).splitlines(), docs.reasons_table(of_stages=False).splitlines()
    assert len(ends) + len(others) == len(Reason) + 4, "two tables, a row each beneath two of headings"
    (row,) = [line for line in ends if line.startswith("| `GPUNotVisible` |")]
    assert row.endswith("| Counted | 14 |")
    assert any("&lt;model&gt;-v" in line for line in others), "what looks like HTML is shown as it is"


def test_every_value_of_the_chart_that_can_be_set_is_described() -> None:
    names = {line.split("`")[1] for line in docs.values_table().splitlines()[2:]}
    assert {"replicas", "images.operator", "metrics.serviceMonitor.labels", "serviceAccount.annotations"} <= names
