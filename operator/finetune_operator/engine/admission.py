"""Whether pods and claims would be accepted, asked by dry runs before anything depends on it. Pod Security, LimitRange and quotas answer in their own words."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem
from finetune_operator.core.refusal import REFUSED_S
from finetune_operator.engine.actions import problem_about
from finetune_operator.engine.store import Key
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import AlreadyExists, ApiError, Retryable, Unreachable

_ACCEPTED_S = 600.0
_FAILURES_TOLD = 4
_TOO_MANY_REQUESTS = 429
_REMEMBERED = 4096


@dataclass(frozen=True)
class _Known:
    digest: str
    until: float
    refused: Mapping[str, ActionProblem]


@dataclass
class Admission:
    """Answers are kept for ten minutes, refusals for one: then the first of them is asked for again, and the rest when it is gone."""

    client: Client
    monotonic: Callable[[], float] = time.monotonic
    _known: OrderedDict[Key, _Known] = field(default_factory=OrderedDict)
    _failures: dict[Key, int] = field(default_factory=dict)

    async def refused(self, key: Key, bodies: Mapping[str, Object]) -> Mapping[str, ActionProblem]:
        """Those (by any name) that would be refused, and why. Raises Retryable while a failure of the API server may pass."""
        digest = _digest(bodies)
        known = self._known.get(key)
        if known and known.digest == digest:
            if self.monotonic() < known.until:
                return known.refused
            first = next(iter(known.refused), None)
            if first and (again := await self._ask(key, {first: bodies[first]})):
                return self._remember(key, digest, {**known.refused, **again})
        return self._remember(key, digest, await self._ask(key, bodies))

    def _remember(self, key: Key, digest: str, refused: Mapping[str, ActionProblem]) -> Mapping[str, ActionProblem]:
        self._known[key] = _Known(digest, self.monotonic() + (REFUSED_S if refused else _ACCEPTED_S), refused)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return refused

    async def _ask(self, key: Key, bodies: Mapping[str, Object]) -> dict[str, ActionProblem]:
        """Those that are refused. Raises Retryable where the API server fails, or could not be reached, unless it has for a while."""
        answers = await asyncio.gather(*(self._answer(body) for body in bodies.values()))
        failed = next((error for error in answers if isinstance(error, Retryable)), None)
        if failed is None:
            self._failures.pop(key, None)
        else:
            self._failures[key] = self._failures.get(key, 0) + 1
            if isinstance(failed, Unreachable) or failed.status == _TOO_MANY_REQUESTS or self._failures[key] < _FAILURES_TOLD:
                raise failed
        return {
            name: problem_about(bodies[name]["kind"], bodies[name]["metadata"]["name"], error)
            for name, error in zip(bodies, answers, strict=True)
            if error
        }

    async def _answer(self, body: Object) -> ApiError | None:
        try:
            with suppress(AlreadyExists):
                await self.client.create(body, dry_run=True)
        except ApiError as error:
            return error
        return None


def _digest(bodies: Mapping[str, Object]) -> str:
    """They are made in the same order each time, so that nothing needs to be sorted."""
    return hashlib.sha256(json.dumps(bodies).encode()).hexdigest()
