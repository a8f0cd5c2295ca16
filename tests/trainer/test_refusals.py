"""What cannot be trained ends with exit 10 and the field before the first step, and not as a crash that is tried again."""

from __future__ import annotations

import inspect
from typing import Any

import accelerate
import pytest
import torch
import torch._dynamo
import torch._inductor
import transformers
from finetune_api import arguments
from finetune_api.outcome import ExitCode
from finetune_trainer.errors import StageError
from finetune_trainer.train import building
from finetune_trainer.train.hf_arguments import _SCHEDULERS

from tests.trainer.conftest import JobMaker, make_rows


def refusal(job: Any) -> StageError:
    with pytest.raises(StageError) as error:
        job.train()
    assert error.value.exit_code == ExitCode.INVALID_INPUT
    return error.value


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"adam_beta1": -3}, ["adam_beta1"]),
        ({"adam_beta2": 1.5, "adam_epsilon": 1e-6}, ["adam_beta2"]),
        ({"adam_epsilon": -1.0}, ["adam_epsilon"]),
        ({"tf32": True}, ["tf32"]),
        ({"lr_scheduler_kwargs": {"num_cycle": 2}}, ["lr_scheduler_kwargs"]),
        ({"lr_scheduler_kwargs": {"lr_end": "low"}}, ["lr_scheduler_kwargs"]),
        ({"dataloader_prefetch_factor": 2}, ["dataloader_prefetch_factor"]),
        ({"dataloader_persistent_workers": True, "label_smoothing_factor": 0.1}, ["dataloader_persistent_workers"]),
        ({"dataloader_num_workers": -1}, ["dataloader_num_workers"]),
        ({"use_liger_kernel": True}, ["use_liger_kernel"]),
        ({"activation_offloading": True, "adam_beta1": 0.8}, ["activation_offloading"]),
        ({"torch_compile_mode": "nope"}, ["torch_compile_mode"]),
        ({"torch_compile_backend": "nope"}, ["torch_compile_backend"]),
        ({"lr_scheduler_kwargs": {"power": -1}}, ["lr_scheduler_kwargs"]),
    ],
)
def test_arguments_that_the_libraries_refuse_are_named(
    args: dict[str, Any], named: list[str], make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "load_base", lambda *_: pytest.fail("the model was loaded first"))
    scheduler = {"lr_end": "Polynomial", "power": "Polynomial", "num_cycle": "Cosine"}.get(
        next(iter(args.get("lr_scheduler_kwargs", {})), ""), "Linear"
    )
    error = refusal(make_job(training={"args": args, "scheduler": scheduler}))
    assert error.reason == "InvalidArgument"
    assert error.message.startswith(", ".join(f"training.args.{name}" for name in named) + ": ")


def test_a_compiler_that_fails_is_told_by_the_argument_that_asked_for_it(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    error = refusal(make_job(training={"args": {"adam_beta1": 0.8, "torch_compile": True}}))
    assert error.message == "training.args.torch_compile: ValueError: no working C++ compiler"


def test_choices_and_members_of_arguments_are_those_of_the_libraries() -> None:
    """A release that brings another needs a decision."""
    compilers = set(arguments._NARROWED["torch_compile_backend"][0])
    accelerates = {backend.value.lower() for backend in accelerate.utils.DynamoBackend}
    assert compilers == accelerates & set(torch._dynamo.list_backends(exclude_tags=())) - {"tvm"}
    assert set(arguments._NARROWED["torch_compile_mode"][0]) == set(torch._inductor.list_mode_options())
    checkpoint = inspect.signature(torch.utils.checkpoint.checkpoint).parameters.keys() - {"function", "args", "kwargs", "context_fn"}
    enable = inspect.signature(transformers.PreTrainedModel.activation_checkpointing_enable).parameters.keys()
    enabled = enable - {"self", "activation_checkpointing_kwargs"}
    assert set(arguments._CHECKPOINTING) == checkpoint | enabled | {"selective"}
    schedules = transformers.optimization.TYPE_TO_SCHEDULER_FUNCTION
    for scheduler, name in _SCHEDULERS.items():
        given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        assert set(arguments._SCHEDULER_MEMBERS.get(scheduler, {})) == inspect.signature(schedules[name]).parameters.keys() - given


def test_what_only_shows_on_the_model_is_named_too(make_job: JobMaker) -> None:
    error = refusal(make_job(training={"args": {"router_aux_loss_coef": 0.1}}))
    assert error.message.startswith("training.args.router_aux_loss_coef: ")


@pytest.mark.parametrize("packing", ["None", "Documents"])
def test_batches_that_are_all_dropped_are_refused(packing: str, make_job: JobMaker) -> None:
    training = {
        "args": {"dataloader_drop_last": True},
        "packing": packing,
        "perDeviceBatchSize": None,
        "globalBatchSize": 16,
        "maxSteps": None,
    }
    error = refusal(make_job(rows=make_rows(3, seed=1), training=training))
    assert error.message.startswith("training.args.dataloader_drop_last: ")


def test_arguments_that_are_right_are_trained_with(make_job: JobMaker) -> None:
    args = {"adam_beta1": 0.8, "lr_scheduler_kwargs": {"num_cycles": 2}, "dataloader_drop_last": True}
    assert make_job(training={"args": args, "scheduler": "Cosine", "maxSteps": 2}).train().steps == 2
