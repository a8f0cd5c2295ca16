"""The tokenizer proof: llama.cpp will read the ids that the model is trained on, shown before a GPU is taken."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.section import digest_of

from finetune_trainer.errors import StageError, refuse_killed
from finetune_trainer.llama.home import LlamaHome, llama_home
from finetune_trainer.prepare.pipeline import Sample
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import SpecialTokens
from finetune_trainer.storage import JobStorage, hash_file, hash_folder, refuse_full
from finetune_trainer.tokenizer_files import write_tokenizer_files

log = logging.getLogger(__name__)

COMPARED_TEXTS = 500
_VOCAB = "vocab.gguf"
_UNKNOWN = ("not supported", "NotImplementedError", "not recognized")


def make_vocab(home: LlamaHome, storage: JobStorage, files: Path) -> Path:
    """The vocabulary as GGUF of a folder of tokenizer files, cached by their content and the converter's.

    Errors: StageError(UnsupportedByLlamaCpp | StorageError).
    """
    key = digest_of([[record.path, record.sha256] for record in hash_folder(files)] + [hash_file(home.converter)])
    return storage.cached("vocabs", key, lambda aside: _convert(home, files, aside / _VOCAB)) / _VOCAB


def _convert(home: LlamaHome, files: Path, output: Path) -> None:
    log.info("making llama.cpp's vocabulary of this tokenizer once")
    command = [sys.executable, str(home.converter), str(files), "--vocab-only", "--outfile", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=home.environment(), check=False)
    if done.returncode == 0 and output.is_file():
        return
    refuse_killed("llama.cpp's converter", done.returncode)
    refuse_full(output.parent, "llama.cpp's converter")
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in reversed(words) if any(mark in line for mark in _UNKNOWN)), words[-1] if words else "nothing")
    raise StageError(
        Reason.UNSUPPORTED_BY_LLAMA_CPP,
        f"llama.cpp's converter does not take this model's tokenizer or architecture ({said[:200]}); remove export.gguf, or use a model it knows",
    )


def llama_ids(home: LlamaHome, vocab: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What `gguf_ids` answers: ids of each text, eos, bos, addBos and every token that stops generation."""
    command = [sys.executable, "-m", "finetune_trainer.llama.gguf_ids", str(vocab)]
    done = subprocess.run(command, input=json.dumps(list(texts)), capture_output=True, text=True, env=home.environment(), check=False)
    refuse_killed("llama.cpp's tokenizer", done.returncode)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        kind = last.partition(":")[0][:200]  # what follows may quote a row
        raise StageError(
            Reason.UNSUPPORTED_BY_LLAMA_CPP, f"llama.cpp cannot read the vocabulary that its converter wrote ({kind}); remove export.gguf"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def chosen(samples: Mapping[str, Sequence[Sample]], limit: int = COMPARED_TEXTS) -> list[Sample]:
    """Samples of all data sets in turn, so that none is left out."""
    turns: Iterator[Sample] = (sample for row in zip_longest(*samples.values()) for sample in row if sample is not None)
    return list(islice(turns, limit))


def prove_tokenizer(vocab: Mapping[str, Any], samples: Sequence[Sample], tokenizer: TextTokenizer, tokens: SpecialTokens) -> None:
    """Compares llama.cpp's answer with what rows were made of.

    Errors: StageError(TokenizerMismatch) with the first row and position; StageError(StopTokenMismatch) for another eos.
    """
    ours = tokenizer.encode([sample.text for sample in samples])
    for sample, own, theirs in zip(samples, ours, vocab["ids"], strict=True):
        if own.ids != theirs:
            position = next(i for i, (a, b) in enumerate(zip_longest(own.ids, theirs)) if a != b)
            raise StageError(
                Reason.TOKENIZER_MISMATCH,
                f"{sample.location}: llama.cpp tokenises it otherwise from token position {position} on; "
                "check add_bos_token and add_prefix_space in tokenizer_config.json, restore the tokenizer files of the model's repository, "
                "or remove export.gguf",
            )
        starts_with_bos = bool(own.ids) and own.ids[0] == vocab["bos"] if sample.is_chat else bool(tokenizer.prefix)
        if vocab["addBos"] != starts_with_bos and (vocab["addBos"] or not sample.is_chat):
            raise StageError(
                Reason.TOKENIZER_MISMATCH,
                f"{sample.location}: token position 0: llama.cpp {'puts' if vocab['addBos'] else 'does not put'} a bos token there and training "
                f"{'has one' if starts_with_bos else 'has none'}; set add_bos_token in tokenizer_config.json accordingly",
            )
    _prove_eos(vocab, tokenizer, tokens)


def _prove_eos(vocab: Mapping[str, Any], tokenizer: TextTokenizer, tokens: SpecialTokens) -> None:
    carried = "none" if vocab["eos"] < 0 else tokenizer.name_of(vocab["eos"])
    missing = [token for token in tokens.eos_ids if token not in vocab["eog"]]
    if vocab["eos"] != tokens.eos_id:
        raise StageError(
            Reason.STOP_TOKEN_MISMATCH,
            f"the GGUF would carry {carried} as eos, the tokenizer's is {tokenizer.name_of(tokens.eos_id)}; "
            "make eos_token (tokenizer_config.json) and eos_token_id (config.json, generation_config.json) name the same token",
        )
    if tokens.eos_id in missing:
        raise StageError(
            Reason.STOP_TOKEN_MISMATCH, f"llama.cpp would not stop at {tokenizer.name_of(tokens.eos_id)}; use a control token as eos"
        )


class LlamaVocab:
    """The vocabulary that the finished model's GGUF will carry, made before any row is read: an unknown one costs no time.

    Errors: StageError(LlamaCppMissing | UnsupportedByLlamaCpp).
    """

    def __init__(self, storage: JobStorage, model_folder: Path, tokens: SpecialTokens, own_template: str | None) -> None:
        self._home = llama_home()
        with tempfile.TemporaryDirectory() as scratch:
            write_tokenizer_files(model_folder, Path(scratch), tokens, own_template)
            self._file = make_vocab(self._home, storage, Path(scratch))
        self._tokens = tokens

    def prove(self, samples: Mapping[str, Sequence[Sample]], tokenizer: TextTokenizer) -> int:
        """Number of texts on which llama.cpp's ids are ours. Errors: StageError(TokenizerMismatch | StopTokenMismatch)."""
        compared = chosen(samples)
        answer = llama_ids(self._home, self._file, [sample.text for sample in compared])
        prove_tokenizer(answer, compared, tokenizer, self._tokens)
        return len(compared)
