"""Rows on their way: read → steps → split → rendered → tokens → written (`Pipeline._take`). In batches: memory stays bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.data import Dataset

from finetune_trainer.errors import StageError
from finetune_trainer.prepare.candidates import Candidate, Part
from finetune_trainer.prepare.counts import DatasetCounts
from finetune_trainer.prepare.dataset_files import DatasetFiles
from finetune_trainer.prepare.encoding import Encoder, Rendered, StopTokenAbsent, TokenRow
from finetune_trainer.prepare.members import PrintedMembers
from finetune_trainer.prepare.records import Located, Location, invalid
from finetune_trainer.prepare.rows import Conversation, RowDropped, RowInvalid, RowReader, content_hash
from finetune_trainer.prepare.splitting import SPLITS, Splitter, group_key, is_grouped
from finetune_trainer.prepare.steps import STEPS
from finetune_trainer.prepare.turns import TemplateUnsplittable
from finetune_trainer.prepare.writing import SetWriter
from finetune_trainer.prepared import HeldOutRow, PreparedSet, SpecialTokens

_BATCH_ROWS = 512
_BATCH_BYTES = 16 << 20
SAMPLES_PER_DATASET = 500
_LONGEST_SAMPLE_CHARS = 20_000


@dataclass(frozen=True)
class Sample:
    """A rendered text and where it is from: what the tokenizer proof compares."""

    location: Location
    text: str
    is_chat: bool


@dataclass
class Samples:
    texts: dict[str, list[Sample]] = field(default_factory=dict)
    shown: dict[str, TokenRow] = field(default_factory=dict)
    """The first trained row of each data set, for the report."""

    def keep(self, location: Location, row: TokenRow, trained: bool) -> None:
        kept = self.texts.setdefault(location.dataset, [])
        if len(kept) < SAMPLES_PER_DATASET and len(row.rendered.text) <= _LONGEST_SAMPLE_CHARS:
            kept.append(Sample(location, row.rendered.text, row.rendered.kind == "Chat"))
        if trained:
            self.shown.setdefault(location.dataset, row)


@dataclass(frozen=True)
class _Placed:
    """A text of a candidate with the set it goes to. `last`: the one that holds the conversation's last answer."""

    candidate: Candidate
    set_name: str
    rendered: Rendered
    last: bool


