"""Rows of one flattened or packed batch do not see each other, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.errors import StageError
from finetune_trainer.train import rows as rows_module

from tests.trainer.conftest import JobMaker


@pytest.mark.parametrize("attention", ["SDPA", "Eager"])
def test_flattened_batches_train_as_rows_alone(make_job: JobMaker, attention: str) -> None:
    batch = {"globalBatchSize": 8, "maxSteps": 3}
    model = {"attentionImplementation": attention}
    flattened = make_job("flattened", model=model, training={**batch, "perDeviceBatchSize": 8})
    alone = make_job("alone", model=model, training={**batch, "perDeviceBatchSize": 1})
    assert flattened.train().eval_loss == pytest.approx(alone.train().eval_loss, abs=5e-6)
    assert flattened.losses() == pytest.approx(alone.losses(), abs=5e-6)


def test_packed_documents_train_as_rows_alone(make_job: JobMaker) -> None:
    """One pack holds every row, so one step over it must be the step over all rows by themselves."""
    few = make_job("few").rows[:4]
    packed = make_job(
        "packed",
        rows=few,
        training={"packing": "Documents", "maxLength": 128, "globalBatchSize": 1, "perDeviceBatchSize": 1, "maxSteps": 3},
    )
    alone = make_job("alone", rows=few, training={"globalBatchSize": 4, "perDeviceBatchSize": 1, "maxSteps": 3})
    assert packed.train().eval_loss == pytest.approx(alone.train().eval_loss, abs=5e-6)
    assert packed.losses() == pytest.approx(alone.losses(), abs=5e-6)


def test_a_model_that_mixes_rows_is_padded(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = make_job("padded", training={"perDeviceBatchSize": 4})
    flattened = make_job("flattened", training={"perDeviceBatchSize": 4})
    flattened.train()
    monkeypatch.setattr(rows_module, "rows_see_each_other", lambda trainer: True)
    result = padded.train()
    assert any("padded" in warning for warning in result.warnings)
    assert padded.losses() == pytest.approx(flattened.losses(), abs=5e-6)
    with pytest.raises(StageError, match="DocumentsLeak"):
        make_job("packed", training={"packing": "Documents"}).train()


def test_the_probe_finds_a_leak(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = []
    honest = rows_module.rows_see_each_other

    def probe_twice(trainer: Any) -> bool:
        verdicts.append(honest(trainer))
        forward = trainer.model.forward

        def forget_positions(*args: Any, position_ids: Any = None, **inputs: Any) -> Any:
            length = inputs["input_ids"].shape[1]
            return forward(*args, position_ids=torch.arange(length)[None], **inputs)

        trainer.model.forward = forget_positions
        verdicts.append(honest(trainer))
        trainer.model.forward = forward
        return verdicts[0]

    monkeypatch.setattr(rows_module, "rows_see_each_other", probe_twice)
    make_job(training={"maxSteps": 1}).train()
    assert verdicts == [False, True]
