"""Operators in a simulated world: the product's own controller, cache, watches and sweep, in virtual time.

An operator speaks to the cluster through a :class:`Link`, which is where networks, API servers and processes
fail: requests take time, are refused, lost on the way there or back, or carried out after their sender has
died; watches are late, cut, or forget their place; events of our kinds get lost, doubled or mixed up. Time
passes only when nothing is left to do, so that hours cost milliseconds.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import selectors
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from operator_ring.invariants import Ledger, at_rest
from operator_ring.memory_kube import Body, KilledError
from operator_ring.simulated_cluster import SimulatedCluster
from tlt_operator import controller as controllers
from tlt_operator.clock import SteadyClock
from tlt_operator.cluster.client import ApiError, Owned, api_error
from tlt_operator.controller import Controller
from tlt_operator.health import Health
from tlt_operator.settings import Settings

_LATENCY = 0.01
_TIMEOUT_SECONDS = 30.0
_SILENCE_SECONDS = 90.0
"""Silence after which the client gives a watch up (``cluster/http.py``)."""
_REST_SECONDS = 1500.0
"""Time without a change after which the world is at rest: longer than any delay of the operator."""
_MOST_REQUESTS = 300
_LONGEST_REST = 48 * 3600.0

Answer = Literal["conflict", "throttled", "error", "unreachable", "lost", "late"]
ANSWERS: tuple[Answer, ...] = ("conflict", "throttled", "error", "unreachable", "lost", "late")
"""Ends of a request: 409, 429, 500, no connection; carried out, but the answer lost; carried out later."""


class _Selector(selectors.DefaultSelector):
    """Selector that does not wait: the time for which it should wait has passed."""

    elapsed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            assert timeout is not None, "expected something to wait for: the simulation has come to a stop"
            self.elapsed += max(timeout, 0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop in virtual time."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.elapsed


@dataclass
class Death:
    """Death of an operator at one of its next requests.

    Attributes:
        requests: Number of the request, counted from 1.
        after: True if the request is carried out before the operator dies.
    """

    requests: int
    after: bool


class Link:
    """Access of one operator to the cluster, through a network that may fail."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._cluster = world.cluster
        self.name = name
        self.is_dead = False
        self.death: Death | None = None
        self.answers: list[Answer] = []
        """Ends of the next requests; those after them succeed."""
        self.clock_error = timedelta()
        """Difference between this machine's wall clock and the cluster's."""
        self._delays: dict[str, tuple[float, float]] = {}
        self._frozen_until = 0.0
        self._cuts = 0
        self.spoilt: list[Literal["drop", "double", "swap"]] = []
        """What happens to the next events of our kinds."""

    def delay(self, what: str, seconds: float, until: float) -> None:
        """Let requests, or the events of some objects, be late by some seconds until a time."""
        self._delays[what] = (seconds, until)

    def freeze(self, until: float) -> None:
        """Stop the process until a time."""
        self._frozen_until = until

    def cut_watches(self) -> None:
        """Break the connections of all watches."""
        self._cuts += 1
        self._cluster.wake_watches()

    def heal(self) -> None:
        """Take back all that was going to go wrong."""
        self.answers, self.spoilt, self.death = [], [], None
        self._delays, self._frozen_until = {}, 0.0

    def move_clock(self, seconds: float) -> None:
        """Let this machine's wall clock differ from the cluster's."""
        self.clock_error = timedelta(seconds=seconds)
        self._world.ledger.clocks_agree = False

    def clock(self) -> datetime:
        return self._cluster.now + self.clock_error

    def count_look(self, key: Any) -> None:
        """Count a look; an operator that looks without an end is a fault too."""
        self._world.count_request(f"looks at {key}")

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **named: Any) -> Any:
            return await self._call(method, args, named)

        return call

    async def list_metadata(self, kind: Any, namespace: str | None) -> AsyncIterator[Body]:
        await self._pass("list_metadata")
        for body in [item async for item in self._cluster.list_metadata(kind, namespace)]:
            yield body
        await self._travel()

    async def list_all_warnings(self, namespace: str) -> AsyncIterator[Body]:
        await self._pass("list_all_warnings")
        for item in [item async for item in self._cluster.list_all_warnings(namespace)]:
            yield item
        await self._travel()

    async def list_owned(self, what: Owned, namespace: str | None) -> AsyncIterator[tuple[list[Body], str]]:
        await self._pass("list_owned")
        self._cluster.publish()
        pages = [page async for page in self._cluster.list_owned(what, namespace)]
        await self._travel()
        for page in pages:
            yield page

    async def watch_owned(self, what: Owned, namespace: str | None, version: str) -> AsyncIterator[Body]:
        await self._pass("watch_owned")
        async for event in self.stream(what, int(version)):
            yield event

    async def stream(self, what: str, version: int) -> AsyncIterator[Body]:
        """Watch objects from a version on."""
        if version < self._cluster.compacted:
            raise api_error(410, "too old resource version")
        cuts, journal = self._cuts, self._cluster.journal[what]
        position = bisect.bisect_right(journal, version, key=lambda change: change.version)
        while True:
            news = self._cluster.news[what]
            while position < len(journal):
                await self._delivered(what, cuts)
                position += 1
                yield {"type": journal[position - 1].type, "object": journal[position - 1].body}
            # A bookmark a minute, without which a watch counts as dead.
            # Not wait_for, which may swallow a cancellation that comes with the news.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    await news.wait()
            await self._thawed()
            if self.is_dead:
                raise KilledError
            if cuts != self._cuts:
                raise ApiError(0, "connection reset by peer")

    async def _delivered(self, what: str, cuts: int) -> None:
        """Wait as long as an event takes to arrive."""
        seconds = self._delay_of(what)
        await asyncio.sleep(min(seconds, _SILENCE_SECONDS))
        await self._thawed()
        if seconds > _SILENCE_SECONDS:
            raise ApiError(0, "no event and no bookmark for 90 s")
        if cuts != self._cuts:
            raise ApiError(0, "connection reset by peer")

    async def _call(self, method: str, args: Any, named: Any) -> Any:
        self._world.count_request(method)
        answer = await self._pass(method)
        request = getattr(self._cluster, method)
        if answer == "late":
            self._world.carry_out_later(request(*args, **named), 2 * _TIMEOUT_SECONDS)
            await asyncio.sleep(_TIMEOUT_SECONDS)
            raise ApiError(0, "timeout")
        result = await request(*args, **named)
        self._cluster.publish()
        if self.death and self.death.requests <= 0:
            self.die()
            raise KilledError
        await self._travel()
        if answer == "lost":
            raise ApiError(0, "connection reset by peer")
        return result

    async def _pass(self, method: str) -> Answer | None:
        """Bring a request to the API server; return what will happen to its answer."""
        await self._travel()
        if self.death:
            self.death.requests -= 1
            if self.death.requests <= 0 and not self.death.after:
                self.die()
                raise KilledError
        answer = self.answers.pop(0) if self.answers else None
        writes = not method.startswith(("get", "list", "is_", "watch"))
        match answer:
            case "conflict" if writes:
                raise api_error(409, "the object has been modified; please apply your changes")
            case "conflict" | "error":
                raise api_error(500, "etcdserver: request timed out")
            case "throttled":
                raise api_error(429, "too many requests, please try again later", 3.0)
            case "unreachable":
                raise api_error(0, "connection refused")
            case "late" if not writes or method == "create_event":
                raise api_error(0, "timeout")
        if method == "create_job" and self._cluster.is_away("webhook"):
            raise api_error(500, 'failed calling webhook "jobs.example.com": connection refused')
        return answer

    async def _travel(self) -> None:
        if self.is_dead:
            raise KilledError
        await asyncio.sleep(self._delay_of("requests"))
        await self._thawed()
        if self.is_dead:
            raise KilledError

    async def _thawed(self) -> None:
        while self._world.loop.time() < self._frozen_until and not self.is_dead:
            await asyncio.sleep(1)

    def _delay_of(self, what: str) -> float:
        seconds, until = self._delays.get(what, (0.0, 0.0))
        return _LATENCY + (seconds if self._world.loop.time() < until else 0.0)

    def die(self) -> None:
        """Let nothing more through: the process is gone."""
        self.is_dead = True
        self.death = None


