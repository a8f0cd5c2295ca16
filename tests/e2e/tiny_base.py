"""The tiny base of the cases that need speed: a Llama of 2.8 million parameters, trained on real text for seconds, without any network.

    python tiny_base.py --output /claim/tiny      # in the trainer's environment

Writes `base/`, a model folder as a hub would hold it. It appears complete or not at all; where it is there already, nothing is done.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import sentencepiece
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

PACKAGE = "networkx"
"""Its docstrings are the text. Installed wherever the trainer is: torch requires it."""
PIECES = 2048
CONTEXT = 512
WINDOW = 256
BATCH = 8
STEPS = 60
PEAK_LEARNING_RATE = 3e-3
SEED = 42

ROLES = ("system", "user", "assistant")
END_OF_TURN = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """Writes `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`, such that llama.cpp tokenises as transformers does.

    llama.cpp knows BPE tokenizers only by the hash of well-known ones, so this is a SentencePiece one; its converter reads
    `add_bos_token` and `add_prefix_space` from tokenizer_config.json and takes true where they are missing.
    """
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        byte_fallback=True,
        control_symbols=[f"<|{role}|>" for role in ROLES] + [END_OF_TURN],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "eos_token": END_OF_TURN,
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": [f"<|{role}|>" for role in ROLES],
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def read_text() -> list[str]:
    """Docstrings of the package, a paragraph each, in the order of paths and lines."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    documented = ast.AsyncFunctionDef | ast.FunctionDef | ast.ClassDef
    nodes = chain.from_iterable(
        ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(Path(spec.origin).parent.rglob("*.py"))
    )
    docstrings = (ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))
    return [" ".join(paragraph.split()) for docstring in docstrings for paragraph in docstring.split("\n\n") if paragraph.strip()]


def new_model(folder: Path) -> LlamaForCausalLM:
    """An untrained Llama of 2.8 million parameters. Rows of 256 and 768 fit the blocks of every GGUF quantization."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=PIECES,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def windows(texts: list[str], folder: Path) -> Iterator[torch.Tensor]:
    """STEPS batches of token ids, int64 of shape (BATCH, WINDOW + 1)."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokens = torch.tensor(list(chain.from_iterable(processor.encode([text + "\n" for text in texts], num_threads=1))))
    rows = tokens.unfold(0, WINDOW + 1, WINDOW)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        yield rows[torch.randint(len(rows), (BATCH,), generator=generator)]


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step, batch in enumerate(batches, 1):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            print(f"tiny base: step {step}/{STEPS}, loss {loss.item():.2f}", flush=True)


def make(folder: Path) -> None:
    texts = read_text()
    train_tokenizer(texts, folder)
    model = new_model(folder)
    train(model, windows(texts, folder))
    model.generation_config.do_sample = False
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make base/ in")
    options = parser.parse_args()
    disable_progress_bar()
    if (options.output / "base").exists():
        return
    aside = options.output / ".making"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    make(aside)
    os.replace(aside, options.output / "base")


if __name__ == "__main__":
    sys.exit(main())
