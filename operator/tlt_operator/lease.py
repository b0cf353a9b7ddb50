"""Lease that one of several operators holds: only its holder works, the others stand by with filled caches.

:func:`decide` is the rule, without I/O; :class:`Leadership` asks the API server and keeps the time. Times of
two machines are never compared: whoever waits counts, on its own monotonic clock, how long the Lease has not
changed. The holder stops before that time can be over for anybody (``Timing.renew_deadline``), whether its
requests fail, are not answered, or its process was frozen; :meth:`Leadership.may_write` is asked before each
write. Losing the Lease ends the process: a restart is the one way back that has no remains of former work.

The official client's lock was measured as unsafe (docs/adr/0006-operator-without-the-official-client.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tlt_api.times import utc_now
from tlt_operator.cluster.client import ApiError, ConflictError, Json, NotFoundError

log = logging.getLogger(__name__)

_RELEASED_SECONDS = 1
"""Duration that a released Lease states: the API has no 0. Without a holder, it stands for no wait at all."""


def _elapsed_seconds() -> float:
    # A machine that was suspended has slept past the deadline: CLOCK_MONOTONIC would not count that time.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


clock: Callable[[], float] = _elapsed_seconds if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
"""Seconds that no change of the wall time moves."""


class LeaseLostError(Exception):
    """The Lease could not be renewed in time, or somebody else has taken it."""


@dataclass(frozen=True)
class Timing:
    """Times of a Lease, in seconds.

    Attributes:
        duration: Time without a change after which another operator takes the Lease.
        renew_deadline: Time after the start of its last successful renewal at which the holder stops. The
            rest of the duration is for what was already sent, and for clocks that run at different speeds.
        retry: Time between two looks at the Lease, and between two renewals.
    """

    duration: float
    renew_deadline: float
    retry: float

    @classmethod
    def of(cls, duration: float) -> Timing:
        """Return the times of a Lease: renewed every fifth of its duration, stopped at seven tenths."""
        return cls(duration, 0.7 * duration, 0.2 * duration)


@dataclass(frozen=True)
class Observed:
    """Lease as it was last seen to change.

    Attributes:
        holder: Identity of the holder; empty if nobody holds it.
        version: Its resourceVersion; empty if there is no Lease.
        duration: Seconds for which its holder claimed it.
        since: Local time at which this version was seen first.
    """

    holder: str
    version: str
    duration: float
    since: float


def observe(lease: Json | None, before: Observed | None, now: float, timing: Timing) -> Observed:
    """Return the Lease as seen now; one that has not changed keeps the time at which it was seen first."""
    if lease is None:
        # Somebody may have deleted it, and its holder have a while to work.
        version, holder = "", ""
        duration = max(before.duration if before else 0.0, timing.duration)
    else:
        spec = lease.get("spec") or {}
        version, holder = lease["metadata"]["resourceVersion"], spec.get("holderIdentity") or ""
        stated = float(spec.get("leaseDurationSeconds") or 0)
        # The longer one: an operator of another version, or with another setting, may renew less often.
        duration = max(stated, timing.duration)
        if not holder and stated <= _RELEASED_SECONDS:
            duration = 0.0
    if before is not None and before.version == version:
        return before
    return Observed(holder, version, duration, now)


def decide(seen: Observed, identity: str, now: float) -> float:
    """Return the seconds until the Lease may be taken: 0 for now, also where it is one's own already."""
    # One that does not exist is created at once, and waited for afterwards (Leadership.acquire).
    is_free = seen.holder == identity or not seen.version
    return 0.0 if is_free else max(seen.since + seen.duration - now, 0.0)


class LeaseClient(Protocol):
    """Access to Leases. Every method raises :class:`ApiError`."""

    async def get_lease(self, namespace: str, name: str) -> Json | None:
        """Get a Lease; None if it does not exist."""

    async def create_lease(self, lease: Json) -> Json:
        """Create a Lease and return it."""

    async def replace_lease(self, lease: Json) -> Json:
        """Replace a Lease in the version that it states, and return it."""


