"""Planted faults, and which suite sees each: `make mutants`. For people who change the suites; no part of CI.

Each fault is planted alone into a copy of the operator; unit tests and simulation then run side by side, each until its first failure.
`python -m tests.mutants` takes words of faults' sentences to run only those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES = {"unit": ("tests/unit/operator",), "sim": ("tests/sim/test_random_lives.py", "tests/sim")}
"""By name, what sees most faults soonest first."""
LIMIT_S = 900.0
"""Of one suite; one that takes longer has not come to rest, which is a fault seen."""
_COPIED = ("api", "operator", "tests")


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in the file below `operator/finetune_operator`; `new` takes its place."""

    breaks: str
    file: str
    old: str
    new: str


MUTANTS = (
    # ---------------------------------------------------------------------------------------------------------------- engine
    Mutant("older news replaces newer", "engine/store.py", "before.resource_version >= version and", "False and"),
    Mutant("what was deleted comes back", "engine/store.py", "if gone_at >= version and not", "if False and not"),
    Mutant(
        "a late DELETED takes what stands by now",
        "engine/store.py",
        "if before is None or before.uid != uid or before.resource_version > last:",
        "if before is None:",
    ),
    Mutant(
        "an Event without an object ends the first LIST",
        "engine/store.py",
        '(live.get("involvedObject") or {}).get("name")',
        'live["involvedObject"]["name"]',
    ),
    Mutant("a missed deletion is never found", "engine/sync.py", "if name not in seen and version <= listed_at:", "if False:"),
    Mutant("a restored backup is ignored for ever", "engine/sync.py", "if listed_at < known:", "if False:"),
    Mutant(
        "one refused LIST stops the first round",
        "engine/sync.py",
        "            self._lose(part, error)\n            return True",
        "            self._lose(part, error)\n            return False",
    ),
    Mutant(
        "what cannot be seen is decided upon",
        "engine/sync.py",
        "return not any(resource in needed",
        "return True or any(resource in needed",
    ),
    Mutant(
        "an own object whose answer was lost is a stranger",
        "engine/actions.py",
        "        if is_ours(live, body):\n            self._tell",
        "        if False:\n            self._tell",
    ),
    Mutant(
        "labels that were taken away stay away", "engine/actions.py", "if not resource.label_selector or contains(", "if True or contains("
    ),
    Mutant("an apply overwrites what is as wanted", "engine/actions.py", "if contains(live, body) and not action.exactly:", "if False:"),
    Mutant(
        "a status that changed meanwhile ends the pass for good",
        "engine/reconcile.py",
        "            except Stale:\n                return Outcome(again=True)",
        "            except Stale:\n                return Outcome()",
    ),
    Mutant(
        "a status is written though it is the same",
        "engine/reconcile.py",
        "return {name: patch for name, patch in patches.items() if patch}",
        "return patches",
    ),
    Mutant("a failed pass is not tried again", "engine/queue.py", "        if outcome.failed:\n", "        if False:\n"),
    Mutant("a leader that hears nothing writes on", "engine/leader.py", "            if not self.may_write:\n", "            if False:\n"),
    Mutant("a Lease that somebody holds is taken", "engine/leader.py", 'return self._holder() in ("", self.identity) or', "return True or"),
    Mutant(
        "probes wait for the API server",
        "runtime.py",
        "await self._serve(self.options.health_port, health.probes())",
        "await _patiently(lambda: self._probe(client)); await self._serve(self.options.health_port, health.probes())",
    ),
    # ----------------------------------------------------------------------------------------------------------- finetunejob
    Mutant(
        "an interrupted attempt is counted",
        "finetunejob/attempt.py",
        "failures = attempt.failures + (1 if outcome.counted else 0)",
        "failures = attempt.failures + 1",
    ),
    Mutant(
        "a failure is not counted",
        "finetunejob/attempt.py",
        "failures = attempt.failures + (1 if outcome.counted else 0)",
        "failures = attempt.failures",
    ),
    Mutant("a final error is tried again", "finetunejob/policies/retry.py", "return self.retry is Retry.NEVER", "return False"),
    Mutant(
        "a version is made before its number is durable",
        "finetunejob/publish.py",
        "        return _reserve(draft, spec.publish)\n",
        "        _reserve(draft, spec.publish)\n"
        "        draft.status_first = False\n"
        "        draft.actions.append(Create(make_model_version(spec, draft.job, draft.status)))\n"
        "        return True\n",
    ),
    Mutant("a version's number is taken twice", "finetunejob/publish.py", "max(taken, default=0) + 1", "1"),
    Mutant("the claim goes with its job", "finetunejob/publish.py", "if claim and _owned_by_job(draft, claim):", "if False:"),
    Mutant(
        "an answer that vanished with its pod is not asked for again",
        "finetunejob/attempt.py",
        "failures=attempt.failures, report=True)",
        "failures=attempt.failures)",
    ),
    # ---------------------------------------------------------------------------------------------------------- modelversion
    Mutant(
        "a step is left before its hold",
        "modelversion/versions.py",
        "return timedelta(seconds=sum(int(number) * _UNITS_S[unit]",
        "return timedelta(seconds=0 * sum(int(number) * _UNITS_S[unit]",
    ),
    Mutant(
        "a move is acted upon before it is durable",
        "modelversion/plan.py",
        "actions=() if moves else tuple(_actions(after, children))",
        "actions=tuple(_actions(after, children))",
    ),
    Mutant("a version starts before its pods are ready", "modelversion/policies/steps.py", "if starting and not ready:", "if False:"),
    Mutant(
        "the former version keeps production",
        "modelversion/policies/succession.py",
        "        if version.place.stage == Stage.PRODUCTION:\n            moves",
        "        if False:\n            moves",
    ),
    Mutant(
        "an abort changes nothing",
        "modelversion/policies/succession.py",
        "if version.spec.rollout.abort and not abort_is_refused(version, versions, now):",
        "if False:",
    ),
    Mutant(
        "all traffic goes to the candidate",
        "modelversion/policies/traffic.py",
        "weights[taker.name] += 100 - sum(weights.values())",
        "weights[live[-1].name] += 100 - sum(weights.values())",
    ),
)


