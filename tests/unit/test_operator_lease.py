"""The Lease: at most one operator works, whatever dies, freezes or is cut off, and another one follows soon.

Time is simulated: the loop's clock jumps to the next timer, and each operator has a clock of its own, which
may run fast or slow. Requests take as long as the test says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from operator_ring.simulated_time import SimulatedTime
from tlt_operator.cluster.client import ApiError, ConflictError, Json, NotFoundError
from tlt_operator.lease import Leadership, LeaseLostError, Timing, decide, observe

TIMING = Timing.of(10)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Server:
    """API server with one Lease."""

    def __init__(self, loop: SimulatedTime) -> None:
        self.loop = loop
        self.lease: dict[str, Any] | None = None
        self.version = 0

    def put(self, lease: Json, version: str | None) -> Json:
        current = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if version is not None and current is None:
            raise NotFoundError(404, "no Lease")
        if version != current:
            raise ConflictError(409, f"version {version}, now {current}")
        # As an API server: what changes nothing makes no version.
        if self.lease is None or self.lease["spec"] != lease["spec"]:
            self.version += 1
        metadata = {**lease["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**lease, "metadata": metadata, "spec": dict(lease["spec"])}
        return self.lease

    def steal(self, holder: str) -> None:
        """Write another holder, as by ``kubectl edit``."""
        assert self.lease
        spec = {**self.lease["spec"], "holderIdentity": holder}
        self.put({**self.lease, "spec": spec}, self.lease["metadata"]["resourceVersion"])


class Link:
    """Way of one operator to the server.

    Attributes:
        delay: Seconds that a request takes, half of them before the server has it.
        up: False for a partition: requests get no answer.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.delay = 0.01
        self.up = True
        self.error: ApiError | None = None

    async def get_lease(self, namespace: str, name: str) -> Any:
        return await self._travel(lambda: self.server.lease)

    async def create_lease(self, lease: Json) -> Any:
        return await self._travel(lambda: self.server.put(lease, None))

    async def replace_lease(self, lease: Json) -> Any:
        version = lease["metadata"]["resourceVersion"]
        return await self._travel(lambda: self.server.put(lease, version))

    async def _travel(self, arrive: Callable[[], Any]) -> Any:
        await asyncio.sleep(self.delay / 2)
        if self.error:
            raise self.error
        if not self.up:
            await asyncio.sleep(3600)
        answer = arrive()
        await asyncio.sleep(self.delay / 2)
        if not self.up:
            await asyncio.sleep(3600)
        return answer


class Operator:
    """Operator with a Lease, and with a clock that runs at its own rate."""

    def __init__(self, server: Server, name: str, rate: float = 1.0, timing: Timing = TIMING) -> None:
        self.loop = server.loop
        self.name, self.rate, self.timing = name, rate, timing
        self.link = Link(server)
        self.wall: Callable[[], datetime] = lambda: NOON + timedelta(seconds=self.loop.now)
        self.ended_at: float | None = None
        self.why = ""
        self.lives = 0
        self.start()

    def start(self) -> None:
        # As the process does: its next life is another holder.
        self.lives += 1
        self.lease = Leadership(
            self.link,
            "tlt-system",
            "tlt-operator",
            self.name if self.lives == 1 else f"{self.name}.{self.lives}",
            self.timing,
            now=lambda: self.loop.now * self.rate,
            wall=lambda: self.wall(),
            spread=lambda: 1.0,
        )
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self.lease.acquire()
            await self.lease.keep()
        except LeaseLostError as error:
            self.ended_at, self.why = self.loop.now, str(error)

    def works(self) -> bool:
        """Tell whether its workers may write."""
        return self.lease.may_write()

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.task.cancel()
        self.lease.may_write = lambda: False  # type: ignore[method-assign]

    async def stop(self) -> None:
        """End it as SIGTERM does."""
        self.task.cancel()
        await self.lease.release()


