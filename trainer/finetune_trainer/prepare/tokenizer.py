"""A model folder's tokenizer, by the `tokenizers` library alone."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from finetune_api.environment import HUB_OFFLINE
from finetune_api.outcome import Reason
from tokenizers import AddedToken, Tokenizer

from finetune_trainer.errors import StageError, refuse_killed
from finetune_trainer.model_json import JsonMembers, read_members
from finetune_trainer.prepared import TOKENIZER_FILE
from finetune_trainer.storage import JobStorage, refuse_full
from finetune_trainer.tokenizer_files import TOKENIZER_FILES

log = logging.getLogger(__name__)


_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CLASS_TOKENS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
"""Special tokens that a tokenizer class has where tokenizer_config.json is silent. Source: transformers' tokenizer classes."""


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text with the half-open range of characters that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class TextTokenizer:
    """Text to ids. `named` holds the special tokens by transformers' names, as chat templates see them."""

    def __init__(self, tokenizer_file: Path, model_folder: Path) -> None:
        config = read_members(model_folder, "tokenizer_config.json")
        self.named = _named_tokens(config, model_folder)
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises plain Exception
            raise StageError(Reason.INVALID_TOKENIZER, "tokenizer.json does not load; fetch the model again") from error
        _add_missing_tokens(self._tokenizer, config)
        self._added = {token_id: token.content for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.prefix, self.suffix = self._frame(config)
        # Its one effect without special tokens is to trim offsets, and a mask needs them untrimmed.
        self._tokenizer.post_processor = None

    def _frame(self, config: JsonMembers) -> tuple[list[int], list[int]]:
        """Ids that go before and after a plain text, such as bos."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        framed = self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare), 0)
        prefix, suffix = framed[:start], framed[start + len(bare) :]
        bos, eos = self.id_of(self.named.get("bos_token")), self.id_of(self.named.get("eos_token"))
        adds_bos, adds_eos = config.flag("add_bos_token"), config.flag("add_eos_token")
        if adds_bos is not None:
            prefix = [bos] if adds_bos and bos is not None else []
        if adds_eos is not None:
            suffix = [eos] if adds_eos and eos is not None else []
        return prefix, suffix

    def id_of(self, token: str | None) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token) if token is not None else None
        return found

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def added_token(self, token_id: int) -> str | None:
        """The text of an added token (special ones among them); None for an ordinary piece."""
        return self._added.get(token_id)

    def name_of(self, token_id: int) -> str:
        """How a message may call a token: by its text only where it is an added one, never a word of the data."""
        text = self._added.get(token_id)
        return f"{text} ({token_id})" if text is not None else f"token {token_id}"

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Ids without bos and eos; offsets are in characters."""
        return [Encoding(encoded.ids, encoded.offsets) for encoded in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    @property
    def added_tokens(self) -> list[str]:
        """Texts of the added tokens, special ones among them."""
        return list(self._added.values())

    def control_tokens(self, eos_ids: Iterable[int]) -> list[str]:
        """Texts of the tokens that say something about a text and are none of it: special ones, named ones and those that end answers."""
        added = self._tokenizer.get_added_tokens_decoder()
        named = {*self.named.values(), *(self._added.get(token) for token in eos_ids)}
        return sorted({token.content for token in added.values() if token.special or token.content in named} - {""})

    def encode_pieces(self, text: str, cuts: Sequence[int], quoted: Sequence[tuple[int, int]], control: frozenset[int]) -> Encoding | None:
        """Ids of a text of which no token crosses a position of `cuts` and no piece of `quoted` is a token of `control`; None where this
        tokenizer would make one."""
        borders = sorted({0, len(text), *cuts, *(position for span in quoted for position in span)})
        literal = {start for start, _ in quoted}
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise(borders):
            piece = self._piece(text[start:end], is_first=start == 0, literal=start in literal)
            if start in literal and control.intersection(piece.ids):
                return None
            ids += piece.ids
            offsets += [(start + begin, start + after) for begin, after in piece.offsets]
        return Encoding(ids, offsets)

    def _piece(self, text: str, is_first: bool, literal: bool) -> Encoding:
        """A piece as it would stand within a text: some tokenizers begin every text with a space, so it is given a line to follow."""
        self._tokenizer.encode_special_tokens = literal
        try:
            whole = self._tokenizer.encode(text if is_first else f"\n{text}", add_special_tokens=False)
            if is_first:
                return Encoding(whole.ids, whole.offsets)
            own = next((position for position, (_, end) in enumerate(whole.offsets) if end > 1), len(whole.ids))
            if own < len(whole.ids) and whole.offsets[own][0] < 1:
                alone = self._tokenizer.encode(text, add_special_tokens=False)
                return Encoding(alone.ids, alone.offsets)
            return Encoding(whole.ids[own:], [(begin - 1, end - 1) for begin, end in whole.offsets[own:]])
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _named_tokens(config: JsonMembers, folder: Path) -> dict[str, str]:
    named = dict(_CLASS_TOKENS.get((config.text("tokenizer_class") or "").removesuffix("Fast"), {}))
    sources = [config]
    if "added_tokens_decoder" not in config.values:
        sources.append(read_members(folder, "special_tokens_map.json"))
    for source in sources:
        said = {name: source.token(name) for name in _NAMED_TOKENS}
        named |= {name: text for name, text in said.items() if text is not None}
    return named


_TOKEN_ID = re.compile(r"[0-9]{1,9}")


def _add_missing_tokens(tokenizer: Tokenizer, config: JsonMembers) -> None:
    """Errors: StageError(InvalidTokenizer) for tokens that are odd, or that tokenizer.json has under another id."""
    declared = config.object("added_tokens_decoder")
    for name in declared.values:
        if not _TOKEN_ID.fullmatch(name):
            raise config.odd("added_tokens_decoder", "an object whose members are called by token ids")
    for name in sorted(declared.values, key=int):
        content = declared.token(name)
        if content is None:
            raise declared.odd(name, "text, or an object with content")
        if tokenizer.token_to_id(content) is None:
            tokenizer.add_tokens([AddedToken(content, **_flags(declared, name))])
        if tokenizer.token_to_id(content) != int(name):
            raise StageError(
                Reason.INVALID_TOKENIZER,
                f"tokenizer_config.json gives an added token the id {name}, tokenizer.json gives it {tokenizer.token_to_id(content)}; "
                "use the tokenizer files of the model's own repository",
            )


def _flags(declared: JsonMembers, name: str) -> dict[str, bool]:
    """How a token is found in text; nothing is said of one that is text alone."""
    if isinstance(declared.values[name], str):
        return {}
    token = declared.object(name)
    said = {flag: token.flag(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return {flag: value for flag, value in said.items() if value is not None}


def files_digest(folder: Path) -> str:
    """SHA-256 over the tokenizer's files and config.json: the key of what is derived from them."""
    digest = hashlib.sha256()
    for name in (*TOKENIZER_FILES, "config.json"):
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def tokenizer_file_of(model_folder: Path, storage: JobStorage) -> Path:
    """The folder's tokenizer.json, or the one that transformers makes of its SentencePiece model, cached by content.

    Errors: StageError(InvalidTokenizer) where there is neither.
    """
    own = model_folder / TOKENIZER_FILE
    if own.is_file():
        return own
    if not (model_folder / "tokenizer.model").is_file() and not (model_folder / "vocab.json").is_file():
        raise StageError(Reason.INVALID_TOKENIZER, "the model has neither tokenizer.json nor tokenizer.model; add one of them")
    cached = storage.cached("tokenizers", files_digest(model_folder), lambda aside: _convert(model_folder, aside))
    return cached / TOKENIZER_FILE


_CONVERT = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True).backend_tokenizer.save(sys.argv[2])
"""


def _convert(model_folder: Path, target: Path) -> None:
    log.info("the model has no tokenizer.json: converting its tokenizer.model once")
    command = [sys.executable, "-c", _CONVERT, str(model_folder), str(target / TOKENIZER_FILE)]
    environment = {**os.environ, HUB_OFFLINE: "1", "USE_TORCH": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    refuse_killed("the tokenizer's conversion", done.returncode)
    if done.returncode != 0:
        refuse_full(target, "the tokenizer's conversion")
        last = (done.stderr.strip().splitlines() or ["no words"])[-1][:300]
        raise StageError(Reason.INVALID_TOKENIZER, f"transformers cannot convert tokenizer.model: {last}")
