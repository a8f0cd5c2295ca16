"""The evaluate stage: what will serve is judged, by the same runtime and in the same quantization as what it is compared with.

    evaluate/<writer>/       report.json report.md metrics.svg, once the gates passed
    evaluate/last-verdict.json, last-verdict.md, last-verdict.svg      the last evaluation, whatever its verdict

A failed gate publishes no manifest; running the stage again over the same inputs then answers from last-verdict.json at once.
Imports torch only where a job exports no GGUF.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_api.answer import Answer, EvaluationReport, GateReport, StageResult
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage
from finetune_api.sections.export import GGUFType

from finetune_trainer.bootstrap import Samples
from finetune_trainer.errors import StageError
from finetune_trainer.evaluate.gates import Evidence, judge_gate, metric_reports
from finetune_trainer.evaluate.metrics import METRICS, measure
from finetune_trainer.evaluate.passes import context_tokens, draw
from finetune_trainer.evaluate.report import write_reports
from finetune_trainer.llama.base_gguf import base_ggufs
from finetune_trainer.llama.home import llama_home
from finetune_trainer.llama.model import GGUFModel
from finetune_trainer.prepared import HeldOutRow, Prepared, load_prepared
from finetune_trainer.quiet import quiet_libraries
from finetune_trainer.stages import Workspace, inputs_digest
from finetune_trainer.storage import Manifest, hash_file, local_path, write_atomically

log = logging.getLogger("finetune_trainer.evaluate")

_VERDICT = "last-verdict"


class Verdict(Answer):
    """A gate's no, kept where a manifest would stand after a yes. `inputs_digest` names what it was said of."""

    inputs_digest: str
    reason: Reason
    message: str
    result: StageResult


