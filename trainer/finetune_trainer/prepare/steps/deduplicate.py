"""Each row once: what an earlier row says, and what rows say that data sets brought along for testing, is not trained on."""

from __future__ import annotations

from finetune_api.sections.data import Preparation

from finetune_trainer.prepare.candidates import Candidate, Part
from finetune_trainer.prepare.hashes import HashSet


class Deduplicate:
    """Test rows are met first (`Pipeline.read_all`)."""

    def __init__(self, preparation: Preparation) -> None:
        self._exact = preparation.deduplicate.exact
        self._seen = HashSet()
        self._tested = HashSet()

    def dropped(self, part: Part, candidates: list[Candidate]) -> list[str]:
        hashes = [candidate.content for candidate in candidates]
        if part.is_test:
            return ["" if new else "Duplicate" for new in self._tested.add(hashes)]
        tested = self._tested.contains(hashes) if hashes else []
        fresh = self._seen.add(hashes) if self._exact else [True] * len(hashes)
        return ["InTestSplit" if in_test else "" if new else "Duplicate" for in_test, new in zip(tested, fresh, strict=True)]
