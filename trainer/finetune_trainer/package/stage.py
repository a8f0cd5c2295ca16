"""The package stage: trained weights in; merged weights and GGUF files out, each proven to be what was trained.

package/<writer>/
    adapter/                     as PEFT reads it
    merged/                      safetensors, tokenizer and configuration; absent with `export.merged: Omit`
    gguf/<job>-<format>.gguf
    README.md provenance.json parity.json SHA256SUMS
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune_api.answer import Artifact, ParityReport, StageResult
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage
from finetune_api.sections.export import GGUFType
from finetune_api.sections.model import Dtype
from finetune_api.sections.quantization import QuantizationType

from finetune_trainer.adapters import adapter_of
from finetune_trainer.architecture import Architecture
from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError
from finetune_trainer.llama.base_gguf import base_ggufs
from finetune_trainer.llama.gguf import BITS, GGUFFacts, Source, convert, quantize, read_gguf
from finetune_trainer.llama.home import llama_home
from finetune_trainer.llama.model import GGUFModel
from finetune_trainer.llama.model_files import check_model_files, write_model_files
from finetune_trainer.mergeable import read_config
from finetune_trainer.package import card
from finetune_trainer.package.adapter import read_updates
from finetune_trainer.package.base_model import ModelTensors, is_weight
from finetune_trainer.package.merge import MergePlan, merge, plan_merge
from finetune_trainer.package.merge_check import MergeOracle, trained_scale
from finetune_trainer.package.merged_dtype import SAFETENSORS_TYPE, Choice, choose_dtype
from finetune_trainer.package.parity import Evidence, distance, distances, judge, refuse_failed, refuse_inexact
from finetune_trainer.package.positions import answer_rows
from finetune_trainer.package.references import Model, References, measure_references
from finetune_trainer.package.rendering import answer_ends, check_ends, check_facts, check_rendering, rendered_rows
from finetune_trainer.package.rounding import GGUFRounding
from finetune_trainer.package.tensors import TensorReader
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.stages import Workspace
from finetune_trainer.storage import FileRecord, folder_digest, hash_file, told_bytes
from finetune_trainer.trained import ADAPTER_CONFIG, ADAPTER_FOLDER, ADAPTER_WEIGHTS, MODEL_FOLDER
from finetune_trainer.weight_files import link_weights

log = logging.getLogger("finetune_trainer.package")


@dataclass(frozen=True)
class Package:
    """What the steps share: inputs, and the stage's folder that is published."""

    run: RunSpec
    workspace: Workspace
    prepared: Prepared
    trained: Path
    """The train stage's folder."""

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def adapter(self) -> Path | None:
        """The trained adapter; None where all weights were trained."""
        return self.trained / ADAPTER_FOLDER if adapter_of(self.run.adapter).freezes_base else None

    @property
    def model(self) -> Model:
        """What was trained: the adapter on the base, or the trained weights alone."""
        return Model(self.prepared.model_folder if self.adapter else self.trained / MODEL_FOLDER, self.adapter)

    @property
    def built(self) -> Architecture | None:
        """The base's architecture, where prepare could tell it."""
        return self.prepared.model.shape.built

    @property
    def work(self) -> Path:
        """Scratch beside the results, on the same disk; removed before publishing."""
        return self.folder / ".work"

    def report(self, start: float, end: float) -> Callable[[float], None]:
        """Progress of a step that takes the stage from one share to another."""
        return lambda share: self.workspace.progress.report(fraction=start + share * (end - start))


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Merges, exports, proves, and leaves the artifacts in the stage's folder.

    Errors: StageError(ParityFailed) with the formats and figures, nothing published; StageError(UnsupportedAdapterVariant |
    AdapterMismatch | ConversionFailed | LlamaCppMissing | CorruptArtifact | BaseModelChanged | StorageError).
    """
    _, trained = workspace.storage.finished(Stage.TRAIN)
    package = Package(run, workspace, load_prepared(workspace.storage, run), trained)
    if run.export.gguf:
        llama_home()  # a missing tool is told before the work, not after it
    package.prepared.verify_model()
    with planned(package) as plan:
        refuse_full_disk(package, plan)
    package.work.mkdir()
    references = _measure_references(package)
    choice = _choose_dtype(package, references)
    make_merged(package, choice.dtype)
    ggufs = _make_ggufs(package, references)
    result = prove(package, ggufs, references, choice)
    return _leave(package, ggufs, result)


@dataclass(frozen=True)
class Planned:
    """A merge before it is made. `weights`: the base's, or those that were trained in full; `scale`: alpha / rank."""

    weights: ModelTensors
    merge: MergePlan
    scale: float
    oracle: MergeOracle

    @property
    def elements(self) -> int:
        return sum(self.weights.info(tensor.base).elements for tensors in self.merge.shards.values() for tensor in tensors)


