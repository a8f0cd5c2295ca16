"""One reader says which files are a model's weights: as transformers loads them, whatever else lies beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.model_shape import count_parameters
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.weight_files import INDEX_FILE, SINGLE_FILE, link_weights, read_header, stored_tensors, weight_files
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TENSORS = {"a.weight": np.ones((4, 3), np.float32), "b.weight": np.ones((2, 3), np.float16), "c.weight": np.ones(5, np.float32)}
PARAMETERS = sum(values.size for values in TENSORS.values())


def write_single(folder: Path, name: str = SINGLE_FILE) -> None:
    save_file(TENSORS, folder / name)


def write_shards(folder: Path, index: Any = True) -> None:
    weight_map = {}
    for shard, names in zip(SHARDS, (["a.weight"], ["b.weight", "c.weight"]), strict=True):
        save_file({name: TENSORS[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    if index:
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map} if index is True else index))


def consolidated(folder: Path) -> None:
    write_single(folder)
    write_single(folder, "consolidated.safetensors")


def variant(folder: Path) -> None:
    write_single(folder)
    write_single(folder, "model.fp16.safetensors")


def stray(folder: Path) -> None:
    write_shards(folder)
    write_single(folder)


@pytest.mark.parametrize(
    ("write", "names", "left_out"),
    [
        (write_single, [SINGLE_FILE], []),
        (write_shards, [*SHARDS], []),
        (consolidated, [SINGLE_FILE], []),
        (variant, [SINGLE_FILE], ["model.fp16.safetensors"]),
        (stray, [SINGLE_FILE], [*SHARDS]),
    ],
)
def test_what_transformers_loads_is_counted_and_linked_and_no_more(
    write: Any, names: list[str], left_out: list[str], tmp_path: Path
) -> None:
    folder, target = tmp_path / "model", tmp_path / "target"
    folder.mkdir()
    target.mkdir()
    write(folder)
    (folder / "config.json").write_text("{}")
    files = weight_files(folder)
    assert (files.names, files.left_out) == (names, left_out)
    assert len(files.warnings) == bool(left_out)
    assert count_parameters(folder) == (PARAMETERS, "float32")
    with ModelTensors(folder) as opened:
        assert list(opened.shards) == names
        assert opened.shapes == {name: values.shape for name, values in TENSORS.items()}
    link_weights(folder, target)
    assert sorted(path.name for path in target.iterdir()) == sorted([*names, *([INDEX_FILE] if files.indexed else [])])


def lone_variant(folder: Path) -> None:
    write_single(folder, "model.fp16.safetensors")


def no_index(folder: Path) -> None:
    write_shards(folder, index=False)


def missing_shard(folder: Path) -> None:
    write_shards(folder)
    (folder / SHARDS[1]).unlink()


def index_of(weight_map: Any) -> Any:
    def write(folder: Path) -> None:
        write_shards(folder, index={"weight_map": weight_map})

    return write


def broken_link(folder: Path) -> None:
    (folder / SINGLE_FILE).symlink_to(folder / "gone")


def cut_short(folder: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(save(TENSORS)[:-3])


def same_tensor_twice(folder: Path) -> None:
    write_shards(folder)
    save_file(TENSORS, folder / SHARDS[1])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lone_variant, r"lacks model.safetensors \(model.fp16.safetensors alone is read by nobody\)"),
        (no_index, "lacks model.safetensors.index.json"),
        (missing_shard, f"lacks {SHARDS[1]}, which model.safetensors.index.json lists"),
        (broken_link, "lacks model.safetensors"),
        (cut_short, "model.safetensors is not a whole safetensors file"),
        (same_tensor_twice, "holds a.weight, which another file"),
        (index_of({"a.weight": SHARDS[0], "z.weight": SHARDS[1]}), "lists z.weight, which is in none"),
        (index_of({"a.weight": "../model.safetensors"}), "lists something else"),
        (index_of({"a.weight": "model.bin"}), "lists something else"),
        (index_of({"a.weight": 3}), "lists something else"),
        (index_of([]), "lists something else"),
        (index_of(None), "is not an index"),
    ],
)
def test_torn_models_are_refused_by_name(write: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StageError, match=words) as error:
        stored_tensors(tmp_path)
    assert error.value.reason == "InvalidModel"


@given(cut=st.integers(min_value=0, max_value=len(save(TENSORS)) - 1))
def test_no_part_of_a_file_reads_as_a_whole_one(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    path.write_bytes(save(TENSORS)[:cut])
    with pytest.raises(ValueError, match=r"\w"):
        read_header(path)
