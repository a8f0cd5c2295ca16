"""images/lock/export.sh: what uv.lock pins, as the requirement files that become layers."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from hack import environment

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lock")
    path = f"{environment.uv().parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "images/lock/export.sh", "trainer", folder]
    subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "PATH": path}, check=True, capture_output=True, timeout=60)
    return folder


def test_every_requirement_is_one_line_with_its_hashes(exported: Path) -> None:
    for line in (exported / "all.txt").read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^#]*?)?( --hash=sha256:[0-9a-f]{64})+", line), line


def test_torch_and_cuda_are_a_layer_of_their_own_and_nothing_is_lost(exported: Path) -> None:
    everything, cuda, rest = (set((exported / f"{name}.txt").read_text().splitlines()) for name in ("all", "cuda", "rest"))
    assert cuda | rest == everything
    assert not cuda & rest
    names = {line.partition("==")[0] for line in cuda}
    assert {"torch", "triton"} <= names
    assert not {"transformers", "trl", "peft"} & names
