"""`spec.datasets` and `spec.preparation`: what is trained on, and what happens to it before any GPU is taken."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.section import Column, Name, SecretKeyRef, Section, rules
from finetune_api.sections.model import SOURCE
from finetune_api.uri import Location, parse, without_climbing


class DatasetFormat(StrEnum):
    AUTO = "Auto"
    MESSAGES = "Messages"
    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"


class Columns(Section):
    """Names of the columns in the source; each default is the name the format itself uses."""

    messages: Column | None = Field(default=None, description="Column of the message list (Messages). Default: messages.")
    conversations: Column | None = Field(default=None, description="Column of the turn list (ShareGPT). Default: conversations.")
    instruction: Column | None = Field(default=None, description="Column of the instruction (Alpaca). Default: instruction.")
    input: Column | None = Field(default=None, description="Column of the optional input (Alpaca). Default: input.")
    output: Column | None = Field(default=None, description="Column of the answer (Alpaca). Default: output.")
    history: Column | None = Field(
        default=None, description="Column of the optional earlier [question, answer] pairs (Alpaca). Default: history, where there is one."
    )
    prompt: Column | None = Field(default=None, description="Column of the prompt (PromptCompletion). Default: prompt.")
    completion: Column | None = Field(default=None, description="Column of the completion (PromptCompletion). Default: completion.")
    text: Column | None = Field(default=None, description="Column of the text (Text). Default: text.")
    system: Column | None = Field(default=None, description="Column of a system message for each row. Default: system, where there is one.")


class Dataset(Section):
    model_config = ConfigDict(json_schema_extra=rules(without_climbing("source")))

    name: Name = Field(description="Name of the data set, unique in the job; its own test rows are scored under it. Required.")
    source: str = Field(
        pattern=SOURCE,
        max_length=512,
        description="hf://org/name, or pvc://claim/path to a .jsonl, .json or .parquet file or to a folder that holds <split> files. Required.",
    )
    revision: Annotated[str, Field(max_length=128, pattern=r"^[-A-Za-z0-9._/]+$")] | None = Field(
        default=None, description="Commit, tag or branch of an hf:// data set. Default: main."
    )
    token_secret_ref: SecretKeyRef | None = Field(default=None, description="Access token for a gated hf:// data set. No default.")
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=64)] = Field(
        default="train", description="Split that is trained on. Default: train."
    )
    test_split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=64)] | None = Field(
        default=None,
        description="Split that the data set brings along for testing; scored apart under the data set's name, and nothing else is held out of it. No default.",
    )
    format: DatasetFormat = Field(
        default=DatasetFormat.AUTO, description="Shape of a row. Auto: told from the column names. Default: Auto."
    )
    columns: Columns = Field(default=Columns(), description="Column names that differ from the format's own. Default: the format's names.")
    system_message: Annotated[str, Field(max_length=8192)] | None = Field(
        default=None, description="System message put before conversations that have none. No default."
    )
    weight: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many times the rows are repeated per epoch, after deduplication. Default: 1.",
    )

    @property
    def location(self) -> Location:
        """What `source` names."""
        return parse(self.source)


class Deduplicate(Section):
    exact: bool = Field(
        default=True,
        description="Drop rows whose content was seen before, white space around texts aside, over all data sets. Default: true.",
    )


class Split(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.train + self.validation + self.test > 0.999 && self.train + self.validation + self.test < 1.001",
                "train, validation and test must add up to 1",
            )
        )
    )

    train: float = Field(default=0.8, gt=0, le=1, description="Share of groups trained on. Default: 0.8.")
    validation: float = Field(default=0.1, ge=0, le=0.5, description="Share of groups held out for the loss during training. Default: 0.1.")
    test: float = Field(default=0.1, ge=0, le=0.5, description="Share of groups held out for evaluation. Default: 0.1.")
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="Seed of the draw. Default: 42.")
    group_by: Column | None = Field(
        default=None,
        description="Column whose rows stay together in one split (a document, a user); the bootstrap resamples by it too. Default: each row by itself.",
    )


class Preparation(Section):
    deduplicate: Deduplicate = Field(default=Deduplicate(), description="Removal of repeated rows. Default: exact.")
    split: Split = Field(default=Split(), description="How rows are held out. Default: 0.8 / 0.1 / 0.1.")
    max_dropped_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of a data set's rows that may be of no use (a broken turn order, an empty answer, one beyond training.maxLength, …) "
        "before it is refused; duplicates do not count. Default: 0.2.",
    )
