"""A job up to its package stage: a real prepare over a tiny Llama with a SentencePiece tokenizer, and an adapter trained on a few facts."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import peft
import sentencepiece
import torch
import transformers
from finetune_api.answer import StageResult
from finetune_api.run import LocalRunSpec, RunSpec, Stage
from finetune_trainer.__main__ import run_stage
from finetune_trainer.progress import Progress
from finetune_trainer.storage import JobStorage
from safetensors.torch import save_file

from tests.tiny_models import TEXTS, sentencepiece_model

RANK, ALPHA = 8, 16
SUBJECTS = [
    "fox",
    "dog",
    "lazy",
    "quick",
    "brown",
    "over",
    "jump",
    "more",
    "less",
    "verbose",
    "quiet",
    "files",
    "user",
    "tone",
    "message",
    "system",
]
PHRASINGS = ("what is {}?", "tell me of {}")
ASKED_LATER = "and {}?"
EVALUATION = {
    "minSamples": 16,
    "maxNewTokens": 24,
    "gates": [
        {"name": "recall", "metric": "facts/ExactMatch", "against": "Base", "minImprovement": 0.2},
        {"name": "choice", "metric": "facts/AnswerChoice", "against": "Base", "minImprovement": 0},
        {"name": "stops", "metric": "facts/StopRate", "min": 0.5},
        {"name": "no-worse", "metric": "facts/AnswerChoice", "against": "Production", "maxRegression": 0.1},
    ],
}


def make_base(folder: Path, tied: bool = False, hidden: int = 256, dtype: torch.dtype = torch.float32) -> Path:
    """A Llama of one layer that has read a few sentences, and llama.cpp's kind of tokenizer."""
    sentencepiece_model(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    generation = (folder / "generation_config.json").read_bytes()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=4, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    texts = [answer(index) for index in range(len(SUBJECTS))] + TEXTS
    train(model, [encode(folder, text) for text in texts], [0] * len(texts), steps=30, learning_rate=3e-3)
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").write_bytes(generation)
    return folder


def answer(index: int) -> str:
    draw = random.Random(index)
    return f"{SUBJECTS[index]} {' '.join(draw.sample(SUBJECTS, 4))}"


def conversation(phrasing: str, index: int) -> dict[str, Any]:
    question = phrasing.format(SUBJECTS[index])
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer(index)}],
        "document": f"d{index // 2}",
    }


def write_facts(folder: Path) -> Path:
    """`train.jsonl`: each fact in two phrasings; `test.jsonl`: in a third."""
    folder.mkdir(parents=True)
    facts = range(len(SUBJECTS))
    train_rows = [conversation(phrasing, index) for phrasing in PHRASINGS for index in facts]
    for name, rows in (("train", train_rows), ("test", [conversation(ASKED_LATER, index) for index in facts])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def encode(base: Path, text: str) -> list[int]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    ids: list[int] = processor.encode(text)
    return ids


def encode_chat(base: Path, row: dict[str, Any]) -> tuple[list[int], int]:
    """Ids of a conversation as the base's template renders it, and where the answer begins."""
    start, end = 3, 4  # <|im_start|>, <|im_end|>
    user, assistant = row["messages"]
    prompt = [start, *encode(base, f"user\n{user['content']}"), end, *encode(base, "\n"), start, *encode(base, "assistant\n")]
    return [*prompt, *encode(base, assistant["content"]), end], len(prompt)


def train(model: Any, rows: list[list[int]], answers: list[int], steps: int, learning_rate: float) -> None:
    """Plain AdamW over all rows at once, padded at the end; `answers` holds where each row's trained part begins."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([[-100] * first + row[first:] + [-100] * (longest - len(row)) for row, first in zip(rows, answers, strict=True)])
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def make_adapter(base: Path, target: Path, steps: int = 60, shuffled: bool = False, **settings: Any) -> Path:
    """A PEFT adapter trained on the facts, or on facts with each other's answers."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    tuned = peft.get_peft_model(model, peft.LoraConfig(**wanted))
    rows = [conversation(phrasing, index) for phrasing in PHRASINGS for index in range(len(SUBJECTS))]
    if shuffled:
        answers = [row["messages"][1] for row in rows]
        random.Random(0).shuffle(answers)
        rows = [{"messages": [row["messages"][0], other]} for row, other in zip(rows, answers, strict=True)]
    encoded = [encode_chat(base, row) for row in rows]
    train(tuned, [ids for ids, _ in encoded], [first for _, first in encoded], steps, learning_rate=1e-2)
    return save_adapter(tuned, target)


def save_adapter(tuned: Any, target: Path) -> Path:
    """The adapter's folder, as the train stage leaves it."""
    state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    target.mkdir(parents=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target / "adapter_model.safetensors")
    tuned.peft_config["default"].inference_mode = True
    tuned.peft_config["default"].save_pretrained(target)
    return target


class PackagedJob:
    """A job on storage of its own, prepared for real and trained by decree; `stage()` runs one as a pod would."""

    def __init__(self, root: Path, trained: Path, prepared: Path | None = None, **sections: Any) -> None:
        shutil.copytree(prepared or prepared_storage(), root)
        self.base = base()
        self.run = make_run(root, **sections)
        folder = self.storage.new_folder(Stage.TRAIN)
        shutil.copytree(trained, folder / ("adapter" if self.run.adapter.type == "LoRA" else "model"))
        self.storage.publish(Stage.TRAIN, folder, "trained", StageResult(stage=Stage.TRAIN))

    @property
    def storage(self) -> JobStorage:
        return JobStorage(self.run.storage, "pod-1")

    def stage(self, stage: Stage) -> StageResult:
        return run_stage(stage, self.run, "pod-1", Progress.from_environment({}))

    def folder(self, stage: Stage) -> Path:
        return self.storage.finished(stage)[1]


def make_run(root: Path, **sections: Any) -> RunSpec:
    return LocalRunSpec.model_validate(
        {
            "job": {"name": "tiny"},
            "storage": {"root": str(root), "prefix": "job"},
            "model": {"source": str(base())},
            "datasets": [{"name": "facts", "source": str(facts()), "testSplit": "test"}],
            "preparation": {"split": {"train": 1.0, "validation": 0.0, "test": 0.0, "groupBy": "document"}},
            "adapter": {"type": "LoRA", "lora": {"rank": RANK, "alpha": ALPHA}},
            "export": {"gguf": []},
        }
        | sections
    )


@cache
def scratch() -> Path:
    """A folder of this test session, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="packaged-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def facts() -> Path:
    return write_facts(scratch() / "facts")


@cache
def base() -> Path:
    return make_base(scratch() / "base")


@cache
def adapter(shuffled: bool = False) -> Path:
    return make_adapter(base(), scratch() / f"adapter-{shuffled}", shuffled=shuffled)


@cache
def prepared_storage() -> Path:
    """Storage with the prepare stage done, llama.cpp's tokenizer proven: what jobs copy."""
    root = scratch() / "prepared"
    run_stage(Stage.PREPARE, make_run(root, export={"gguf": ["Q8_0"]}), "pod-0", Progress.from_environment({}))
    return root


@cache
def packaged_job() -> PackagedJob:
    """A job that went through prepare and package once, with two GGUF types; tests must not change its files."""
    job = PackagedJob(scratch() / "job", adapter(), export={"gguf": ["Q8_0", "F16"]}, evaluation=EVALUATION)
    job.stage(Stage.PACKAGE)
    return job
