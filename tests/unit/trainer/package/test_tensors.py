"""Reading, writing and rounding of tensors."""

import struct
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.package.tensors import TensorReader, ordered, round_to, to_float32
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.package.model_folders import write_tensors


@given(st.floats(width=32, allow_nan=False, min_value=2.0**-100, max_value=2.0**100), st.booleans())
def test_bfloat16_rounds_to_the_nearest_neighbour_and_ties_to_even(magnitude: float, negative: bool) -> None:
    value = -magnitude if negative else magnitude
    bits = int(round_to(np.array([value], np.float32), "BF16")[0])
    below, rounded, above = (float(found) for found in to_float32(np.array([bits - 1, bits, bits + 1], np.uint16)))
    distance = abs(value - rounded)
    assert distance <= min(abs(value - below), abs(value - above))
    if distance in (abs(value - below), abs(value - above)):
        assert bits % 2 == 0


def test_bfloat16_values_are_read_exactly() -> None:
    assert to_float32(np.array([0x3F80, 0xBF80, 0x0000, 0x4049], np.uint16)).tolist() == [1.0, -1.0, 0.0, 3.140625]


def test_ordered_counts_representable_values_across_zero() -> None:
    assert ordered(np.array([0x0001, 0x0000, 0x8000, 0x8001], np.uint16)).tolist() == [1, 0, 0, -1]
    assert ordered(np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)).tolist() == [0x3F800000, 0x3F800001]


def test_a_written_file_reads_back_and_is_aligned(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"a": values, "b": values[0]}, "BF16")
    with TensorReader(tmp_path / "x.safetensors") as reader:
        assert reader.tensors["a"].offset % 8 == 0
        assert np.array_equal(to_float32(reader.rows(reader.tensors["a"], 1, 2)), values[1:])
        assert np.array_equal(reader.whole(reader.tensors["b"]), values[0])


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors import safe_open

    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"a": values}, "F32")
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert np.array_equal(file.get_tensor("a"), values)
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("cut", [1, 40, 60])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.ones((2, 4), np.float32)}, "F32")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StageError) as refusal:
        TensorReader(path)
    assert refusal.value.reason == "CorruptArtifact"
    assert "x.safetensors" in refusal.value.message


def test_a_header_that_is_no_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 4) + b"\x80\x02}q")
    with pytest.raises(StageError, match="CorruptArtifact"):
        TensorReader(path)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(StageError, match="CorruptArtifact"):
        TensorReader(path)
