"""What `prepare` leaves on storage, and how later stages read it: the on-disk interface between the stages.

    prepare/<writer>/
        prepared.json               this module's `PreparedFile`: model, special tokens, sets and their files
        chat_template.jinja         only where conversations are rendered
        tokenizer.json              only where the model folder has none (converted from SentencePiece)
        train.arrow validation.arrow test.arrow <data set>.test.arrow     Arrow IPC files: input_ids, labels (int32 lists)
        test.jsonl <data set>.test.jsonl                                  one `HeldOutRow` a line, for evaluation
        report.json report.md

Imports neither torch nor transformers; pyarrow only when rows are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api.answer import Answer, DatasetReport
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec, Stage

from finetune_trainer.errors import StageError
from finetune_trainer.memory import RowStatistics
from finetune_trainer.model_shape import ModelShape
from finetune_trainer.storage import FileRecord, JobStorage, local_path, source_root, verify_files

if TYPE_CHECKING:
    import pyarrow

PREPARED_FILE = "prepared.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
IGNORED_LABEL = -100
"""A label of tokens that are not trained. Source: torch.nn.CrossEntropyLoss(ignore_index=-100)."""


class PreparedModel(Answer):
    """The base model, pinned. Exactly one of `cached` (below the storage's root) and `source` (pvc:// or a local path) finds it."""

    source: str
    revision: str
    """Commit of an hf:// model; `sha256:<digest>` of a local one."""
    digest: str
    """SHA-256 over the lines `<sha256>  <path>` of `files`."""
    cached: str | None = None
    files: list[FileRecord]
    architecture: str
    model_type: str
    shape: ModelShape


class SpecialTokens(Answer):
    """Ids that later stages need. `eos_ids`: any of them ends an answer; the GGUF carries `eos_id`."""

    eos_token: str
    eos_id: int
    eos_ids: list[int]
    pad_id: int
    bos_id: int | None = None
    eos_changed: bool = False
    """True where the run's own chat template ends its turns otherwise than the base: package must write `eos_token` and `eos_ids`."""


class PreparedSet(Answer):
    """Rows of one split. `rows` counts the Arrow file; `held_out` names the JSONL beside it, for sets that are scored."""

    name: str
    """`train`, `validation`, `test` or `<data set>/test`."""
    arrow: str
    rows: int
    tokens: int
    held_out: str | None = None


class PreparedFile(Answer):
    model: PreparedModel
    tokens: SpecialTokens
    chat_template_source: Literal["Model", "Named", "ConfigMap"] | None = None
    sets: list[PreparedSet]
    dataset: DatasetReport
    max_length: int

    @property
    def statistics(self) -> RowStatistics:
        """Of the training set: what a memory plan needs."""
        train = next(entry for entry in self.sets if entry.name == "train")
        validation = sum(entry.rows for entry in self.sets if entry.name == "validation")
        return RowStatistics(train.rows, train.tokens, self.dataset.token_length.get("max", self.max_length), validation)


class HeldOutRow(Answer):
    """One test row as evaluation asks it.

    `prompt_ids` end with the generation prompt; `answer_ids` are the true answer with its end-of-turn token. Text rows have an
    empty prompt and count for perplexity only. `group` is what the bootstrap resamples by.
    """

    dataset: str
    row: int
    group: str
    kind: Literal["Chat", "Completion", "Text"]
    messages: list[dict[str, object]] = []
    """The conversation up to the answer (Chat only)."""
    tools: list[dict[str, object]] = []
    """Functions that its assistant may call, as a client sends them."""
    quotes_control_tokens: bool = False
    """True where the data's own text holds control tokens: they are text here, and a server would read them."""
    prompt: str
    prompt_ids: list[int]
    answer: str
    answer_ids: list[int]


@dataclass(frozen=True)
class Prepared:
    """A finished prepare stage, with paths in this pod."""

    folder: Path
    model_folder: Path
    file: PreparedFile
    model_root: Path | None = None
    """What links in the model's folder may lead to: its claim, or anything for a path of this machine."""

    @property
    def model(self) -> PreparedModel:
        return self.file.model

    @property
    def tokens(self) -> SpecialTokens:
        return self.file.tokens

    @property
    def chat_template(self) -> str | None:
        """The template that rows were rendered with; None where no row is a conversation."""
        path = self.folder / TEMPLATE_FILE
        return path.read_bytes().decode() if path.exists() else None

    @property
    def own_template(self) -> str | None:
        """The run's own template (Named, ConfigMap), which the finished model must carry; None where it is the model's."""
        return self.chat_template if self.file.chat_template_source in ("Named", "ConfigMap") else None

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json: the model's own, or the one converted from its SentencePiece model."""
        converted = self.folder / TOKENIZER_FILE
        return converted if converted.exists() else self.model_folder / TOKENIZER_FILE

    def set(self, name: str) -> PreparedSet:
        """The set `train`, `validation`, `test` or `<data set>/test`. Errors: KeyError for another name."""
        return {entry.name: entry for entry in self.file.sets}[name]

    def held_out_sets(self) -> list[PreparedSet]:
        """Sets that are scored and hold rows: `test` first, then those that data sets brought along."""
        return [entry for entry in self.file.sets if entry.held_out and entry.rows]

    def arrow_file(self, name: str) -> Path:
        return self.folder / self.set(name).arrow

    def table(self, name: str) -> pyarrow.Table:
        """Columns input_ids and labels (int32 lists; labels are -100 where nothing is trained), memory-mapped: costs no memory."""
        import pyarrow
        import pyarrow.ipc

        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.arrow_file(name)))).read_all()

    def held_out_rows(self, name: str) -> Iterator[HeldOutRow]:
        """The test rows of a set, in file order."""
        held_out = self.set(name).held_out
        if held_out is None:
            return
        with (self.folder / held_out).open(encoding="utf-8") as lines:
            for line in lines:
                yield HeldOutRow.model_validate(json.loads(line))

    def verify_model(self) -> None:
        """Hashes the base model's files again. Errors: StageError(BaseModelChanged)."""
        problem = verify_files(self.model_folder, self.model.files, self.model_root)
        if problem:
            raise _changed(problem)


def load_prepared(storage: JobStorage, run: RunSpec) -> Prepared:
    """The finished prepare stage of a job, its own files verified, the base model's files present in their recorded size.

    Errors: StageError(StageMissing | CorruptArtifact | BaseModelMissing | BaseModelChanged).
    """
    _, folder = storage.finished(Stage.PREPARE)
    file = PreparedFile.model_validate_json((folder / PREPARED_FILE).read_bytes())
    model_folder = _find_model(file.model, storage, run)
    for record in file.model.files:
        path = model_folder / record.path
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise _changed(f"{record.path} is not as it was")
    root = (source_root(file.model.source, run) or Path("/")) if file.model.cached is None else None
    return Prepared(folder, model_folder, file, root)


def _find_model(model: PreparedModel, storage: JobStorage, run: RunSpec) -> Path:
    if model.cached is None:
        path = local_path(model.source, run)
        return path if path.is_dir() else path.parent
    roots = [storage.root, *([Path(run.resume_from.root)] if run.resume_from else [])]
    for root in roots:
        if (root / model.cached).is_dir():
            return root / model.cached
    raise StageError(
        Reason.BASE_MODEL_MISSING, "the base model is no longer in the storage's cache; create another job, which fetches it again"
    )


def _changed(problem: str) -> StageError:
    return StageError(Reason.BASE_MODEL_CHANGED, f"the base model changed since prepare: {problem}; put it back or start a new job")
