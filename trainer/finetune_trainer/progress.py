"""Progress, reported by one background thread and never by the work itself."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """Takes the latest value at any rate, without blocking; a thread posts it."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Progress:
        return cls()

    def report(self, fraction: float | None = None, **metrics: float) -> None:
        """Notes the share done (0…1) and metrics by name; costs no I/O."""

    def close(self) -> None:
        """Posts what was noted last, waiting at most a second or two."""