@contextmanager
def planned(package: Package, dtype: Dtype = Dtype.FLOAT32) -> Iterator[Planned]:
    """The merge to a type, its inputs open. Errors: StageError(UnsupportedAdapterVariant | AdapterMismatch | InvalidModel | QuantizedBase)."""
    with ExitStack() as opened:
        weights = opened.enter_context(ModelTensors(package.model.folder, package.built if package.adapter else None))
        weights.refuse_quantized()
        to = SAFETENSORS_TYPE[dtype]
        if package.adapter is None:
            yield Planned(weights, plan_merge(weights, {}, to), 1.0, MergeOracle(weights, 1.0, usable_cpus()))
            return
        config = read_config(package.adapter)
        trained = opened.enter_context(TensorReader(package.adapter / ADAPTER_WEIGHTS))
        updates = read_updates(trained, config, weights.shapes, weights.built)
        oracle = MergeOracle(weights, trained_scale(package.run.adapter, config), usable_cpus())
        yield Planned(weights, plan_merge(weights, updates, to), config.alpha / config.rank, oracle)


def refuse_full_disk(package: Package, plan: Planned) -> None:
    """What the stage writes fits on the disk: merge, float32 GGUF, each format of the model and of the base.

    Errors: StageError(StorageError) with the bytes that are wanted and free.
    """
    formats = sum(BITS[form] / 8 for form in package.run.export.gguf)
    per_weight = 4.0 + (4.0 + 2 * formats if formats else 0.0)
    wanted, free = int(plan.elements * per_weight), shutil.disk_usage(package.folder).free
    if wanted > free:
        raise StageError(
            Reason.STORAGE_ERROR,
            f"package writes about {told_bytes(wanted)}, {plan.elements:,} weights as merge, float32 and each GGUF, "
            f"and {told_bytes(free)} are free on the job's storage; free space there or enlarge it",
        )


# ------------------------------------------------------------------------------------------------------------------- reference


def _measure_references(package: Package) -> References:
    rows = answer_rows(package.prepared)
    positions = sum(len(row.positions) for row in rows)
    if not positions:
        raise StageError(Reason.NO_ANSWER_POSITIONS, "no row has an answer to measure parity on; check the data sets")
    log.info("next: what was trained and the base, in float32, at %d answer positions of %d rows", positions, len(rows))
    references = measure_references(package.model, package.prepared.model_folder, rows, package.work, package.report(0.0, 0.2))
    log.info("the tune moved the model by %.3g nats (mean KL from the base)", references.tune.mean_kl)
    return references


def _choose_dtype(package: Package, references: References) -> Choice:
    from finetune_trainer.package.reference import round_to_dtype

    log.info("next: what rounding each weight costs, by type")
    with ModelTensors(package.prepared.model_folder) as base:
        types = Counter[str]()
        for tensor in base.shard_of:
            if is_weight(base.info(tensor)):
                types[base.info(tensor).dtype] += base.info(tensor).elements
    choice = choose_dtype(
        package.run.export.merged_dtype,
        types.most_common(1)[0][0],
        references.tune.mean_kl,
        lambda dtype: references.of_rounded(round_to_dtype(dtype)),
    )
    log.info("%s", choice.why)
    package.report(0.2, 0.3)(1.0)
    return choice


# ------------------------------------------------------------------------------------------------------------------------ make