class Leadership:
    """One operator's claim to the Lease.

    Args:
        client: Access to the API server.
        namespace: Namespace of the Lease, the operator's own.
        name: Name of the Lease.
        identity: Name of this process, different from that of any other.
        timing: Times of the Lease.
        now: Monotonic seconds.
        wall: Time of day, which is written for people and read by nobody.
        spread: Factors by which the time between two looks is spread, so that operators do not look in step.
    """

    def __init__(
        self,
        client: LeaseClient,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing,
        now: Callable[[], float] = clock,
        wall: Callable[[], datetime] = utc_now,
        spread: Callable[[], float] = lambda: random.uniform(0.8, 1.2),
    ) -> None:
        self._client = client
        self._namespace, self._name, self.identity = namespace, name, identity
        self._timing, self._now, self._wall, self._spread = timing, now, wall, spread
        self._lease: Json | None = None
        self._seen: Observed | None = None
        # Times from which and until which this process may work as the holder of the Lease.
        self._begin = self._until = float("-inf")
        # Seconds for which a holder may still work whose Lease was deleted.
        self._former = 0.0
        self.trouble = ""
        """Error of the last request for the Lease while standing by; empty if it was answered."""

    def may_write(self) -> bool:
        """Tell whether this process still holds the Lease."""
        return self._begin <= self._now() < self._until

    @property
    def holder(self) -> str:
        """Holder of the Lease as last seen; empty if there is none."""
        return self._seen.holder if self._seen else ""

    async def acquire(self) -> None:
        """Wait for the Lease and take it."""
        while True:
            wait = self._timing.retry * self._spread()
            try:
                async with asyncio.timeout(self._timing.renew_deadline):
                    free_after = await self._look()
                    self.trouble = ""
                    self._note_former_holder()
                    taken = free_after == 0 and await self._write(self.identity, self._timing.duration)
                if taken:
                    await self._outlast(self._former)
                    log.info("took the Lease %s/%s as %s", self._namespace, self._name, self.identity)
                    return
                # The moment at which it becomes free is known: no further look before it would be of use, but
                # its holder may renew it.
                wait = min(wait, free_after) or wait
            # Another operator was faster: who it is shows at the next look.
            except (ConflictError, LeaseLostError):
                pass
            except (ApiError, TimeoutError) as error:
                self.trouble = (
                    f"cannot use the Lease {self._namespace}/{self._name}: {str(error) or 'no answer'}"
                )
                log.warning("%s", self.trouble)
            await asyncio.sleep(wait)

    async def keep(self) -> None:
        """Renew the Lease until it is lost.

        Raises:
            LeaseLostError: It is held by somebody else, is gone, or could not be renewed in time.
        """
        while True:
            await asyncio.sleep(self._timing.retry * self._spread())
            await self._renew()

    async def release(self) -> None:
        """Give the Lease back, so that another operator takes it at once; a failure costs its duration."""
        if not self.may_write():
            return
        try:
            async with asyncio.timeout(self._timing.renew_deadline):
                # Read again: a renewal that was cut off may have been written.
                await self._look()
                if self.holder != self.identity:
                    return
                await self._write("", _RELEASED_SECONDS)
            log.info("released the Lease %s/%s", self._namespace, self._name)
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease %s/%s was not released: %s", self._namespace, self._name, error)
        finally:
            self._until = float("-inf")

    def _note_former_holder(self) -> None:
        seen = self._seen
        if seen is not None and not seen.version:
            self._former = seen.duration
        # One's own: it may have been created by a request whose answer was lost, and nothing has changed.
        elif seen is not None and seen.holder != self.identity:
            self._former = 0.0

    async def _outlast(self, seconds: float) -> None:
        """Hold a Lease that did not exist for as long as a former holder may still work.

        Counted from the creation, not from the moment at which it was missed: it may have been created and
        deleted once more between two looks.
        """
        self._begin = self._now() + seconds
        while (left := self._begin - self._now()) > 0:
            await asyncio.sleep(min(left, self._timing.retry * self._spread()))
            await self._renew()

    async def _renew(self) -> None:
        left, problem, look = self._until - self._now(), "this process did not run", False
        while left > 0:
            try:
                # Two tries fit into the deadline; an answer that comes later is worth nothing.
                async with asyncio.timeout(min(left, self._timing.renew_deadline / 2)):
                    if look:
                        await self._look()
                        self._require_mine()
                    if await self._write(self.identity, self._timing.duration):
                        return
                problem = "the renewal left the Lease as it was"
            # Somebody wrote to the Lease, or deleted it: who holds it is asked at once.
            except (ConflictError, NotFoundError) as error:
                problem, look, left = str(error), True, self._until - self._now()
                continue
            except (ApiError, TimeoutError) as error:
                # The request may have been carried out: the version has changed then.
                problem, look = str(error) or "no answer", True
                log.warning("the Lease %s/%s is not renewed: %s", self._namespace, self._name, problem)
            await asyncio.sleep(self._timing.retry / 2)
            left = self._until - self._now()
        raise LeaseLostError(f"not renewed within {self._timing.renew_deadline:g} s: {problem}")

    def _require_mine(self) -> None:
        """Stop at once if the Lease names somebody else, or is gone."""
        if self.holder != self.identity:
            self._until = float("-inf")
            raise LeaseLostError(f"it is held by {self.holder or 'nobody'}")

    async def _look(self) -> float:
        """Read the Lease; return the seconds until it may be taken."""
        self._lease = await self._client.get_lease(self._namespace, self._name)
        self._seen = observe(self._lease, self._seen, self._now(), self._timing)
        return decide(self._seen, self.identity, self._now())

    async def _write(self, holder: str, duration: float) -> bool:
        """Write the Lease in the version that was read; return whether it has changed.

        Raises:
            ConflictError: It was changed, or created, since it was read.
            ApiError: The API server could not be asked.
        """
        # Counted from before the request: others see the renewal later than this, and count from then on.
        began, wall = self._now(), self._wall().isoformat(timespec="microseconds").replace("+00:00", "Z")
        before: dict[str, Any] = dict((self._lease or {}).get("spec") or {})
        taken = before.get("holderIdentity") != holder
        spec = before | {
            "holderIdentity": holder,
            "leaseDurationSeconds": round(duration),
            "renewTime": wall,
            # As in any Lease: since when it is held, and how often its holder has changed.
            **({"acquireTime": wall} if taken else {}),
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + bool(taken and holder),
        }
        if self._lease is None:
            metadata: Json = {"name": self._name, "namespace": self._namespace}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata,
                "spec": spec,
            }
            written = await self._client.create_lease(lease)
        else:
            written = await self._client.replace_lease({**self._lease, "spec": spec})
        # Nobody would see a renewal that changes nothing, as with a wall time that stands still.
        changed = self._lease is None or (
            written["metadata"]["resourceVersion"] != self._lease["metadata"]["resourceVersion"]
        )
        self._lease, self._seen = written, observe(written, self._seen, self._now(), self._timing)
        if changed and holder == self.identity:
            self._until = began + self._timing.renew_deadline
        return changed
