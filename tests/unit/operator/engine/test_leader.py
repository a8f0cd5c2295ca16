"""One leader: takes a free Lease, keeps it, stops at once when another is seen, lets go at the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from finetune_operator.engine.leader import Leader, LeadershipLost, Timing
from finetune_operator.kube.client import Client, Request, Response

FAST = Timing(lease_s=15, renew_deadline_s=10, retry_s=0.001, request_s=0.05)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class LeaseServer:
    """One Lease with resourceVersions. `down`: no request is answered. `slow`: it never ends."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.down = False
        self.slow = False
        self.requests = 0

    async def send(self, request: Request) -> Response:
        self.requests += 1
        if self.slow:
            await asyncio.sleep(10)
        if self.down:
            raise ConnectionRefusedError("down")
        if request.method == "GET":
            return self.found() if self.lease else self.refused(404, "NotFound")
        if request.method == "POST" and self.lease:
            return self.refused(409, "AlreadyExists")
        body = request.body or {}
        if request.method == "PUT" and (not self.lease or body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]):
            return self.refused(409 if self.lease else 404, "Conflict")
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.found()

    def found(self) -> Response:
        return Response(200, json.dumps(self.lease).encode())

    def refused(self, status: int, reason: str) -> Response:
        return Response(status, json.dumps({"reason": reason, "message": reason}).encode())

    @property
    def holder(self) -> str:
        return str((self.lease or {"spec": {"holderIdentity": ""}})["spec"]["holderIdentity"])


def make_leader(server: LeaseServer, identity: str, clock: Clock) -> Leader:
    return Leader(Client(server.send), "system", "operator", identity, FAST, monotonic=clock)


async def test_the_first_makes_the_lease_and_leads() -> None:
    server, clock = LeaseServer(), Clock()
    leader = make_leader(server, "a", clock)
    assert not leader.may_write
    await leader.acquire()
    assert leader.may_write
    assert server.holder == "a"


async def test_the_lease_goes_with_its_owner_and_keeps_it_when_it_is_renewed() -> None:
    server, clock = LeaseServer(), Clock()
    owner = {"apiVersion": "v1", "kind": "Secret", "name": "tls", "uid": "u"}

    async def owners() -> list[dict[str, Any]]:
        return [owner]

    leader = Leader(Client(server.send), "system", "operator", "a", FAST, monotonic=clock, owners=owners)
    await leader.acquire()
    assert await leader._try()
    assert server.lease
    assert server.lease["metadata"]["ownerReferences"] == [owner]


async def test_a_second_waits_while_the_first_renews() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = make_leader(server, "a", clock), make_leader(server, "b", clock)
    await first.acquire()
    for _ in range(20):
        clock.now += 2
        assert await first._try()
        assert not await second._try()
    assert server.holder == "a"


async def test_a_second_takes_over_when_the_lease_was_not_renewed_for_its_whole_duration() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = make_leader(server, "a", clock), make_leader(server, "b", clock)
    await first.acquire()
    assert not await second._try()
    clock.now += 14
    assert not await second._try()
    clock.now += 1.1
    assert not first.may_write, "the old leader may still write when another may take over"
    assert await second._try()
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_wakes_up_after_a_takeover_stops_at_once() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = make_leader(server, "a", clock), make_leader(server, "b", clock)
    await first.acquire()
    assert not await second._try()
    clock.now += 16
    assert await second._try()
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(first.keep(), 10)
    assert server.holder == "b"


async def test_a_leader_that_sees_another_holder_stops_though_its_own_time_is_not_over() -> None:
    server, clock = LeaseServer(), Clock()
    first = make_leader(server, "a", clock)
    await first.acquire()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "b"
    server.lease["metadata"]["resourceVersion"] = "99"
    with pytest.raises(LeadershipLost, match="b leads"):
        await asyncio.wait_for(first.keep(), 10)


@pytest.mark.parametrize("trouble", ["down", "slow"])
async def test_a_leader_without_answers_gives_up_before_another_may_lead(trouble: str) -> None:
    server, clock = LeaseServer(), Clock()
    leader = make_leader(server, "a", clock)
    await leader.acquire()
    setattr(server, trouble, True)
    clock.now += 9
    assert not await leader._try()
    assert leader.may_write
    clock.now += 1.1
    assert not leader.may_write
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(leader.keep(), 10)


async def test_a_short_outage_is_survived() -> None:
    server, clock = LeaseServer(), Clock()
    leader = make_leader(server, "a", clock)
    await leader.acquire()
    server.down = True
    clock.now += 5
    assert not await leader._try()
    server.down = False
    assert await leader._try()
    clock.now += 9
    assert leader.may_write


async def test_time_counts_from_before_the_request() -> None:
    server, clock = LeaseServer(), Clock()

    async def slow(request: Request) -> Response:
        clock.now += 4
        return await server.send(request)

    leader = Leader(Client(slow), "system", "operator", "a", FAST, monotonic=clock)
    await leader.acquire()
    clock.now += 2.5
    assert not leader.may_write


async def test_released_another_leads_at_once() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = make_leader(server, "a", clock), make_leader(server, "b", clock)
    await first.acquire()
    assert not await second._try()
    await first.release()
    assert not first.may_write
    assert await second._try()


async def test_a_follower_releases_nothing() -> None:
    server, clock = LeaseServer(), Clock()
    first, second = make_leader(server, "a", clock), make_leader(server, "b", clock)
    await first.acquire()
    assert not await second._try()
    await second.release()
    assert server.holder == "a"


async def test_a_restarted_process_of_the_same_pod_leads_again_without_waiting() -> None:
    server, clock = LeaseServer(), Clock()
    await make_leader(server, "a", clock).acquire()
    assert await make_leader(server, "a", clock)._try()


async def test_a_lease_that_somebody_deleted_is_made_again() -> None:
    server, clock = LeaseServer(), Clock()
    leader = make_leader(server, "a", clock)
    await leader.acquire()
    server.lease = None
    assert not await leader._try()
    assert await leader._try()
    assert server.holder == "a"


def test_the_timing_leaves_no_overlap() -> None:
    timing = Timing()
    assert timing.request_s < timing.retry_s < timing.renew_deadline_s < timing.lease_s
