"""A 4-bit base on whatever CPU this is: evaluation changes nothing of training, gradients flow at every step, a resume is bitwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
import trl
from finetune_trainer.errors import StageError
from finetune_trainer.quantized import keep_layout, nf4_settings
from finetune_trainer.train.loop import GuardedLoop
from safetensors.torch import load_file

from tests.trainer.conftest import VOCABULARY, JobMaker, TrainedJob, make_llama, make_rows
from tests.trainer.test_resume import assert_same_run, at_call, send_sigterm

NF4 = {"quantization": {"type": "NF4"}, "adapter": {"lora": {"rank": 4, "dropout": 0.2}}}


def make_biased(folder: Path) -> Path:
    """A Qwen2, whose query, key and value projections have biases."""
    make_llama(folder)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


class Gradients:
    """The norm of each adapter tensor's gradient, before each optimizer step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, float]] = []
        original = GuardedLoop._get_grad_norm

        def noted(loop: Any, model: Any, grad_norm: Any = None) -> Any:
            self.steps.append({name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None})
            return original(loop, model, grad_norm=grad_norm)

        monkeypatch.setattr(GuardedLoop, "_get_grad_norm", noted)


@pytest.mark.parametrize("make", [make_llama, make_biased], ids=["no biases", "biases"])
def test_gradients_flow_after_an_evaluation_as_before(
    make: Any, make_job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Gradients(monkeypatch)
    job = make_job(base=make(tmp_path / "base"), training={"evalEverySteps": 1}, **NF4)
    job.train()
    assert len(gradients.steps) == 6
    still = {name for step in gradients.steps for name, norm in step.items() if norm == 0 and "lora_B" in name}
    assert still == set()
    assert all(len(step) == 2 * 2 * 7 for step in gradients.steps), "each layer's A and B has a gradient"


def test_evaluation_moves_no_weight(make_job: JobMaker) -> None:
    often, never = (make_job(name, training={"evalEverySteps": steps}, **NF4) for name, steps in (("often", 1), ("never", 100)))
    often.train()
    never.train()
    assert often.losses() == never.losses()
    one, other = (load_file(job.output / "adapter" / "adapter_model.safetensors") for job in (often, never))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_resume_is_bitwise(make_job: JobMaker) -> None:
    sections: dict[str, Any] = {"rows": make_rows(10, seed=3), "training": {"evalEverySteps": 1}, **NF4}
    oracle, job = make_job("oracle", **sections), make_job("job", **sections)
    oracle.train()
    with at_call(trl.SFTTrainer, "training_step", 5, send_sigterm), pytest.raises(StageError, match="Terminated"):
        job.train("pod-0")
    with at_call(GuardedLoop, "prediction_step", 1, send_sigterm), pytest.raises(StageError, match="Terminated"):
        job.train("pod-1")
    job.train("pod-2")
    assert_same_run(job, oracle)


def test_the_4_bit_product_has_the_gradient_of_the_weights_it_stands_for() -> None:
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=True, compute_dtype=torch.float32, quant_type="nf4")
    layer = layer.to("cpu").requires_grad_(False)
    keep_layout(layer)
    plain = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer.eval()(torch.randn(8, 64))
    inputs = torch.randn(8, 64, requires_grad=True)
    outputs = layer.train()(inputs)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, torch.ones(8, 32) @ plain.float())
    torch.testing.assert_close(outputs, torch.nn.functional.linear(inputs, plain.float(), layer.bias))


def test_settings_name_what_weights_are_unpacked_to(make_job: JobMaker) -> None:
    job: TrainedJob = make_job(**NF4)
    assert nf4_settings(job.run.quantization, "float16").bnb_4bit_compute_dtype is torch.float16
