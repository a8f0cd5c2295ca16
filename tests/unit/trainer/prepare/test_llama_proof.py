"""The verdict of the tokenizer proof, over answers that llama.cpp could give. The real answers are in tests/trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.outcome import ExitCode
from finetune_trainer.errors import StageError
from finetune_trainer.llama.home import llama_home
from finetune_trainer.prepare.llama_proof import chosen, prove_tokenizer
from finetune_trainer.prepare.pipeline import Sample
from finetune_trainer.prepare.records import Location
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import SpecialTokens

from tests.tiny_models import bpe_model

TOKENS = SpecialTokens(eos_token="<|im_end|>", eos_id=2, eos_ids=[2], pad_id=0)
TEXTS = ["<|im_start|>user\nhow many", "all of them<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = bpe_model(tmp_path_factory.mktemp("model"))
    return TextTokenizer(folder / "tokenizer.json", folder)


def samples(is_chat: bool = True) -> list[Sample]:
    return [Sample(Location("d", "d.jsonl", i + 1, i + 1), text, is_chat) for i, text in enumerate(TEXTS)]


def answer(tokenizer: TextTokenizer, **changes: Any) -> dict[str, Any]:
    good = {"ids": [encoding.ids for encoding in tokenizer.encode(TEXTS)], "eos": 2, "bos": 1, "addBos": False, "eog": [2]}
    return good | changes


def refusal(tokenizer: TextTokenizer, is_chat: bool = True, **changes: Any) -> StageError:
    with pytest.raises(StageError) as refused:
        prove_tokenizer(answer(tokenizer, **changes), samples(is_chat), tokenizer, TOKENS)
    return refused.value


def test_equal_ids_pass(tokenizer: TextTokenizer) -> None:
    prove_tokenizer(answer(tokenizer), samples(), tokenizer, TOKENS)
    prove_tokenizer(answer(tokenizer), samples(is_chat=False), tokenizer, TOKENS)


def test_the_first_row_and_position_that_differ_are_named(tokenizer: TextTokenizer) -> None:
    ids = answer(tokenizer)["ids"]
    refused = refusal(tokenizer, ids=[ids[0], [*ids[1][:2], 77, *ids[1][3:]]])
    assert refused.reason == "TokenizerMismatch"
    assert "line 2: llama.cpp tokenises it otherwise from token position 2 on" in refused.message


def test_a_missing_last_token_counts(tokenizer: TextTokenizer) -> None:
    ids = answer(tokenizer)["ids"]
    assert f"position {len(ids[0]) - 1}" in refusal(tokenizer, ids=[ids[0][:-1], ids[1]]).message


def test_a_bos_that_only_the_server_puts_is_found(tokenizer: TextTokenizer) -> None:
    assert "puts a bos token there" in refusal(tokenizer, addBos=True, bos=0).message
    assert "puts a bos token there" in refusal(tokenizer, addBos=True, bos=0, is_chat=False).message


def test_another_eos_is_found(tokenizer: TextTokenizer) -> None:
    refused = refusal(tokenizer, eos=0, eog=[0, 2])
    assert refused.reason == "StopTokenMismatch"
    assert "<|endoftext|> (0)" in refused.message
    assert "none" in refusal(tokenizer, eos=-1).message


def test_an_eos_that_does_not_stop_is_found(tokenizer: TextTokenizer) -> None:
    assert "would not stop at <|im_end|> (2)" in refusal(tokenizer, eog=[]).message


def test_every_data_set_has_its_share_of_the_samples() -> None:
    several = {name: [Sample(Location(name, name, i), f"{name}{i}", True) for i in range(n)] for name, n in (("a", 5), ("b", 2), ("c", 9))}
    taken = [sample.text for sample in chosen(several, 9)]
    assert taken == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_trainer_without_llama_cpp_is_the_platforms_mistake(tmp_path: Path) -> None:
    with pytest.raises(StageError) as refused:
        llama_home({"FINETUNE_LLAMA_HOME": str(tmp_path)})
    assert refused.value.reason == "LlamaCppMissing"
    assert refused.value.exit_code is ExitCode.INVALID_RUN_FILE
