"""Settings that the image, or a CPU, cannot serve: known before a GPU is taken."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.run import LocalRunSpec
from finetune_trainer import settings
from finetune_trainer.errors import StageError
from finetune_trainer.settings import refuse_unserved


def run(gpus: int = 1, attention: str = "Auto", **args: Any) -> LocalRunSpec:
    return LocalRunSpec.model_validate(
        {
            "storage": {"root": "/x", "prefix": "job"},
            "model": {"source": "/base", "attentionImplementation": attention},
            "datasets": [{"name": "d", "source": "/d.jsonl"}],
            "training": {"args": args},
            "gpusPerNode": gpus,
        }
    )


FLASH, LIGER, COMPILER = "flash_attn", "liger_kernel", "g++"


@pytest.mark.parametrize(
    ("asked", "image", "reason", "words"),
    [
        (
            run(attention="FlashAttention2"),
            {COMPILER},
            "UnsupportedAttention",
            "model.attentionImplementation FlashAttention2: this image has no",
        ),
        (run(0, attention="FlashAttention2"), {FLASH}, "UnsupportedAttention", "needs a GPU, and resources.gpusPerNode is 0"),
        (
            run(use_liger_kernel=True),
            {COMPILER},
            "InvalidArgument",
            "training.args.use_liger_kernel: the trainer image has no liger-kernel",
        ),
        (run(0, use_liger_kernel=True), {LIGER}, "InvalidArgument", "training.args.use_liger_kernel: true needs a GPU"),
        (run(0, tf32=True), set(), "InvalidArgument", "training.args.tf32: true needs a GPU"),
        (run(torch_compile=True), set(), "InvalidArgument", r"training.args.torch_compile: the trainer image has no C\+\+ compiler"),
        (run(torch_compile_mode="max-autotune"), set(), "InvalidArgument", "training.args.torch_compile_mode: the trainer image has no"),
        (run(torch_compile_backend="inductor"), set(), "InvalidArgument", "training.args.torch_compile_backend: the trainer image has no"),
    ],
)
def test_what_image_or_cpu_cannot_serve_is_refused_by_field(
    asked: LocalRunSpec, image: set[str], reason: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds(image, monkeypatch)
    with pytest.raises(StageError, match=words) as error:
        refuse_unserved(asked)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("asked", "image"),
    [
        (run(), set()),
        (run(attention="FlashAttention2"), {FLASH}),
        (run(0, attention="SDPA", tf32=False), set()),
        (run(use_liger_kernel=True, tf32=True), {LIGER}),
        (run(0, torch_compile=True), {COMPILER}),
        (run(torch_compile=False), set()),
        (run(torch_compile_backend="aot_eager"), set()),
    ],
)
def test_what_they_can_serve_passes(asked: LocalRunSpec, image: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    holds(image, monkeypatch)
    refuse_unserved(asked)


def holds(image: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(settings, "find_spec", lambda name: name if name in image else None)
    monkeypatch.setattr(settings.shutil, "which", lambda name: name if name in image else None)
