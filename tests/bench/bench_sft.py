"""SFT throughput in real (not padding) tokens per second against `trl sft` with its defaults, on one model and the same ragged rows.

    python tests/bench/bench_sft.py --steps 20

Each side runs in a process of its own, the same samples per optimizer step; the time is that of the optimizer steps alone, start-up
and imports left out. The table shows tokens per second, their ratio, and the largest difference of a step's loss in fp32, for
padding-free training must not buy speed with another loss. Ratios only: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 16
HIDDEN, LAYERS, VOCABULARY = 256, 4, 2048
LONGEST = 384
WAYS = {
    "trl sft, its defaults (bf16, checkpointing, padding)": {"peer": True, "precision": "BFloat16"},
    "trl sft, fp32": {"peer": True, "precision": "Float32"},
    "ours, fp32": {"peer": False, "precision": "Float32"},
    "ours, bf16": {"peer": False, "precision": "BFloat16"},
}


def make_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows whose lengths spread as those of chats do: log-normal with a median of 90 tokens, cut at LONGEST."""
    draw = random.Random(0)
    lengths = [min(LONGEST, max(8, round(draw.lognormvariate(4.5, 0.8)))) for _ in range(count)]
    ids = [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": row} for row in ids]


def make_base(folder: Path) -> Path:
    from tests.trainer.conftest import make_llama

    return make_llama(
        folder,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        max_position_embeddings=1024,
    )


def measure(way: str, folder: Path, steps: int) -> dict[str, Any]:
    """One side in this process: `{"seconds": …, "tokens": …, "losses": […]}` over the steps after the first, which warms up."""
    import trl

    times: list[float] = []
    original = trl.SFTTrainer._maybe_log_save_evaluate

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        times.append(time.monotonic())
        return original(self, *args, **kwargs)

    trl.SFTTrainer._maybe_log_save_evaluate = timed
    rows = make_rows(BATCH * steps)
    side = train_peer if WAYS[way]["peer"] else train_ours
    history = [entry for entry in side(WAYS[way]["precision"], folder, rows, steps) if "loss" in entry]
    tokens = history[-1]["num_tokens"] - history[0]["num_tokens"]
    return {"seconds": times[steps - 1] - times[0], "tokens": tokens, "losses": [entry["loss"] for entry in history]}


def train_peer(precision: str, folder: Path, rows: list[dict[str, list[int]]], steps: int) -> list[dict[str, Any]]:
    """What `trl sft --use_cpu true --use_peft` does with its defaults, on tokenised rows."""
    import datasets
    import peft
    import transformers
    import trl

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<end>", pad_token="<pad>")
    trainer = trl.SFTTrainer(
        model=str(folder),
        args=trl.SFTConfig(
            output_dir=str(folder / "peer"),
            use_cpu=True,
            bf16=precision == "BFloat16",
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=BATCH // 8,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            data_seed=42,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    return list(trainer.state.log_history)


def train_ours(precision: str, folder: Path, rows: list[dict[str, list[int]]], steps: int) -> list[dict[str, Any]]:
    from tests.trainer.conftest import TrainedJob

    job = TrainedJob(
        Path(tempfile.mkdtemp(dir=folder)),
        folder,
        rows,
        adapter={"lora": {"rank": 16, "alpha": 32}},
        training={
            "maxSteps": steps,
            "globalBatchSize": BATCH,
            "perDeviceBatchSize": 8,
            "maxLength": 1024,
            "learningRate": 1e-3,
            "scheduler": "Linear",
            "warmup": {"steps": 0},
            "precision": precision,
            "evalEverySteps": 100_000,
            "args": {"adam_beta2": 0.999},
        },
    )
    job.train()
    return job.curve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of 16 rows. Default: %(default)s")
    parser.add_argument("--side", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        from tests.trainer import conftest

        conftest.torch.set_num_threads(os.cpu_count() or 1)  # its import asks for one
        print(json.dumps(measure(options.side, options.folder, options.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_base(Path(scratch))
        results = {way: in_a_process(way, folder, options.steps) for way in WAYS}
    print_table(results)


def in_a_process(way: str, folder: Path, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", way, "--folder", str(folder), "--steps", str(steps)]
    root = str(Path(__file__).parents[2])
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": root})
    if run.returncode:
        sys.exit(f"{way} ended with {run.returncode}: {run.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return measured


def print_table(results: dict[str, dict[str, Any]]) -> None:
    speed = {way: result["tokens"] / result["seconds"] for way, result in results.items()}
    peer = speed[next(iter(WAYS))]
    wanted = results["trl sft, fp32"]["losses"]
    print(f"{'':52} {'tokens/s':>9} {'ratio':>6} {'loss difference':>16}")
    for way, result in results.items():
        difference = max(abs(one - other) for one, other in zip(result["losses"], wanted, strict=True))
        print(f"{way:52} {speed[way]:9.0f} {speed[way] / peer:6.2f} {difference:16.1e}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
