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
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from finetune_api.answer import Artifact, ParityReport, StageResult
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage
from finetune_api.sections.export import GGUFType
from finetune_api.sections.quantization import QuantizationType

from finetune_trainer.adapters import adapter_of
from finetune_trainer.cpus import usable_cpus
from finetune_trainer.errors import StageError
from finetune_trainer.llama.base_gguf import base_ggufs
from finetune_trainer.llama.gguf import make_ggufs, read_gguf
from finetune_trainer.llama.home import llama_home
from finetune_trainer.llama.model import GGUFModel
from finetune_trainer.llama.model_files import check_model_files, write_model_files
from finetune_trainer.package import card
from finetune_trainer.package.adapter import read_config, read_updates
from finetune_trainer.package.base_model import HEAD, ModelTensors
from finetune_trainer.package.merge import merge, plan_merge
from finetune_trainer.package.merge_check import MergeOracle, trained_scale
from finetune_trainer.package.parity import Distance, distance, judge, refuse_failed
from finetune_trainer.package.positions import AnswerRow, answer_rows
from finetune_trainer.package.rendering import answer_ends, check_ends, check_facts, check_rendering, rendered_rows
from finetune_trainer.package.tensors import TensorReader
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.stages import Workspace
from finetune_trainer.storage import FileRecord, folder_digest, hash_file
from finetune_trainer.trained import ADAPTER_CONFIG, ADAPTER_FOLDER, ADAPTER_WEIGHTS, MODEL_FOLDER

log = logging.getLogger("finetune_trainer.package")

Logits = npt.NDArray[np.float32]


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
    def work(self) -> Path:
        """Scratch beside the results, on the same disk; removed before publishing."""
        return self.folder / ".work"

    def report(self, start: float, end: float) -> Callable[[float], None]:
        """Progress of a step that takes the stage from one share to another."""
        return lambda share: self.workspace.progress.report(fraction=start + share * (end - start))


def run(run: RunSpec, workspace: Workspace) -> StageResult:
    """Merges, exports, proves, and leaves the artifacts in the stage's folder.

    Errors: StageError(ParityFailed) with the formats and figures, nothing published; StageError(UnsupportedAdapterVariant |
    AdapterMismatch | ConversionFailed | LlamaCppMissing | CorruptArtifact | BaseModelChanged).
    """
    _, trained = workspace.storage.finished(Stage.TRAIN)
    package = Package(run, workspace, load_prepared(workspace.storage, run), trained)
    if run.export.gguf:
        llama_home()  # a missing tool is told before the work, not after it
    package.prepared.verify_model()
    package.work.mkdir()
    make_merged(package)
    ggufs = _make_ggufs(package)
    result = prove(package, ggufs)
    return _leave(package, ggufs, result)


# ------------------------------------------------------------------------------------------------------------------------ make


def make_merged(package: Package) -> None:
    """`merged/`: the trained weights in the base's type, every tensor checked, with the base's own tokenizer files."""
    unties = False
    if package.adapter is None:
        package.merged.mkdir()
        for path in sorted((package.trained / MODEL_FOLDER).iterdir()):
            if path.name.endswith((".safetensors", ".safetensors.index.json")):
                shutil.copyfile(path, package.merged / path.name)
    else:
        unties = _merge_adapter(package, package.adapter)
        _copy_adapter(package, package.adapter)
    write_model_files(package.prepared, package.merged, unties)
    check_model_files(package.prepared, package.merged)


def _merge_adapter(package: Package, adapter: Path) -> bool:
    """Whether the output head had to be untied from the embedding."""
    config = read_config(adapter)
    scale = config.alpha / config.rank
    with ExitStack() as opened:
        base = opened.enter_context(ModelTensors(package.prepared.model_folder))
        base.refuse_quantized()
        weights = opened.enter_context(TensorReader(adapter / ADAPTER_WEIGHTS))
        plan = plan_merge(base, read_updates(weights, config, {*base.shard_of, HEAD}), config.ties_embeddings)
        oracle = MergeOracle(base, trained_scale(package.run.adapter, config), usable_cpus())
        merge(base, plan, scale, package.merged, oracle.check, package.report(0.0, 0.25))
    log.info("merged %d tensors; %.4f %% of their elements are one unit off", oracle.found.tensors, 100 * oracle.found.inexact_share)
    return plan.unties


