"""The run file: everything a stage is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from finetune_api.section import Section
from finetune_api.sections.adapter import Adapter
from finetune_api.sections.checkpoints import Checkpoints
from finetune_api.sections.data import Dataset, Preparation
from finetune_api.sections.evaluation import Evaluation
from finetune_api.sections.export import Export, GGUFType
from finetune_api.sections.method import Method
from finetune_api.sections.model import Model
from finetune_api.sections.quantization import Quantization
from finetune_api.sections.training import Training
from finetune_api.uri import parse


@dataclass(frozen=True)
class StageAccess:
    """What a stage's pod is given beside the job's own storage and the claims that its sources name."""

    gpus: bool = False
    """The run's GPUs, with a process for each."""
    hub: bool = False
    """The model hub and the tokens for it. Any other stage works offline and holds no secret."""
    production: bool = False
    """The served artifact of the version in production, where a gate asks for it."""


class Stage(StrEnum):
    """The stages of a run, in order."""

    PREPARE = "prepare"
    TRAIN = "train"
    PACKAGE = "package"
    EVALUATE = "evaluate"

    @property
    def access(self) -> StageAccess:
        return _ACCESS[self]

    @property
    def upstream(self) -> Stage | None:
        """The stage whose result this one works on; None for the first."""
        stages = list(Stage)
        position = stages.index(self)
        return stages[position - 1] if position else None

    @property
    def is_last(self) -> bool:
        return self is list(Stage)[-1]


_ACCESS: dict[Stage, StageAccess] = {
    Stage.PREPARE: StageAccess(hub=True),
    Stage.TRAIN: StageAccess(gpus=True),
    Stage.PACKAGE: StageAccess(),
    Stage.EVALUATE: StageAccess(production=True),
}


class JobIdentity(Section):
    namespace: str = "default"
    name: str = "local"
    uid: str = "local"


class StorageLocation(Section):
    """Where a job's files lie: `<root>/<prefix>`; `uri` is what names `root` in artifact URIs (`pvc://<claim>`)."""

    root: str
    prefix: str
    uri: str = "file://"


class Baseline(Section):
    """A served artifact that the tuned model is compared with."""

    name: str
    uri: str
    sha256: str


class RunSpec(Section):
    """Everything a stage is told. The same JSON travels in a pod's annotation and runs from a file on a laptop.

    In a file, `source` may also be a local path (`/data/base`, `./rows.jsonl`); the CRD does not allow that.
    """

    job: JobIdentity = JobIdentity()
    attempt: int = 1
    storage: StorageLocation
    claims: dict[str, str] = Field(default={}, description="Mount path of each claim that a pvc:// source names.")
    model: Model
    datasets: list[Dataset]
    preparation: Preparation = Preparation()
    method: Method = Method()
    adapter: Adapter = Adapter()
    quantization: Quantization = Quantization()
    training: Training = Training()
    checkpoints: Checkpoints = Checkpoints()
    retention: Literal["Delete", "Keep"] = Field(default="Keep", description="Checkpoints after the last stage.")
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    served_artifact: GGUFType | None = Field(
        default=None, description="GGUF type that will be served and is judged; the first of export.gguf."
    )
    chat_template_text: str | None = Field(default=None, description="The template of a ConfigMap, read by the operator.")
    gpus_per_node: int = Field(
        default=0, description="GPUs that training gets on a node, told to every stage: prepare plans for them. 0: it runs on the CPU."
    )
    image: str = ""
    production: Baseline | None = Field(default=None, description="The Production version's served artifact, where there is one.")
    resume_from: StorageLocation | None = Field(default=None, description="Storage of the older job whose equal stages are taken over.")


def _names_a_location(source: str) -> str:
    parse(source)
    return source


LocalSource = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_names_a_location)]


class LocalModel(Model):
    source: LocalSource


class LocalDataset(Dataset):
    source: LocalSource


class LocalRunSpec(RunSpec):
    """A run file read by the trainer: sources may be local paths as well."""

    model: LocalModel
    datasets: list[LocalDataset]  # type: ignore[assignment]
