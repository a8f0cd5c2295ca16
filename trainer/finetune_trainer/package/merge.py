"""The adapter merged into the unquantized base, safetensors to safetensors, block by block: memory does not grow with the model.

Every tensor is checked right after it was written, while its pages are still in memory (`merge_check`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from finetune_api.outcome import Reason
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError
from finetune_trainer.package.adapter import LowRank, Saved, Update
from finetune_trainer.package.base_model import ModelTensors, is_weight
from finetune_trainer.package.tensors import RAW_TYPES, Raw, TensorInfo, TensorReader, TensorWriter, round_to, to_float32
from finetune_trainer.weight_files import INDEX_FILE, weight_files

BLOCK_ELEMENTS = 1 << 17
"""Half a megabyte of float32: the block and its temporaries stay in a core's own cache."""


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the result: the base's tensor it starts from, what happens to it, and the safetensors type it is rounded to."""

    name: str
    base: str
    update: Update | None
    dtype: str


@dataclass(frozen=True)
class MergePlan:
    """Tensors of each shard, in the base's own order. `unties`: the output head is now a tensor of its own."""

    shards: dict[str, list[MergedTensor]]
    unties: bool


@dataclass
class MergeReport:
    """What was written. `bytes_written` counts tensors' bytes."""

    bytes_written: int = 0
    unties: bool = False
    files: list[str] = field(default_factory=list)


CheckTensor = Callable[[MergedTensor, TensorReader], None]
"""Told of each tensor right after it was written. Raises where it is not what was trained."""


def plan_merge(base: ModelTensors, updates: Mapping[str, Update], dtype: str | None = None) -> MergePlan:
    """Where each update goes; a tied output head becomes a tensor of its own when it and the embedding no longer are equal.

    `dtype`: safetensors type (F32, F16, BF16) that all weights are rounded to; each keeps its own without it.
    """
    own_head = _has_own_head(base, updates)
    shards: dict[str, list[MergedTensor]] = {}
    for shard, reader in base.shards.items():
        names = [name for name in reader.tensors if not (own_head and name == base.head)]
        shards[shard] = [MergedTensor(name, name, updates.get(name), _rounded_type(base, name, dtype)) for name in names]
    if own_head and base.embedding:
        added = MergedTensor(base.head, base.embedding, updates.get(base.head), _rounded_type(base, base.embedding, dtype))
        shards[list(shards)[-1]].append(added)
    planned = {tensor.name for tensors in shards.values() for tensor in tensors}
    missing = set(updates) - planned - ({base.head} if base.head_is_tied else set())
    if missing:
        raise StageError(Reason.ADAPTER_MISMATCH, f"the base model has no tensor {min(missing)}")
    return MergePlan(shards, own_head)


def _rounded_type(base: ModelTensors, tensor: str, dtype: str | None) -> str:
    info = base.info(tensor)
    return dtype if dtype and is_weight(info) else info.dtype


def _has_own_head(base: ModelTensors, updates: Mapping[str, Update]) -> bool:
    """Whether a head that was tied no longer is. Decided by what was trained: two equal updates, and none, leave it tied.

    What the adapter's configuration says of ties is what was asked for, and PEFT keeps to it for some names of modules only.
    """
    if not base.head_is_tied or base.embedding is None:
        return False
    return not _same(updates.get(base.embedding), updates.get(base.head))


def _same(one: Update | None, other: Update | None) -> bool:
    match one, other:
        case None, None:
            return True
        case Saved(), Saved():
            return _equal(one, other)
        case LowRank(), LowRank():
            return np.array_equal(one.up, other.up) and np.array_equal(one.down, other.down)
        case _:
            return False


def _equal(one: Saved, other: Saved) -> bool:
    if one.tensor.shape != other.tensor.shape:
        return False
    return all(
        np.array_equal(to_float32(one.reader.rows(one.tensor, first, count)), to_float32(other.reader.rows(other.tensor, first, count)))
        for first, count in blocks(one.tensor)
    )


