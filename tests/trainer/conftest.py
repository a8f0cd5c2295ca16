"""One tiny base model, one set of tokenised rows, and a way to run the train stage over them: real torch on CPU, one process.

torch runs on one thread: so results do not depend on how sums are split, and children may be forked from this process.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
import transformers
from finetune_api.answer import DatasetReport, StageResult
from finetune_api.run import LocalRunSpec, RunSpec, Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.architecture import Architecture
from finetune_trainer.inspection import inspect
from finetune_trainer.model_shape import count_parameters, read_shape
from finetune_trainer.prepare import look
from finetune_trainer.prepared import PREPARED_FILE, PreparedFile, PreparedModel, PreparedSet, SpecialTokens
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage, folder_digest, hash_folder
from tokenizers import Tokenizer, models, pre_tokenizers

torch.set_num_threads(1)
# A look at an architecture (FakeTensorMode) lets torch's autograd start threads for a GPU that is not there; then no child may be forked.
torch._C._ensureCUDADeviceGuardSet = lambda: None


def _keep_to_own_cpus() -> None:
    """One of several workers takes its share of the CPUs: threads of ggml that outnumber them spin at barriers and wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        cpus, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cpus[int(worker.removeprefix("gw")) % len(cpus) :: workers])


_keep_to_own_cpus()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: what other workers do meanwhile is short enough to fill what is left."""
    items.sort(key=lambda item: item.path.stem != "test_real_model")


class InThisProcess:
    """A look at an architecture without a child, which would import torch once more each time. The child is in test_architectures.py."""

    finished = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def result(self) -> Architecture:
        return inspect(self._folder)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def looked_at_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "Inspection", InThisProcess)


VOCABULARY = 96
ROWS = 24
VALIDATION_ROWS = 6


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of hidden size 64 and two layers, with random weights and a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    return make_llama(folder)


def make_llama(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes)))
    model.to(dtype).save_pretrained(folder)
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of 6 to 20 tokens that count upwards from a random start, the first third not trained, `<end>` last."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        start, length = draw.randrange(VOCABULARY), draw.randrange(5, 20)
        ids = [2 + (start + i) % (VOCABULARY - 2) for i in range(length)] + [1]
        masked = len(ids) // 3
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def write_rows(path: Path, rows: list[dict[str, list[int]]]) -> None:
    column = pa.list_(pa.int32())
    table = pa.table({name: pa.array([row[name] for row in rows], column) for name in ("input_ids", "labels")})
    with pyarrow.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


class TrainedJob:
    """A job's storage with its prepare stage done; `train()` runs the train stage as a fresh pod would."""

    def __init__(self, root: Path, base: Path, rows: list[dict[str, list[int]]] | None = None, **sections: Any) -> None:
        self.root = root
        self.base = base
        self.rows = rows or make_rows(ROWS, seed=1)
        self.run = make_run(root, base, **sections)
        self._publish_prepare()

    @property
    def storage(self) -> JobStorage:
        return JobStorage(self.run.storage, "test")

    def train(self, writer: str = "pod-0", progress: Any = None) -> StageResult:
        return run_stage(Stage.TRAIN, self.run, writer, progress or Progress.from_environment({}))

    @property
    def output(self) -> Path:
        return self.storage.finished(Stage.TRAIN)[1]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.storage.folder / "checkpoints").glob("step-*"))

    def curve(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.curve() if "loss" in row]

    def _publish_prepare(self) -> None:
        folder = self.storage.new_folder(Stage.PREPARE)
        held_out = make_rows(VALIDATION_ROWS, seed=2)
        write_rows(folder / "train.arrow", self.rows)
        write_rows(folder / "validation.arrow", held_out)
        lengths = [len(row["input_ids"]) for row in self.rows]
        shape = read_shape(json.loads((self.base / "config.json").read_bytes()), *count_parameters(self.base))
        files = hash_folder(self.base)
        dataset = DatasetReport(digest="d" * 64, rows_in=len(self.rows), train_tokens=sum(lengths), token_length={"max": max(lengths)})
        prepared = PreparedFile(
            model=PreparedModel(
                source=str(self.base),
                revision=f"sha256:{folder_digest(files)}",
                digest=folder_digest(files),
                files=files,
                architecture="LlamaForCausalLM",
                model_type="llama",
                shape=shape,
            ),
            tokens=SpecialTokens(eos_token="<end>", eos_id=1, eos_ids=[1], pad_id=0),
            sets=[
                PreparedSet(name="train", arrow="train.arrow", rows=len(self.rows), tokens=sum(lengths)),
                PreparedSet(
                    name="validation",
                    arrow="validation.arrow",
                    rows=VALIDATION_ROWS,
                    tokens=sum(len(row["input_ids"]) for row in held_out),
                ),
            ],
            dataset=dataset,
            max_length=self.run.training.max_length,
        )
        (folder / PREPARED_FILE).write_text(prepared.model_dump_json(by_alias=True))
        self.storage.publish(Stage.PREPARE, folder, "prepared", StageResult(stage=Stage.PREPARE, dataset=dataset))


def make_run(root: Path, base: Path, **sections: Any) -> RunSpec:
    """A run of 6 steps of 4 rows, LoRA r4; `sections` are those of a FineTuneJob, merged over it one level deep."""
    defaults: dict[str, Any] = {
        "storage": {"root": str(root), "prefix": "job"},
        "model": {"source": str(base)},
        "datasets": [{"name": "rows", "source": str(base)}],
        "adapter": {"type": "LoRA", "lora": {"rank": 4, "alpha": 8}},
        "training": {
            "maxSteps": 6,
            "globalBatchSize": 4,
            "perDeviceBatchSize": 2,
            "maxLength": 64,
            "learningRate": 1e-2,
            "scheduler": "Linear",
        },
    }
    for name, section in sections.items():
        before = defaults.get(name, {})
        defaults[name] = {key: value for key, value in {**before, **section}.items() if value is not None}
    return LocalRunSpec.model_validate(defaults)


class RecordedProgress:
    """What a stage reported of its progress, in order."""

    def __init__(self) -> None:
        self.reports: list[dict[str, float]] = []

    def report(self, fraction: float | None = None, **metrics: float) -> None:
        self.reports.append({"fraction": fraction or 0.0, **metrics})


JobMaker = Callable[..., TrainedJob]


@pytest.fixture
def make_job(tmp_path: Path, base_model: Path) -> JobMaker:
    """`make_job(name="job", base=…, rows=…, training={…})`: a job with prepared rows on storage of its own."""

    def make(name: str = "job", base: Path | None = None, rows: list[dict[str, list[int]]] | None = None, **sections: Any) -> TrainedJob:
        return TrainedJob(tmp_path / name, base or base_model, rows, **sections)

    return make