def _copy_adapter(package: Package, adapter: Path) -> None:
    target = package.folder / ADAPTER_FOLDER
    target.mkdir()
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"] = card.hub_name(package.prepared.model.source)
    (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _make_ggufs(package: Package) -> dict[GGUFType, Path]:
    formats = package.run.export.gguf
    if not formats:
        return {}
    made = make_ggufs(llama_home(), package.merged, package.folder / "gguf", package.run.job.name, formats)
    package.report(0.25, 0.45)(1.0)
    return made


# ----------------------------------------------------------------------------------------------------------------------- prove


def prove(package: Package, ggufs: dict[GGUFType, Path]) -> StageResult:
    """Verdicts of every format. Errors: StageError(ParityFailed) with what was measured."""
    facts = {form: read_gguf(path) for form, path in ggufs.items()}
    for form, carried in facts.items():
        check_facts(package.prepared, form.value, carried)
    _prove_rendering(package, ggufs)
    rows = answer_rows(package.prepared)
    positions = sum(len(row.positions) for row in rows)
    if not positions:
        raise StageError(Reason.NO_ANSWER_POSITIONS, "no row has an answer to measure parity on; check the data sets")
    reference, base = _references(package, rows)
    reports = [_judge_merged(package, rows, reference, base)]
    for form, distances in _gguf_distances(package, ggufs, rows, reference):
        reports.append(judge(form.value, package.run.export, *distances, facts[form].fallback_tensors(form)))
        package.report(0.6, 0.9)(len(reports) / (len(ggufs) + 1))
    result = StageResult(stage=Stage.PACKAGE, parity=reports, quantization_gap=_quantization_gap(package, rows, reference))
    try:
        refuse_failed(reports, package.run.export)
    except StageError as error:
        error.result = result
        raise
    card.write_parity(result, {"positions": positions, "rows": len(rows)}, package.folder)
    return result


def _prove_rendering(package: Package, ggufs: dict[GGUFType, Path]) -> None:
    rows = rendered_rows(package.prepared)
    ends = answer_ends(row for entry in package.prepared.held_out_sets() for row in package.prepared.held_out_rows(entry.name))
    for form, path in list(ggufs.items())[:1]:  # all GGUFs carry the metadata of one conversion, which check_facts compared
        with GGUFModel(path, context_tokens=256) as model:
            check_ends(package.prepared, form.value, model, ends)
        check_rendering(llama_home(), form.value, path, rows, package.work / "server.log")


def _references(package: Package, rows: list[AnswerRow]) -> tuple[StoredLogits, StoredLogits]:
    """Logits of the tuned model and of the base, both in float32 and unquantized."""
    from finetune_trainer.package import reference

    base = package.prepared.model_folder
    tuned = reference.tuned_logits(base if package.adapter else package.trained / MODEL_FOLDER, package.adapter, rows)
    stored = StoredLogits.keep(tuned, rows, package.work / "tuned.npy")
    package.report(0.45, 0.55)(0.5)
    return stored, StoredLogits.keep(reference.model_logits(base, rows), rows, package.work / "base.npy")


def _judge_merged(package: Package, rows: list[AnswerRow], reference: StoredLogits, base: StoredLogits) -> ParityReport:
    from finetune_trainer.package.reference import model_logits

    to_merged = distance(reference.rows(), model_logits(package.merged, rows))
    package.report(0.55, 0.6)(1.0)
    return judge("Merged", package.run.export, to_merged, distance(reference.rows(), base.rows()))


def _gguf_distances(
    package: Package, ggufs: dict[GGUFType, Path], rows: list[AnswerRow], reference: StoredLogits
) -> Iterator[tuple[GGUFType, tuple[Distance, Distance]]]:
    if not ggufs:
        return
    bases = base_ggufs(package.prepared, package.workspace.storage, llama_home(), list(ggufs), package.work)
    for form, path in ggufs.items():
        yield form, (_gguf_distance(path, rows, reference), _gguf_distance(bases[form], rows, reference))


def _gguf_distance(path: Path, rows: list[AnswerRow], reference: StoredLogits) -> Distance:
    context = max(1024, *(len(row.ids) for row in rows))
    with GGUFModel(path, context) as model:
        return distance(reference.rows(), model.logits([(row.ids, row.positions) for row in rows]))


def _quantization_gap(package: Package, rows: list[AnswerRow], reference: StoredLogits) -> float | None:
    """How far the 4-bit model that QLoRA trained is from the reference: mean KL in nats, reported, not judged."""
    if package.run.quantization.type is QuantizationType.NONE or package.adapter is None:
        return None
    from finetune_trainer.package.reference import quantized_logits

    trained = quantized_logits(package.prepared.model_folder, package.adapter, package.run.quantization, rows)
    return distance(reference.rows(), trained).mean_kl


@dataclass(frozen=True)
class StoredLogits:
    """Logits of all rows in one file on disk: (positions of all rows, vocabulary) in float32."""

    path: Path
    counts: list[int]

    @classmethod
    def keep(cls, logits: Iterable[Logits], rows: list[AnswerRow], path: Path) -> StoredLogits:
        counts = [len(row.positions) for row in rows]
        stored: npt.NDArray[np.float32] | None = None
        first = 0
        for found in logits:
            if stored is None:
                stored = np.lib.format.open_memmap(path, "w+", np.float32, (sum(counts), found.shape[1]))
            stored[first : first + len(found)] = found
            first += len(found)
        return cls(path, counts)

    def rows(self) -> Iterator[Logits]:
        stored = np.load(self.path, mmap_mode="r")
        first = 0
        for count in self.counts:
            yield stored[first : first + count]
            first += count


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