class Pipeline:
    """Reads every data set of a run into the sets of a folder. Use as a context; counts are whole once it is left.

    `embeddings`: tokens for which the model has an embedding.
    """

    def __init__(self, run: RunSpec, encoder: Encoder, tokens: SpecialTokens, embeddings: int, folder: Path) -> None:
        self._run = run
        self._embeddings = embeddings
        self._encoder = encoder
        self._eos_ids = sorted(tokens.eos_ids)
        self._steps = [step(run.preparation) for step in STEPS]
        self.splitter = Splitter(run.preparation.split)
        self.counts = {dataset.name: DatasetCounts() for dataset in run.datasets}
        self.lengths = np.zeros(run.training.max_length + 1, dtype=np.int64)
        self.samples = Samples()
        self.unread: dict[str, set[str]] = {}
        self.notes: dict[str, Counter[str]] = {}
        self.members = {dataset.name: PrintedMembers(encoder.template) for dataset in run.datasets if encoder.template}
        brought = [f"{dataset.name}/test" for dataset in run.datasets if dataset.test_split]
        self.writers = {name: SetWriter(folder, name, held_out=name not in ("train", "validation")) for name in (*SPLITS, *brought)}
        self._stack = ExitStack()

    def __enter__(self) -> Pipeline:
        for writer in self.writers.values():
            self._stack.enter_context(writer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def sets(self) -> list[PreparedSet]:
        return [writer.described() for writer in self.writers.values()]

    def read_all(self, files: list[tuple[Dataset, DatasetFiles]], tell: Callable[[float], None]) -> None:
        """Test rows that data sets bring first, then the rows those data sets train on, then the rest, so that nothing that is
        tested on or pinned to training is met too late.

        Errors: StageError(InvalidDataset | EmptyDataset | NoTrainingRows | StopTokenMismatch | TemplateUnsplittable | NoChatTemplate).
        """
        readers = {dataset.name: RowReader(dataset, self._encoder.template) for dataset, _ in files}
        parts = [Part(dataset, found.test, readers[dataset.name], True) for dataset, found in files if found.test]
        parts += [Part(dataset, found.train, readers[dataset.name], False) for dataset, found in files if found.test]
        parts += [Part(dataset, found.train, readers[dataset.name], False) for dataset, found in files if not found.test]
        total, done = sum(part.files.size_bytes for part in parts) or 1, 0
        for part in parts:
            for batch in _batches(part.files.records()):
                self._take(part, batch)
                tell((done + batch[-1].bytes_read) / total)
            done += part.files.size_bytes
        for dataset, found in files:
            self._account(dataset, readers[dataset.name], found.revision)
            self._refuse_unprinted(dataset, is_over=True)
            self._refuse_if_useless(dataset)
        self._refuse_unknown_group()
        if not self.writers["train"].rows:
            raise StageError(
                Reason.NO_TRAINING_ROWS,
                f"no row is left to train on: {self._dropped_words()}; add rows, or set preparation.split",
            )

    def _account(self, dataset: Dataset, reader: RowReader, revision: str | None) -> None:
        """Errors: StageError(InvalidDataset) for a column that is named and that no row has."""
        counts = self.counts[dataset.name]
        counts.format, counts.revision, counts.cleaned = str(reader.format), revision, reader.cleaned
        self.unread[dataset.name] = reader.unread - {self._run.preparation.split.group_by}
        self.notes[dataset.name] = reader.notes
        missing = reader.never_found()
        if missing and counts.rows_in:
            raise StageError(Reason.INVALID_DATASET, f"data set {dataset.name}: {missing}")

    def _take(self, part: Part, batch: list[Located]) -> None:
        """A batch through every step, in the order in which they follow each other."""
        read = self._read(part, batch)
        split = self._split(part, self._keep(part, read))
        rendered = list(self._render(part, split))
        self._refuse_unprinted(part.dataset, is_over=False)
        for item, row in self._encode(part, rendered):
            self._write(part.dataset, item, row)

    def _read(self, part: Part, batch: list[Located]) -> list[Candidate]:
        """Rows that are of their format; one that is not ends the stage, one that cannot be trained on is counted."""
        counts = self.counts[part.dataset.name]
        counts.rows_in += len(batch)
        understood = []
        for located in batch:
            try:
                example = part.reader.read(located.record)
                content = content_hash(example)
                group = group_key(located.record, self._run.preparation.split.group_by, content)
                counts.grouped += is_grouped(group)
                understood.append(Candidate(located.location, example, content, group))
            except RowDropped as error:
                counts.drop(error.reason, located.location, error.words)
            except RowInvalid as error:
                raise invalid(located.location, error.expected) from error
        return understood

    def _keep(self, part: Part, candidates: list[Candidate]) -> list[Candidate]:
        """Rows that no step drops."""
        for step in self._steps:
            kept = []
            for candidate, reason in zip(candidates, step.dropped(part, candidates), strict=True):
                if reason:
                    self.counts[part.dataset.name].drop(reason, candidate.location)
                else:
                    kept.append(candidate)
            candidates = kept
        return candidates

    def _split(self, part: Part, candidates: list[Candidate]) -> list[tuple[Candidate, str]]:
        """Each row with the set it goes to."""
        groups = [candidate.group for candidate in candidates]
        names: Iterable[str]
        if part.is_test:
            names = [f"{part.dataset.name}/test"] * len(candidates)
        else:
            names = self.splitter.pin(groups) if part.dataset.test_split else self.splitter.assign(groups)
        return list(zip(candidates, names, strict=True))

    def _render(self, part: Part, split: list[tuple[Candidate, str]]) -> Iterator[_Placed]:
        """The texts of each row; a conversation may have several."""
        counts = self.counts[part.dataset.name]
        for candidate, name in split:
            try:
                texts = self._encoder.render(candidate.example)
                if isinstance(candidate.example, Conversation):
                    self._look(candidate, texts)
            except RowDropped as error:
                self._refuse_own_system_message(part.dataset, candidate, error)
                counts.drop(error.reason, candidate.location, error.words)
                continue
            except TemplateUnsplittable as error:
                raise StageError(
                    Reason.TEMPLATE_UNSPLITTABLE,
                    f"{candidate.location}: the chat template's generation prompt is not how it begins an answered turn, so the model would be "
                    "trained on other prompts than it is served; set model.chatTemplate to one that does",
                ) from error
            if name == "train" and texts[0].kind == "Chat":
                counts.conversations += 1
                counts.texts += len(texts)
            # Of a test row only the last answer is asked for.
            for text in texts[-1:] if name.endswith("test") else texts:
                yield _Placed(candidate, name, text, last=text is texts[-1])

    def _look(self, candidate: Candidate, texts: list[Rendered]) -> None:
        """What of a conversation its texts do not say."""
        assert isinstance(candidate.example, Conversation)
        self.members[candidate.location.dataset].look(
            candidate.example,
            [len(text.prompt_messages) for text in texts],
            candidate.location,
            [text.text for text in texts],
            any(self._encoder.is_silent(text) for text in texts),
        )

    def _refuse_unprinted(self, dataset: Dataset, is_over: bool) -> None:
        """Errors: StageError(NotRendered) where the template printed of no row what a row cannot be without."""
        lacking = self.members[dataset.name].lacking(is_over) if dataset.name in self.members else None
        if lacking:
            member, location = lacking
            raise StageError(
                Reason.NOT_RENDERED,
                f"{location}: the chat template prints nothing of the {member}, so they would be lost; set model.chatTemplate "
                "to one that prints them, or write them into the messages' content",
            )

    @staticmethod
    def _refuse_own_system_message(dataset: Dataset, candidate: Candidate, error: RowDropped) -> None:
        """Errors: StageError(InvalidDataset) where the template refuses the system message that the job itself adds to every row."""
        if error.reason != "SystemRefusedByTemplate" or not dataset.system_message:
            return
        assert isinstance(candidate.example, Conversation)
        if candidate.example.messages[0]["content"] == dataset.system_message:
            raise StageError(
                Reason.INVALID_DATASET,
                f"data set {dataset.name}: the chat template takes no system message; remove systemMessage, set model.chatTemplate to one that "
                "does, or write the text before the first user message",
            )

    def _encode(self, part: Part, placed: list[_Placed]) -> Iterator[tuple[_Placed, TokenRow]]:
        """The token ids of each text; a test row that had to be cut is dropped, as it would be judged by half an answer."""
        counts = self.counts[part.dataset.name]
        rows = self._token_rows(placed)
        of_use = {id(item.candidate) for item, row in zip(placed, rows, strict=True) if not isinstance(row, str)}
        for item, row in zip(placed, rows, strict=True):
            if isinstance(row, str):
                if id(item.candidate) in of_use:
                    counts.truncated += 1  # an answer of a conversation whose others are trained
                elif item.last:
                    counts.drop(row, item.candidate.location)
            elif row.truncated and item.set_name.endswith("test"):
                counts.drop("TestRowTooLong", item.candidate.location)
            else:
                yield item, row

    def _token_rows(self, placed: list[_Placed]) -> list[TokenRow | str]:
        try:
            return self._encoder.encode([item.rendered for item in placed])
        except StopTokenAbsent as error:
            tokenizer = self._encoder.tokenizer
            ends = "nothing" if error.token_id is None else tokenizer.name_of(error.token_id)
            stops = ", ".join(tokenizer.name_of(token) for token in self._eos_ids)
            raise StageError(
                Reason.STOP_TOKEN_MISMATCH,
                f"{placed[error.position].candidate.location}: the chat template ends an answer with {ends}, but generation stops at {stops}, "
                "so the tuned model would never stop; add that token to eos_token_id in generation_config.json and make it eos_token in "
                "tokenizer_config.json, or set model.chatTemplate to one that ends turns with the model's own eos",
            ) from error

    def _write(self, dataset: Dataset, item: _Placed, row: TokenRow) -> None:
        counts, location = self.counts[dataset.name], item.candidate.location
        self._refuse_unknown_ids(location, row)
        repeat = dataset.weight if item.set_name == "train" else 1
        writer = self.writers[item.set_name]
        writer.add(row, repeat)
        counts.rows_out[item.set_name] += repeat
        counts.truncated += row.truncated
        counts.split_at_answer += row.split_at_answer
        counts.quoting += bool(row.rendered.quoted)
        if item.set_name == "train":
            self.lengths[len(row.ids)] += repeat
            counts.text_tokens += len(row.ids)
            counts.last_text_tokens += len(row.ids) if item.last else 0
        if writer.held_out:
            writer.add_held_out(self._held_out(item, row))
        self.samples.keep(location, row, item.set_name == "train")

    def _refuse_unknown_ids(self, location: Location, row: TokenRow) -> None:
        largest = max(row.ids)
        if largest >= self._embeddings:
            raise StageError(
                Reason.INVALID_TOKENIZER,
                f"{location}: {self._encoder.tokenizer.name_of(largest)} is no token of this model: the model's embedding has "
                f"{self._embeddings} (vocab_size in config.json); use the tokenizer files of the model's own repository",
            )

    def _held_out(self, item: _Placed, row: TokenRow) -> HeldOutRow:
        start, end = row.answers[-1]
        prompt = row.rendered.prompt
        prompt_ids = row.ids[:start]
        if row.rendered.kind == "Chat":
            # As a server tokenises it: alone. Where a token would join prompt and answer, these ids are what is asked.
            prompt_ids = row.ids[:start] if row.rendered.quoted else self._encoder.tokenizer.encode([prompt])[0].ids
        return HeldOutRow(
            dataset=item.candidate.location.dataset,
            row=item.candidate.location.row,
            group=item.candidate.group,
            kind=row.rendered.kind,
            messages=row.rendered.prompt_messages,
            tools=row.rendered.tools or [],
            quotes_control_tokens=bool(row.rendered.quoted),
            prompt=prompt,
            prompt_ids=prompt_ids,
            answer=row.answer_text,
            answer_ids=row.ids[start:end],
        )

    def _refuse_if_useless(self, dataset: Dataset) -> None:
        counts = self.counts[dataset.name]
        if not counts.rows_in:
            raise StageError(Reason.EMPTY_DATASET, f"data set {dataset.name} has no rows; check source and split")
        if not counts.rows_out:
            raise StageError(
                Reason.INVALID_DATASET,
                f"data set {dataset.name}: none of its {counts.rows_in} rows can be trained on ({counts.dropped_words()}); "
                "check format, columns and training.maxLength",
            )
        limit = self._run.preparation.max_dropped_share
        if counts.useless > limit * counts.rows_in:
            raise StageError(
                Reason.INVALID_DATASET,
                f"data set {dataset.name}: {counts.useless} of its {counts.rows_in} rows cannot be used, more than "
                f"preparation.maxDroppedShare ({limit:g}) allows ({counts.dropped_words()}); mend them, check format and columns, or raise it",
            )
        own_test = f"{dataset.name}/test"
        if own_test in self.writers and not self.writers[own_test].rows:
            raise StageError(
                Reason.EMPTY_DATASET, f"data set {dataset.name}: no row of its testSplit can be scored ({counts.dropped_words()})"
            )

    def _refuse_unknown_group(self) -> None:
        column = self._run.preparation.split.group_by
        if column is not None and not any(counts.grouped for counts in self.counts.values()):
            raise StageError(
                Reason.INVALID_DATASET,
                f"preparation.split.groupBy: no row has a column {column!r}; name the one that tells documents apart, or remove groupBy",
            )

    def _dropped_words(self) -> str:
        return "; ".join(f"data set {name}: {counts.dropped_words()}" for name, counts in self.counts.items())


def _batches(records: Iterator[Located]) -> Iterator[list[Located]]:
    """So many rows, or so many bytes of them, that memory stays bounded."""
    batch: list[Located] = []
    before = 0
    for located in records:
        batch.append(located)
        if len(batch) == _BATCH_ROWS or located.bytes_read - before >= _BATCH_BYTES:
            yield batch
            batch, before = [], located.bytes_read
    if batch:
        yield batch