def make_merged(package: Package, dtype: Dtype) -> None:
    """`merged/`: the trained weights rounded once to a type, every tensor checked, with the base's own tokenizer files."""
    log.info("next: merge to %s, each tensor checked", dtype)
    with planned(package, dtype) as plan:
        merge(plan.weights, plan.merge, plan.scale, package.merged, plan.oracle.check, package.report(0.3, 0.4))
    found = plan.oracle.found
    log.info("merged %d tensors, %.4f %% of their elements one unit off", found.tensors, 100 * found.inexact_share)
    if package.adapter is not None:
        _copy_adapter(package, package.adapter)
    write_model_files(package.prepared, package.merged, plan.merge.unties, dtype)
    check_model_files(package.prepared, package.merged)


def _copy_adapter(package: Package, adapter: Path) -> None:
    target = package.folder / ADAPTER_FOLDER
    target.mkdir()
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"] = card.hub_name(package.prepared.model.source)
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_EXACT_POSITIONS = 64  # each shows by itself that nothing is off; float32 is the slowest type that llama.cpp computes in


def _make_ggufs(package: Package, references: References) -> dict[GGUFType, Path]:
    """Each format, rounded once from a float32 file that is proven first and removed."""
    formats = package.run.export.gguf
    if not formats:
        return {}
    log.info("next: GGUF in float32, from the sums before they are rounded")
    exact = convert(llama_home(), gguf_source(package), package.work / "exact.gguf")
    few = references.rows_with(_EXACT_POSITIONS)
    with GGUFModel(exact, references.context, exact=True) as model:
        found = distance(islice(references.tuned.rows(), few), model.logits(references.asked[:few]))
    log.info("unrounded, the GGUF is %.2g nats (mean KL) from what was trained; next: %s", found.mean_kl, ", ".join(formats))
    refuse_inexact(found, references.tune.mean_kl)
    made = quantize(llama_home(), exact, package.folder / "gguf", package.run.job.name, formats)
    exact.unlink()
    package.report(0.4, 0.6)(1.0)
    return made


def gguf_source(package: Package) -> Source:
    """The published model's files with the unmerged weights linked beside them: the adapter is added as the converter reads."""
    folder = package.work / "unrounded"
    folder.mkdir()
    link_weights(package.model.folder, folder)
    for path in package.merged.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).unlink(missing_ok=True)  # the index of a merge may name an output head of its own
            shutil.copyfile(path, folder / path.name)
    through: tuple[str, ...] = ()
    if package.adapter is not None:
        config = read_config(package.adapter)
        scale = config.alpha / config.rank
        facts = package.work / "architecture.json"
        facts.write_text(package.built.model_dump_json(by_alias=True) if package.built else "null", encoding="utf-8")
        given = (package.model.folder, package.adapter, facts)
        through = ("-m", "finetune_trainer.package.convert", *map(str, given), repr(scale))
    return Source(folder, package.run.job.name, through)


# ----------------------------------------------------------------------------------------------------------------------- prove


def prove(package: Package, ggufs: dict[GGUFType, Path], references: References, choice: Choice) -> StageResult:
    """Verdicts of every format. Errors: StageError(ParityFailed) with what was measured."""
    facts = {form: read_gguf(path) for form, path in ggufs.items()}
    for form, carried in facts.items():
        check_facts(package.prepared, form.value, carried)
    if ggufs:
        log.info("next: conversations as llama-server renders them")
        _prove_rendering(package, ggufs)
    log.info("next: each format against what was trained")
    reports = [_judge_merged(package, references, choice)]
    for form, evidence in _gguf_evidence(package, ggufs, facts, references):
        reports.append(judge(form.value, evidence, package.run.export.own_bounds(form), facts[form].fallback_tensors(form)))
        _log_report(reports[-1])
        package.report(0.65, 0.95)(len(reports) / (len(ggufs) + 1))
    gap = _quantization_gap(package, references)
    result = StageResult(stage=Stage.PACKAGE, message=choice.why, parity=reports, quantization_gap=gap)
    try:
        refuse_failed(reports)
    except StageError as error:
        error.result = result
        raise
    card.write_parity(result, {"positions": len(references.tune.kl), "rows": len(references.rows)}, package.folder)
    return result


def _log_report(report: ParityReport) -> None:
    log.info(
        "%s: %s, mean KL %.3g nats (at most %.3g), top-1 %.2f %% (at least %.2f %%)",
        report.format, report.verdict.lower(), report.mean_kl, report.max_kl, 100 * report.top1, 100 * (report.min_top1 or 0),
    )  # fmt: skip


