"""Which checkpoint counts, and how often one is made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from finetune_api.run import StorageLocation
from finetune_trainer.errors import StageError
from finetune_trainer.storage import JobStorage
from finetune_trainer.train.cadence import FIRST_SAVE_AFTER_S, NODE_MEAN_TIME_BETWEEN_FAILURES_S, Cadence, seconds_between_saves
from finetune_trainer.train.checkpoint import CheckpointStore


def make_store(root: Path, writer: str, keep: int = 2, digest: str = "inputs") -> CheckpointStore:
    return CheckpointStore(JobStorage(StorageLocation(root=str(root), prefix="job", uri="pvc://claim"), writer), digest, keep)


def save(store: CheckpointStore, step: int) -> None:
    folder = store.new_folder(step)
    (folder / "weights").write_text(f"weights of step {step}")
    store.publish(step, folder)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("step-*"))


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    store = make_store(tmp_path, "a")
    assert store.claim_newest() is None
    assert store.report() is None


def test_the_next_pod_finds_the_newest(tmp_path: Path) -> None:
    first = make_store(tmp_path, "a")
    first.claim_newest()
    for step in (5, 9, 10):
        save(first, step)
    second = make_store(tmp_path, "b")
    found = second.claim_newest()
    assert found is not None
    assert (found.step, found.folder.name) == (10, "step-10-a")
    report = second.report()
    assert report is not None
    assert (report.step, report.uri) == (10, "pvc://claim/job/checkpoints/step-10-a")
    assert len(report.digest) == 64


def test_what_was_inherited_counts_for_the_pod_after_next(tmp_path: Path) -> None:
    first = make_store(tmp_path, "a")
    first.claim_newest()
    save(first, 5)
    make_store(tmp_path, "b").claim_newest()
    found = make_store(tmp_path, "c").claim_newest()
    assert found is not None
    assert found.step == 5


def test_a_pod_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    late = make_store(tmp_path, "a")
    late.claim_newest()
    make_store(tmp_path, "b").claim_newest()
    with pytest.raises(StageError, match="Superseded"):
        save(late, 7)
    assert make_store(tmp_path, "c").claim_newest() is None


def test_a_write_between_two_looks_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late, new = make_store(tmp_path, "a"), make_store(tmp_path, "b")
    late.claim_newest()
    new.claim_newest()
    monkeypatch.setattr(late, "check_claim", lambda: None)
    save(late, 7)
    save(new, 3)
    found = make_store(tmp_path, "c").claim_newest()
    assert found is not None
    assert found.folder.name == "step-3-b"


def test_a_container_that_restarts_in_its_pod_goes_on(tmp_path: Path) -> None:
    first = make_store(tmp_path, "a")
    first.claim_newest()
    save(first, 4)
    torso = first.new_folder(6)
    (torso / "weights").write_text("half")
    again = make_store(tmp_path, "a")
    found = again.claim_newest()
    assert found is not None
    assert found.step == 4
    save(again, 6)
    assert again.newest is not None
    assert (again.newest.folder / "weights").read_text() == "weights of step 6"


def test_retention_keeps_the_newest_and_removes_torsos(tmp_path: Path) -> None:
    first = make_store(tmp_path, "a")
    first.claim_newest()
    save(first, 1)
    save(first, 2)
    first.new_folder(3)
    second = make_store(tmp_path, "b", keep=3)
    second.claim_newest()
    assert any("step-3-a" in sentence for sentence in second.skipped)
    save(second, 4)
    assert names(second) == ["step-1-a", "step-2-a", "step-4-b"]
    save(second, 5)
    assert names(second) == ["step-2-a", "step-4-b", "step-5-b"]


def test_nothing_older_goes_where_the_new_one_does_not_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, "a", keep=1)
    store.claim_newest()
    save(store, 1)
    monkeypatch.setattr("finetune_trainer.train.checkpoint.verify_files", lambda folder, records: "weights does not match its SHA-256")
    with pytest.raises(StageError, match="CorruptArtifact"):
        save(store, 2)
    assert "step-1-a" in names(store)


def test_other_inputs_are_passed_over(tmp_path: Path) -> None:
    first = make_store(tmp_path, "a")
    first.claim_newest()
    save(first, 5)
    other = make_store(tmp_path, "b", digest="other")
    assert other.claim_newest() is None
    assert other.skipped == ["checkpoint step-5-a was passed over: it belongs to other settings or data"]


def test_links_among_checkpoints_are_not_followed(tmp_path: Path) -> None:
    outside = make_store(tmp_path / "outside", "a")
    outside.claim_newest()
    save(outside, 5)
    store = make_store(tmp_path / "inside", "b")
    store.folder.mkdir(parents=True)
    (store.folder / "step-5-a").symlink_to(outside.folder / "step-5-a")
    assert store.claim_newest() is None


def test_young_daly() -> None:
    assert seconds_between_saves(2.0, 3600.0) == pytest.approx(120.0)
    assert seconds_between_saves(1.0) == pytest.approx(math.sqrt(2 * NODE_MEAN_TIME_BETWEEN_FAILURES_S))


@pytest.mark.parametrize("save_s", [0.1, 1.0, 30.0, 150.0])
def test_the_interval_minimizes_what_is_lost(save_s: float) -> None:
    def lost(interval_s: float) -> float:
        return save_s / interval_s + interval_s / (2 * NODE_MEAN_TIME_BETWEEN_FAILURES_S)

    best = seconds_between_saves(save_s)
    assert lost(best) < lost(best * 1.1)
    assert lost(best) < lost(best / 1.1)
    assert save_s / best <= 0.03


def test_a_fixed_cadence_keeps_to_its_multiples() -> None:
    cadence = Cadence(every_steps=4)
    cadence.start_from(6)
    assert [step for step in range(7, 17) if cadence.is_due(step)] == [8, 12, 16]


def test_auto_saves_once_early_and_then_by_the_measured_time() -> None:
    cadence = Cadence(every_steps=None)
    saved = []
    for step in range(1, 2001):
        cadence.step_done(1.0)
        if cadence.is_due(step):
            saved.append(step)
            cadence.saved(step, 0.5)
    interval = round(seconds_between_saves(0.5))
    assert saved[:3] == [FIRST_SAVE_AFTER_S, FIRST_SAVE_AFTER_S + interval, FIRST_SAVE_AFTER_S + 2 * interval]
