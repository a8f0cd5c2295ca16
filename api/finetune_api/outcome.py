"""How a stage ends: exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a stage's process ends with. A Job's pod failure policy and the operator's retry policy read these."""

    OK = 0
    CRASH = 1
    """An error nobody foresaw; worth another attempt."""
    INVALID_RUN_FILE = 2
    """The run file does not parse: the platform's own mistake, never retried."""
    INVALID_INPUT = 10
    """Model, data or settings that cannot work: the user must change something; never retried."""
    GATE_FAILED = 11
    """Evidence was gathered and says no; never retried."""
    DIVERGED = 12
    """A loss or gradient norm was not finite; never retried, the last good checkpoint is kept."""
    OUT_OF_MEMORY = 13
    GPU_NOT_VISIBLE = 14
    """The pod was given GPUs and sees none; worth another node."""
    STORAGE = 15
    """Storage full or failing; worth another attempt."""
    PARITY_FAILED = 16
    """An artifact is not what was trained; never retried, nothing is published."""
    TERMINATED = 143
    """Stopped by SIGTERM with the work saved; not a failure of the job."""


RETRYABLE = frozenset({ExitCode.CRASH, ExitCode.OUT_OF_MEMORY, ExitCode.GPU_NOT_VISIBLE, ExitCode.STORAGE, ExitCode.TERMINATED})