def blocks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """`(first row, rows)` of blocks of about `BLOCK_ELEMENTS`."""
    rows, columns = info.rows_and_columns
    step = max(1, BLOCK_ELEMENTS // max(columns, 1))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def merge(
    base: ModelTensors, plan: MergePlan, scale: float, target: Path, check: CheckTensor, report: Callable[[float], None]
) -> MergeReport:
    """Writes the merged shards, their index and nothing else into `target`; reports the share done.

    Errors: StageError(AdapterMismatch) where an update's shape is not the tensor's; whatever `check` raises.
    """
    done = MergeReport(unties=plan.unties)
    total = sum(_result_info(base, tensor).bytes for tensors in plan.shards.values() for tensor in tensors)
    target.mkdir(parents=True, exist_ok=True)
    # Blocks are the unit of parallel work; BLAS threads below them would only fight for the same cores.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cpus()) as pool:
        for shard, tensors in plan.shards.items():
            layout = [_result_info(base, tensor) for tensor in tensors]
            with TensorWriter(target / shard, layout, base.shards[shard].metadata) as writer, TensorReader(target / shard) as written:
                for tensor in tensors:
                    _write_tensor(base, tensor, scale, writer, pool)
                    check(tensor, written)
                    done.bytes_written += writer.tensors[tensor.name].bytes
                    report(done.bytes_written / max(total, 1))
            done.files.append(shard)
    _write_index(base, plan, target, done.bytes_written)
    return done


def _result_info(base: ModelTensors, tensor: MergedTensor) -> TensorInfo:
    info = base.info(tensor.base)
    if tensor.update is not None and not is_weight(info):
        raise StageError(Reason.QUANTIZED_BASE, f"{tensor.base} is {info.dtype}; a merge needs {', '.join(RAW_TYPES)} weights")
    shape = _update_shape(tensor.update)
    if shape is not None and shape != info.shape:
        raise StageError(
            Reason.ADAPTER_MISMATCH, f"{tensor.name} has shape {list(info.shape)} in the base and {list(shape)} in the adapter"
        )
    return TensorInfo(tensor.name, tensor.dtype, info.shape, 0)


def _update_shape(update: Update | None) -> tuple[int, ...] | None:
    match update:
        case LowRank(up, down):
            return up.shape[0], down.shape[1]
        case Saved(_, info):
            return info.shape
        case None:
            return None


def _write_tensor(base: ModelTensors, tensor: MergedTensor, scale: float, writer: TensorWriter, pool: ThreadPoolExecutor) -> None:
    info = base.info(tensor.base)
    if tensor.update is None and tensor.dtype == info.dtype:
        base.reader(tensor.base).copy(info, writer.descriptor, writer.tensors[tensor.name].offset)
        return
    rows = exact_rows(base, tensor, scale)

    def write_block(block: tuple[int, int]) -> None:
        writer.write_rows(tensor.name, block[0], round_to(rows(*block), tensor.dtype))

    list(pool.map(write_block, blocks(info)))


Rows = Callable[[int, int], npt.NDArray[np.floating[Any]]]
"""`(first row, rows)` → these rows of a tensor, (rows, columns), in an array of the caller's own."""


def exact_rows(base: ModelTensors, tensor: MergedTensor, scale: float) -> Rows:
    """The tensor before it is rounded to its type: sums in float64 where that is float32, else in float32."""
    info, reader = base.info(tensor.base), base.reader(tensor.base)
    match tensor.update:
        case LowRank(up, down):
            compute = np.dtype(np.float64 if tensor.dtype == "F32" else np.float32)
            scaled = (scale * down.astype(np.float64)).astype(compute)

            def sums(first: int, count: int) -> npt.NDArray[np.floating[Any]]:
                values: npt.NDArray[np.floating[Any]] = np.matmul(up[first : first + count].astype(compute, copy=False), scaled)
                np.add(values, _widen(reader.rows(info, first, count)), out=values)
                return values

            return sums
        case Saved(source, saved):
            return lambda first, count: to_float32(source.rows(saved, first, count))
        case None:
            return lambda first, count: to_float32(reader.rows(info, first, count))


def _widen(raw: Raw) -> Raw:
    return raw if raw.dtype == np.float32 else to_float32(raw)


def _write_index(base: ModelTensors, plan: MergePlan, target: Path, total_bytes: int) -> None:
    path = base.folder / INDEX_FILE
    if not weight_files(base.folder).indexed:
        return
    index = json.loads(path.read_bytes())
    index.setdefault("metadata", {})["total_size"] = total_bytes
    index["weight_map"] = {tensor.name: shard for shard, tensors in plan.shards.items() for tensor in tensors}
    (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
