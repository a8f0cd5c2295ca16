"""Model, data and settings against each other, from recorded facts alone: each of these would end on a GPU, or after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec

from finetune_trainer.adapters import adapter_of
from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.prepare.stopping import StopRule
from finetune_trainer.prepared import PreparedModel, PreparedSet

_FIXED_TABLES = {"gptj": "n_positions", "codegen": "n_positions", "ctrl": "n_positions", "mpt": "max_seq_len"}
"""Model types that hold their positions in a table of fixed size that is no parameter, and the member that sizes it."""
_SIZES = ("max_position_embeddings", "n_positions", "n_ctx")
_MOST_RESERVED = 8
"""Rows of a position table before the first position (OPT: 2)."""


def refuse_adapter(run: RunSpec, model: PreparedModel) -> list[str]:
    """Warnings on layers that are not trained. Errors: StageError(UnknownModules | UnsupportedModules), with the field."""
    built = model.shape.built
    if built is None:
        return []
    trained = adapter_of(run.adapter)
    trained.refuse_unmergeable(built)
    left_out = trained.passed_over(built)
    return (
        [
            "not trained, because PEFT refuses it, an update of it could not be merged, no text reaches it, or the model reads its weight past "
            f"the update: {', '.join(left_out)}"
        ]
        if left_out
        else []
    )


def with_known_pad(stop: StopRule, embeddings: int) -> tuple[StopRule, list[str]]:
    """A rule whose padding token the model has an embedding for; with a warning where the tokenizer's own lies beyond."""
    pad = stop.tokens.pad_id
    if pad < embeddings:
        return stop, []
    warning = (
        f"the tokenizer's padding token has the id {pad}, and the model's embedding has {embeddings} rows: {stop.tokens.eos_token} pads "
        "instead; servers that pad may still fail, so give pad_token in tokenizer_config.json a token of the model"
    )
    return replace(stop, tokens=stop.tokens.model_copy(update={"pad_id": stop.tokens.eos_id})), [warning]


def refuse_long_rows(model: PreparedModel, config: Mapping[str, Any], folder: Path, sets: Iterable[PreparedSet]) -> None:
    """Errors: StageError(RowTooLong) where a row has more tokens than the model has positions."""
    positions = _positions(model, config)
    if positions is None:
        return
    lengths = {entry.name: _longest(folder / entry.arrow) for entry in sets if entry.rows}
    name = max(lengths, key=lambda entry: lengths[entry], default=None)
    if name is not None and lengths[name] > positions:
        raise StageError(
            Reason.ROW_TOO_LONG,
            f"training.maxLength: a row of set {name} has {lengths[name]} tokens, and this model has {positions} positions; "
            f"set training.maxLength to {positions} to have longer rows cut and counted, or split them",
        )


def _positions(model: PreparedModel, config: Mapping[str, Any]) -> int | None:
    """How many positions the model knows; None where it computes them."""
    if model.model_type in _FIXED_TABLES:
        return _count(config, (_FIXED_TABLES[model.model_type],))
    said = _count(config, _SIZES)
    built = model.shape.built
    if said is None or built is None:
        return None
    return said if any(0 <= rows - said <= _MOST_RESERVED for rows in _tables(built)) else None


def _count(config: Mapping[str, Any], names: Iterable[str]) -> int | None:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)


def _tables(built: Architecture) -> Iterable[int]:
    """Rows of each embedding in the decoder that is not of tokens."""
    return (layer.inputs for layer in built.layers if layer.kind == "Embedding" and not layer.beside and layer.path != built.embedding)


def _longest(arrow: Path) -> int:
    """Tokens of the longest row of a set's file."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.ipc

    table = pyarrow.ipc.open_file(pyarrow.memory_map(str(arrow))).read_all()
    return int(pyarrow.compute.max(pyarrow.compute.list_value_length(table.column("input_ids"))).as_py() or 0)
