"""What is looked for at a source: a base model or a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.environment import MODEL_TOKEN, dataset_token
from finetune_api.outcome import Reason
from finetune_api.sections.data import Dataset
from finetune_api.sections.model import Model
from finetune_api.uri import Location


@dataclass(frozen=True)
class Refusals:
    """What it is called that a source does not give it."""

    gated: Reason
    not_found: Reason
    unauthorized: Reason


REFUSALS: dict[Literal["model", "dataset"], Refusals] = {
    "model": Refusals(Reason.MODEL_GATED, Reason.MODEL_NOT_FOUND, Reason.MODEL_UNAUTHORIZED),
    "dataset": Refusals(Reason.DATASET_GATED, Reason.DATASET_NOT_FOUND, Reason.DATASET_UNAUTHORIZED),
}


@dataclass(frozen=True)
class Asked:
    """`name`: how a message calls it; `token_variable`: the environment variable that holds its token, where it has one."""

    kind: Literal["model", "dataset"]
    name: str
    source: str
    location: Location
    revision: str | None
    token_variable: str


def asked_model(model: Model) -> Asked:
    return Asked("model", "model.source", model.source, model.location, model.revision, MODEL_TOKEN)


def asked_dataset(dataset: Dataset) -> Asked:
    token = dataset_token(dataset.name)
    return Asked("dataset", f"data set {dataset.name}", dataset.source, dataset.location, dataset.revision, token)
