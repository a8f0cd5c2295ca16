"""The streaming merge against `cp` and against PEFT's load, merge and save, on one model of `--gigabytes` bfloat16 weights.

    python tests/bench/bench_merge.py --gigabytes 2

Each runs in a process of its own over files that are in the page cache; the table shows wall time, its ratio to `cp`, and the
largest resident set. `merge` writes; `merge + check` also proves every tensor, which is what the package stage does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RANK, ALPHA, HIDDEN, VOCABULARY = 16, 32, 2048, 32000
PROJECTIONS = {"self_attn.q_proj": 1, "self_attn.k_proj": 1, "self_attn.v_proj": 1, "self_attn.o_proj": 1}
INTERMEDIATE = 5632
WAYS = ("cp", "merge", "merge + check", "peft")


def make_model(folder: Path, gigabytes: float) -> int:
    """A Llama of random weights in bfloat16, and a LoRA on all its linear layers. Returns its parameters."""
    from finetune_trainer.package.tensors import TensorInfo, TensorWriter

    per_layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * HIDDEN) / per_layer))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    linear: dict[str, tuple[int, int]] = {}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for projection in PROJECTIONS:
            linear[f"{name}.{projection}"] = (HIDDEN, HIDDEN)
        linear |= {f"{name}.mlp.gate_proj": (INTERMEDIATE, HIDDEN), f"{name}.mlp.up_proj": (INTERMEDIATE, HIDDEN)}
        linear[f"{name}.mlp.down_proj"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{name}.input_layernorm.weight": (HIDDEN,), f"{name}.post_attention_layernorm.weight": (HIDDEN,)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()} | {
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    (folder / "base").mkdir(parents=True)
    (folder / "adapter").mkdir()
    rng = np.random.default_rng(0)

    def write(path: Path, dtype: str, tensors: dict[str, tuple[int, ...]], spread: float) -> None:
        with TensorWriter(path, [TensorInfo(name, dtype, shape, 0) for name, shape in tensors.items()], {"format": "pt"}) as writer:
            for name, info in writer.tensors.items():
                values = (spread * rng.standard_normal(info.rows_and_columns, dtype=np.float32)).view(np.uint32)
                writer.write_rows(name, 0, (values >> 16).astype(np.uint16) if dtype == "BF16" else values.view(np.float32))

    write(folder / "base/model.safetensors", "BF16", shapes, 0.02)
    factors = {}
    for name, (rows, columns) in linear.items():
        factors[f"base_model.model.{name}.lora_A.weight"] = (RANK, columns)
        factors[f"base_model.model.{name}.lora_B.weight"] = (rows, RANK)
    write(folder / "adapter/adapter_model.safetensors", "F32", factors, 0.01)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "tie_word_embeddings": False, "dtype": "bfloat16", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "base/config.json").write_text(json.dumps(config))
    targets = sorted({name.rpartition(".")[2] for name in linear})
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": targets}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(adapter))
    return sum(int(np.prod(shape)) for shape in shapes.values())


def run_merge(folder: Path, check: bool) -> None:
    from finetune_trainer.mergeable import read_config
    from finetune_trainer.package.adapter import read_updates
    from finetune_trainer.package.base_model import ModelTensors
    from finetune_trainer.package.merge import merge, plan_merge
    from finetune_trainer.package.merge_check import MergeOracle
    from finetune_trainer.package.tensors import TensorReader

    with ModelTensors(folder / "base") as base, TensorReader(folder / "adapter/adapter_model.safetensors") as adapter:
        plan = plan_merge(base, read_updates(adapter, read_config(folder / "adapter"), base.shapes, None))
        oracle = MergeOracle(base, ALPHA / RANK, workers=2)
        merge(base, plan, ALPHA / RANK, folder / "out", oracle.check if check else lambda *_: None, lambda share: None)


def run_peft(folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder / "out")


def child(way: str, folder: Path) -> None:
    """Runs one way in this process and prints its seconds without imports of the interpreter itself, and its peak memory."""
    started = time.perf_counter()
    match way:
        case "cp":
            (folder / "out").mkdir()
            subprocess.run(["cp", str(folder / "base/model.safetensors"), str(folder / "out")], check=True)
        case "peft":
            run_peft(folder)
        case _:
            run_merge(folder, check=way == "merge + check")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "rss_mb": peak_rss_mb()}))


def peak_rss_mb() -> float:
    """Of this program alone: ru_maxrss would count the parent's memory from before exec."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the bfloat16 model. Default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the fastest of each counts. Default: %(default)s")
    parser.add_argument("--folder", type=Path, default=None, help="where to work. Default: a temporary folder")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        parameters = make_model(folder, options.gigabytes)
        size = (folder / "base/model.safetensors").stat().st_size
        print(f"{parameters / 1e9:.2f} B parameters, {size / 1e9:.2f} GB; rank {RANK} on all linear layers; best of {options.rounds}")
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for way in WAYS:
                shutil.rmtree(folder / "out", ignore_errors=True)
                command = [sys.executable, __file__, "--child", way, "--folder", name]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                if way not in best or found["seconds"] < best[way]["seconds"]:
                    best[way] = found
        print(f"{'way':<16}{'seconds':>9}{'x cp':>8}{'peak RSS MB':>14}")
        for way in WAYS:
            print(f"{way:<16}{best[way]['seconds']:>9.2f}{best[way]['seconds'] / best['cp']['seconds']:>8.1f}{best[way]['rss_mb']:>14.0f}")


if __name__ == "__main__":
    main()
