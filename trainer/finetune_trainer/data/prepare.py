"""The prepare stage: model and data in, what is trained out. CPU only, no torch; nothing here needs a GPU, and much of it saves one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.base_model import resolve_model
from finetune_trainer.data.encoding import Encoder
from finetune_trainer.data.llama_proof import Proof
from finetune_trainer.data.pipeline import Pipeline
from finetune_trainer.data.prepared import PREPARED_FILE, TEMPLATE_FILE, TOKENIZER_FILE, PreparedFile, PreparedModel
from finetune_trainer.data.report import write_report
from finetune_trainer.data.sources import locate
from finetune_trainer.data.stopping import compile_template, special_tokens, template_text
from finetune_trainer.data.tokenizer import TextTokenizer, tokenizer_file_of
from finetune_trainer.memory import RowStatistics, plan_memory
from finetune_trainer.spec import DatasetReport, ExitCode, RunSpec, Stage, StageResult, digest_of
from finetune_trainer.errors import StageError
from finetune_trainer.storage import hash_file, write_atomically

if TYPE_CHECKING:
    from finetune_trainer.__main__ import Workspace

log = logging.getLogger(__name__)

_SHARE_MODEL = 0.1
_SHARE_ROWS = 0.8


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Writes the prepared set (see `prepared.py`) into the workspace's folder.

    Errors: StageError with a reason for everything about model, template, tokenizer and data that could not be trained or served.
    """
    storage, folder, progress = workspace.storage, workspace.folder, workspace.progress
    progress.report(0.0)
    model_folder, model = resolve_model(run, storage)
    files = [(dataset, locate(dataset, run, storage)) for dataset in run.datasets]
    tokenizer_file = tokenizer_file_of(model_folder, storage)
    tokenizer = TextTokenizer(tokenizer_file, model_folder)
    text, template_source = template_text(run, model_folder)
    template = compile_template(text, tokenizer)
    tokens = special_tokens(model_folder, tokenizer, template, own_template=template_source in ("Named", "ConfigMap"))
    progress.report(_SHARE_MODEL)

    encoder = Encoder(tokenizer, template, run.method.sft.loss, run.training.max_length)
    proof = Proof(run, storage, model_folder, tokens) if run.export.gguf else None
    with Pipeline(run, encoder, tokens, folder) as pipeline:
        pipeline.read_all(files, lambda share: progress.report(_SHARE_MODEL + (_SHARE_ROWS - _SHARE_MODEL) * share))
    if proof is not None:
        proof.check(pipeline.samples.texts)
    progress.report(0.95)

    if tokenizer_file.parent != model_folder:
        write_atomically(folder / TOKENIZER_FILE, tokenizer_file.read_bytes())
    if text is not None:
        write_atomically(folder / TEMPLATE_FILE, text.encode())
    report = _dataset_report(pipeline, folder, storage.uri(storage.stage_folder(Stage.PREPARE)))
    prepared = PreparedFile(model=model, tokens=tokens, chat_template_source=template_source, sets=pipeline.sets(), dataset=report, max_length=run.training.max_length)
    write_atomically(folder / PREPARED_FILE, prepared.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())
    write_report(folder, prepared, pipeline)
    statistics = RowStatistics(report.rows_out["train"], report.train_tokens, report.token_length["max"])
    progress.report(1.0)
    return StageResult(
        stage=Stage.PREPARE,
        message=f"{report.rows_out['train']} training rows, {report.train_tokens} tokens",
        dataset=report,
        plan=plan_memory(run, model.shape, statistics),
        base_model=model.source,
        base_revision=model.revision,
        warnings=pipeline.warnings(template),
    )
