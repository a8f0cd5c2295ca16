"""What the API server refused is not sent again before its time, however often the pass is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_api.outcome import Reason

from finetune_operator.core.plan import PASSING_PROBLEMS, Action, ActionProblem
from finetune_operator.core.refusal import REFUSED_S
from finetune_operator.engine.store import Key

_FIRST = timedelta(seconds=2)
_LONGEST = timedelta(seconds=REFUSED_S)
_LONGEST_ASKED_S = 120.0
_ASKED_OF_A_PERSON = timedelta(seconds=15)
"""Of a stranger's object: whoever took it away as asked waits for an answer, and no watch tells of it."""
_SOON = PASSING_PROBLEMS | {Reason.QUOTA_EXCEEDED}
"""Reasons whose cause may be gone in a moment: tried again sooner at first."""


@dataclass(frozen=True)
class _Held:
    action: Action
    problem: ActionProblem
    until: datetime
    times: int


@dataclass
class Refusals:
    """By key and by the object that an action is about. An action of other content is sent at once: it may be the cure."""

    now: Callable[[], datetime]
    _held: dict[Key, dict[tuple[str, str], _Held]] = field(default_factory=dict)

    def problem(self, key: Key, action: Action) -> ActionProblem | None:
        """The answer that `action` got last, while it is not worth sending again."""
        held = self._held.get(key, {}).get(_about(action))
        return held.problem if held and held.action == action and self.now() < held.until else None

    def hold(self, key: Key, action: Action, problem: ActionProblem, asked_s: float | None = None) -> None:
        """`asked_s`: seconds after which the API server asked to come back."""
        before = self._held.get(key, {}).get(_about(action))
        times = before.times + 1 if before and before.action == action else 0
        wait = min(_FIRST * 2 ** min(times, 10), _LONGEST) if problem.reason in _SOON else _LONGEST
        wait = _ASKED_OF_A_PERSON if problem.reason == Reason.NOT_OWNED else wait
        wait = max(wait, timedelta(seconds=min(asked_s or 0.0, _LONGEST_ASKED_S)))
        self._held.setdefault(key, {})[_about(action)] = _Held(action, problem, self.now() + wait, times)

    def until(self, key: Key) -> datetime | None:
        """When the first of them is worth sending again."""
        return min((held.until for held in self._held.get(key, {}).values() if held.until > self.now()), default=None)

    def forget(self, key: Key) -> None:
        self._held.pop(key, None)


def _about(action: Action) -> tuple[str, str]:
    body = getattr(action, "body", None)
    if body is not None:
        return body["kind"], body["metadata"]["name"]
    return getattr(action, "kind", ""), getattr(action, "name", "")