class SimulatedOperator:
    """Operator of the product, with a feed of our kinds in place of kopf."""

    def __init__(self, world: World, name: str) -> None:
        loop = world.loop
        self.link = Link(world, name)
        self._cluster = world.cluster
        settings = Settings(workers=2)
        health = Health(settings.sweep_seconds, clock=loop.time)
        self.controller = Controller(self.link, settings, health, SteadyClock(self.link.clock, loop.time))
        # The list of Events is kept for a while.
        self.controller.cache._clock = loop.time
        self.controller.index.reports.clock = loop.time
        # Without a Lease: two of them at once are the harder case.
        self.controller.lead()
        self._tasks = [loop.create_task(self.controller.run()), loop.create_task(self._feed())]

    @property
    def is_dead(self) -> bool:
        return self.link.is_dead

    async def kill(self) -> None:
        """End the process at once, whatever it waits for."""
        self.link.die()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.controller.queue.close()
        for error in results:
            if isinstance(error, BaseException):
                _require_death(error)

    def check(self) -> None:
        """Raise the error by which a part has ended."""
        for task in self._tasks:
            if task.done() and not self.link.is_dead:
                task.result()

    async def _feed(self) -> None:
        """Watch our kinds, as kopf does: a list, then events; after an error the same again."""
        await self.controller.watches.synced(60)
        while True:
            try:
                await self.link._pass("list_resources")
                self._cluster.publish()
                version = self._cluster._version
                for body in list(self._cluster.resources.values()):
                    self._report("ADDED", body)
                held: Body | None = None
                async for event in self.link.stream("resources", version):
                    spoil = self.link.spoilt.pop(0) if self.link.spoilt else None
                    if spoil == "drop":
                        continue
                    if spoil == "swap" and held is None:
                        held = event
                        continue
                    self._report(event["type"], event["object"])
                    if spoil == "double":
                        self._report(event["type"], event["object"])
                    if held is not None:
                        self._report(held["type"], held["object"])
                        held = None
            except ApiError:
                await asyncio.sleep(1)

    def _report(self, type_: str, body: Body) -> None:
        self.controller.resource_changed(body, deleted=type_ == "DELETED")


