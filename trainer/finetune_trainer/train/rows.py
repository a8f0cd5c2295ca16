"""Prepared rows as TRL takes them: token ids and labels, memory-mapped; packed on wish; proven not to see each other."""

from __future__ import annotations

from typing import Any

import datasets
import torch
import trl
from finetune_api.sections.training import Packing, Training

from finetune_trainer.prepared import IGNORED_LABEL, Prepared

_PROBE_TOKENS = 8


def training_rows(prepared: Prepared, training: Training) -> datasets.Dataset:
    """Columns input_ids and labels, a row each; with packing Documents whole rows joined up to max_length, and `seq_lengths`."""
    rows = _rows(prepared, "train")
    if training.packing is Packing.NONE:
        return rows
    datasets.disable_caching()  # cache files would lie beside the published data; without, they go to a temporary folder
    shuffled = rows.shuffle(seed=training.seed, keep_in_memory=True)  # neighbours in a file are alike; so would a pack's rows be
    return trl.pack_dataset(shuffled, training.max_length, "bfd")


def validation_rows(prepared: Prepared, rows_per_round: int) -> datasets.Dataset | None:
    """Rows of the validation split, never packed; None where there are none.

    Filled up with rows that train nothing to whole rounds of `rows_per_round` over all ranks: ranks that run short would otherwise
    be given rows of the beginning again, and those count twice.
    """
    count = prepared.set("validation").rows
    if not count:
        return None
    rows, missing = _rows(prepared, "validation"), -count % rows_per_round
    fill = {"input_ids": [[prepared.tokens.pad_id]] * missing, "labels": [[IGNORED_LABEL]] * missing}
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_dict(fill, features=rows.features)]) if missing else rows


def _rows(prepared: Prepared, name: str) -> datasets.Dataset:
    # The fingerprint is given because datasets would otherwise read the whole table to make one.
    return datasets.Dataset(prepared.table(name), fingerprint=f"{prepared.file.dataset.digest[:32]}-{name}")


def rows_see_each_other(trainer: Any) -> bool:
    """Whether a row's logits move when the row before it in a flattened batch changes, on this model and its attention.

    Same shapes and the same kernels both times: without a leak the logits are equal, whatever their type. A model that refuses flattened
    rows (LFM2's convolutions without their kernel) cannot keep them apart either.
    """
    vocabulary = trainer.model.get_input_embeddings().weight.shape[0]
    first, second = [[(start + i) % vocabulary for i in range(_PROBE_TOKENS)] for start in (0, _PROBE_TOKENS)]
    changed = [(token + 1) % vocabulary for token in reversed(first)]
    try:
        one, other = (_second_logits(trainer, [rows, second]) for rows in (first, changed))
    except (ValueError, NotImplementedError):
        return True
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def _second_logits(trainer: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits (8, V) of the second of two rows of 8 tokens, flattened as in training."""
    inputs = trainer._prepare_inputs(trainer.data_collator([{"input_ids": row, "labels": row} for row in rows]))
    inputs.pop("labels")
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = trainer.model(**inputs, use_cache=False).logits
    trainer.model.train(was_training)
    return logits[0, _PROBE_TOKENS:].float()
