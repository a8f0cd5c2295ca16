"""Where llama.cpp lies: programs, converters, libraries and the Python layer, as `images/llama` builds them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.outcome import Reason

from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError


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


def llama_home() -> LlamaHome:
    """The tree named by FINETUNE_LLAMA_HOME, /opt/llama where that is not set. Errors: StageError(LlamaCppMissing)."""
    home = LlamaHome(Path(os.environ.get("FINETUNE_LLAMA_HOME", "/opt/llama")))
    if not home.libraries.is_dir():
        raise StageError(
            Reason.LLAMA_CPP_MISSING,
            f"no llama.cpp at {home.root}; use the trainer image, or set FINETUNE_LLAMA_HOME to a tree built by images/build.py llama",
        )
    return home


_SMALL_MODEL_BYTES = 64 << 20


def threads_for(model: Path) -> int:
    """Threads that pay for a GGUF: one where it is small, else every usable CPU.

    ggml's threads spin at a barrier after each operation. In a small model the operations are shorter than the wait for a thread
    that a busy machine took off its CPU: with 4.5 M parameters two threads scored 2 and generated 5 to 8 times slower than one.
    """
    return 1 if model.stat().st_size < _SMALL_MODEL_BYTES else usable_cpus()