def _require_death(error: BaseException) -> None:
    """Raise an error that is not the death of the process."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            _require_death(inner)
    elif not isinstance(error, KilledError | asyncio.CancelledError):
        raise error


class World:
    """Cluster and operators in one virtual time."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.ledger = Ledger()
        self.ledger.deserved = {}
        self.ledger.clock = self.loop.time
        self.cluster = self.loop.run_until_complete(self._make_cluster())
        self.operators: list[SimulatedOperator] = []
        self._requests, self._at = 0, 0.0
        self._later: set[asyncio.Task[None]] = set()

    async def _make_cluster(self) -> SimulatedCluster:
        return SimulatedCluster(self.ledger, self.loop)

    def start_operator(self) -> SimulatedOperator:
        """Start an operator, which knows nothing of the ones before."""

        async def start() -> SimulatedOperator:
            return SimulatedOperator(self, f"operator {len(self.operators) + 1}")

        self.cluster.one_leads = self.cluster.one_leads and not self.operators
        self.ledger.operators += 1
        with _counted():
            operator = self.loop.run_until_complete(start())
        self.operators.append(operator)
        return operator

    def let_pass(self, seconds: float) -> None:
        """Let time pass; operators that have died meanwhile are buried, and their errors looked at."""
        self.cluster.publish()
        with _counted():
            self.loop.run_until_complete(asyncio.sleep(seconds))
            for operator in list(self.operators):
                if operator.is_dead:
                    self.loop.run_until_complete(operator.kill())
                    self.operators.remove(operator)
                else:
                    operator.check()

    def kill(self, operator: SimulatedOperator) -> None:
        """Kill an operator."""
        with _counted():
            self.loop.run_until_complete(operator.kill())
        self.operators.remove(operator)

    def carry_out_later(self, request: Any, seconds: float) -> None:
        """Carry a request out whose sender has given it up."""

        async def carry_out() -> None:
            await asyncio.sleep(seconds)
            with contextlib.suppress(ApiError):
                await request
            self.cluster.publish()

        self.cluster.one_leads = False
        task = self.loop.create_task(carry_out())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def count_request(self, what: str) -> None:
        """Count a request; an operator that asks without an end is a fault too."""
        same_moment = self._at == self.loop.time()
        self._requests, self._at = self._requests + 1 if same_moment else 1, self.loop.time()
        if self._requests > _MOST_REQUESTS:
            self.ledger.problems.append(f"more than {_MOST_REQUESTS} requests at one moment, last {what}")
            raise KilledError

    def problems(self) -> list[str]:
        """Return what is wrong so far."""
        return self.ledger.problems

    def come_to_rest(self) -> list[str]:
        """Heal the surroundings, let time pass until nothing changes, and return what is wrong then."""
        if not self.operators:
            self.start_operator()
        for operator in self.operators:
            operator.link.heal()
        end, last_change = self.loop.time() + _LONGEST_REST, self.loop.time()
        while self.loop.time() - last_change < _REST_SECONDS:
            changes = self.cluster.changes
            self.cluster.heal()
            self.let_pass(15 if self.loop.time() - last_change < 60 else 120)
            if self.cluster.changes > changes:
                last_change = self.loop.time()
            if self.loop.time() > end:
                return ["no rest within two days", *self._judge()]
        return self._judge()

    def _judge(self) -> list[str]:
        cluster = self.cluster
        return at_rest(cluster.resources.values(), cluster.jobs.values(), cluster.pods.values())

    def close(self) -> None:
        """End everything."""
        for operator in list(self.operators):
            self.kill(operator)
        for task in list(self._later):
            task.cancel()
        if self._later:
            self.loop.run_until_complete(asyncio.gather(*self._later, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Count each operator's looks."""
    original = controllers.reconcile_once

    async def look(client: Any, *args: Any, **named: Any) -> controllers.Look:
        client.source.count_look(args[0])
        return await original(client, *args, **named)

    controllers.reconcile_once = look
    try:
        yield
    finally:
        controllers.reconcile_once = original
