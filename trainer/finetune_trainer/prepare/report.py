"""The report beside the data: what came in, what went out and why, with samples. It may show text; messages and logs never do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from finetune_api.answer import DatasetReport
from finetune_api.section import digest_of

from finetune_trainer.errors import printable
from finetune_trainer.prepare.encoding import TokenRow
from finetune_trainer.prepare.pipeline import Pipeline
from finetune_trainer.prepare.tokenizer import TextTokenizer
from finetune_trainer.prepared import PreparedFile, PreparedSet
from finetune_trainer.storage import hash_file, write_atomically

_SHOWN_TOKENS = 400


def prepared_digest(folder: Path, sets: list[PreparedSet], *more: str | None) -> str:
    """SHA-256 that names the prepared set: the bytes of every set, and what else decides how they are used."""
    files = [name for entry in sets for name in (entry.arrow, entry.held_out) if name]
    return digest_of([[name, hash_file(folder / name)] for name in sorted(files)] + list(more))


def dataset_report(pipeline: Pipeline, digest: str) -> DatasetReport:
    """Counts over all data sets; percentiles are of training rows, repeats counted."""
    dropped = Counter[str]()
    for counts in pipeline.counts.values():
        dropped.update(counts.dropped)
    every = pipeline.counts.values()
    return DatasetReport(
        digest=digest,
        rows_in=sum(counts.rows_in for counts in every),
        rows_out={name: writer.rows for name, writer in pipeline.writers.items()},
        dropped=dict(sorted(dropped.items())),
        token_length=length_percentiles(pipeline.lengths),
        truncated=sum(counts.truncated for counts in every),
        cleaned=sum(counts.cleaned for counts in every) or None,
        leaked=pipeline.splitter.leaked(),
        train_tokens=pipeline.writers["train"].tokens,
    )


def length_percentiles(histogram: npt.NDArray[np.int64]) -> dict[str, int]:
    """p50, p90, p99 and max, in tokens, of a histogram whose index is the length."""
    total = np.cumsum(histogram)
    if not len(total) or total[-1] == 0:
        return {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    lengths = {f"p{share}": int(np.searchsorted(total, share / 100 * total[-1])) for share in (50, 90, 99)}
    return lengths | {"max": int(np.flatnonzero(histogram)[-1])}


def write_report(folder: Path, prepared: PreparedFile, pipeline: Pipeline, tokenizer: TextTokenizer) -> None:
    """report.json for programs, report.md for people."""
    by_dataset: dict[str, dict[str, object]] = {
        name: {
            "format": counts.format,
            "revision": counts.revision,
            "rowsIn": counts.rows_in,
            "rowsOut": dict(sorted(counts.rows_out.items())),
            "dropped": dict(sorted(counts.dropped.items())),
            "firstDropped": {reason: location.place for reason, location in sorted(counts.first_dropped.items())},
            "truncated": counts.truncated,
            "cleaned": counts.cleaned,
            "notRead": sorted(pipeline.unread[name]),
            "notRendered": pipeline.members[name].unprinted() if name in pipeline.members else {},
        }
        for name, counts in pipeline.counts.items()
    }
    content = {"dataset": prepared.dataset.wire(), "byDataset": by_dataset, "model": prepared.model.wire()}
    write_atomically(folder / "report.json", printable(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)).encode())
    lines = [*_summary(prepared, by_dataset), *_samples(pipeline, tokenizer)]
    write_atomically(folder / "report.md", printable("\n".join(lines) + "\n").encode())


def _summary(prepared: PreparedFile, by_dataset: dict[str, dict[str, object]]) -> list[str]:
    report = prepared.dataset
    lengths = ", ".join(f"{name} {value}" for name, value in report.token_length.items())
    lines = [
        "# Prepared data",
        "",
        f"- digest: `{report.digest}`",
        f"- base model: {prepared.model.source} at {prepared.model.revision}",
        f"- chat template: {prepared.chat_template_source or 'none'}; an answer ends with {prepared.tokens.eos_ids}",
        f"- rows in: {report.rows_in}; tokens to train on: {report.train_tokens}",
        f"- length of training rows in tokens: {lengths}; cut to {prepared.max_length}: {report.truncated}",
        f"- groups in more than one split: {report.leaked}",
        "",
        "| set | rows | tokens |",
        "| --- | ---: | ---: |",
        *(f"| {entry.name} | {entry.rows} | {entry.tokens} |" for entry in prepared.sets),
        "",
        "| data set | format | rows in | rows out (repeats counted) | dropped |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for name, counts in by_dataset.items():
        lines.append(f"| {name} | {counts['format']} | {counts['rowsIn']} | {_pairs(counts['rowsOut'])} | {_pairs(counts['dropped'])} |")
    return lines


def _pairs(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "–"


def _samples(pipeline: Pipeline, tokenizer: TextTokenizer) -> list[str]:
    lines = ["", "## One row of each data set, as the model sees it", "", "Between ⟦ and ⟧ is what it learns to write."]
    for name, row in pipeline.samples.shown.items():
        marked = "\n".join("    " + line for line in marked_text(row, tokenizer).split("\n"))
        lines += ["", f"### {name}", "", marked]
    return lines


def marked_text(row: TokenRow, tokenizer: TextTokenizer) -> str:
    """The row's tokens as text, trained stretches between ⟦ and ⟧, cut after some hundred tokens."""
    parts, start = [], 0
    trained = [label >= 0 for label in row.labels[:_SHOWN_TOKENS]]
    for position in range(1, len(trained) + 1):
        if position == len(trained) or trained[position] != trained[start]:
            text = tokenizer.decode(row.ids[start:position])
            parts.append(f"⟦{text}⟧" if trained[start] else text)
            start = position
    return "".join(parts) + ("…" if len(row.ids) > _SHOWN_TOKENS else "")
