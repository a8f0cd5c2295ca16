"""`python -m finetune_trainer.llama.gguf_ids vocab.gguf < texts.json > answer.json`: how llama.cpp tokenises, in a process of its own.

Reads a JSON list of texts; writes `{"ids": [[…]…], "eos": id, "eog": [ids that stop generation], "bos": id, "addBos": bool}`.
Needs llama_cpp's Python layer on PYTHONPATH and LLAMA_CPP_LIB_PATH.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(vocab_file: str) -> None:
    import llama_cpp

    model = llama_cpp.Llama(vocab_file, vocab_only=True, verbose=False)
    vocab: Any = llama_cpp.llama_model_get_vocab(model._model.model)
    texts = json.load(sys.stdin)
    answer = {
        "ids": [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts],
        "eos": llama_cpp.llama_vocab_eos(vocab),
        "bos": llama_cpp.llama_vocab_bos(vocab),
        "addBos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "eog": [token for token in range(llama_cpp.llama_vocab_n_tokens(vocab)) if llama_cpp.llama_vocab_is_eog(vocab, token)],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
