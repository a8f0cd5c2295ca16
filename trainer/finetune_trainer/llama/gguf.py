"""GGUF files: made by llama.cpp's own converter and quantizer, each weight rounded once, and read back to see what they carry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.environment import HUB_OFFLINE
from finetune_api.outcome import Reason
from finetune_api.sections.export import GGUFType

from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError, refuse_killed
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.llama.server import tail
from finetune_trainer.storage import refuse_full

BITS = {
    GGUFType.F16: 16, GGUFType.BF16: 16, GGUFType.Q8_0: 8.5, GGUFType.Q6_K: 6.6, GGUFType.Q5_K_M: 5.8, GGUFType.Q4_K_M: 5.1,
}  # fmt: skip
"""Bits per weight that a format takes on disk. Source: llama-quantize --help, sizes of Llama-3-8B."""
_BLOCK = {GGUFType.Q8_0: 32, GGUFType.Q6_K: 256, GGUFType.Q5_K_M: 256, GGUFType.Q4_K_M: 256}
"""Elements per block: rows that are no multiple of it fall back to another type. Source: ggml QK8_0, QK_K."""


@dataclass(frozen=True)
class Source:
    """What a GGUF is made of. `model`: a folder that the converter reads; `through`: arguments of Python that run the converter in
    their own way, before its path; `name`: the model's name, which would otherwise be the folder's and differ from run to run."""

    model: Path
    name: str
    through: tuple[str, ...] = ()


def convert(home: LlamaHome, source: Source, target: Path) -> Path:
    """A GGUF of the source's weights in float32: what every format is rounded from, once.

    Errors: StageError(ConversionFailed) with the end of the tool's log; StageError(StorageError) where the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    arguments = [str(source.model), "--outfile", str(target), "--outtype", "f32", "--model-name", source.name]
    _run([sys.executable, *source.through, str(home.converter), *arguments], target.with_suffix(".log"), "F32")
    return target


def quantize(home: LlamaHome, exact: Path, folder: Path, name: str, formats: Iterable[GGUFType]) -> dict[GGUFType, Path]:
    """`<folder>/<name>-<format>.gguf` of each format, from the file that `convert` made.

    Errors: StageError(ConversionFailed) with the end of the tool's log; StageError(StorageError) where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {form: folder / f"{name}-{form.value}.gguf" for form in formats}
    for form, target in made.items():
        # Same threads, same rows: llama-quantize's output does not depend on the thread count.
        _run([str(home.quantizer), str(exact), str(target), form.value, str(usable_cpus())], target.with_suffix(".log"), form.value)
    return made


def _run(command: list[str], log: Path, form: str) -> None:
    """Runs a tool in a process group of its own, which ends with us. Errors: StageError(ConversionFailed | StorageError | OutOfMemory)."""
    environment = {**os.environ, HUB_OFFLINE: "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    tool = Path(next(part for part in command if part.endswith((".py", "llama-quantize")))).name
    refuse_killed(tool, status)
    if status != 0:
        refuse_full(log.parent, f"{tool} at {form}")
        raise StageError(Reason.CONVERSION_FAILED, f"{tool} ended with status {status} at {form}; the end of its log: {tail(log)}")
    log.unlink()


@dataclass(frozen=True)
class GGUFFacts:
    """What a GGUF carries beside its weights. `tensor_types`: (name, columns, dimensions, type's name) of each tensor."""

    eos_id: int | None
    chat_template: str | None
    tensor_types: list[tuple[str, int, int, str]]
    architecture: str = ""
    layers: int = 0

    def fallback_tensors(self, form: GGUFType) -> int:
        """Tensors whose rows do not fit the format's blocks, so that llama-quantize took another type for them."""
        block = _BLOCK.get(form)
        if block is None:
            return 0
        return sum(
            dimensions > 1 and columns % block != 0 and kind != "F32"  # F32: norms and routers, which no format quantizes
            for _, columns, dimensions, kind in self.tensor_types
        )


def read_gguf(path: Path) -> GGUFFacts:
    """Errors: StageError(CorruptArtifact) where the file is cut short or no GGUF."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        eos = reader.get_field("tokenizer.ggml.eos_token_id")
        template = reader.get_field("tokenizer.chat_template")
        tensors = [(tensor.name, int(tensor.shape[0]), len(tensor.shape), tensor.tensor_type.name) for tensor in reader.tensors]
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise StageError(Reason.CORRUPT_ARTIFACT, f"{path.name} is cut short or no GGUF; make it again") from error
    architecture = _content(reader.get_field("general.architecture")) or ""
    layers = _content(reader.get_field(f"{architecture}.block_count")) or 0
    return GGUFFacts(_content(eos), _content(template), tensors, architecture, layers)


def _content(field: Any) -> Any:
    return None if field is None else field.contents()
