"""How a stage says that it cannot go on."""

import signal

from finetune_api.answer import StageResult
from finetune_api.outcome import Reason


class StageError(Exception):
    """A stage ends with a reason, whose row has the exit code, and a sentence for the user (what was expected, what to do).

    The sentence never quotes the data's text: rows, lines, columns, positions and counts only. `result` carries evidence that
    was gathered before the end (a failed gate's evaluation, the last good checkpoint).
    """

    def __init__(self, reason: Reason, message: str, result: StageResult | None = None) -> None:
        self.reason = reason
        self.message = printable(message)
        super().__init__(f"{reason}: {self.message}")
        self.exit_code = reason.exit_code
        self.result = result


def printable(text: str) -> str:
    """The text with half surrogate pairs written out (\\ud800): names of columns and files may hold them, UTF-8 does not."""
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_killed(tool: str, status: int) -> None:
    """Errors: StageError(OutOfMemory) where a program that a stage started ended by SIGKILL; only the kernel sends it one."""
    if status == -signal.SIGKILL:
        raise StageError(Reason.OUT_OF_MEMORY, f"{tool} was killed because memory ran out; raise this stage's memory")
