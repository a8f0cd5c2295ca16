"""The merge as a whole, and the check that finds what is wrong with one."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.sections.adapter import Adapter, LoRA
from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError
from finetune_trainer.mergeable import read_config
from finetune_trainer.package import merge as merge_module
from finetune_trainer.package.adapter import read_updates
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.package.merge import MergePlan, merge, plan_merge
from finetune_trainer.package.merge_check import MergeOracle, trained_scale
from finetune_trainer.package.tensors import TensorReader, ordered, round_to, to_float32

from tests.unit.trainer.package.model_folders import Floats, write_adapter, write_model

Q = "model.layers.0.self_attn.q_proj"
EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
RANK, ALPHA = 4, 8.0
ROWS, COLUMNS, VOCABULARY = 160, 128, 64


def base_tensors() -> dict[str, Floats]:
    rng = np.random.default_rng(1)
    draw = lambda *shape: (0.02 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    return {EMBED: draw(VOCABULARY, COLUMNS), f"{Q}.weight": draw(ROWS, COLUMNS), "model.norm.weight": np.ones(COLUMNS, np.float32)}


def adapter_tensors() -> dict[str, Floats]:
    rng = np.random.default_rng(2)
    return {
        f"{Q}.lora_A.weight": (0.05 * rng.standard_normal((RANK, COLUMNS))).astype(np.float32),
        f"{Q}.lora_B.weight": (0.02 * rng.standard_normal((ROWS, RANK))).astype(np.float32),
    }


@contextmanager
def planned(base_folder: Path, adapter_folder: Path, dtype: str | None = None) -> Iterator[tuple[ModelTensors, MergePlan]]:
    with ModelTensors(base_folder) as base, TensorReader(adapter_folder / "adapter_model.safetensors") as adapter:
        yield base, plan_merge(base, read_updates(adapter, read_config(adapter_folder), base.shapes, None), dtype)


def run_merge(
    base_folder: Path,
    adapter_folder: Path,
    target: Path,
    scale: float = ALPHA / RANK,
    oracle_base: Path | None = None,
    dtype: str | None = None,
) -> MergeOracle:
    with planned(base_folder, adapter_folder, dtype) as (base, plan), ModelTensors(oracle_base or base_folder) as pristine:
        oracle = MergeOracle(pristine, ALPHA / RANK, workers=2)
        merge(base, plan, scale, target, oracle.check, lambda share: None)
        return oracle


def read(folder: Path, name: str) -> Floats:
    with TensorReader(folder / "model.safetensors") as file:
        return file.whole(file.tensors[name])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", adapter_tensors(), RANK, ALPHA)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", {"model.safetensors": base_tensors() | {HEAD: base_tensors()[EMBED]}})


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_merged_weights_are_the_rounded_sum_and_the_rest_is_the_bases(tmp_path: Path, adapter: Path, dtype: str) -> None:
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors() | {HEAD: base_tensors()[EMBED]}}, dtype)
    oracle = run_merge(folder, adapter, tmp_path / "merged")
    delta = adapter_tensors()[f"{Q}.lora_B.weight"].astype(np.float64) @ adapter_tensors()[f"{Q}.lora_A.weight"]
    expected = read(folder, f"{Q}.weight") + ALPHA / RANK * delta
    tolerance = {"BF16": 2**-8, "F16": 2**-11, "F32": 2**-24}[dtype]
    assert np.allclose(read(tmp_path / "merged", f"{Q}.weight"), expected, rtol=tolerance, atol=1e-7 if dtype == "F16" else 1e-9)
    assert np.array_equal(read(tmp_path / "merged", EMBED), read(folder, EMBED))
    assert oracle.found.tensors == 1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("of_base", ["BF16", "F16", "F32"])
def test_every_weight_is_rounded_once_to_the_type_that_is_asked_for(tmp_path: Path, adapter: Path, of_base: str, dtype: str) -> None:
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors() | {HEAD: base_tensors()[EMBED]}}, of_base)
    oracle = run_merge(folder, adapter, tmp_path / "merged", dtype=dtype)
    delta = adapter_tensors()[f"{Q}.lora_B.weight"].astype(np.float64) @ adapter_tensors()[f"{Q}.lora_A.weight"]
    exact = {f"{Q}.weight": read(folder, f"{Q}.weight") + ALPHA / RANK * delta, EMBED: read(folder, EMBED)}
    with TensorReader(tmp_path / "merged/model.safetensors") as merged:
        assert {info.dtype for info in merged.tensors.values()} == {dtype}
        for name, values in exact.items():
            found = merged.rows(merged.tensors[name], 0, len(values))
            assert np.allclose(to_float32(found), values, rtol={"BF16": 2**-8, "F16": 2**-11, "F32": 2**-24}[dtype], atol=1e-7), name
            assert np.count_nonzero(ordered(found) != ordered(round_to(values.copy(), dtype))) <= 0.008 * values.size, name
    assert oracle.found.inexact_share < 0.008


def test_a_sum_that_went_through_another_type_first_is_caught(tmp_path: Path, adapter: Path) -> None:
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors() | {HEAD: base_tensors()[EMBED]}}, "F32")
    run_merge(folder, adapter, tmp_path / "twice", dtype="BF16")
    run_merge(folder, adapter, tmp_path / "once", dtype="F16")
    with planned(folder, adapter, "F16") as (base, plan):
        tensor = next(tensor for tensor in plan.shards["model.safetensors"] if tensor.update)
        oracle = MergeOracle(base, ALPHA / RANK, workers=1)
        with TensorReader(tmp_path / "once/model.safetensors") as once:
            oracle.check(tensor, once)
        rounded_twice = {f"{Q}.weight": read(tmp_path / "twice", f"{Q}.weight")}
        write_model(tmp_path / "widened", {"model.safetensors": rounded_twice}, "F16")
        with TensorReader(tmp_path / "widened/model.safetensors") as widened, pytest.raises(StageError, match=f"ParityFailed.*{Q}"):
            oracle.check(tensor, widened)


def test_no_more_threads_work_than_the_container_has_cpus(
    tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int | None) -> None:
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(merge_module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    run_merge(base, adapter, tmp_path / "merged")
    assert asked == [usable_cpus()]


def test_shards_and_index_are_kept(tmp_path: Path, adapter: Path) -> None:
    tensors = base_tensors()
    shards = {
        "model-00001-of-00002.safetensors": {EMBED: tensors[EMBED]},
        "model-00002-of-00002.safetensors": tensors | {HEAD: tensors[EMBED]},
    }
    del shards["model-00002-of-00002.safetensors"][EMBED]
    folder = write_model(tmp_path / "base", shards)
    run_merge(folder, adapter, tmp_path / "merged")
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(2 * values.size for values in tensors.values()) + 2 * tensors[EMBED].size


def test_a_saved_embedding_of_a_tied_model_unties_the_head(tmp_path: Path) -> None:
    new = np.full((VOCABULARY, COLUMNS), 0.5, np.float32)
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors()}, tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors() | {EMBED: new}, RANK, ALPHA)
    with planned(folder, adapter) as (_, plan):
        assert plan.unties
    run_merge(folder, adapter, tmp_path / "merged")
    assert np.array_equal(read(tmp_path / "merged", EMBED), new)
    assert np.array_equal(read(tmp_path / "merged", HEAD), read(folder, EMBED))


@pytest.mark.parametrize(("head_value", "unties"), [(0.5, False), (0.25, True)])
def test_both_ends_of_a_tied_model_saved(tmp_path: Path, head_value: float, unties: bool) -> None:
    shape = (VOCABULARY, COLUMNS)
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors()}, tie_word_embeddings=True)
    saved = {EMBED: np.full(shape, 0.5, np.float32), HEAD: np.full(shape, head_value, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors() | saved, RANK, ALPHA)
    with planned(folder, adapter) as (_, plan):
        assert plan.unties == unties
    run_merge(folder, adapter, tmp_path / "merged")
    with TensorReader(tmp_path / "merged/model.safetensors") as merged:
        assert (HEAD in merged.tensors) == unties


@pytest.mark.parametrize("wanted", [True, False])
def test_ties_are_what_was_trained_and_not_what_was_asked_for(tmp_path: Path, wanted: bool) -> None:
    """PEFT ties modules of some names only, whatever its configuration says; where it does, both ends are in its file."""
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors()}, tie_word_embeddings=True)
    new = np.full((VOCABULARY, COLUMNS), 0.5, np.float32)
    for name, saved, unties in (("one", {EMBED: new}, True), ("both", {EMBED: new, HEAD: new}, False)):
        adapter = write_adapter(tmp_path / name, adapter_tensors() | saved, RANK, ALPHA, ensure_weight_tying=wanted)
        with planned(folder, adapter) as (_, plan):
            assert plan.unties == unties


@pytest.mark.parametrize("equal", [True, False])
def test_low_rank_updates_of_both_ends_untie_where_they_differ(tmp_path: Path, equal: bool) -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal((RANK, VOCABULARY)).astype(np.float32)
    b = rng.standard_normal((COLUMNS, RANK)).astype(np.float32)
    ends = {
        "model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b,
        "lm_head.lora_A.weight": b.T.copy(), "lm_head.lora_B.weight": a.T.copy() * (1 if equal else 2),
    }  # fmt: skip
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors()}, tie_word_embeddings=True)
    with planned(folder, write_adapter(tmp_path / "adapter", ends, RANK, ALPHA)) as (_, plan):
        assert plan.unties is not equal


def test_two_ends_that_differ_are_not_tied_by_the_configuration(tmp_path: Path) -> None:
    tensors = base_tensors() | {HEAD: np.ones((VOCABULARY, COLUMNS), np.float32)}
    folder = write_model(tmp_path / "base", {"model.safetensors": tensors}, tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "adapter", {EMBED: np.full((VOCABULARY, COLUMNS), 0.5, np.float32)}, RANK, ALPHA)
    run_merge(folder, adapter, tmp_path / "merged")
    assert np.array_equal(read(tmp_path / "merged", HEAD), read(folder, HEAD))


def test_a_saved_module_of_another_shape_is_refused(tmp_path: Path, base: Path) -> None:
    adapter = write_adapter(tmp_path / "wide", {EMBED: np.ones((VOCABULARY + 1, COLUMNS), np.float32)}, RANK, ALPHA)
    with pytest.raises(StageError, match=r"AdapterMismatch.*\[64, 128\] in the base and \[65, 128\]"):
        run_merge(base, adapter, tmp_path / "merged")


# ------------------------------------------------------------------------------------------------------------------ planted faults


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("fault", [1.01, 0.99, -1.0])
def test_a_merge_with_a_wrong_alpha_is_caught(tmp_path: Path, adapter: Path, dtype: str, fault: float) -> None:
    folder = write_model(tmp_path / "base", {"model.safetensors": base_tensors() | {HEAD: base_tensors()[EMBED]}}, dtype)
    with pytest.raises(StageError, match=f"ParityFailed.*{Q}"):
        run_merge(folder, adapter, tmp_path / "merged", scale=ALPHA / RANK * fault)


def test_an_adapter_file_that_says_another_alpha_is_caught(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", adapter_tensors(), RANK, ALPHA * 1.01)
    with pytest.raises(StageError, match="ParityFailed"):
        trained_scale(Adapter(lora=LoRA(rank=RANK, alpha=ALPHA)), read_config(folder))


def to_four_bits(values: Floats) -> Floats:
    """Absolute-maximum quantization to 15 levels in blocks of 64, as a 4-bit base gives its weights back."""
    blocks = values.reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 7
    return (np.round(blocks / scale) * scale).reshape(values.shape).astype(np.float32)


def test_a_merge_into_a_base_that_went_through_four_bits_is_caught(tmp_path: Path, base: Path, adapter: Path) -> None:
    quantized = base_tensors() | {f"{Q}.weight": to_four_bits(base_tensors()[f"{Q}.weight"])}
    dequantized = write_model(tmp_path / "four-bit", {"model.safetensors": quantized | {HEAD: quantized[EMBED]}})
    with pytest.raises(StageError, match=f"ParityFailed.*{Q}"):
        run_merge(dequantized, adapter, tmp_path / "merged", oracle_base=base)


@pytest.mark.parametrize("name", ["model.norm.weight", EMBED])
def test_an_untouched_tensor_that_changed_is_caught(tmp_path: Path, base: Path, adapter: Path, name: str) -> None:
    changed = {**base_tensors(), HEAD: base_tensors()[EMBED]}
    changed[name] = changed[name] * np.float32(1.01)
    other = write_model(tmp_path / "other", {"model.safetensors": changed})
    with pytest.raises(StageError, match=f"ParityFailed.*{name}"):
        run_merge(other, adapter, tmp_path / "merged", oracle_base=base)


def test_an_update_that_is_not_finite_is_caught(tmp_path: Path, base: Path) -> None:
    tensors = adapter_tensors()
    tensors[f"{Q}.lora_B.weight"][3, 1] = np.inf
    adapter = write_adapter(tmp_path / "infinite", tensors, RANK, ALPHA)
    with pytest.raises(StageError, match="not finite"):
        run_merge(base, adapter, tmp_path / "merged")


def test_a_sum_beyond_half_precision_is_caught(tmp_path: Path) -> None:
    tensors = base_tensors() | {HEAD: base_tensors()[EMBED]}
    folder = write_model(tmp_path / "base", {"model.safetensors": tensors}, "F16")
    saved = {EMBED: np.full((VOCABULARY, COLUMNS), 1e6, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", saved, RANK, ALPHA)
    with pytest.raises(StageError, match="F16"):
        run_merge(folder, adapter, tmp_path / "merged")


def test_sums_that_nearly_cancel_are_judged_fairly(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(), RANK, ALPHA)
    delta = ALPHA / RANK * (adapter_tensors()[f"{Q}.lora_B.weight"] @ adapter_tensors()[f"{Q}.lora_A.weight"])
    tensors: dict[str, Any] = base_tensors() | {f"{Q}.weight": -delta, HEAD: base_tensors()[EMBED]}
    folder = write_model(tmp_path / "base", {"model.safetensors": tensors})
    assert run_merge(folder, adapter, tmp_path / "merged").found.tensors == 1


def test_two_exact_computations_round_alike_almost_everywhere(tmp_path: Path, base: Path, adapter: Path) -> None:
    assert run_merge(base, adapter, tmp_path / "merged").found.inexact_share < 5e-4


def test_rounding_is_not_mistaken_for_a_truncation(tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that cuts the low half instead of rounding is one unit off in half of its elements: the share finds it."""
    import finetune_trainer.package.merge as module

    cut: Callable[..., Any] = lambda values, dtype: (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)  # noqa: E731
    monkeypatch.setattr(module, "round_to", cut)
    with pytest.raises(StageError, match="of its elements"):
        run_merge(base, adapter, tmp_path / "merged")
