"""Warning Events by the object that they are about, from one list of a namespace for all who ask.

Events are not indexed: for each list the API server reads all of them, however few match. One list every half
minute therefore serves all resources that wait for a pod, and wakes those about which something new is said.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

from tlt_operator.cluster.client import ApiError, Json, Source

log = logging.getLogger(__name__)

REFRESH_SECONDS = 30.0
"""Time between two lists of a namespace, and the age up to which a list is used, if a list is short."""
_INTEREST_SECONDS = 900.0
"""Time for which a namespace is listed again after somebody asked: the sweep asks for all who still wait."""
_POD_NAME = re.compile(r"""(pods? "[^"]*-)[a-z0-9]{5}(?=")""")
"""Name of a pod that was refused: another one at each try, though nothing else is said."""
_COMBINED = "(combined from similar events): "
"""Prefix of a message once there are ten Events about an object."""
_SHARE_OF_TIME = 0.01
"""Share of the time that lists of a namespace may take."""
_FIELDS = ("reason", "message", "lastTimestamp", "eventTime")


class WarningEvents:
    """Warning Events of the namespaces in which pods are waited for.

    Args:
        source: Access to the API server.
        clock: Clock of monotonic seconds.
    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._asked: dict[str, float] = {}
        self._listed: dict[str, float] = {}
        self._interval: dict[str, float] = {}
        self._events: dict[str, dict[str, list[Json]]] = {}
        self._reported: dict[str, dict[str, set[tuple[str, str]]]] = {}

    async def about(self, namespace: str, uid: str) -> Sequence[Json]:
        """Return the Warning Events about an object, as of half a minute ago at most."""
        self._asked[namespace] = self._clock()
        if self._is_old(namespace):
            await self._list(namespace)
        return self._events.get(namespace, {}).get(uid, [])

    async def refresh(self) -> set[str]:
        """List the namespaces about which somebody asked lately; return the uids about which news came."""
        news: set[str] = set()
        for namespace, asked in list(self._asked.items()):
            if self._clock() - asked > _INTEREST_SECONDS:
                for state in (self._asked, self._listed, self._interval, self._events, self._reported):
                    state.pop(namespace, None)
                continue
            if self._is_old(namespace):
                # A namespace that cannot be listed must not swallow the news of those before it.
                try:
                    await self._list(namespace)
                except ApiError as error:
                    log.warning(
                        "cannot list Events in %s, tries again in %.0f s: %s",
                        namespace,
                        REFRESH_SECONDS,
                        error,
                    )
                    continue
            # Against what was news before, not against the last list: that may have been made for somebody
            # who asked about one object.
            before = self._reported.get(namespace, {})
            said = {uid: _said(events) for uid, events in self._events.get(namespace, {}).items()}
            news |= {uid for uid, words in said.items() if words != before.get(uid)}
            self._reported[namespace] = said
        return news

    def _is_old(self, namespace: str) -> bool:
        listed = self._listed.get(namespace)
        return listed is None or self._clock() - listed >= self._interval.get(namespace, REFRESH_SECONDS)

    async def _list(self, namespace: str) -> None:
        # Set before the answer: others that ask meanwhile do not list once more.
        begin = self._listed[namespace] = self._clock()
        events: dict[str, list[Json]] = {}
        try:
            async for item in self._source.list_all_warnings(namespace):
                about = events.setdefault((item.get("involvedObject") or {}).get("uid") or "", [])
                event = {field: item.get(field) for field in _FIELDS}
                about.append({**event, "message": _what_is_said(event["message"] or "")})
        except BaseException:
            del self._listed[namespace]
            raise
        self._events[namespace] = events
        # Of thousands of Events a list takes seconds: it is made less often.
        self._interval[namespace] = max(REFRESH_SECONDS, (self._clock() - begin) / _SHARE_OF_TIME)


def _what_is_said(message: str) -> str:
    """Return a message without what differs from one Event to the next, though nothing else is said."""
    return _POD_NAME.sub(r"\1*", message.removeprefix(_COMBINED))


def _said(events: Sequence[Json]) -> set[tuple[str, str]]:
    """Return what the Events about an object say, however often and when."""
    return {(event.get("reason") or "", event.get("message") or "") for event in events}
