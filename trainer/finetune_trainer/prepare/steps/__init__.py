"""The steps that may drop rows, between reading and splitting: a file each, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.sections.data import Preparation

from finetune_trainer.prepare.candidates import Step
from finetune_trainer.prepare.steps.deduplicate import Deduplicate

STEPS: tuple[Callable[[Preparation], Step], ...] = (Deduplicate,)