def main(words: list[str]) -> int:
    """Prints a line per fault and the sums. 0 where each was seen by one of the suites."""
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.breaks for word in words)]
    print(f"{'unit':>8} {'sim':>8}  fault")
    seen = dict.fromkeys(SUITES, 0)
    missed = 0
    for mutant in chosen:
        caught = _caught(mutant)
        for suite, is_caught in caught.items():
            seen[suite] += is_caught
        missed += not any(caught.values())
        print(
            " ".join(f"{'caught' if is_caught else '-':>8}" for is_caught in caught.values()),
            f" {mutant.breaks} ({mutant.file})",
            flush=True,
        )
    seen["one of them"] = len(chosen) - missed
    print("caught by", ", ".join(f"{suite}: {count} of {len(chosen)}" for suite, count in seen.items()))
    return 1 if missed else 0


def _caught(mutant: Mutant) -> dict[str, bool]:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        _copy_into(copy)
        planted = copy / "operator" / "finetune_operator" / mutant.file
        planted.write_text(planted_text(mutant, planted.read_text()))
        with ThreadPoolExecutor(len(SUITES)) as side_by_side:
            return dict(zip(SUITES, side_by_side.map(lambda paths: _fails(copy, paths), SUITES.values()), strict=True))


def planted_text(mutant: Mutant, text: str) -> str:
    """A file's text with the fault. ValueError: the list is older than the code."""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times: mend the list of faults in tests/mutants.py")
    return text.replace(mutant.old, mutant.new)


def _copy_into(copy: Path) -> None:
    """The operator and its tests; all else is the original, by links."""
    for entry in ROOT.iterdir():
        if entry.name in _COPIED:
            shutil.copytree(entry, copy / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.name not in (".git", ".hypothesis"):
            (copy / entry.name).symlink_to(entry)


def _fails(copy: Path, paths: tuple[str, ...]) -> bool:
    path = os.pathsep.join(str(copy / name) for name in ("api", "operator", "trainer", "."))
    environment = {**os.environ, "PYTHONPATH": path, "HYPOTHESIS_STORAGE_DIRECTORY": str(copy / ".hypothesis")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    began = time.monotonic()
    try:
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    if ended.returncode not in (0, 1):
        raise RuntimeError(
            f"pytest ended with {ended.returncode} after {time.monotonic() - began:.0f} s:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        )
    return ended.returncode == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
