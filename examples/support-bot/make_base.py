"""Makes what the example starts from, without any network: a small Llama trained on real text, and the data to tune it on.

    python make_base.py --output /data            # in the trainer's environment: about a minute and a half on two cores

Writes `base/` (a model folder as a hub would hold it), `data/` (see documents.py), `NOTICE` and `licenses/`. The folder appears
complete or not at all; where it is there already, nothing is done. The same packages, seed and processor give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import sentencepiece
import torch
from documents import PACKAGES, Entry, draw, installed_package, read_package, write_data, write_notice
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

PIECES = 2048
CONTEXT = 512
WINDOW = 256
BATCH = 8
PEAK_LEARNING_RATE = 3e-3

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
        sentence_iterator=chain.from_iterable(text.splitlines() for text in texts),
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


def check_tokenizer(texts: list[str], folder: Path) -> None:
    """Errors: RuntimeError where transformers' tokenizer gives other ids than SentencePiece itself."""
    converted = AutoTokenizer.from_pretrained(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in texts:
        if converted.encode(text, add_special_tokens=False) != original.encode(text):
            raise RuntimeError("tokenizer.json does not tokenise as tokenizer.model does")


def new_model(folder: Path, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 2.8 million parameters. Rows of 256 and 768 fit the blocks of every GGUF quantization."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
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


def encode(entries: list[Entry], folder: Path) -> torch.Tensor:
    """All entries one after the other as token ids, int64 of shape (tokens,)."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [entry.text + "\n" for entry in entries]
    return torch.tensor(list(chain.from_iterable(processor.encode(texts, num_threads=1))))


def windows(tokens: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` batches of shape (BATCH, WINDOW + 1), each pass over the tokens cut at another offset and in another order."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[torch.Tensor] = []
    for _ in range(steps):
        if len(rows) < BATCH:
            offset = int(torch.randint(WINDOW, (1,), generator=generator))
            cut = tokens[offset:].unfold(0, WINDOW + 1, WINDOW)
            rows += [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
        yield torch.stack(rows[:BATCH])
        del rows[:BATCH]


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bf16 itself; emulated, bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def train(model: LlamaForCausalLM, tokens: torch.Tensor, held_out: torch.Tensor, steps: int, seed: int) -> None:
    """Next-token training with one warm-up and a cosine to zero, fp32 weights under bf16 autocast where that is fast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False, final_div_factor=1e4
    )
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(windows(tokens, steps, seed), start=1):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps:
            show_progress(step, steps, time.monotonic() - started, loss.item())
    model.eval()
    with torch.no_grad():
        cut = held_out.unfold(0, WINDOW + 1, WINDOW)
        print(f"held-out loss {loss_of(model, cut).item():.2f} nats per token", flush=True)


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean loss in nats per token of windows of shape (rows, WINDOW + 1)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def show_progress(step: int, steps: int, seconds: float, loss: float) -> None:
    left = seconds / step * (steps - step)
    print(f"base model: {100 * step // steps:3d}%  step {step}/{steps}  loss {loss:.2f}  {seconds:.0f} s, {left:.0f} s left", flush=True)


def make(folder: Path, steps: int, seed: int) -> None:
    """Fills an empty folder with base, data and notice."""
    corpus = draw(chain.from_iterable(read_package(installed_package(package)) for package in PACKAGES))
    print(f"text: {len(corpus.text)} entries; questions: {len(corpus.questions)}; facts: {len(corpus.facts)}", flush=True)
    write_data(corpus, folder / "data")
    write_notice(PACKAGES, folder)
    base = folder / "base"
    base.mkdir()
    train_tokenizer([entry.text for entry in corpus.text], base)
    check_tokenizer([entry.text for entry in corpus.text[:200]], base)
    model = new_model(base, seed)
    ends = len(corpus.text) // 50
    train(model, encode(corpus.text[ends:], base), encode(corpus.text[:ends], base), steps, seed)
    model.generation_config.do_sample = False
    model.save_pretrained(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make base/ and data/ in")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of the base model. Default: %(default)s")
    parser.add_argument("--seed", type=int, default=42, help="seed of weights and order. Default: %(default)s")
    options = parser.parse_args()
    disable_progress_bar()
    if (options.output / "NOTICE").exists():
        print(f"{options.output} holds a base model already; nothing to do")
        return
    aside = options.output / ".making"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    make(aside, options.steps, options.seed)
    for name in ("base", "data", "licenses", "NOTICE"):  # NOTICE last: it says that the rest is there
        target = options.output / name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(aside / name, target)
    aside.rmdir()


if __name__ == "__main__":
    sys.exit(main())
