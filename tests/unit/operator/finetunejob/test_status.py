"""The status of a job: read from any release's hand, written as it was, and seen as a phase."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finetune_api.finetunejob import AttemptRecord, ConditionType, CurrentAttempt, FineTuneJobStatus, Phase
from finetune_api.run import Stage
from finetune_api.status import ConditionStatus
from finetune_operator.core.containment import merge_patch
from finetune_operator.core.unreadable import Unreadable
from finetune_operator.finetunejob.policies.phase import phase_of
from finetune_operator.finetunejob.status import CONDITION, read_status
from hypothesis import given
from hypothesis import strategies as st

from tests.schema import violations
from tests.unit.operator.finetunejob.test_plan import ANSWERS, STATUS_SCHEMA, World, run_to, run_to_end

STATUSES: dict[str, dict[str, Any]] = json.loads((Path(__file__).resolve().parents[3] / "golden" / "finetunejob-statuses.json").read_text())


# ------------------------------------------------------------------------------------------------------------------ as it was


@pytest.mark.parametrize("case", STATUSES)
def test_a_status_of_the_first_release_is_written_back_as_it_was(case: str) -> None:
    status = STATUSES[case]
    read = read_status({"status": status})
    assert isinstance(read, FineTuneJobStatus)
    read.phase, read.display = Phase(status["phase"]), read.display.model_validate(status["display"])
    assert json.dumps(read.wire(), sort_keys=True) == json.dumps(status, sort_keys=True)
    assert list(violations(STATUS_SCHEMA, status)) == []


@pytest.mark.parametrize("stage", [*ANSWERS, ""])
def test_what_a_pass_writes_is_within_the_schema_and_read_back_as_it_is(stage: str) -> None:
    world = run_to(stage) if stage else run_to_end()
    status = world.job["status"]
    assert list(violations(STATUS_SCHEMA, status)) == []
    assert merge_patch(status, world.step().status) == {}


def test_members_of_a_newer_release_are_kept() -> None:
    world = run_to("train")
    world.job["status"] |= {"queue": {"name": "gpus"}, "phase": "Queued", "display": 7}
    world.job["status"]["attempt"]["flavor"] = "a100"
    status = world.step().status
    assert status["queue"] == {"name": "gpus"}
    assert status["attempt"]["flavor"] == "a100"
    assert (status["phase"], status["display"]["eta"]) == ("Training", ""), "views are never read"


# ------------------------------------------------------------------------------------------------------------- what does not parse


BROKEN: dict[str, tuple[Any, str]] = {
    "a time that is none": ({"startTime": "yesterday"}, "status.startTime"),
    "a time without zone": ({"activeSince": "2030-01-01T00:00:00"}, "status.activeSince"),
    "a stage of another release": ({"attempt": {"stage": "distill", "number": 1}}, "status.attempt.stage"),
    "an attempt without number": ({"attempt": {"stage": "train"}}, "status.attempt.number"),
    "evidence in another form": ({"dataset": [1]}, "status.dataset"),
    "a condition that is neither true nor false": (
        {"conditions": [{"type": "Succeeded", "status": "Perhaps"}]},
        "status.conditions.0.status",
    ),
    "a condition without status": ({"conditions": [{"type": "Prepared"}]}, "status.conditions.0.status"),
}


def broken(case: str) -> World:
    world = run_to("train")
    world.job["status"] |= copy.deepcopy(BROKEN[case][0])
    return world


@pytest.mark.parametrize("case", BROKEN)
def test_a_status_that_does_not_parse_is_told_and_left_as_it_is(case: str) -> None:
    world = broken(case)
    before = copy.deepcopy(world.job["status"])
    made = world.step()
    assert made.actions == ()
    assert (world.condition("Stalled")["status"], world.condition("Stalled")["reason"]) == ("True", "InvalidStatus")
    assert world.condition("Stalled")["message"].startswith(BROKEN[case][1])
    metadata = world.job["metadata"]
    command = f"kubectl edit finetunejob/{metadata['name']} -n {metadata['namespace']} --subresource=status"
    assert world.condition("Stalled")["message"].endswith(command)
    assert world.condition("Reconciling")["status"] == "False"
    assert set(merge_patch(before, made.status)) == {"conditions"}
    assert [(event.type, event.reason) for event in made.events] == [("Warning", "InvalidStatus")]
    told = copy.deepcopy(made.status)
    again = world.step()
    assert (again.status, again.events) == (told, ()), "said once"


def test_conditions_that_are_no_list_are_left_as_they_are() -> None:
    world = run_to("train")
    world.job["status"]["conditions"] = "Succeeded"
    before = copy.deepcopy(world.job["status"])
    assert (world.step().status, world.observed.jobs[1].deleting) == (before, False)


def test_a_status_that_was_mended_goes_on() -> None:
    world = broken("a time that is none")
    started = run_to("train").job["status"]["startTime"]
    world.step()
    world.job["status"]["startTime"] = started
    world.end("job-train-1", ANSWERS["train"])
    world.step()
    assert world.condition("Trained")["status"] == "True"
    assert world.condition("Stalled")["status"] == "False"


def test_a_value_that_does_not_parse_is_not_quoted() -> None:
    status = read_status({"status": {"startTime": "hf_secret"}})
    assert isinstance(status, Unreadable)
    assert "hf_secret" not in status.problem


def test_a_condition_made_by_hand_needs_no_more_than_its_type_and_status() -> None:
    status = read_status({"status": {"conditions": [{"type": "Succeeded", "status": "True"}]}})
    assert isinstance(status, FineTuneJobStatus)
    assert status.conditions[0].last_transition_time is None


# ----------------------------------------------------------------------------------------------------------------------- phase


PHASE = dict(zip(Stage, (Phase.PREPARING, Phase.TRAINING, Phase.PACKAGING, Phase.EVALUATING), strict=True))


def phase_as_it_was(status: FineTuneJobStatus) -> Phase:
    """The order in which the steps of a pass used to set it, the last one winning, until the end overrode all."""
    conditions = {condition.type: (condition.status, condition.reason) for condition in status.conditions}
    phase = Phase.PENDING
    is_valid = conditions.get("Validated", ("", ""))[0] == "True"
    is_suspended = conditions.get("Suspended", ("", "")) in (("True", "Suspended"), ("False", "Suspending"))
    stalled = conditions.get("Stalled", ("", ""))[0] == "True"
    if status.start_time is None and conditions.get("Validated", ("", ""))[0] == "False" and stalled:
        phase = Phase.REFUSED
    if status.start_time is None and is_valid and conditions.get("Suspended", ("", ""))[0] == "True":
        phase = Phase.SUSPENDED
    if status.start_time is not None:
        phase = Phase.PUBLISHING
        for stage in reversed(Stage):
            if conditions.get(CONDITION[stage], ("", ""))[0] != "True":
                tried_before = any(record.stage == stage for record in status.attempts)
                has_reported = status.attempt is not None and status.attempt.progress_seen
                phase = Phase.RESUMING if tried_before and not has_reported else PHASE[stage]
        if is_suspended:
            phase = Phase.SUSPENDED
    ended = conditions.get("Succeeded", ("Unknown", ""))[0]
    return {"True": Phase.SUCCEEDED, "False": Phase.FAILED}.get(ended, phase)


@st.composite
def statuses(draw: st.DrawFn) -> FineTuneJobStatus:
    words = {ConditionType.SUSPENDED: st.sampled_from([("True", "Suspended"), ("False", "Suspending"), ("False", "NotSuspended")])}
    any_word = st.tuples(st.sampled_from(["True", "False", "Unknown"]), st.just("Any"))
    conditions = []
    for type in draw(st.sets(st.sampled_from(ConditionType))):
        status, reason = draw(words.get(type, any_word))
        conditions.append(ConditionStatus(type=type.value, status=status, reason=reason))
    stages = st.sampled_from(Stage)
    attempt = CurrentAttempt(stage=draw(stages), number=2, progress_seen=draw(st.sampled_from([None, True])))
    records = [AttemptRecord(stage=stage.value, number=1, reason="Crashed") for stage in draw(st.lists(stages, max_size=3))]
    start = draw(st.sampled_from([None, datetime(2030, 1, 1, tzinfo=UTC)]))
    return FineTuneJobStatus(conditions=conditions, attempt=attempt, attempts=records, start_time=start)


@given(statuses())
def test_the_phase_is_what_the_steps_of_a_pass_used_to_say(status: FineTuneJobStatus) -> None:
    assert phase_of(status) == phase_as_it_was(status)


@given(st.sampled_from(Phase))
def test_no_phase_that_is_written_changes_what_a_pass_decides(phase: Phase) -> None:
    world = run_to("train")
    world.end("job-train-1", None, 1)
    other = World(copy.deepcopy(world.job), replace(world.observed), world.now)
    other.job["status"]["phase"] = phase.value
    assert other.step() == world.step()
