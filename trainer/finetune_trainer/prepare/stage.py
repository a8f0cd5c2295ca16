"""The prepare stage: model and data in, what is trained out. CPU only, no torch; nothing here needs a GPU, and much of it saves one."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_api.answer import DatasetReport, StageResult
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage
from finetune_api.sections.evaluation import ANSWER_CHOICES

from finetune_trainer.errors import StageError, printable
from finetune_trainer.memory import plan_memory
from finetune_trainer.model_json import read_optional_json
from finetune_trainer.prepare.base_model import resolve_model
from finetune_trainer.prepare.dataset_files import locate
from finetune_trainer.prepare.encoding import Encoder
from finetune_trainer.prepare.llama_proof import LlamaVocab
from finetune_trainer.prepare.look import Look
from finetune_trainer.prepare.model_checks import refuse_long_rows, with_known_pad
from finetune_trainer.prepare.pipeline import Pipeline
from finetune_trainer.prepare.report import dataset_report, prepared_digest, write_report
from finetune_trainer.prepare.stopping import StopRule, choose_stop_rule
from finetune_trainer.prepare.tokenizer import TextTokenizer, tokenizer_file_of
from finetune_trainer.prepare.warnings import warnings_of
from finetune_trainer.prepared import PREPARED_FILE, TEMPLATE_FILE, TOKENIZER_FILE, PreparedFile, PreparedModel
from finetune_trainer.settings import refuse_unserved
from finetune_trainer.stages import Workspace
from finetune_trainer.storage import JobStorage, write_atomically
from finetune_trainer.weight_files import weight_files

log = logging.getLogger(__name__)

_MODEL_SHARE, _ROWS_SHARE, _PROOF_SHARE = 0.1, 0.85, 0.95
"""Progress once the model is there, the rows are written, the proof is made."""


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Writes the prepared set (see `prepared.py`) into the workspace's folder.

    Errors: StageError with a reason for whatever of model, template, tokenizer and data could not be trained or served.
    """
    storage, folder, progress = workspace.storage, workspace.folder, workspace.progress
    progress.report(0.0)
    refuse_unserved(run)
    _refuse_blind_gates(run)
    model_folder, recorded = resolve_model(run, storage)
    log.info("base model %s, %s parameters; next: its tokenizer", recorded.architecture, f"{recorded.shape.total_parameters:,}")
    files = [(dataset, locate(dataset, run, storage)) for dataset in run.datasets]
    tokenizer_file = tokenizer_file_of(model_folder, storage)
    tokenizer = TextTokenizer(tokenizer_file, model_folder)
    stop, of_padding = with_known_pad(choose_stop_rule(run, model_folder, tokenizer), recorded.shape.vocab_size)
    with Look(run, model_folder, recorded, storage) as look:
        vocab = _llama_vocab(run, storage, model_folder, stop, look)
        progress.report(_MODEL_SHARE)
        log.info("tokenizer and chat template are read; next: rows of %s", ", ".join(dataset.name for dataset in run.datasets))

        def read(share: float) -> None:
            progress.report(_MODEL_SHARE + (_ROWS_SHARE - _MODEL_SHARE) * share)
            look.poll()

        eos_ids = frozenset(stop.tokens.eos_ids)
        encoder = Encoder(tokenizer, stop.template, run.method.effective_sft.loss, run.training.max_length, eos_ids)
        with Pipeline(run, encoder, stop.tokens, recorded.shape.vocab_size, folder) as pipeline:
            pipeline.read_all(files, read)
        _refuse_unanswerable_gates(run, pipeline)
        model = look.model()
    refuse_long_rows(model, read_optional_json(model_folder / "config.json"), folder, pipeline.sets())
    progress.report(_ROWS_SHARE)
    if vocab is not None:
        log.info("the rows are tokenised; next: llama.cpp's token ids of the same texts")
        log.info("llama.cpp's token ids equal ours on %d texts; next: the report", vocab.prove(pipeline.samples.texts, tokenizer))
    progress.report(_PROOF_SHARE)

    if tokenizer_file.parent != model_folder:
        write_atomically(folder / TOKENIZER_FILE, tokenizer_file.read_bytes())
    if stop.template is not None:
        write_atomically(folder / TEMPLATE_FILE, stop.template.text.encode())
    prepared = _describe(run, model, stop, pipeline, folder)
    write_atomically(folder / PREPARED_FILE, prepared.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())
    write_report(folder, prepared, pipeline, tokenizer)
    progress.report(1.0)
    log.info("%s rows are prepared; next: train", " + ".join(f"{entry.rows} {entry.name}" for entry in prepared.sets if entry.rows))
    report = prepared.dataset.model_copy(update={"report": storage.uri(folder / "report.md")})
    unread = [warning for _, found in files for warning in found.warnings]
    warnings = [*weight_files(model_folder).warnings, *unread, *look.warnings, *of_padding, *warnings_of(run, pipeline, stop.template)]
    return _result(run, prepared, report, warnings)


