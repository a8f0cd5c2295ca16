"""A GGUF file run by llama.cpp's own library through llama-cpp-python's ctypes layer, by token ids. Needs no torch.

llama-server gives only the few most likely tokens, and `llama-perplexity` tokenises by itself; parity and evaluation need the whole
vocabulary at given positions, for ids that were fixed before training.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
import numpy.typing as npt
from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.llama.batching import MAX_SEQUENCES, Batch, Request, groups, overlay
from finetune_trainer.llama.home import LIBRARIES_VARIABLE, llama_home, threads_for

Logits = npt.NDArray[np.float32]
_OUTPUT_FLOATS = 1 << 25
"""Logits held at once: 128 MiB."""
_CHUNK_ROWS = 64  # of logits, as float64 at once


@dataclass(frozen=True)
class Choice:
    """A prompt and the answers that are scored after it; each answer's tokens follow the prompt's."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]

    @property
    def request(self) -> Request:
        tokens = sum(len(answer) for answer in self.answers)
        return Request(self.prompt, len(self.prompt) + tokens, tokens + 1, len(self.answers))


@dataclass(frozen=True)
class Generation:
    """Tokens that were generated, without the one that ended them. `ended`: the model ended by itself."""

    ids: list[int]
    ended: bool


class GGUFModel:
    """A loaded GGUF with a context of `context_tokens` cells that all sequences share.

    `exact`: keys and values are kept in float32 and attended to without the fused kernel: a file of float32 weights then computes
    as the model's definition does, to float32's own rounding. Otherwise as served, in float16.

    Errors: StageError(GGUFInvalid) where llama.cpp cannot load the file, StageError(OutOfMemory) where it cannot make the context.
    """

    def __init__(self, path: Path, context_tokens: int = 4096, *, exact: bool = False) -> None:
        self._llama = _library()
        self.path = path
        settings = self._llama.llama_model_default_params()
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), settings)
        if not self._model:
            raise StageError(Reason.GGUF_INVALID, f"llama.cpp cannot load {path.name}; the file is damaged or of an unknown kind")
        self._vocabulary = self._llama.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = self._llama.llama_vocab_n_tokens(self._vocabulary)
        self._exact = exact
        # A recurrent state belongs to one sequence: llama.cpp's decode refuses a token of several.
        self.shares_beginnings = not (self._llama.llama_model_is_recurrent(self._model) or self._llama.llama_model_is_hybrid(self._model))
        self.cells = -(-context_tokens // 256) * 256
        self._context = self._new_context()

    def _new_context(self) -> object:
        settings = self._llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = self.cells
        settings.n_ubatch = min(512, self.cells)
        settings.n_seq_max = MAX_SEQUENCES
        settings.n_outputs_max = settings.n_outputs_max_per_seq = 0
        settings.kv_unified = True  # sequences may share a prompt's cells
        settings.n_threads = settings.n_threads_batch = threads_for(self.path)
        if self._exact:
            settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
            settings.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self._llama.llama_init_from_model(self._model, settings)
        if not context:
            raise StageError(
                Reason.OUT_OF_MEMORY,
                f"llama.cpp cannot make a context of {self.cells} tokens for {self.path.name}; raise this stage's memory",
            )
        return context

    # ------------------------------------------------------------------------------------------------------------- what is asked

    def logits(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Logits]:
        """For each row `(ids, positions)`: the logits (positions, vocabulary) of the token after each of these positions."""
        for group in self._groups([Request(ids, len(ids), len(positions)) for ids, positions in rows]):
            batch, places = self._overlay([rows[index][0] for index in group])
            wanted = [[row_places[position] for position in rows[index][1]] for row_places, index in zip(places, group, strict=True)]
            found = self._decode_fresh(_asking(batch, chain.from_iterable(wanted)))
            output = _output_numbers(batch)
            yield from (found[output[row]] for row in wanted)

    def losses(self, choices: Sequence[Choice]) -> Iterator[list[npt.NDArray[np.float64]]]:
        """For each choice and each of its answers: the loss (nats) of each answer token after the prompt and those before it."""
        apart = [Choice(choice.prompt, [answer]) for choice in choices for answer in choice.answers]
        losses = self._losses_in_groups(choices if self.shares_beginnings else apart)
        yield from ([next(losses) for _ in choice.answers] for choice in choices)

    def _losses_in_groups(self, choices: Sequence[Choice]) -> Iterator[npt.NDArray[np.float64]]:
        for group in self._groups([choice.request for choice in choices]):
            yield from self._answer_losses([(choices[index].prompt, answer) for index in group for answer in choices[index].answers])

    def _answer_losses(self, asked: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[npt.NDArray[np.float64]]:
        """Losses of each answer's tokens; asked: prompts and answers. Without a prompt nothing predicts the first token."""
        batch, places = self._overlay([(*prompt, *answer[:-1]) for prompt, answer in asked])  # the last token predicts nothing
        targets = [answer if prompt else answer[1:] for prompt, answer in asked]
        firsts = [max(0, len(prompt) - 1) for prompt, _ in asked]
        predicting = [row[first : first + len(own)] for row, first, own in zip(places, firsts, targets, strict=True)]
        found = self._target_losses(batch, list(chain.from_iterable(predicting)), list(chain.from_iterable(targets)))
        return iter(np.split(found, np.cumsum([len(row) for row in predicting])[:-1]))

    def _target_losses(self, batch: Batch, places: Sequence[int], targets: Sequence[int]) -> npt.NDArray[np.float64]:
        """Loss of each target after the token at its place. Logits are held for a piece of the batch at a time."""
        losses = np.empty(len(places))
        outputs = _output_numbers(_asking(batch, places))[list(places)]
        first = 0
        for index, piece in enumerate(batch.pieces(self._most_outputs)):
            logits = self._decode(piece) if index else self._decode_fresh(piece)
            own = np.flatnonzero((first <= outputs) & (outputs < first + len(logits)))
            losses[own] = _losses_at(logits, outputs[own] - first, np.asarray(targets, np.int64)[own])
            first += len(logits)
        return losses

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Generation]:
        """The most likely continuation of each prompt, up to an end-of-generation token or `max_new_tokens`."""
        for group in self._groups([Request(prompt, len(prompt) + max_new_tokens, 1) for prompt in prompts]):
            yield from self._generate_group([prompts[index] for index in group], max_new_tokens)

    def _generate_group(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        batch, places = self._overlay(prompts)
        ends = [row[-1] for row in places]
        found = self._decode_fresh(_asking(batch, ends))[_output_numbers(batch)[ends]]
        running = list(range(len(prompts)))
        ids: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        while True:
            for sequence, token in zip(running, found.argmax(axis=1).tolist(), strict=True):
                ended[sequence] = self.ends_generation(token)
                if not ended[sequence]:
                    ids[sequence].append(token)
            running = [sequence for sequence in running if not ended[sequence] and len(ids[sequence]) < max_new_tokens]
            if not running:
                return [Generation(*pair) for pair in zip(ids, ended, strict=True)]
            batch = Batch.empty()
            for sequence in running:
                batch.add(ids[sequence][-1:], len(prompts[sequence]) + len(ids[sequence]) - 1, sequence)
            found = self._decode(_asking(batch, range(len(running))))

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))

    @property
    def eos_id(self) -> int:
        return int(self._llama.llama_vocab_eos(self._vocabulary))

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens left out, as llama-server answers it."""
        tokens = np.asarray(ids, np.int32)
        size = 64 + 16 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(size)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            length = self._llama.llama_detokenize(self._vocabulary, pointer, len(tokens), buffer, size, False, False)
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            size = -length

    def token_texts(self) -> list[bytes]:
        """The vocabulary in order; two models with equal ones can be compared by token ids."""
        return [self._llama.llama_vocab_get_text(self._vocabulary, token) for token in range(self.vocabulary_size)]

    # ------------------------------------------------------------------------------------------------------------------- decoding

    @property
    def _most_outputs(self) -> int:
        return max(1, min(self.cells, _OUTPUT_FLOATS // self.vocabulary_size))

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        starts = requests if self.shares_beginnings else [replace(request, start=()) for request in requests]
        return groups(starts, self.cells, self._most_outputs)

    def _overlay(self, rows: Sequence[Sequence[int]]) -> tuple[Batch, list[list[int]]]:
        return overlay(rows, shares_beginnings=self.shares_beginnings)

    def _decode_fresh(self, batch: Batch) -> Logits:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        return self._decode(batch)

    def _decode(self, batch: Batch) -> Logits:
        """Logits (outputs, vocabulary) of the tokens that want them, in the batch's order; copied out of llama.cpp's buffer."""
        tokens = np.asarray(batch.tokens, np.int32)
        positions = np.asarray(batch.positions, np.int32)
        counts = np.asarray([len(sequences) for sequences in batch.sequences], np.int32)
        members = np.asarray([sequence for sequences in batch.sequences for sequence in sequences], np.int32)
        starts = (members.ctypes.data + 4 * (np.cumsum(counts) - counts)).astype(np.uintp)
        outputs = np.asarray(batch.outputs, np.int8)
        int32 = ctypes.POINTER(ctypes.c_int32)
        # The structure holds addresses only: every array must stay bound to a name until llama_decode returns.
        native = self._llama.llama_batch(
            n_tokens=len(tokens),
            token=tokens.ctypes.data_as(int32),
            pos=positions.ctypes.data_as(int32),
            n_seq_id=counts.ctypes.data_as(int32),
            seq_id=starts.ctypes.data_as(ctypes.POINTER(int32)),
            logits=outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        status = self._llama.llama_decode(self._context, native)
        if status != 0:
            raise StageError(Reason.DECODING_FAILED, f"llama.cpp ended decoding of {self.path.name} with status {status}")
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (int(outputs.sum()), self.vocabulary_size)).copy()

    def close(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
            self._llama.llama_model_free(self._model)
            self._context = self._model = None

    def __enter__(self) -> GGUFModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _asking(batch: Batch, places: Iterable[int]) -> Batch:
    """The batch, asked for the logits after the tokens at these places."""
    for place in places:
        batch.outputs[place] = True
    return batch


def _output_numbers(batch: Batch) -> npt.NDArray[np.int64]:
    """Which of the decode's outputs belongs to each place that asks for one: (tokens,)."""
    return np.cumsum(batch.outputs) - 1


def token_losses(logits: Logits, targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """−log p of each target under its row of logits: (n, vocabulary), n → (n,), in nats."""
    return _losses_at(logits, np.arange(len(targets)), targets)


def _losses_at(logits: Logits, rows: npt.NDArray[np.int64], targets: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """−log p of each target under the row of logits that its entry in `rows` names: (n, vocabulary), m, m → (m,), in nats."""
    normalizers = np.empty(len(logits))
    for first in range(0, len(logits), _CHUNK_ROWS):
        wide = logits[first : first + _CHUNK_ROWS].astype(np.float64)
        highest = wide.max(axis=1)
        normalizers[first : first + _CHUNK_ROWS] = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=1))
    chosen: npt.NDArray[np.float64] = normalizers[rows] - logits[rows, np.asarray(targets, np.int64)]
    return chosen


@cache
def _library() -> ModuleType:
    home = llama_home()
    os.environ.setdefault(LIBRARIES_VARIABLE, str(home.libraries))
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it prints every line of loading otherwise
    if str(home.python) not in sys.path:
        sys.path.append(str(home.python))
    library = import_module("llama_cpp")
    library.llama_backend_init()
    return library
