"""Whose token is it? TokenReview, asked at most once a minute per token."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_operator.core.names import Object
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import Retryable

_GOOD_S = 60.0
_BAD_S = 10.0
_REMEMBERED = 4096
_AT_ONCE = 4
_WAITING = 64
"""Those under way included."""
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True)
class Identity:
    """The pod that a service account token is bound to."""

    namespace: str
    pod_uid: str


@dataclass
class Tokens:
    """`audience` is the prefix before `/<namespace>/<job>`."""

    client: Client
    audience: str
    monotonic: Callable[[], float] = time.monotonic
    _known: OrderedDict[str, tuple[float, Identity | None]] = field(default_factory=OrderedDict)
    _reviews: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _waiting: int = 0

    async def identify(self, token: str, namespace: str, job: str) -> Identity | None:
        """Who holds a token for this very job; None where it is not valid for it. Raises ApiError."""
        audience = f"{self.audience}/{namespace}/{job}"
        digest = hashlib.sha256(f"{audience}\n{token}".encode()).hexdigest()
        known = self._known.get(digest)
        if known and self.monotonic() < known[0]:
            return known[1]
        identity = _identity(await self._review(token, audience), audience)
        self._known[digest] = (self.monotonic() + (_GOOD_S if identity else _BAD_S), identity)
        self._known.move_to_end(digest)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return identity

    async def _review(self, token: str, audience: str) -> Object:
        """Few at a time: everything else that this process asks the API server must get through as well."""
        if self._waiting >= _WAITING:
            raise Retryable("too many tokens wait for their review")
        self._waiting += 1
        try:
            async with self._reviews:
                return await self.client.review_token(token, audience)
        finally:
            self._waiting -= 1


def _identity(review: Object, audience: str) -> Identity | None:
    # an API server that knows nothing of audiences leaves the list out: that is no proof
    if not review.get("authenticated") or audience not in (review.get("audiences") or ()):
        return None
    user = review.get("user") or {}
    parts = str(user.get("username", "")).split(":")
    uids = (user.get("extra") or {}).get(_POD_UID) or []
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or len(uids) != 1:
        return None
    return Identity(parts[2], uids[0])


@dataclass
class Rate:
    """Token buckets: `per_second` on average and `burst` at once for each subject."""

    per_second: float = 2.0
    burst: float = 10.0
    monotonic: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def allows(self, subject: str) -> bool:
        now = self.monotonic()
        level, at = self._buckets.get(subject, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.per_second)
        allowed = level >= 1.0
        self._buckets[subject] = (level - 1.0 if allowed else level, now)
        self._buckets.move_to_end(subject)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed
