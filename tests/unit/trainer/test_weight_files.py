"""One reader says which files are a model's weights: as transformers loads them, whatever else lies beside."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.model_shape import count_parameters
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.weight_files import BITS, INDEX_FILE, SINGLE_FILE, link_weights, read_header, stored_tensors, weight_files
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save, save_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TENSORS = {"a.weight": np.ones((4, 3), np.float32), "b.weight": np.ones((2, 3), np.float16), "c.weight": np.ones(5, np.float32)}
WEIGHT_MAP = {"a.weight": SHARDS[0], "b.weight": SHARDS[1], "c.weight": SHARDS[1]}
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
        write_shards(folder, index={"metadata": {}, "weight_map": weight_map})

    return write


def whole_index(index: Any) -> Any:
    return lambda folder: write_shards(folder, index=index)


def index_text(text: str) -> Any:
    def write(folder: Path) -> None:
        write_shards(folder)
        (folder / INDEX_FILE).write_text(text)

    return write


def empty_file(folder: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(b"")


def no_tensor(folder: Path) -> None:
    save_file({}, folder / SINGLE_FILE)


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
        (index_of({"a.weight": "/model.safetensors"}), "lists something else"),
        (index_of({"a.weight": "..\\model.safetensors"}), "lists something else"),
        (index_of({"a.weight": "model\0.safetensors"}), "lists something else"),
        (index_of({"a.weight": f"model{'x' * 300}.safetensors"}), "lists something else"),
        (index_of({"a.weight": "weights.safetensors"}), r"lists something else than a file model\*.safetensors beside it \(a.weight\)"),
        (index_of({"a.weight": ["model.safetensors"]}), "lists something else"),
        (index_of([["a.weight", SHARDS[0]]]), "weight_map must be an object, and is a list"),
        (index_of([]), "weight_map must be an object"),
        (index_of("a.weight"), "weight_map must be an object"),
        (index_of({}), "is not an index"),
        (index_of(None), "is not an index"),
        (index_text("[]"), "must hold a JSON object"),
        (whole_index({"weight_map": WEIGHT_MAP}), "has no metadata"),
        (whole_index({"weight_map": WEIGHT_MAP, "metadata": []}), "metadata must be an object"),
        (index_text("[" * 100_000), "is not JSON"),
        (index_text("\ufeff" + json.dumps({"metadata": {}, "weight_map": WEIGHT_MAP})), "byte order mark"),
        (index_text(""), "is not JSON"),
        (empty_file, "model.safetensors is not a whole safetensors file"),
        (no_tensor, "model.safetensors holds no tensor"),
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


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


def file_of(header: bytes, data: int = 24, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def one(**changes: Any) -> bytes:
    return json.dumps({"w": entry(**changes)}).encode()


ODD_FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut short"),
    "seven bytes": (b"\1" * 7, "cut short"),
    "a length alone": (struct.pack("<Q", 0), "header is no JSON"),
    "a length beyond the file": (file_of(one(), length=10_000), "cut short or no safetensors"),
    "a length of all ones": (b"\xff" * 8 + one(), "cut short or no safetensors"),
    "no JSON": (file_of(b"weights"), "header is no JSON"),
    "JSON that goes on": (file_of(one() + b"{}"), "header is no JSON"),
    "no UTF-8": (file_of(one().replace(b"w", b"\xff")), "header is no JSON"),
    "UTF-16": (file_of(one().decode().encode("utf-16")), "header is no JSON"),
    "half a surrogate pair": (file_of(one().replace(b"w", b"\\ud800")), "header is no JSON"),
    "nested without end": (file_of(b"[" * 100_000), "header is no JSON"),
    "a number without end": (file_of(b'{"w": ' + b"9" * 5000 + b"}"), "header is no JSON"),
    "NaN": (file_of(one(shape=[float("nan")])), "header is no JSON"),
    "a list": (file_of(b"[]"), "no JSON object"),
    "null": (file_of(b"null"), "no JSON object"),
    "metadata that is a list": (file_of(json.dumps({"__metadata__": [], "w": entry()}).encode()), "__metadata__"),
    "metadata of numbers": (file_of(json.dumps({"__metadata__": {"step": 3}, "w": entry()}).encode()), "__metadata__"),
    "an entry that is a list": (file_of(b'{"w": []}'), "w must be an object"),
    "an entry that is null": (file_of(b'{"w": null}'), "w must be an object"),
    **{f"no {name}": (file_of(json.dumps({"w": {key: value for key, value in entry().items() if key != name}}).encode()), f"{name} of w")
       for name in ("dtype", "shape", "data_offsets")},
    "a type of its own": (file_of(one(dtype="FLOAT32")), "dtype of w must be one of"),
    "a type that is a number": (file_of(one(dtype=32)), "dtype of w"),
    "a type that is a list": (file_of(one(dtype=["F32"])), "dtype of w"),
    "a negative size": (file_of(one(shape=[-2, -3])), "shape of w"),
    "a size with a point": (file_of(one(shape=[2.0, 3])), "shape of w"),
    "a size that is true": (file_of(one(shape=[True, 6])), "shape of w"),
    "a size that is text": (file_of(one(shape=["2", "3"])), "shape of w"),
    "a size beyond machines": (file_of(one(shape=[2**64, 0])), "shape of w"),
    "sizes beyond machines": (file_of(one(shape=[2**40, 2**40, 0], data_offsets=[0, 0]), 0), "do not fit"),
    "a shape that is text": (file_of(one(shape="23")), "shape of w"),
    "a shape that is an object": (file_of(one(shape={"0": 6})), "shape of w"),
    "three offsets": (file_of(one(data_offsets=[0, 12, 24])), "data_offsets of w"),
    "offsets with a point": (file_of(one(data_offsets=[0, 24.0])), "data_offsets of w"),
    "a negative offset": (file_of(one(data_offsets=[-24, 0])), "data_offsets of w"),
    "offsets that are null": (file_of(one(data_offsets=None)), "data_offsets of w"),
    "offsets the wrong way": (file_of(one(data_offsets=[24, 0])), "do not fit"),
    "a shape beyond its bytes": (file_of(one(shape=[2, 4])), "the bytes of w do not fit"),
    "half bytes": (file_of(one(dtype="F4", shape=[3], data_offsets=[0, 1]), 1), "the bytes of w do not fit"),
    "offsets beyond the file": (file_of(one(shape=[2, 30], data_offsets=[0, 240])), "where its header says"),
    "bytes that are no tensor's": (file_of(one(), 25), "where its header says"),
    "a hole before": (file_of(one(data_offsets=[8, 32]), 32), "the bytes of w do not follow"),
    "two on one place": (file_of(json.dumps({"v": entry(), "w": entry()}).encode()), "the bytes of w do not follow"),
    "one into another": (file_of(json.dumps({"v": entry(), "w": entry(data_offsets=[20, 44])}).encode(), 44), "the bytes of w do not follow"),
    "a name of many lines": (file_of(json.dumps({"a\nb" * 1000: []}).encode()), r"'a\\nba\\nb"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), ODD_FILES.values(), ids=ODD_FILES)
def test_odd_headers_are_refused_with_file_and_tensor_where_safetensors_refuses_them(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(StageError, match=words) as error:
        count_parameters(tmp_path)
    assert error.value.reason == "InvalidModel"
    assert error.value.message.startswith("model.safetensors is not a whole safetensors file")
    assert len(error.value.message) < 500
    with pytest.raises(SafetensorError):
        deserialize(content)


STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 40), st.sampled_from([2**32, 2**63, 2**64, -1]), st.floats(allow_nan=False), st.text(max_size=3)
)  # fmt: skip
COUNTS = st.lists(st.one_of(st.integers(0, 6), STRANGE), max_size=3)
OFFSETS = st.one_of(COUNTS, st.tuples(st.integers(0, 48), st.integers(0, 48)))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*BITS, "F128", "f32"]), STRANGE),
        "shape": st.one_of(COUNTS, STRANGE),
        "data_offsets": st.one_of(OFFSETS, STRANGE),
        "more": STRANGE,
    },
)


@st.composite
def whole_files(draw: st.DrawFn) -> dict[str, Any]:
    """A header that is right, in any order of its tensors."""
    header, end = {}, 0
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from([*BITS])), draw(st.lists(st.integers(0, 3), max_size=3))
        bits = int(np.prod(shape, initial=1)) * BITS[dtype]
        if bits % 8 == 0:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bits // 8]}
            end += bits // 8
    return {name: header[name] for name in draw(st.permutations(sorted(header)))}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A right file, or one in which something was changed."""
    header = draw(whole_files())
    size = max((stored["data_offsets"][1] for stored in header.values()), default=0)
    kind = draw(st.sampled_from(["right", "member", "entry", "metadata", "size", "length", "byte"]))
    if kind == "member" and header:
        header[draw(st.sampled_from(sorted(header)))] |= draw(ENTRIES)
    elif kind == "entry":
        header[draw(st.text(max_size=4))] = draw(st.one_of(ENTRIES, STRANGE))
    elif kind == "metadata":
        header["__metadata__"] = draw(st.one_of(STRANGE, st.dictionaries(st.text(max_size=3), STRANGE, max_size=2)))
    text = json.dumps(header).encode()
    length = len(text) + (draw(st.integers(-9, 9)) if kind == "length" else 0)
    content = file_of(text, max(0, size + (draw(st.integers(-9, 9)) if kind == "size" else 0)), max(0, length))
    if kind == "byte" and text:
        place = 8 + draw(st.integers(0, len(text) - 1))
        content = content[:place] + draw(st.binary(max_size=2)) + content[place + 1 :]
    return content


@settings(max_examples=500)
@given(content=files())
def test_a_file_is_refused_where_safetensors_refuses_it_and_read_alike_where_not(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("odd") / SINGLE_FILE
    path.write_bytes(content)
    try:
        known = deserialize(content)
    except SafetensorError:
        with pytest.raises(ValueError, match=r"\w"):
            read_header(path)
        return
    tensors = read_header(path).tensors
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()} == {
        name: (found["dtype"], found["shape"]) for name, found in known
    }
    assert all(content[tensors[name].begin : tensors[name].end] == bytes(found["data"]) for name, found in known)