@dataclass(frozen=True)
class Test:
    """A held-out set, the metrics wanted of it, and the prefix of their names."""

    prefix: str
    rows: list[HeldOutRow]
    metrics: frozenset[str]


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Measures the served artifact, the base and Production, and judges the gates.

    Errors: StageError(GateFailed | GateInconclusive) with the evaluation; StageError(ProductionChanged | CorruptArtifact).
    """
    storage = workspace.storage
    digest = inputs_digest(run, Stage.EVALUATE, storage.manifest(Stage.PACKAGE))
    verdicts = storage.stage_folder(Stage.EVALUATE)
    _repeat_verdict(verdicts, digest)
    prepared = load_prepared(storage, run)
    tests = plan_tests(run, prepared)
    artifact, evidence = _gather(run, workspace, prepared, tests)
    report = judge(run, artifact, evidence)
    for gate in report.gates:
        log.info("gate %s %s: %s", gate.name, gate.result.lower(), gate.evidence)
    write_reports(report, workspace.folder)
    workspace.progress.report(fraction=1.0)
    result = StageResult(stage=Stage.EVALUATE, evaluation=report)
    _keep_verdict(verdicts, workspace.folder, digest, result)
    _refuse(report.gates, result)
    return result


def plan_tests(run: RunSpec, prepared: Prepared) -> list[Test]:
    """The held-out sets with the metrics that gates name, and those that every report shows."""
    named = [gate.metric for gate in run.evaluation.gates]
    always = {name for name, metric in METRICS.items() if metric.always}
    tests = []
    for entry in prepared.held_out_sets():
        prefix = "" if entry.name == "test" else f"{entry.name.removesuffix('/test')}/"
        metrics = {name.removeprefix(prefix) for name in named if name.rpartition("/")[0] == prefix.removesuffix("/")}
        rows = draw(prepared.held_out_rows(entry.name), entry.rows, run.evaluation.max_samples)
        tests.append(Test(prefix, rows, frozenset(always | metrics)))
    return tests


def judge(run: RunSpec, artifact: str, evidence: Evidence) -> EvaluationReport:
    """Metrics with bounds, and the verdict of each gate."""
    metrics = metric_reports(evidence)
    by_name = {metric.name: metric for metric in metrics}
    gates = [judge_gate(gate, evidence, by_name, run.evaluation.min_samples) for gate in run.evaluation.gates]
    return EvaluationReport(artifact=artifact, metrics=metrics, gates=gates)


# ---------------------------------------------------------------------------------------------------------------------- gather


def _gather(run: RunSpec, workspace: Workspace, prepared: Prepared, tests: list[Test]) -> tuple[str, Evidence]:
    """Name of the judged artifact, and what was measured of it and its baselines."""
    manifest, package = workspace.storage.finished(Stage.PACKAGE)
    form = served_format(run)
    context = max(2048, context_tokens([row for test in tests for row in test.rows], run.evaluation))
    log.info("next: the tuned model, on %d rows of %d held-out sets", sum(len(test.rows) for test in tests), len(tests))
    if form is None:
        tuned = _measure_all(_transformers(_merged(package), prepared), tests, run, _report(workspace, 0.0, 0.5))
        log.info("the tuned model is measured; next: the base")
        base = _measure_all(_transformers(prepared.model_folder, prepared), tests, run, _report(workspace, 0.5, 1.0))
        return "merged", Evidence(tuned, base, production_absence=_without_gguf(run))
    artifact = judged_file(manifest, package, form)
    work = workspace.folder / ".work"
    baseline = base_ggufs(prepared, workspace.storage, llama_home(), [form], work)[form]
    shutil.rmtree(work)
    production, absence = _production(run, artifact)
    tuned = _measure_all(GGUFModel(artifact, context), tests, run, _report(workspace, 0.0, 0.4))
    log.info("the tuned model is measured, as %s; next: the base in the same format", form)
    base = _measure_all(GGUFModel(baseline, context), tests, run, _report(workspace, 0.4, 0.7))
    if production and run.production:
        log.info("the base is measured; next: %s, in production", run.production.name)
    served = _measure_all(GGUFModel(production, context), tests, run, _report(workspace, 0.7, 1.0)) if production else None
    return form.value, Evidence(tuned, base, served, absence)


def served_format(run: RunSpec) -> GGUFType | None:
    """The GGUF type that will serve; None where none is made."""
    return run.served_artifact or (run.export.gguf[0] if run.export.gguf else None)


def judged_file(manifest: Manifest, package: Path, form: GGUFType) -> Path:
    """The GGUF of a type as package named it: one taken over from an older job bears that job's name.

    Errors: StageError(NothingToEvaluate) where package made none.
    """
    for artifact in manifest.result.artifacts:
        if artifact.format == "GGUF" and artifact.name == form.value:
            return package / "gguf" / PurePosixPath(artifact.uri).name
    raise StageError(Reason.NOTHING_TO_EVALUATE, f"package made no {form.value}; list it in export.gguf")


def _report(workspace: Workspace, start: float, end: float) -> Callable[[float], None]:
    return lambda share: workspace.progress.report(fraction=start + share * (end - start))


def _measure_all(
    opened: AbstractContextManager[Any], tests: list[Test], run: RunSpec, report: Callable[[float], None]
) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    with opened as model:
        for index, test in enumerate(tests):

            def report_share(share: float, index: int = index) -> None:
                report((index + share) / len(tests))

            measured = measure(model, test.rows, test.metrics, run.evaluation, report_share)
            found |= {test.prefix + name: samples for name, samples in measured.items()}
    return found


def _transformers(folder: Path, prepared: Prepared) -> AbstractContextManager[Any]:
    quiet_libraries()
    from finetune_trainer.evaluate.transformers_model import TransformersModel

    return TransformersModel(folder, prepared.tokenizer_file, prepared.tokens.eos_ids)


def _merged(package: Path) -> Path:
    if not (package / "merged").is_dir():
        raise StageError(
            Reason.NOTHING_TO_EVALUATE, "the job exports neither GGUF nor merged weights; list a type in export.gguf or publish the merge"
        )
    return package / "merged"


def _production(run: RunSpec, artifact: Path) -> tuple[Path | None, str | None]:
    """Production's served file, verified; or why it cannot be compared.

    Errors: StageError(ProductionChanged) where it is not the file that was published.
    """
    if run.production is None:
        return None, None
    path = local_path(run.production.uri, run)
    if hash_file(path) != run.production.sha256:
        raise StageError(
            Reason.PRODUCTION_CHANGED,
            f"the artifact of {run.production.name} is not what was published (SHA-256 differs); restore it or take it out of production",
        )
    with GGUFModel(artifact, 256) as tuned, GGUFModel(path, 256) as production:
        if tuned.token_texts() != production.token_texts():
            return None, f"{run.production.name} has another tokenizer, so its answers cannot be compared token by token"
    return path, None


def _without_gguf(run: RunSpec) -> str | None:
    return f"{run.production.name} serves a GGUF and this job makes none" if run.production else None


# ---------------------------------------------------------------------------------------------------------------------- verdict


def _refuse(gates: Iterable[GateReport], result: StageResult) -> None:
    """Errors: StageError(GateFailed), or StageError(GateInconclusive) where none failed but one could not be judged."""
    by_result: Mapping[str, list[GateReport]] = {
        name: [gate for gate in gates if gate.result == name] for name in ("Failed", "Inconclusive")
    }
    for name, reason in (("Failed", Reason.GATE_FAILED), ("Inconclusive", Reason.GATE_INCONCLUSIVE)):
        if by_result[name]:
            said = "; ".join(f"{gate.name}: {gate.evidence}" for gate in by_result[name])
            raise StageError(reason, f"{said}. The artifacts are kept, nothing is registered", result)


def _keep_verdict(verdicts: Path, folder: Path, digest: str, result: StageResult) -> None:
    """Puts the evaluation beside the writers' folders, where it outlasts this pod even though no manifest names it."""
    try:
        _refuse(result.evaluation.gates if result.evaluation else [], result)
        reason, message = Reason.COMPLETED, ""
    except StageError as error:
        reason, message = error.reason, error.message
    for suffix, name in ((".md", "report.md"), (".svg", "metrics.svg")):
        write_atomically(verdicts / f"{_VERDICT}{suffix}", (folder / name).read_bytes())
    verdict = Verdict(inputs_digest=digest, reason=reason, message=message, result=result)
    write_atomically(verdicts / f"{_VERDICT}.json", verdict.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())


def _repeat_verdict(verdicts: Path, digest: str) -> None:
    """Errors: the StageError of the last evaluation, where its gates said no of the very same inputs."""
    path = verdicts / f"{_VERDICT}.json"
    if not path.is_file():
        return
    verdict = Verdict.model_validate_json(path.read_bytes())
    if verdict.inputs_digest == digest and verdict.reason is not Reason.COMPLETED:
        log.info("these inputs were judged before; nothing to do")
        raise StageError(verdict.reason, verdict.message, verdict.result)
