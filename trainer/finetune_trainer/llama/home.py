"""Where llama.cpp lies: programs, converters, libraries and the Python layer, as `images/llama` builds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.environment import HUB_OFFLINE, LLAMA_HOME, LLAMA_HOME_FOLDER
from finetune_api.outcome import Reason

from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError

LIBRARIES_VARIABLE = "LLAMA_CPP_LIB_PATH"
"""Where llama-cpp-python looks for libllama. Source: its llama_cpp/llama_cpp.py."""


@dataclass(frozen=True)
class LlamaHome:
    """A llama.cpp tree."""

    root: Path

    @property
    def converter(self) -> Path:
        return self.root / "convert_hf_to_gguf.py"

    @property
    def quantizer(self) -> Path:
        return self.root / "bin" / "llama-quantize"

    @property
    def server(self) -> Path:
        return self.root / "bin" / "llama-server"

    @property
    def libraries(self) -> Path:
        return self.root / "lib"

    @property
    def python(self) -> Path:
        """Folder that holds the package llama_cpp."""
        return self.root / "python"

    @property
    def gguf_python(self) -> Path:
        """Folder that holds the package gguf the converters were written for."""
        return self.root / "gguf-py"

    def environment(self) -> dict[str, str]:
        """For Python programs: the converter's own gguf package, and the Python layer over this tree's libllama."""
        paths = [str(self.gguf_python), str(self.python), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            LIBRARIES_VARIABLE: str(self.libraries),
            HUB_OFFLINE: "1",
        }


def llama_home(environ: Mapping[str, str] = os.environ) -> LlamaHome:
    """The tree named by FINETUNE_LLAMA_HOME, /opt/llama where that is not set. Errors: StageError(LlamaCppMissing)."""
    home = LlamaHome(Path(environ.get(LLAMA_HOME, LLAMA_HOME_FOLDER)))
    if not home.converter.is_file() or not home.libraries.is_dir():
        raise StageError(
            Reason.LLAMA_CPP_MISSING,
            f"no llama.cpp at {home.root}; use the trainer image, or set {LLAMA_HOME} to a tree built by images/build.py llama",
        )
    return home


_SMALL_MODEL_BYTES = 64 << 20


def threads_for(model: Path) -> int:
    """Threads that pay for a GGUF: one where it is small, else every usable CPU.

    ggml's threads spin at a barrier after each operation. In a small model the operations are shorter than the wait for a thread
    that a busy machine took off its CPU: with 4.5 M parameters two threads scored 2 and generated 5 to 8 times slower than one.
    """
    return 1 if model.stat().st_size < _SMALL_MODEL_BYTES else usable_cpus()
