"""Weights rounded to what a format can hold, and the converter fed with sums that were not rounded before."""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from finetune_trainer.llama.gguf import GGUFFacts
from finetune_trainer.package import convert
from finetune_trainer.package.rounding import GGUFRounding, round_values

from tests.unit.trainer.package.model_folders import write_adapter, write_model

NOWHERE = Path("no-library")  # only K-quants need ggml
Q = "model.layers.0.self_attn.q_proj"


def weights(rows: int = 8, columns: int = 64, seed: int = 0) -> npt.NDArray[np.float32]:
    return (0.02 * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


def facts(*tensors: tuple[str, int, int, str]) -> GGUFFacts:
    return GGUFFacts(2, None, list(tensors), "llama", 1)


def test_q8_0_is_the_nearest_of_255_steps_per_block_of_32() -> None:
    values = weights()
    blocks = values.reshape(-1, 32).astype(np.float64)
    step = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    rounded = round_values(values, "Q8_0", NOWHERE).reshape(-1, 32)
    assert np.abs(rounded - blocks).max() <= 0.51 * step.max()
    assert np.array_equal(np.round(rounded / step), np.round(blocks / (np.abs(blocks).max(axis=1, keepdims=True) / 127)))


@pytest.mark.parametrize(("kind", "bits"), [("F16", 11), ("BF16", 8), ("F32", 24)])
def test_float_types_round_to_nearest(kind: str, bits: int) -> None:
    values = weights()
    assert np.allclose(round_values(values, kind, NOWHERE), values, rtol=2.0**-bits, atol=1e-8 if kind == "F16" else 0)


def test_each_parameter_is_rounded_to_the_type_that_its_tensor_has_in_the_file() -> None:
    rounding = GGUFRounding(facts(("blk.0.attn_q.weight", 64, 2, "Q8_0"), ("token_embd.weight", 64, 2, "F16")), NOWHERE)
    values = weights()
    assert np.array_equal(rounding(f"{Q}.weight", values), round_values(values, "Q8_0", NOWHERE))
    assert np.array_equal(rounding("model.embed_tokens.weight", values), values.astype(np.float16).astype(np.float32))
    assert rounding("model.norm.weight", values[0]) is not None
    assert np.array_equal(rounding("model.norm.weight", values[0]), values[0])


def test_what_the_converter_renames_is_rounded_to_the_usual_type() -> None:
    rounding = GGUFRounding(facts(("a.weight", 64, 2, "Q8_0"), ("b.weight", 64, 2, "Q8_0"), ("c.weight", 64, 2, "F16")), NOWHERE)
    assert np.array_equal(rounding("model.other.experts", weights()), round_values(weights(), "Q8_0", NOWHERE))
    odd = weights(columns=40)  # no whole blocks
    assert np.array_equal(rounding("model.other.experts", odd), round_values(odd, "F16", NOWHERE))
    experts = weights(16).reshape(4, 4, 64)
    assert rounding("model.other.experts", experts).shape == experts.shape


def test_a_tensor_that_the_file_holds_the_other_way_round_is_rounded_along_its_rows_there() -> None:
    rounding = GGUFRounding(facts(("blk.0.attn_q.weight", 32, 2, "Q8_0")), NOWHERE)
    values = weights(32, 64)
    assert np.array_equal(rounding(f"{Q}.weight", values), round_values(np.ascontiguousarray(values.T), "Q8_0", NOWHERE).T)


CONVERTER = """
import json, sys
from pathlib import Path
import gguf.utility
import numpy as np
import torch
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
with gguf.utility.SafetensorsLocal(folder / "model.safetensors") as part:
    for name in part:
        found[name] = [part[name].dtype, list(part[name].shape), torch.from_numpy(part[name].mmap_bytes()).numpy().tobytes().hex()]
target.write_text(json.dumps(found))
"""


@pytest.mark.parametrize("ties", [True, False])
def test_the_converter_reads_sums_that_were_never_rounded(tmp_path: Path, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model.embed_tokens.weight": weights(seed=1), f"{Q}.weight": weights(seed=2), "model.norm.weight": np.ones(64, np.float32)}
    write_model(tmp_path / "base", {"model.safetensors": base}, "F32", tie_word_embeddings=True)
    factors = {f"{Q}.lora_A.weight": weights(4, 64, 3), f"{Q}.lora_B.weight": weights(8, 4, 4)}
    saved = {} if ties else {"model.embed_tokens.weight": weights(seed=5)}
    write_adapter(tmp_path / "adapter", factors | saved, 4, 8.0)
    (tmp_path / "converter.py").write_text(CONVERTER)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    utility = convert.import_module("gguf.utility")
    monkeypatch.setattr(utility, "SafetensorsLocal", utility.SafetensorsLocal)
    (tmp_path / "architecture.json").write_text("null")
    arguments = [str(tmp_path / name) for name in ("base", "adapter", "architecture.json", "converter.py", "base", "found.json")]
    convert.main([*arguments[:3], "2.0", *arguments[3:]])
    found = json.loads((tmp_path / "found.json").read_text())
    sums = np.frombuffer(bytes.fromhex(found[f"{Q}.weight"][2]), np.float32).reshape(8, 64)
    exact = base[f"{Q}.weight"] + 2.0 * (factors[f"{Q}.lora_B.weight"].astype(np.float64) @ factors[f"{Q}.lora_A.weight"])
    assert np.array_equal(sums, exact.astype(np.float32))
    assert found["model.norm.weight"] == ["F32", [64], base["model.norm.weight"].tobytes().hex()]
    embedding = np.frombuffer(bytes.fromhex(found["model.embed_tokens.weight"][2]), np.float32)
    assert np.array_equal(embedding, (saved or base)["model.embed_tokens.weight"].ravel())
    assert ("lm_head.weight" in found) is not ties
