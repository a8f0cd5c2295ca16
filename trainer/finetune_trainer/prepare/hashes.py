"""Sets of 128-bit hashes for tens of millions of rows: 16 bytes each, in sorted arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_RECENT_LIMIT = 1 << 16
Hashes = npt.NDArray[np.bytes_]


class HashSet:
    """16 bytes per member, and at most `_RECENT_LIMIT` members in a Python set. Membership is exact on the 128 bits."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return len(self._recent) + sum(len(run) for run in self._runs)

    def contains(self, members: Sequence[bytes]) -> list[bool]:
        """Whether each is in the set."""
        found = np.array([member in self._recent for member in members], dtype=bool)
        keys = np.array(members, dtype="S16")
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            found |= run[places] == keys
        return [bool(value) for value in found]

    def add(self, members: Sequence[bytes]) -> list[bool]:
        """Adds all; True for each that was new, the first of equal ones within `members` only."""
        if not members:
            return []
        known = self.contains(members)
        new = []
        for member, was_known in zip(members, known, strict=True):
            new.append(not was_known and member not in self._recent)
            if new[-1]:
                self._recent.add(member)
        if len(self._recent) >= _RECENT_LIMIT:
            self._settle()
        return new

    def common(self, other: HashSet) -> int:
        """Number of members that both hold."""
        self._settle()
        other._settle()  # numpy drops a hash's trailing zero byte, which arrays ignore and a Python set would not
        return sum(sum(other.contains(list(part))) for run in self._runs for part in np.array_split(run, len(run) // 65536 + 1))

    def _settle(self) -> None:
        """Moves recent members into a sorted run; runs double in size, so that there are few."""
        if not self._recent:
            return
        run: Hashes = np.sort(np.array(list(self._recent), dtype="S16"))
        self._recent = set()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def hash_of(*parts: str) -> bytes:
    """128 bits of a list of texts, none of which can pass for another's continuation."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
