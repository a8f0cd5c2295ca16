"""GGUF files: made by llama.cpp's own converter and quantizer, and read back to see what they carry."""

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

_CONVERTED = {GGUFType.F16: "f16", GGUFType.BF16: "bf16"}
"""Types that the converter writes itself, by its own names; the others are quantized from F16."""
_BLOCK = {GGUFType.Q8_0: 32, GGUFType.Q6_K: 256, GGUFType.Q5_K_M: 256, GGUFType.Q4_K_M: 256}
"""Elements per block: rows that are no multiple of it fall back to another type. Source: ggml QK8_0, QK_K."""


def make_ggufs(home: LlamaHome, model: Path, target: Path, name: str, formats: Iterable[GGUFType]) -> dict[GGUFType, Path]:
    """`<target>/<name>-<format>.gguf` of each format from a model folder; an F16 that was not asked for is removed again.

    Errors: StageError(ConversionFailed) with the end of the tool's log.
    """
    target.mkdir(parents=True, exist_ok=True)
    wanted = list(formats)
    made = {form: target / f"{name}-{form.value}.gguf" for form in wanted}
    for form in wanted:
        if form in _CONVERTED:
            _convert(home, model, made[form], form, name)
    quantized = [form for form in wanted if form not in _CONVERTED]
    if not quantized:
        return made
    source = made.get(GGUFType.F16, target / f".{name}-source.gguf")
    if GGUFType.F16 not in made:
        _convert(home, model, source, GGUFType.F16, name)
    for form in quantized:
        # Same threads, same rows: llama-quantize's output does not depend on the thread count.
        _run(
            [str(home.quantizer), str(source), str(made[form]), form.value, str(usable_cpus())], made[form].with_suffix(".log"), form.value
        )
    if GGUFType.F16 not in made:
        source.unlink()
    return made


def _convert(home: LlamaHome, model: Path, target: Path, form: GGUFType, name: str) -> None:
    # The name would otherwise be the folder's, which differs from run to run.
    command = [
        sys.executable,
        str(home.converter),
        str(model),
        "--outfile",
        str(target),
        "--outtype",
        _CONVERTED[form],
        "--model-name",
        name,
    ]
    _run(command, target.with_suffix(".log"), form.value)


def _run(command: list[str], log: Path, form: str) -> None:
    """Runs a tool in a process group of its own, which ends with us. Errors: StageError(ConversionFailed)."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {HUB_OFFLINE: "1", "CUDA_VISIBLE_DEVICES": ""}
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
    tool = Path(command[1] if command[0] == sys.executable else command[0]).name
    refuse_killed(tool, status)
    if status != 0:
        raise StageError(Reason.CONVERSION_FAILED, f"{tool} ended with status {status} at {form}; the end of its log: {tail(log)}")
    log.unlink()


@dataclass(frozen=True)
class GGUFFacts:
    """What a GGUF carries beside its weights. `tensor_types`: (name, columns, dimensions, type's name) of each tensor."""

    eos_id: int | None
    chat_template: str | None
    tensor_types: list[tuple[str, int, int, str]]

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
    return GGUFFacts(_content(eos), _content(template), tensors)


def _content(field: Any) -> Any:
    return None if field is None else field.contents()


def link_weights(model: Path, target: Path) -> None:
    """Links a model's safetensors and index into `target`, where only its other files differ."""
    for path in model.iterdir():
        if path.name.endswith((".safetensors", ".safetensors.index.json")):
            (target / path.name).symlink_to(path.resolve())
