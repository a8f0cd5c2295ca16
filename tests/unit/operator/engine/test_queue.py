"""Many events make one pass; a key runs once at a time; failures back off; known moments wake."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime

import pytest
from finetune_operator.engine import queue as queue_module
from finetune_operator.engine.queue import LONGEST_BACKOFF_S, Outcome, Queue
from finetune_operator.engine.store import Key

A, B = Key("FineTuneJob", "team", "a"), Key("FineTuneJob", "team", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Queue:
    return Queue(monotonic=clock, wall=lambda: clock.now)


async def is_empty(queue: Queue) -> bool:
    try:
        await asyncio.wait_for(queue.take(), 0.01)
    except TimeoutError:
        return True
    return False


async def test_many_events_make_one_pass(queue: Queue) -> None:
    for _ in range(100):
        queue.add(A)
    assert await queue.take() == A
    assert await is_empty(queue)


async def test_the_key_that_waited_longest_goes_first(queue: Queue) -> None:
    queue.add(B)
    queue.add(A)
    assert [await queue.take(), await queue.take()] == [B, A]


async def test_a_key_never_runs_twice_at_a_time_and_an_event_meanwhile_is_not_lost(queue: Queue) -> None:
    queue.add(A)
    await queue.take()
    queue.add(A)
    assert await is_empty(queue)
    queue.done(A, Outcome())
    assert await queue.take() == A


async def test_a_pass_that_wrote_is_followed_by_another(queue: Queue) -> None:
    queue.add(A)
    await queue.take()
    queue.done(A, Outcome(again=True))
    assert await queue.take() == A
    queue.done(A, Outcome())
    assert await is_empty(queue)


async def test_passes_that_write_for_ever_are_slowed(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    passes = 0
    for _ in range(50):
        if await is_empty_now(queue):
            break
        await queue.take()
        queue.done(A, Outcome(again=True))
        passes += 1
    assert passes == queue_module._FREE_REPEATS + 1
    clock.now += 1.0
    assert await queue.take() == A


async def is_empty_now(queue: Queue) -> bool:
    return not queue.is_ready()


async def test_failures_back_off_longer_and_longer_up_to_a_bound(queue: Queue, clock: Clock) -> None:
    waits = []
    queue.add(A)
    for _ in range(12):
        taken_at = clock.now
        while await is_empty_now(queue):
            clock.now += 0.05
            assert clock.now - taken_at < 2 * LONGEST_BACKOFF_S, "it never comes back"
        waits.append(clock.now - taken_at)
        await queue.take()
        queue.done(A, Outcome(failed=True))
    assert waits[0] == 0
    assert all(earlier <= later * 1.3 + 0.1 for earlier, later in itertools.pairwise(waits))
    assert max(waits) <= LONGEST_BACKOFF_S + 0.1
    assert waits[-1] >= 0.8 * LONGEST_BACKOFF_S - 0.1


async def test_success_ends_the_back_off(queue: Queue, clock: Clock) -> None:
    for _ in range(6):
        queue.add(A)
        clock.now += 100
        await queue.take()
        queue.done(A, Outcome(failed=True))
    clock.now += 100
    await queue.take()
    queue.done(A, Outcome())
    queue.add(A)
    await queue.take()
    queue.done(A, Outcome(failed=True))
    clock.now += queue_module.FIRST_BACKOFF_S
    assert await queue.take() == A


async def test_an_event_cuts_a_long_back_off_short_but_not_to_nothing(queue: Queue, clock: Clock) -> None:
    for _ in range(10):
        queue.add(A)
        clock.now += 100
        await queue.take()
        queue.done(A, Outcome(failed=True))
    queue.add(A)
    assert await is_empty_now(queue)
    clock.now += queue_module.TOUCHED_BACKOFF_S
    assert await queue.take() == A


async def test_retry_after_is_heeded(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    await queue.take()
    queue.done(A, Outcome(failed=True, retry_after_s=50))
    clock.now += 49
    assert await is_empty_now(queue)
    clock.now += 2
    assert await queue.take() == A


async def test_no_event_and_no_recheck_cuts_short_what_the_api_server_asked_for(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    await queue.take()
    queue.add(A)  # the echo of its own write
    queue.done(A, Outcome(failed=True, retry_after_s=50, recheck_at=datetime.fromtimestamp(clock.now + 5, UTC)))
    for _ in range(49):
        clock.now += 1
        queue.add(A)
        assert await is_empty_now(queue)
    clock.now += 2
    assert await queue.take() == A
    queue.done(A, Outcome(failed=True))
    queue.add(A)
    clock.now += queue_module.TOUCHED_BACKOFF_S
    assert await queue.take() == A, "it was asked for once"


async def test_a_recheck_comes_at_its_moment_and_only_the_earliest_counts(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    await queue.take()
    queue.done(A, Outcome(recheck_at=datetime.fromtimestamp(clock.now + 60, UTC)))
    queue.add_after(A, 10)
    queue.add_after(A, 30)
    clock.now += 9
    assert await is_empty_now(queue)
    clock.now += 2
    assert await queue.take() == A
    queue.done(A, Outcome())
    clock.now += 100
    assert await is_empty_now(queue), "a recheck that was overtaken came all the same"


async def test_a_waiting_taker_wakes_for_a_recheck_in_real_time() -> None:
    queue = Queue()
    queue.add_after(A, 0.02)
    assert await asyncio.wait_for(queue.take(), 1.0) == A


async def test_age_counts_what_waits_and_runs_but_not_what_backs_off(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    clock.now += 5
    assert queue.oldest_s == 5
    await queue.take()
    clock.now += 5
    assert queue.oldest_s == 5
    queue.done(A, Outcome(failed=True))
    assert queue.oldest_s == 0


async def test_workers_run_different_keys_at_a_time(queue: Queue) -> None:
    running: set[Key] = set()
    together = asyncio.Event()

    async def process(key: Key) -> Outcome:
        running.add(key)
        if running == {A, B}:
            together.set()
        await asyncio.wait_for(together.wait(), 1.0)
        return Outcome()

    queue.add(A)
    queue.add(B)
    task = asyncio.create_task(queue.run(process, workers=2))
    await asyncio.wait_for(together.wait(), 1.0)
    task.cancel()


async def test_what_a_pass_raises_ends_the_run(queue: Queue) -> None:
    async def process(key: Key) -> Outcome:
        raise RuntimeError("not leading")

    queue.add(A)
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(queue.run(process, workers=2), 1.0)


async def test_a_recheck_that_moves_for_ever_leaves_no_trail(queue: Queue, clock: Clock) -> None:
    for passed in range(20_000):
        queue.add(A)
        await queue.take()
        queue.done(A, Outcome(recheck_at=datetime.fromtimestamp(clock.now + 10_000 + passed, UTC)))
    assert len(queue._rechecks.heap) < 200
    clock.now += 40_000
    assert await queue.take() == A
    queue.done(A, Outcome())
    assert await is_empty(queue)


async def test_no_recheck_is_lost_when_the_trail_is_cleared(queue: Queue, clock: Clock) -> None:
    keys = [Key("FineTuneJob", "team", f"{number}") for number in range(50)]
    for passed in range(100):
        for key in keys:
            queue.add_after(key, 10_000 - passed)
    clock.now += 10_000
    assert {await queue.take() for _ in keys} == set(keys)


async def test_a_pass_that_may_not_write_ends_all_workers_though_news_comes_at_that_moment(queue: Queue) -> None:
    async def lose(key: Key) -> Outcome:
        await asyncio.sleep(0.001)
        queue.add(B)
        raise PermissionError

    queue.add_after(Key("FineTuneJob", "team", "due later"), 100)
    running = asyncio.create_task(queue.run(lose, 8))
    await asyncio.sleep(0.01)
    queue.add(A)
    done, _ = await asyncio.wait({running}, timeout=2)
    assert done, "a worker outlives the group"
    assert isinstance(running.exception(), ExceptionGroup)
