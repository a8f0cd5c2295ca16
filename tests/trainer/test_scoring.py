"""Scores by llama.cpp against torch, for models whose state llama.cpp keeps otherwise than in attention's cells."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers
from finetune_trainer.llama.gguf import Source, convert
from finetune_trainer.llama.home import llama_home
from finetune_trainer.llama.model import Choice, GGUFModel, token_losses

from tests.tiny_models import sentencepiece_model


def test_a_recurrent_model_scores_rows_together_as_torch_scores_each(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path)
    vocabulary = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        vocab_size=vocabulary, hidden_size=64, num_heads=8, head_dim=16, state_size=16, num_hidden_layers=2, n_groups=1, chunk_size=16
    )
    model = transformers.Mamba2ForCausalLM(config)
    model.save_pretrained(tmp_path)
    draw = random.Random(0)
    prompt = [draw.randrange(5, vocabulary) for _ in range(20)]
    answers = [[draw.randrange(5, vocabulary) for _ in range(length)] for length in (5, 9, 3)]
    with GGUFModel(convert(llama_home(), Source(tmp_path, "tiny", ()), tmp_path / "tiny.gguf"), 256) as served:
        (found,) = served.losses([Choice(prompt, answers)])
        (together, alone) = (list(served.generate(prompts, 8)) for prompts in ([prompt, prompt[:7]], [prompt]))
    assert together[0] == alone[0]
    for answer, losses in zip(answers, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].numpy()
        np.testing.assert_allclose(losses, token_losses(logits, answer), atol=1e-4)