def simulated(test: Callable[[Server], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in simulated time."""

    def run() -> None:
        loop = SimulatedTime()
        try:
            loop.run_until_complete(_as_coroutine(test, loop))
            loop.run_until_complete(_end_others())
        finally:
            loop.close()

    run.__name__ = test.__name__
    return run


async def _as_coroutine(test: Callable[[Server], Awaitable[None]], loop: SimulatedTime) -> None:
    await test(Server(loop))


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def until(check: Callable[[], bool], limit: float = 60.0) -> float:
    """Wait in steps of 10 ms; return the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not check():
        assert loop.time() - began < limit, "it did not happen"
        await asyncio.sleep(0.01)
    return loop.time() - began


@simulated
async def test_the_first_operator_works_after_the_duration_and_the_second_one_stands_by(
    server: Server,
) -> None:
    first = Operator(server, "first")
    # Without a Lease it cannot know that it is the first.
    assert 10 <= await until(first.works) < 10.1
    second = Operator(server, "second")
    await asyncio.sleep(600)
    assert (first.works(), second.works()) == (True, False)
    assert server.lease
    assert server.lease["spec"]["holderIdentity"] == "first"
    assert server.lease["spec"]["leaseTransitions"] == 1


@simulated
async def test_a_killed_leader_is_followed_within_twelve_and_a_half_seconds(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    first.kill()
    # 10 s since the standby saw the last renewal, which was at most 2 s old when it looked.
    assert 6 < await until(second.works) <= 12.5


@simulated
async def test_a_leader_that_ends_hands_over_at_once(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    await first.stop()
    assert server.lease
    assert server.lease["spec"]["holderIdentity"] == ""
    assert await until(second.works) <= TIMING.retry + 0.1


@simulated
async def test_a_leader_that_is_cut_off_ends_before_another_one_begins(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    first.link.up = False
    stopped = await until(lambda: not first.works())
    assert not second.works()
    assert stopped <= TIMING.renew_deadline
    assert 1 < await until(second.works) <= 12.5 - 5
    assert first.ended_at is not None
    assert "not renewed within 7 s" in first.why


@simulated
async def test_a_leader_that_was_frozen_does_not_write_when_it_wakes_up(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    # Its process sleeps: the loop runs nothing of it, but the time goes on.
    server.loop.now += 60
    assert not first.works()  # before any of its timers
    await until(lambda: first.ended_at is not None)
    assert "did not run" in first.why


@simulated
async def test_a_leader_whose_lease_is_taken_ends_within_a_renewal(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    server.steal("somebody")
    assert await until(lambda: first.ended_at is not None) <= TIMING.retry + 0.1
    assert "held by somebody" in first.why
    assert not first.works()
    # The thief never renews it: the standby waits as for any other holder.
    assert 8 < await until(second.works) <= 12.5


@simulated
async def test_a_lease_without_a_holder_that_nobody_released_is_waited_for(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    server.steal("")  # by hand: the leader may not have noticed
    while first.works():
        assert not second.works()
        await asyncio.sleep(0.01)
    await until(second.works)


@simulated
async def test_a_deleted_lease_ends_its_holder_before_another_one_begins(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    server.lease = None
    while first.works():
        assert not second.works()
        await asyncio.sleep(0.01)
    assert "held by nobody" in first.why
    assert await until(second.works) <= 12.5


@simulated
async def test_jumps_of_the_wall_time_have_no_effect(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    for jump in (timedelta(days=-365), timedelta(days=365), timedelta(0)):
        first.wall = lambda jump=jump: NOON + jump + timedelta(seconds=server.loop.now)  # type: ignore[misc]
        second.wall = lambda jump=jump: NOON - jump  # type: ignore[misc]
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert (first.works(), second.works()) == (True, False)


@simulated
async def test_a_wall_time_that_stands_still_ends_the_leader_before_another_one_begins(
    server: Server,
) -> None:
    first = Operator(server, "first")
    await until(first.works)
    second = Operator(server, "second")
    await asyncio.sleep(30)
    stands = NOON + timedelta(days=1)
    first.wall = lambda: stands
    while first.works():
        assert not second.works()
        await asyncio.sleep(0.01)
    await until(lambda: first.ended_at is not None)
    assert "left the Lease as it was" in first.why


@simulated
async def test_errors_of_the_server_shorter_than_the_deadline_cost_nothing(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    first.link.error = ApiError(503, "restarts")
    await asyncio.sleep(4)
    first.link.error = None
    await asyncio.sleep(60)
    assert first.works()


@simulated
async def test_an_annotation_on_the_lease_is_no_theft(server: Server) -> None:
    first = Operator(server, "first")
    await until(first.works)
    assert server.lease
    server.version += 1
    server.lease["metadata"]["resourceVersion"] = str(server.version)
    await asyncio.sleep(60)
    assert first.works()


@simulated
async def test_an_operator_that_may_not_use_leases_says_so_and_goes_on_trying(server: Server) -> None:
    first = Operator(server, "first")
    first.link.error = ApiError(403, "leases.coordination.k8s.io is forbidden")
    await asyncio.sleep(30)
    assert "cannot use the Lease tlt-system/tlt-operator: 403" in first.lease.trouble
    first.link.error = None
    await until(first.works)
    assert first.lease.trouble == ""


@simulated
async def test_a_take_over_whose_answer_was_lost_is_noticed(server: Server) -> None:
    first = Operator(server, "first")
    # The server has the request after 4 s; its answer would come after the operator gave up.
    first.link.delay = 8
    await asyncio.sleep(30)
    first.link.delay = 0.01
    assert await until(first.works) <= 12.5


@simulated
async def test_a_standby_waits_for_as_long_as_the_holder_stated(server: Server) -> None:
    first = Operator(server, "first", timing=Timing.of(40))
    await until(first.works)
    second = Operator(server, "second", timing=Timing.of(10))
    await asyncio.sleep(60)
    first.kill()
    assert await until(second.works) > 30


@simulated
async def test_a_lease_that_is_missing_is_created_at_once_and_held_before_any_work(server: Server) -> None:
    first = Operator(server, "first")
    await asyncio.sleep(1)
    assert server.lease
    assert server.lease["spec"]["holderIdentity"] == "first"
    assert not first.works()
    # Deleted once more, which the other one has not seen: both must not work.
    server.lease = None
    second = Operator(server, "second")
    await asyncio.sleep(5)
    begun = await until(lambda: first.works() or second.works())
    assert 4 < begun < 10.1


def test_the_rule_takes_a_released_lease_at_once() -> None:
    lease = {"metadata": {"resourceVersion": "7"}, "spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}
    assert decide(observe(lease, None, 5.0, TIMING), "me", 5.0) == 0


def test_the_rule_counts_from_the_moment_at_which_a_version_was_seen_first() -> None:
    lease: dict[str, Any] = {
        "metadata": {"resourceVersion": "7"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 10},
    }
    seen = observe(lease, None, 100.0, TIMING)
    seen = observe(lease, seen, 106.0, TIMING)
    assert decide(seen, "b", 106.0) == 4
    assert decide(seen, "a", 106.0) == 0
    lease["metadata"]["resourceVersion"] = "8"
    seen = observe(lease, seen, 107.0, TIMING)
    assert decide(seen, "b", 107.0) == 10


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
# The Lease was deleted twice between two looks of an operator that waited for its holder's end.
@example(245006)
@example(596286)
@example(943509)
def test_at_most_one_operator_works_whatever_happens(seed: int) -> None:
    # Three operators whose clocks differ by two per cent; partitions, deaths, thefts, slow answers.
    chance = random.Random(seed)

    async def history(server: Server) -> None:
        operators = [Operator(server, f"{number}", 1 + chance.uniform(-0.01, 0.01)) for number in range(3)]
        for _ in range(25):
            operator = chance.choice(operators)
            event = chance.choice(["cut", "mend", "kill", "stop", "steal", "delete", "slow", "nothing"])
            if event in ("cut", "mend"):
                operator.link.up = event == "mend"
            elif event == "slow":
                operator.link.delay = chance.choice([0.01, 1.0, 3.0, 6.0])
            elif event == "steal" and server.lease:
                server.steal(chance.choice(["", "somebody"]))
            elif event == "delete":
                server.lease = None
            elif event == "kill":
                operator.kill()
                operator.start()
            elif event == "stop" and operator.link.up:
                await operator.stop()
                operator.start()
            for _ in range(int(chance.uniform(1, 300))):
                await asyncio.sleep(0.1)
                assert sum(item.works() for item in operators) <= 1
                for item in operators:
                    # Kubernetes restarts it.
                    if item.ended_at is not None:
                        item.ended_at = None
                        item.start()
        for operator in operators:
            operator.link.up, operator.link.delay = True, 0.01
            if operator.ended_at is not None:
                operator.ended_at = None
                operator.start()
        await until(lambda: any(operator.works() for operator in operators))

    simulated(history)()


@pytest.mark.parametrize("duration", [5, 10, 60])
def test_the_times_leave_room_between_the_end_of_one_and_the_begin_of_the_next(duration: float) -> None:
    timing = Timing.of(duration)
    assert timing.duration - timing.renew_deadline >= 0.25 * timing.duration
    assert timing.renew_deadline >= 3 * timing.retry
