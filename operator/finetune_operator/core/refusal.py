"""The words in which a cluster refuses a pod. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

from finetune_api.quantity import amount_of

REFUSED_S = 60.0
"""How long a refusal of a pod is believed before the pod is asked for again."""

_RANDOM_NAME = re.compile(r'pods "([-a-z0-9.]+)-[bcdfghjklmnpqrstvwxz2456789]{5}"')
_QUOTA = re.compile(r"requested: (?P<requested>.*?), used: .*?, limited: (?P<limited>[^\s]*)")


def steady(words: str) -> str:
    """`words` without what differs with each try: the random end of a pod's name."""
    return _RANDOM_NAME.sub(r'pods "\1"', words)


def is_quota(words: str) -> bool:
    return "exceeded quota" in words


def never_fits(words: str) -> bool:
    """Whether a quota's refusal asks for more than the quota would allow to an empty namespace."""
    found = _QUOTA.search(words)
    if not found:
        return False
    limited = _amounts(found["limited"])
    return any(name in limited and amount > limited[name] for name, amount in _amounts(found["requested"]).items())


def _amounts(text: str) -> dict[str, Decimal]:
    pairs = (item.partition("=") for item in text.split(","))
    return {name.strip(): amount for name, _, value in pairs if (amount := amount_of(value.strip())) is not None}
