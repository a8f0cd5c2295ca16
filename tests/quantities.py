"""Quantities as people write them: what a Pod takes and what it refuses. Tried on the models, on the CRDs and on a real API server."""

from __future__ import annotations

from typing import Any

ACCEPTED: list[Any] = [
    0,
    1,
    2,
    16,
    4294967296,
    "0",
    "2",
    "+2",
    "0.5",
    ".5",
    "1.",
    "500m",
    "1500m",
    "250000u",
    "128974848",
    "128974848000m",
    "129e6",
    "1E3",
    "1e+9",
    "25e-1",
    "129M",
    "123Mi",
    "4Gi",
    "1.5Gi",
    "1E",
    "1Ei",
    "2P",
    "2Pi",
]

REFUSED: list[Any] = ["", "1 Gi", "4GB", "4gi", "4g", "4K", "1core", "-1", -1, "1e", "1e3Gi", "1m5", "0x10", "1_000", True, [1], {}]
"""`4K` is none: the letter of a thousand is small, that of 1024 is `Ki`."""
