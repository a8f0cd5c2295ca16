"""Tiny model folders for tests: a config, a tokenizer made from a few sentences, weights of zeros. No torch, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "set --verbose to print more, or --quiet to print less",
    "how many files are listed? all of them, unless --max is given",
    "a user asks and an assistant answers; a system message sets the tone",
    "1 2 3 4 5 6 7 8 9 0 . , : ; ! ? ( ) [ ] { } < > | / = + - * _",
]

CHATML_WITH_EOS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|im_start|>", "<|im_end|>"]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


def write_config(folder: Path, vocab_size: int, **more: Any) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config | more)


def write_weights(folder: Path, vocab_size: int) -> None:
    from safetensors.numpy import save_file

    save_file({"model.embed_tokens.weight": np.zeros((vocab_size, 16), np.float32)}, folder / "model.safetensors")


def sentencepiece_model(folder: Path, template: str | None = CHATML_WITH_EOS) -> Path:
    """A Llama folder with tokenizer.model alone, in the settings that llama.cpp reproduces."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=CONTROL,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
    }
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
    write_json(folder / "generation_config.json", {"eos_token_id": 4})
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    write_config(folder, vocab_size)
    write_weights(folder, vocab_size)
    return folder


def bpe_model(folder: Path, template: str | None = CHATML_WITH_EOS, control: list[str] | None = None) -> Path:
    """A folder with a byte-level BPE tokenizer.json. Ids 0… are the control tokens: <|endoftext|>, <|im_start|>, <|im_end|>, `control`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<|endoftext|>", *CONTROL, *(control or [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
    write_json(folder / "generation_config.json", {"eos_token_id": [2]})
    write_config(folder, tokenizer.get_vocab_size(), eos_token_id=2, bos_token_id=None)
    write_weights(folder, tokenizer.get_vocab_size())
    return folder