def _llama_vocab(run: RunSpec, storage: JobStorage, model_folder: Path, stop: StopRule, look: Look) -> LlamaVocab | None:
    """Errors: those of LlamaVocab; those of the look where both refuse, for what transformers lacks llama.cpp lacks too."""
    if not run.export.gguf:
        return None
    try:
        return LlamaVocab(storage, model_folder, stop.tokens, stop.own_template)
    except StageError:
        look.model()
        raise


def _refuse_blind_gates(run: RunSpec) -> None:
    """A gate for which no row can be held out would stay Inconclusive, which is known before anything is trained.

    Errors: StageError(InvalidGate).
    """
    brings_tests = {dataset.name: dataset.test_split is not None for dataset in run.datasets}
    for gate in run.evaluation.gates:
        name = gate.metric.rpartition("/")[0]
        problem = None
        if name and name not in brings_tests:
            problem = f"data set {name} is none of this job; name one that has a testSplit"
        elif name and not brings_tests[name]:
            problem = f"data set {name} has no testSplit; set one, or take the metric without {name}/"
        elif not name and not run.preparation.split.test:
            problem = "preparation.split.test is 0, so no row is held out for it; raise it, or name a data set with a testSplit"
        if problem:
            raise StageError(Reason.INVALID_GATE, f"evaluation.gates, gate {gate.name}: {problem}")


def _refuse_unanswerable_gates(run: RunSpec, pipeline: Pipeline) -> None:
    """A gate that the held-out rows cannot answer by their nature, whatever the model learns.

    Errors: StageError(InvalidGate).
    """
    for gate in run.evaluation.gates:
        data, _, metric = gate.metric.rpartition("/")
        held_out = pipeline.writers[f"{data}/test" if data else "test"]
        problem = None
        if held_out.rows and metric != "Perplexity" and not held_out.questions:
            problem = f"its {held_out.rows} test rows are plain text and ask nothing; take Perplexity"
        elif held_out.questions and metric == "AnswerChoice" and held_out.different_answers < ANSWER_CHOICES:
            problem = (
                f"AnswerChoice lets the model choose among {ANSWER_CHOICES} different answers, and its {held_out.questions} test rows have "
                f"{held_out.different_answers}; take ExactMatch where there are so few"
            )
        if problem:
            raise StageError(Reason.INVALID_GATE, f"evaluation.gates, gate {gate.name}: {problem}")


def _describe(run: RunSpec, model: PreparedModel, stop: StopRule, pipeline: Pipeline, folder: Path) -> PreparedFile:
    templates = [stop.template.text, stop.template.tool_use] if stop.template is not None else [None, None]
    sets = pipeline.sets()
    digest = prepared_digest(folder, sets, model.digest, *templates, stop.tokens.model_dump_json())
    return PreparedFile(
        model=model,
        tokens=stop.tokens,
        chat_template_source=stop.source,
        sets=sets,
        dataset=dataset_report(pipeline, digest),
        max_length=run.training.max_length,
    )


def _result(run: RunSpec, prepared: PreparedFile, report: DatasetReport, warnings: list[str]) -> StageResult:
    return StageResult(
        stage=Stage.PREPARE,
        message=f"{report.rows_out['train']} training rows, {report.train_tokens} tokens",
        dataset=report,
        plan=plan_memory(run, prepared.model.shape, prepared.statistics),
        base_model=prepared.model.source,
        base_revision=prepared.model.revision,
        warnings=[printable(warning) for warning in warnings],
    )
