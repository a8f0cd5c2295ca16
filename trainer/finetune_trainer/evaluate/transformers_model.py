"""A model folder judged by transformers, for jobs that export no GGUF. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from finetune_trainer.llama.model import Choice, Generation, token_losses


class TransformersModel:
    """Judges like `GGUFModel`, one row at a time."""

    def __init__(self, folder: Path, tokenizer: Path, eos_ids: Sequence[int]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, device_map={"": device}
        ).eval()
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._eos_ids = list(eos_ids)

    def losses(self, choices: Sequence[Choice]) -> Iterator[list[npt.NDArray[np.float64]]]:
        for choice in choices:
            yield [self._answer_losses([*choice.prompt, *answer], max(len(choice.prompt), 1)) for answer in choice.answers]

    def _answer_losses(self, ids: list[int], first: int) -> npt.NDArray[np.float64]:
        """Losses of the tokens from position `first` on."""
        with torch.inference_mode():
            found = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=False).logits[0, first - 1 : -1]
        return token_losses(found.float().cpu().numpy(), ids[first:])

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Generation]:
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._model.device)
            found = self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
                eos_token_id=self._eos_ids, pad_token_id=self._eos_ids[0],
            )[0, len(prompt) :].tolist()  # fmt: skip
            ended = bool(found) and found[-1] in self._eos_ids
            yield Generation(found[:-1] if ended else found, ended)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def __enter__(self) -> TransformersModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._model
