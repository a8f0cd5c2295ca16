"""What a user should know of the prepared data and may ignore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetune_api.run import RunSpec

from finetune_trainer.prepare.chat_template import ChatTemplate
from finetune_trainer.prepare.counts import DatasetCounts
from finetune_trainer.prepare.members import Printed
from finetune_trainer.prepare.pipeline import Pipeline


def warnings_of(run: RunSpec, pipeline: Pipeline, template: ChatTemplate | None) -> list[str]:
    """The gravest first: status holds so many and no more."""
    found = [f"data set {name}: {words}" for name, counts in pipeline.counts.items() for words in _of_dataset(name, counts, pipeline)]
    found += _of_groups(run, pipeline)
    if template is not None and template.shows_the_date:
        found.append("the chat template prints today's date: prepared on another day, the data gets another digest")
    scored = sum(writer.rows for writer in pipeline.writers.values() if writer.held_out)
    if run.evaluation.gates and scored < run.evaluation.min_samples:
        found.append(f"{scored} test rows are fewer than evaluation.minSamples ({run.evaluation.min_samples}): gates will be inconclusive")
    if run.preparation.split.validation and not pipeline.writers["validation"].rows:
        found.append("no group was drawn for validation: there will be no validation loss")
    truncated, rows = sum(counts.truncated for counts in pipeline.counts.values()), pipeline.writers["train"].rows
    if truncated > 0.05 * rows:
        found.append(
            f"{truncated} rows are longer than training.maxLength ({run.training.max_length}) and were cut: their ends are not learnt"
        )
    return found


def _of_dataset(name: str, counts: DatasetCounts, pipeline: Pipeline) -> Iterator[str]:
    if counts.useless:
        yield f"{counts.useless} of {counts.rows_in} rows were dropped ({counts.dropped_words()})"
    if name in pipeline.members:
        yield from _of_members(pipeline.members[name].lost())
        yield from _of_altered(pipeline.members[name].altered)
    if counts.texts > counts.conversations:
        factor = counts.text_tokens / max(1, counts.last_text_tokens)
        yield (
            f"the chat template rewrites earlier turns, so that {counts.conversations} conversations became {counts.texts} rows with "
            f"{factor:.1f} times the tokens; set model.chatTemplate to one that does not, or method.sft.loss to Completion to train last "
            "answers only"
        )
    yield from _of_unread(pipeline.unread[name], pipeline.notes[name])
    if counts.quoting:
        yield (
            f"in {counts.quoting} rows messages hold control tokens of this tokenizer, which are taken as text; "
            "take them out where they were meant to end or begin a turn: the chat template does that"
        )
    if counts.cleaned:
        yield f"control characters were removed from {counts.cleaned} rows"
    if counts.split_at_answer:
        yield (
            f"in {counts.split_at_answer} rows a token would join prompt and answer; they are tokenised apart, as when served; "
            "prompts that end in white space are answered better without it"
        )


def _of_members(lost: Mapping[str, Printed]) -> Iterator[str]:
    """What the template does not print: here and there, of no row, or what is no text for it at all."""
    for member, met in sorted(lost.items()):
        if met.is_printed and met.first:
            yield (
                f"in {met.lost} rows, the first of them {met.first.place}, the chat template leaves out {member}, which it prints in others: "
                "the model learns nothing of it there; set model.chatTemplate to one that prints it beside whatever else the message has"
            )
    texts = [f"{member} ({met.rows} rows)" for member, met in sorted(lost.items()) if not met.is_printed and not met.is_switch]
    if texts:
        members = ", ".join(texts)
        yield f"the chat template prints nothing of {members}: the model learns nothing of it; set model.chatTemplate to one that does"
    switches = [f"{member} ({met.rows} rows)" for member, met in sorted(lost.items()) if not met.is_printed and met.is_switch]
    if switches:
        yield (
            f"nothing reads {', '.join(switches)}: answers that have it are trained as all others; "
            "weight: 0 or train: false on an assistant's message is what keeps it from being trained"
        )


def _of_altered(altered: Mapping[str, Printed]) -> Iterator[str]:
    for role, met in sorted(altered.items()):
        if met.first:
            yield (
                f"in {met.rows} rows, the first of them {met.first.place}, the chat template cuts or changes a part of the content of {role} "
                "messages (thoughts between tags, for instance): the model does not learn it as it is written; set model.chatTemplate to one "
                "that prints content as it is, or write thoughts as reasoning_content where it prints those"
            )


def _of_unread(unread: set[str], notes: Mapping[str, int]) -> Iterator[str]:
    if unread:
        yield f"columns that are not read: {', '.join(sorted(unread))}"
    yield from (f"in {rows} rows {words}" for words, rows in sorted(notes.items()) if rows)


def _of_groups(run: RunSpec, pipeline: Pipeline) -> Iterator[str]:
    column = run.preparation.split.group_by
    for name, counts in pipeline.counts.items():
        if column is not None and not counts.grouped:
            yield f"no row of data set {name} has the groupBy column {column!r}: its rows are held out one by one"