def _prove_rendering(package: Package, ggufs: dict[GGUFType, Path]) -> None:
    rows = rendered_rows(package.prepared)
    ends = answer_ends(row for entry in package.prepared.held_out_sets() for row in package.prepared.held_out_rows(entry.name))
    for form, path in list(ggufs.items())[:1]:  # all GGUFs carry the metadata of one conversion, which check_facts compared
        with GGUFModel(path, context_tokens=256) as model:
            check_ends(package.prepared, form.value, model, ends)
        check_rendering(llama_home(), form.value, path, rows, package.work / "server.log")


def _judge_merged(package: Package, references: References, choice: Choice) -> ParityReport:
    evidence = Evidence(references.of_folder(package.merged), references.tune, choice.rounded)
    report = judge("Merged", evidence, package.run.export.own_bounds("Merged"))
    _log_report(report)
    return report.model_copy(update={"dtype": choice.dtype.value})


def _gguf_evidence(
    package: Package, ggufs: dict[GGUFType, Path], facts: dict[GGUFType, GGUFFacts], references: References
) -> Iterator[tuple[GGUFType, Evidence]]:
    if not ggufs:
        return
    bases = base_ggufs(package.prepared, package.workspace.storage, llama_home(), list(ggufs), package.work)
    for form, path in ggufs.items():
        rounded, _ = references.of_rounded(GGUFRounding(facts[form], llama_home().libraries / "libggml-base.so"))
        with GGUFModel(path, references.context) as model:
            export = distance(references.tuned.rows(), model.logits(references.asked))
        with GGUFModel(bases[form], references.context) as model:
            base, runtime = distances([references.tuned.rows(), references.base.rows()], model.logits(references.asked))
        yield form, Evidence(export, base, rounded, runtime)


def _quantization_gap(package: Package, references: References) -> float | None:
    """How far the 4-bit model that QLoRA trained is from the reference: mean KL in nats, reported, not judged."""
    if package.run.quantization.type is QuantizationType.NONE or package.adapter is None:
        return None
    from finetune_trainer.package.reference import quantized_logits

    trained = quantized_logits(package.prepared.model_folder, package.adapter, package.run.quantization, references.rows)
    return distance(references.tuned.rows(), trained).mean_kl


# ----------------------------------------------------------------------------------------------------------------------- leave


def _leave(package: Package, ggufs: dict[GGUFType, Path], result: StageResult) -> StageResult:
    """Model card, provenance and checksums beside the artifacts; the driver writes the manifest last."""
    shutil.rmtree(package.work)
    if package.run.export.merged == "Omit":
        shutil.rmtree(package.merged)
    storage = package.workspace.storage
    upstream = {stage.value: found.digest for stage in (Stage.PREPARE, Stage.TRAIN) if (found := storage.manifest(stage))}
    converter = hash_file(llama_home().converter) if ggufs else ""
    card.write_provenance(package.run, package.prepared, upstream, converter, package.folder)
    card.write_card(package.run, package.prepared, result, package.folder)
    records = card.write_checksums(package.folder)
    package.workspace.progress.report(fraction=1.0)
    return result.model_copy(update={"artifacts": _artifacts(package, records, ggufs)})


def _artifacts(package: Package, records: list[FileRecord], ggufs: dict[GGUFType, Path]) -> list[Artifact]:
    storage = package.workspace.storage
    artifacts = []
    for name, kind in (("adapter", "Adapter"), ("merged", "Safetensors")):
        own = [
            record.model_copy(update={"path": record.path.removeprefix(f"{name}/")})
            for record in records
            if record.path.startswith(f"{name}/")
        ]
        if own:
            artifacts.append(
                Artifact.model_validate(
                    {
                        "name": name,
                        "format": kind,
                        "uri": storage.uri(package.folder / name),
                        "sha256": folder_digest(own),
                        "bytes": sum(record.bytes for record in own),
                    }
                )
            )
    by_path = {record.path: record for record in records}
    for form, path in ggufs.items():
        record = by_path[path.relative_to(package.folder).as_posix()]
        artifacts.append(Artifact(name=form.value, format="GGUF", uri=storage.uri(path), sha256=record.sha256, bytes=record.bytes))
    return artifacts
