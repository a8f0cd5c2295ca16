"""llama.cpp's programs as they fail: a full disk is the storage's fault, everything else the model's."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from finetune_api.outcome import ExitCode, Reason
from finetune_api.sections.export import GGUFType
from finetune_trainer.errors import StageError
from finetune_trainer.llama.gguf import Source, convert, quantize
from finetune_trainer.llama.home import LlamaHome
from finetune_trainer.package.positions import AnswerRow
from finetune_trainer.package.references import StoredLogits
from finetune_trainer.storage import refuse_full

_ROOM = 512 << 10


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process and its children can grow beyond `_ROOM`: the kernel refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def home_whose_programs(body: str, folder: Path) -> LlamaHome:
    """A llama.cpp of two programs that do as `body` says; `target` is the file they are to write."""
    home = LlamaHome(folder / "llama")
    (home.root / "bin").mkdir(parents=True)
    home.converter.write_text(f"import sys\ntarget = sys.argv[sys.argv.index('--outfile') + 1]\n{body}\n")
    home.quantizer.write_text(f"#!/usr/bin/env python3\nimport sys\ntarget = sys.argv[2]\n{body}\n")
    home.quantizer.chmod(0o755)
    return home


FILLS = "open(target, 'wb').write(bytes(1 << 22))"
FILLS_AND_TELLS_NOTHING = f"try:\n    {FILLS}\nexcept OSError:\n    sys.exit(1)"
REFUSES = "sys.exit('unknown architecture')"


def convert_it(home: LlamaHome, folder: Path) -> None:
    convert(home, Source(folder, "m"), folder / "out" / "exact.gguf")


def quantize_it(home: LlamaHome, folder: Path) -> None:
    quantize(home, folder / "exact.gguf", folder / "out", "m", [GGUFType.Q8_0])


@pytest.mark.parametrize("body", [FILLS, FILLS_AND_TELLS_NOTHING])
@pytest.mark.parametrize("step", [convert_it, quantize_it])
def test_a_full_disk_is_a_storage_error_with_the_cure(step: Callable[[LlamaHome, Path], None], body: str, tmp_path: Path) -> None:
    home = home_whose_programs(body, tmp_path)
    with no_room(), pytest.raises(StageError, match="free space on the job's storage or enlarge it") as error:
        step(home, tmp_path)
    assert (error.value.reason, error.value.exit_code) == (Reason.STORAGE_ERROR, ExitCode.STORAGE)
    assert not list((tmp_path / "out").glob(".*")), "the probe is gone"


def test_what_the_converter_refuses_stays_the_models_fault(tmp_path: Path) -> None:
    home = home_whose_programs(REFUSES, tmp_path)
    with pytest.raises(StageError, match="unknown architecture") as error:
        convert(home, Source(tmp_path, "m"), tmp_path / "exact.gguf")
    assert error.value.exit_code == ExitCode.INVALID_INPUT


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    refuse_full(tmp_path, "a program")
    assert not list(tmp_path.iterdir())


def test_logits_that_find_no_room_are_an_error_of_the_system(tmp_path: Path) -> None:
    rows = [AnswerRow([1] * 64, list(range(64)))] * 40
    with no_room(), pytest.raises(OSError, match=r"too large|space"):
        StoredLogits.keep((np.zeros((64, 256), np.float32) for _ in rows), rows, tmp_path / "kept")


def test_kept_logits_are_read_back_row_by_row(tmp_path: Path) -> None:
    rows = [AnswerRow([1, 2, 3], [0, 1]), AnswerRow([1, 2], [0])]
    given = [np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((1, 4), np.float32)]
    kept = StoredLogits.keep(iter(given), rows, tmp_path / "kept")
    for found, wanted in zip(kept.rows(), given, strict=True):
        np.testing.assert_array_equal(found, wanted)
