"""llama.cpp's converter on a base model whose adapter is added to each tensor as it is read: no merged copy is rounded before it.

    python -m finetune_trainer.package.convert <base> <adapter> <architecture> <scale> <converter> <the converter's own arguments>

The one thing replaced is `gguf.utility.SafetensorsLocal`, through which the converter reads a model's files: tensors that the adapter
updates are float32 sums, made when the converter asks for their bytes and dropped when it has written them.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from finetune_trainer.architecture import Architecture
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.mergeable import read_config
from finetune_trainer.package.adapter import read_updates
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.package.merge import MergedTensor, MergePlan, blocks, exact_rows, plan_merge
from finetune_trainer.package.tensors import TensorReader
from finetune_trainer.trained import ADAPTER_WEIGHTS


@dataclass(frozen=True)
class Sum:
    """W + scale · BA in float32, with the members of `gguf.utility.LocalTensor`."""

    base: ModelTensors
    tensor: MergedTensor
    scale: float
    dtype: ClassVar[str] = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.info(self.tensor.base).shape

    def mmap_bytes(self) -> npt.NDArray[np.uint8]:
        info = self.base.info(self.tensor.base)
        rows = exact_rows(self.base, self.tensor, self.scale)
        sums = np.empty(info.rows_and_columns, np.float32)
        for first, count in blocks(info):
            sums[first : first + count] = rows(first, count)
        return sums.reshape(-1).view(np.uint8)


def merged_files(base: ModelTensors, plan: MergePlan, scale: float, original: Any) -> Any:
    """What stands in for `original`, the class SafetensorsLocal: called with a file's path, it gives that file's tensors by name."""

    def read(path: Path) -> AbstractContextManager[dict[str, Any]]:
        found = dict(original(base.folder / path.name).tensors)
        for tensor in plan.shards[path.name]:
            if tensor.update is not None or tensor.name not in found:  # an output head that is no longer tied is not in the file
                found[tensor.name] = Sum(base, tensor, scale)
        return nullcontext(found)

    return read


def main(arguments: list[str]) -> None:
    base_folder, adapter, facts, converter = (Path(arguments[index]) for index in (0, 1, 2, 4))
    scale, built = float(arguments[3]), TypeAdapter(Architecture | None).validate_json(facts.read_bytes())
    home = LlamaHome(converter.parent)
    sys.path[:0] = [str(home.root), str(home.gguf_python)]
    utility: Any = import_module("gguf.utility")
    config = read_config(adapter)
    with ModelTensors(base_folder, built) as base, TensorReader(adapter / ADAPTER_WEIGHTS) as weights:
        plan = plan_merge(base, read_updates(weights, config, base.shapes, built), "F32")
        utility.SafetensorsLocal = merged_files(base, plan, scale, utility.SafetensorsLocal)
        sys.argv = [str(converter), *arguments[5:]]
        runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
