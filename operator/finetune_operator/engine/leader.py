"""One replica acts: a Lease, taken and kept by plain POST and PUT.

No client can promise "no write after expiry, whatever paused it"; the fences are in the writes themselves (resourceVersion on status,
uid preconditions, deterministic names). This file keeps the overlap to one request's deadline.
Source: the algorithm of client-go's leaderelection (https://pkg.go.dev/k8s.io/client-go/tools/leaderelection).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.core.names import Object
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from finetune_operator.kube.release import Owners, owned_by_nobody
from finetune_operator.kube.resources import LEASE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. A request must end before the next try, and the leader must give up before another may take over."""

    lease_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0
    request_s: float = 1.5


class LeadershipLost(Exception):
    """Another replica leads, or may: nothing may be written any more."""


@dataclass
class Leader:
    """`client` must have the request timeout of `timing`."""

    client: Client
    namespace: str
    name: str
    identity: str
    timing: Timing = field(default_factory=Timing)
    monotonic: Callable[[], float] = time.monotonic
    owners: Owners = owned_by_nobody
    """Of the Lease where it is made here: without any it would outlive the release."""
    _lease: Object | None = None
    _seen_at: float = 0.0
    _renewed_at: float | None = None

    @property
    def may_write(self) -> bool:
        """Whether the Lease was renewed so lately that nobody else can have taken it."""
        return self._renewed_at is not None and self.monotonic() - self._renewed_at < self.timing.renew_deadline_s

    async def acquire(self) -> None:
        """Returns once this replica leads."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(self.timing.retry_s)
        log.info("leading", extra={"identity": self.identity})

    async def keep(self) -> None:
        """Renews until cancelled. Raises LeadershipLost at once when another holder is seen, or none of the renewals got through."""
        while True:
            await asyncio.sleep(self.timing.retry_s)
            if not self.may_write:
                raise LeadershipLost(f"the Lease was not renewed for {self.timing.renew_deadline_s:g} s")
            if not await self._try() and self._holder() not in ("", self.identity):
                raise LeadershipLost(f"{self._holder()} leads")

    async def release(self) -> None:
        """Lets another replica take over at once. Best effort: without it the Lease runs out."""
        if self._renewed_at is None or self._lease is None:
            return
        self._renewed_at = None
        try:
            await self.client.replace(self._record("", 1))
        except ApiError as error:
            log.warning("the Lease could not be released: %s", error.message)

    async def _try(self) -> bool:
        """One attempt to take or renew; a failed request is as good as a lost race."""
        asked_at = self.monotonic()
        try:
            async with asyncio.timeout(self.timing.request_s):
                if self._lease is None or self._holder() != self.identity:
                    await self._look(asked_at)
                if self._lease is None:
                    self._lease = await self.client.create(self._new(await self.owners()))
                elif self._is_free():
                    self._lease = await self.client.replace(self._record(self.identity, int(self.timing.lease_s)))
                else:
                    return False
        except (Conflict, AlreadyExists):
            await self._look_again()
            return False
        except NotFound:
            self._lease = None
            return False
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease could not be read or written: %s", error or type(error).__name__)
            return False
        self._renewed_at = asked_at
        return True

    async def _look_again(self) -> None:
        """After a lost race: who holds it? A leader must know at once."""
        try:
            async with asyncio.timeout(self.timing.request_s):
                await self._look(self.monotonic())
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease could not be read: %s", error or type(error).__name__)

    async def _look(self, asked_at: float) -> None:
        found = await self.client.find(LEASE, self.namespace, self.name)
        before, self._lease = self._lease, found
        if found is None or before is None or found["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
            self._seen_at = asked_at

    def _holder(self) -> str:
        return str((self._lease or {}).get("spec", {}).get("holderIdentity") or "")

    def _is_free(self) -> bool:
        """Ours, nobody's, or not renewed for its whole duration while this replica's own clock ran: clocks are never compared."""
        assert self._lease is not None
        duration_s = float(self._lease["spec"].get("leaseDurationSeconds") or self.timing.lease_s)
        return self._holder() in ("", self.identity) or self.monotonic() - self._seen_at >= duration_s

    def _new(self, owners: list[Object]) -> Object:
        now = _micro_time()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self.name, "namespace": self.namespace, "ownerReferences": owners},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(self.timing.lease_s),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }

    def _record(self, holder: str, duration_s: int) -> Object:
        assert self._lease is not None
        spec = {**self._lease["spec"], "renewTime": _micro_time(), "leaseDurationSeconds": duration_s, "holderIdentity": holder}
        if holder and holder != self._holder():
            spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        return {**self._lease, "apiVersion": LEASE.api_version, "kind": LEASE.kind, "spec": spec}


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
