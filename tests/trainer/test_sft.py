"""What a finished train stage leaves: an adapter that moved over a base that did not, or full weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from finetune_api.outcome import ExitCode
from finetune_trainer.errors import StageError
from finetune_trainer.storage import folder_digest, hash_folder
from safetensors.torch import load_file

from tests.trainer.conftest import JobMaker, RecordedProgress, TrainedJob, make_llama

SAVED_MODULES = {"lora": {"rank": 4, "modulesToSave": ["embed_tokens", "lm_head"]}}


def adapter_tensors(job: TrainedJob) -> dict[str, torch.Tensor]:
    return load_file(job.output / "adapter" / "adapter_model.safetensors")


def load_base_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_lora_moves_the_adapter_and_not_the_base(make_job: JobMaker, base_model: Path) -> None:
    before = folder_digest(hash_folder(base_model))
    job = make_job()
    result = job.train()
    assert folder_digest(hash_folder(base_model)) == before
    assert sorted(path.name for path in (job.output / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = adapter_tensors(job)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    moved = [float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name]
    assert len(moved) == 14
    assert min(moved) > 0
    assert result.steps == 6
    assert result.checkpoint is not None
    assert result.checkpoint.step == 6
    assert job.losses()[-1] < job.losses()[0]


def test_adapter_loads_unmodified_and_explains_the_eval_loss(make_job: JobMaker, base_model: Path) -> None:
    job = make_job(adapter=SAVED_MODULES)
    result = job.train()
    model = peft.PeftModel.from_pretrained(load_base_model(base_model), job.output / "adapter").eval()
    assert result.eval_loss is not None
    assert result.eval_loss == pytest.approx(mean_validation_loss(job, model), abs=1e-5)
    embeddings = adapter_tensors(job)["base_model.model.model.embed_tokens.weight"]
    assert not torch.equal(embeddings, load_base_model(base_model).get_input_embeddings().weight)


def mean_validation_loss(job: TrainedJob, model: Any) -> float:
    """Mean loss per trained token, each validation row by itself: what the run's eval loss must be."""
    from finetune_trainer.prepared import load_prepared

    rows = load_prepared(job.storage, job.run).table("validation").to_pylist()
    total, tokens = 0.0, 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        total += float(torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum"))
        tokens += int((labels[0, 1:] != -100).sum())
    return total / tokens


def test_full_weights_move_and_are_left_unrounded_for_package(make_job: JobMaker, tmp_path: Path) -> None:
    base = make_llama(tmp_path / "bf16", dtype=torch.bfloat16)
    job = make_job(base=base, adapter={"type": "None", "lora": None}, training={"learningRate": 1e-3})
    job.train()
    assert not (job.output / "adapter").exists()
    before, after = load_file(base / "model.safetensors"), load_file(job.output / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert load_base_model(job.output / "model").num_parameters() == load_base_model(base).num_parameters()
    assert job.losses()[-1] < job.losses()[0]


def test_tied_saved_modules_stay_tied(make_job: JobMaker, tmp_path: Path) -> None:
    base = make_llama(tmp_path / "tied", tie_word_embeddings=True)
    job = make_job(base=base, adapter=SAVED_MODULES)
    job.train()
    model = peft.PeftModel.from_pretrained(load_base_model(base), job.output / "adapter")
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert not torch.equal(model.get_input_embeddings().weight, load_base_model(base).get_input_embeddings().weight)


@pytest.mark.parametrize("modules", [[], ["embed_tokens", "lm_head"]], ids=["adapter only", "saved modules"])
def test_qlora_trains_fp32_tensors_over_an_nf4_base(make_job: JobMaker, modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.train.methods import sft

    built = []
    build = sft.build
    monkeypatch.setattr(sft, "build", lambda *args, **kwargs: built.append(build(*args, **kwargs)) or built[-1])
    job = make_job(adapter={"lora": {"rank": 4, "modulesToSave": modules}}, quantization={"type": "NF4"})
    job.train()
    base_types = {type(module).__name__ for name, module in built[0].model.named_modules() if name.endswith("base_layer")}
    assert base_types == {"Linear4bit"}
    assert {parameter.dtype for parameter in built[0].model.parameters() if parameter.requires_grad} == {torch.float32}
    weights = adapter_tensors(job)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert min(float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name) > 0
    assert job.losses()[-1] < job.losses()[0]


def test_bf16_precision_holds_the_base_in_bf16_and_the_adapter_in_fp32(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.train.methods import sft

    built = []
    build = sft.build
    monkeypatch.setattr(sft, "build", lambda *args, **kwargs: built.append(build(*args, **kwargs)) or built[-1])
    job = make_job(training={"precision": "BFloat16"}, adapter=SAVED_MODULES)
    job.train()
    types = {(parameter.requires_grad, parameter.dtype) for parameter in built[0].model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert job.losses()[-1] < job.losses()[0]


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit", "Adafactor", "SGD", "AdamWFused"])
def test_each_optimizer_steps(make_job: JobMaker, optimizer: str) -> None:
    job = make_job(training={"optimizer": optimizer, "maxSteps": 2})
    job.train()
    assert min(float(tensor.abs().max()) for name, tensor in adapter_tensors(job).items() if "lora_B" in name) > 0


def test_one_batch_of_eight_is_eight_of_one(make_job: JobMaker) -> None:
    batch = {"globalBatchSize": 8, "maxSteps": 4}
    one = make_job("one", training={**batch, "perDeviceBatchSize": 8})
    eight = make_job("eight", training={**batch, "perDeviceBatchSize": 1})
    assert one.train().eval_loss == pytest.approx(eight.train().eval_loss, abs=5e-6)
    assert one.losses() == pytest.approx(eight.losses(), abs=5e-6)


def test_progress_is_reported_with_every_figure(make_job: JobMaker) -> None:
    progress = RecordedProgress()
    make_job(checkpoints={"type": "Steps", "everySteps": 2}).train(progress=progress)
    assert [report["step"] for report in progress.reports if "loss" in report] == [1, 2, 3, 4, 5, 6]
    assert progress.reports[-1]["fraction"] == 1.0
    seen = {name for report in progress.reports for name in report}
    expected = {"step", "total_steps", "epoch", "loss", "eval_loss", "learning_rate", "tokens_per_second", "checkpoint_step"}
    assert expected <= seen
    assert max(report.get("checkpoint_step", 0) for report in progress.reports) >= 4


def test_learning_rate_and_batch_come_from_the_plan_where_the_spec_leaves_them_out(make_job: JobMaker) -> None:
    job = make_job(training={"learningRate": None, "perDeviceBatchSize": None, "scheduler": "Constant", "maxSteps": 1})
    job.train()
    assert job.curve()[0]["learning_rate"] == pytest.approx(1.6e-4)  # LoRA 2e-4, × 0.8 under 1,000 rows


def test_the_plan_is_this_runs_where_prepare_was_another_jobs(make_job: JobMaker) -> None:
    training = {"learningRate": None, "perDeviceBatchSize": None, "scheduler": "Constant", "maxSteps": 1}
    job = make_job(training=training)
    job.run = job.run.model_copy(update={"adapter": type(job.run.adapter)(type="None")})
    job.train()
    assert job.curve()[0]["learning_rate"] == pytest.approx(8e-6)  # full weights 1e-5, × 0.8 under 1,000 rows


def test_gpus_that_are_not_seen_end_the_run(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("FINETUNE_DEVICE", raising=False)
    job = make_job()
    job.run = job.run.model_copy(update={"gpus_per_node": 1})
    with pytest.raises(StageError) as error:
        job.train()
    assert (error.value.reason, error.value.exit_code) == ("GPUNotVisible", ExitCode.GPU_NOT_VISIBLE)
    monkeypatch.setenv("FINETUNE_DEVICE", "cpu")
    assert job.train().steps == 6


def test_unknown_modules_are_named(make_job: JobMaker) -> None:
    job = make_job(adapter={"lora": {"targetModules": {"type": "Names", "names": ["q_prj"]}}})
    with pytest.raises(StageError, match=r"targetModules.names: the model has no module q_prj; it has .*q_proj"):
        job.train()


def test_weights_that_are_missing_are_not_made_up(make_job: JobMaker, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = make_llama(tmp_path / "short")
    tensors = load_file(base / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="lack 1 tensors"):
        make_job(base=base).train()
