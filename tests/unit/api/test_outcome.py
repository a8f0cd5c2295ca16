"""The table of reasons: whole, used, and spelt nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from finetune_api.outcome import FINAL_EXIT_CODES, ExitCode, Reason, Retry, retry_of

from tests.reasons import OPERATOR, TRAINER, nodes, reason_of, reasons_named

REASON_ARGUMENT = {
    "StageError": 0,
    "Finding": 0,
    "Refused": 0,
    "Trouble": 0,
    "Obstacle": 0,
    "Outcome": 0,
    "ended": 0,
    "event": 0,
    "Event": 1,
    "Failure": 1,
    "fail": 1,
    "succeed": 1,
    "set": 2,
    "Condition": 2,
    "ActionProblem": 2,
}
"""Which argument of a call is a reason; `reason=` is one everywhere."""

NEED_A_PERSON = ("Finding", "Refused")

KUBERNETES = {"Failed", "Succeeded", "Running", "Unschedulable", "Accepted"}
"""Reasons that are also words of Kubernetes: phases, reasons and conditions of its own objects."""


def calls() -> Iterator[tuple[str, str, ast.expr]]:
    """(where, what is called, its argument that is a reason) of every call that has one."""
    for where, node in nodes(OPERATOR, TRAINER):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        position = REASON_ARGUMENT.get(name)
        if position is not None and len(node.args) > position:
            yield where, name, node.args[position]
        yield from ((where, name, keyword.value) for keyword in node.keywords if keyword.arg == "reason")


def is_spelt(argument: ast.expr) -> bool:
    """Whether a string of the call's own may become the reason."""
    if isinstance(argument, ast.IfExp):
        return is_spelt(argument.body) or is_spelt(argument.orelse)
    if isinstance(argument, ast.BoolOp):
        return any(map(is_spelt, argument.values))
    return isinstance(argument, ast.JoinedStr) or (isinstance(argument, ast.Constant) and bool(argument.value))


_PROMISE = re.compile(r"(tried|try|retried) again|again later|another attempt|next (attempt|start|try)|retries|goes on by itself")


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.ends_a_stage])
def test_the_row_of_a_stages_end_promises_no_attempt(reason: Reason) -> None:
    """It is read of the last one as well."""
    assert not _PROMISE.search(f"{reason.sentence} {reason.cure}")


def test_no_stage_says_that_it_is_tried_again() -> None:
    """It does not know which attempt it is: what follows is the operator's word."""
    errors = [(where, node) for where, node in nodes(TRAINER) if isinstance(node, ast.Call) and ast.unparse(node.func) in _ENDS]
    assert len(errors) > 100
    assert [where for where, node in errors for text in _texts(node) if _PROMISE.search(text)] == []


_ENDS = ("StageError", "terminated", "Interruption")


def _texts(call: ast.Call) -> list[str]:
    return [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("reason", Reason)
def test_a_reasons_row_is_whole(reason: Reason) -> None:
    assert reason.name.replace("_", "") == reason.value.upper()
    assert reason.sentence.endswith(".")
    assert not reason.cure or reason.cure.endswith(".")
    if reason.retry is Retry.NEVER and reason is not Reason.COMPLETED:
        assert reason.cure, "no attempt follows: a person must know what to do"


def test_every_reason_is_used() -> None:
    assert set(Reason) - reasons_named(OPERATOR, TRAINER) == set()


def test_every_reason_with_an_exit_code_is_one_that_a_stage_ends_with() -> None:
    assert {reason for reason in Reason if reason.ends_a_stage} - reasons_named(TRAINER) == set()


def test_a_stage_ends_only_with_reasons_that_have_an_exit_code() -> None:
    raised = {reason for _, name, argument in calls() if name == "StageError" and (reason := reason_of(argument))}
    assert len(raised) > 50
    assert {reason for reason in raised if not reason.ends_a_stage or reason.exit_code is ExitCode.OK} == set()


def test_every_reason_that_needs_a_person_has_a_cure() -> None:
    found = {reason for _, name, argument in calls() if name in NEED_A_PERSON and (reason := reason_of(argument))}
    assert len(found) > 8
    assert {reason for reason in found if not reason.cure} == set()


def test_no_call_spells_its_reason() -> None:
    found = list(calls())
    assert {name for _, name, _ in found} >= set(REASON_ARGUMENT), "a name that nothing is called by guards nothing"
    assert [f"{where} {name}({ast.unparse(argument)})" for where, name, argument in found if is_spelt(argument)] == []


def test_no_string_spells_a_reason() -> None:
    spelt = {str(reason) for reason in Reason} - KUBERNETES
    assert [where for where, node in nodes(OPERATOR, TRAINER) if isinstance(node, ast.Constant) and node.value in spelt] == []


@pytest.mark.parametrize("code", ExitCode)
def test_kubernetes_and_the_operator_agree_on_what_is_final(code: ExitCode) -> None:
    assert (code in FINAL_EXIT_CODES) == (retry_of(int(code)) is Retry.NEVER and code is not ExitCode.OK)


@pytest.mark.parametrize(
    ("exit_code", "retry"),
    [(1, Retry.COUNTED), (10, Retry.NEVER), (15, Retry.COUNTED), (77, Retry.NEVER), (137, Retry.COUNTED), (139, Retry.COUNTED)],
)
def test_what_follows_an_exit_code(exit_code: int, retry: Retry) -> None:
    assert retry_of(exit_code) is retry


def test_a_reason_without_an_exit_code_ends_no_stage() -> None:
    assert not Reason.PREEMPTED.ends_a_stage
    with pytest.raises(AssertionError, match="Preempted"):
        _ = Reason.PREEMPTED.exit_code


def test_a_reason_is_read_by_its_name_and_is_plain_text_in_json() -> None:
    assert Reason("GPUNotVisible") is Reason.GPU_NOT_VISIBLE
    assert f"{Reason.GPU_NOT_VISIBLE}" == "GPUNotVisible"
