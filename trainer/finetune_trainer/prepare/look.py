"""What transformers builds of the base model, found by a child process while prepare reads and tokenises: the child takes seconds for torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.section import digest_of

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.inspection import Inspection
from finetune_trainer.model_json import read_optional_json
from finetune_trainer.prepare.model_checks import refuse_adapter
from finetune_trainer.prepared import PreparedModel
from finetune_trainer.storage import JobStorage, filled_aside, hash_file, is_whole
from finetune_trainer.weight_files import StoredTensor, stored_tensors

_ARCHITECTURE = "architecture.json"


class Look:
    """A look at the base model, cached by what its outcome follows from. Use as a context: leaving it ends the child.

    `warnings`: on layers that are not trained; whole once `model` was asked.
    """

    def __init__(self, run: RunSpec, folder: Path, model: PreparedModel, storage: JobStorage) -> None:
        self._run, self._folder, self._recorded, self._storage = run, folder, model, storage
        self._stored = stored_tensors(folder)
        known = Architecture.model_json_schema()  # an older trainer's record may tell less
        key = digest_of([hash_file(folder / "config.json"), sorted(self._stored), version("transformers"), version("peft"), known])
        self._cached = storage.cache_folder("architectures", key)
        self._inspection = None if is_whole(self._cached) else Inspection(folder)
        self._model: PreparedModel | None = None
        self.warnings: list[str] = []

    def __enter__(self) -> Look:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._inspection is not None:
            self._inspection.close()

    def poll(self) -> None:
        """Refuses what is known to be refused by now, and waits for nothing. Errors: those of `model`."""
        if self._inspection is None or self._inspection.finished:
            self.model()

    def model(self) -> PreparedModel:
        """The model's record with what is built of it, once that is known and fits weights and adapter.

        Errors: StageError(RemoteCodeRefused | UnsupportedArchitecture | InvalidModel | UnknownModules | UnsupportedModules).
        """
        if self._model is None:
            self._model = self._whole(self._built())
            self.warnings = refuse_adapter(self._run, self._model)
        return self._model

    def _whole(self, built: Architecture | None) -> PreparedModel:
        if built is None:
            return self._recorded
        _refuse_unfit(built, self._stored)
        shape = self._recorded.shape.model_copy(update={"built": built, "total_parameters": built.total})
        return self._recorded.model_copy(update={"shape": shape})

    def _built(self) -> Architecture | None:
        if self._inspection is None:
            return Architecture.model_validate_json((self._cached / _ARCHITECTURE).read_bytes())
        built = self._inspected(self._inspection)
        if built is not None:
            with filled_aside(self._cached, self._storage.writer) as aside:
                (aside / _ARCHITECTURE).write_text(built.model_dump_json(by_alias=True, exclude_defaults=True))
        return built

    def _inspected(self, inspection: Inspection) -> Architecture | None:
        try:
            return inspection.result()
        except StageError as error:
            config = read_optional_json(self._folder / "config.json")
            if config.get("auto_map") and error.reason is Reason.UNSUPPORTED_ARCHITECTURE:
                raise StageError(
                    Reason.REMOTE_CODE_REFUSED,
                    "the model needs Python code of its own repository (auto_map), which is not run, and transformers has no "
                    f"{config.get('model_type', 'such architecture')}; use an architecture of transformers",
                ) from error
            raise


def _refuse_unfit(built: Architecture, stored: Mapping[str, StoredTensor]) -> None:
    """Every parameter that is one stored tensor has its shape: the library would end in the middle of loading."""
    for parameter in built.parameters:
        tensor = stored.get(parameter.tensor or "")
        if tensor is not None and list(tensor.shape) != parameter.shape:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{parameter.tensor} is stored as {list(tensor.shape)}, and config.json makes it {parameter.shape}"
                f"{' (vocab_size)' if parameter.name.rpartition('.')[0] in (built.embedding, built.head) else ''}; "
                "use the config.json that belongs to the weights",
            )
