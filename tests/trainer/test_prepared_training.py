"""What prepare really leaves is what training takes: conversations in, an adapter that has learned their answers out."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import transformers
from finetune_api.run import Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage

from tests.trainer import packaged


def test_conversations_become_an_adapter_that_answers_them(tmp_path: Path) -> None:
    facts = packaged.write_facts(tmp_path / "facts")
    run = packaged.make_run(
        tmp_path / "storage",
        datasets=[{"name": "facts", "source": str(facts), "testSplit": "test"}],
        training={"epochs": 20, "globalBatchSize": 16, "maxLength": 128, "learningRate": 1e-2},
    )
    answers = {stage: run_stage(stage, run, "pod", Progress.from_environment({})) for stage in (Stage.PREPARE, Stage.TRAIN)}
    plan = answers[Stage.PREPARE].plan
    assert plan is not None
    assert answers[Stage.TRAIN].steps == plan.total_steps
    assert answers[Stage.TRAIN].eval_loss is None  # no row was held out for validation

    folder = JobStorage(run.storage, "reader").finished(Stage.TRAIN)[1] / "adapter"
    base = transformers.AutoModelForCausalLM.from_pretrained(packaged.base(), dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(base, folder)
    after = share_of_right_tokens(tuned)
    with tuned.disable_adapter():
        before = share_of_right_tokens(tuned)
    assert after > 0.9
    assert after > before + 0.1


def share_of_right_tokens(model: torch.nn.Module) -> float:
    """How many tokens of the trained answers the model finds, each given those before it, over all conversations."""
    right, total = 0, 0
    for index in range(len(packaged.SUBJECTS)):
        ids, first = packaged.encode_chat(packaged.base(), packaged.conversation(packaged.PHRASINGS[0], index))
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1)[first - 1 : -1].tolist()
        right += sum(one == other for one, other in zip(found, ids[first:], strict=True))
        total += len(ids) - first
    return right / total
