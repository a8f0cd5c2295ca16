"""What is said about the artifacts beside them: the model card, where everything came from, and checksums."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune_api.answer import StageResult
from finetune_api.run import RunSpec
from finetune_api.section import digest_of
from finetune_api.uri import ClaimPath, HubRepository, LocalPath, parse

from finetune_trainer.adapters import adapter_of
from finetune_trainer.prepared import Prepared
from finetune_trainer.storage import FileRecord, hash_folder

_LIBRARIES = ("torch", "transformers", "peft", "trl", "safetensors", "gguf")
CHECKSUMS = "SHA256SUMS"


def write_card(run: RunSpec, prepared: Prepared, result: StageResult, target: Path) -> None:
    """README.md as model hubs read it: YAML front matter, then figures. No text of the data."""
    base = hub_name(prepared.model.source)
    trained = adapter_of(run.adapter)
    front = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"base_model_relation: {trained.relation}",
        "library_name: transformers",
        "tags: [finetune-operator, sft]",
        "---",
    ]
    lines = [
        *front,
        "",
        f"# {run.job.name}",
        "",
        f"{run.method.type} of `{base}` (revision `{prepared.model.revision}`) on {prepared.file.dataset.rows_out.get('train', 0)} rows, "
        f"{trained.describe()}. The data set's digest is `{prepared.file.dataset.digest}`.",
        "",
        "## Distance from what was trained",
        "",
        "The reference is the adapter on the unquantized base, at answer positions of held-out rows. Every format was rounded once from",
        "float32 sums; what correct rounding to it loses was measured on this model.",
        "",
        "| format | mean KL (nats) | of it correct rounding | top-1 agreement | kept of the tune (nats) | fallback tensors | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {report.format} | {report.mean_kl:.2e} | {report.rounding_kl or 0:.2e} | {report.top1:.2%} | {report.kept_of_tune or 0:.2e} "
            f"| {report.fallback_tensors} | {report.verdict} |"
            for report in result.parity
        ),
        "",
        f"{result.message[:1].upper()}{result.message[1:]}.",
    ]
    if result.quantization_gap is not None:
        lines += ["", f"Training saw a 4-bit base; the reference is {result.quantization_gap:.2e} nats (mean KL) away from that."]
    lines += ["", "`provenance.json` names every input; check files with `sha256sum -c SHA256SUMS`.", ""]
    (target / "README.md").write_text("\n".join(lines), encoding="utf-8")


def hub_name(source: str) -> str:
    """`org/name` of an hf:// source; another source as it is, a local path by its last part (paths of machines are nobody's business)."""
    match parse(source):
        case HubRepository(name):
            return name
        case ClaimPath():
            return source
        case LocalPath(path):
            return Path(path).name


def write_provenance(run: RunSpec, prepared: Prepared, upstream: dict[str, str], llama: str, target: Path) -> None:
    """Everything that the artifacts follow from, by digest. `upstream`: manifest digests by stage; `llama`: the converter's digest."""
    provenance = {
        "job": run.job.wire(),
        "image": run.image,
        "baseModel": {"source": hub_name(prepared.model.source), "revision": prepared.model.revision, "digest": prepared.model.digest},
        "datasetDigest": prepared.file.dataset.digest,
        "settingsDigest": digest_of(
            [
                *(union.spelled_out().wire() for union in (run.method, run.adapter, run.quantization)),
                *(section.wire() for section in (run.training, run.export)),
            ]
        ),
        "stages": upstream,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "llamaConverterSha256": llama,
    }
    (target / "provenance.json").write_text(json.dumps(provenance, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def write_checksums(target: Path) -> list[FileRecord]:
    """SHA256SUMS over every file below `target`, in `sha256sum`'s format; returns the records."""
    (target / CHECKSUMS).unlink(missing_ok=True)
    records = hash_folder(target)
    (target / CHECKSUMS).write_text("".join(f"{record.sha256}  {record.path}\n" for record in records), encoding="utf-8")
    return records


def write_parity(result: StageResult, details: dict[str, Any], target: Path) -> None:
    """parity.json: the verdicts with what they were measured on."""
    reports = [report.wire() for report in result.parity]
    (target / "parity.json").write_text(json.dumps({**details, "formats": reports}, indent=2) + "\n", encoding="utf-8")
