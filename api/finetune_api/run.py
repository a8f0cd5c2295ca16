"""The run file: everything a stage is told."""

from __future__ import annotations

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


class Stage(StrEnum):
    """The stages of a run, in order."""

    PREPARE = "prepare"
    TRAIN = "train"
    PACKAGE = "package"
    EVALUATE = "evaluate"


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
    gpus_per_node: int = Field(default=0, description="GPUs this pod was given; 0 allows CPU.")
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
